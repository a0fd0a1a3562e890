"""What a network does on a split that it does not learn from."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.data import Split
from pcexp.energy import outputs
from pcexp.model.network import Network


def batch_layout(network: Any, x: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """Examples with the batch axis where the network takes it."""
    return jnp.moveaxis(x, 0, network.input_batch_axis)


def evaluate(network: Network, split: Split, *, stacked: bool = False, examples: int = 1000) -> dict[str, Any]:
    """Loss and accuracy over all examples of a split, so many at a time; of each lane of a `stacked` network.

    The loss is 1/(2n) sum ||y - f(x)||^2 of what the split's mask counts, or -1/n sum y log f(x) of a softmax output.
    """
    n, right, total = len(split.x), 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # of a lane that diverged
        for i in range(0, n, examples):
            x, y = jnp.asarray(split.x[i : i + examples], jnp.result_type(float)), split.y[i : i + examples].T
            f = np.asarray((_outputs_of_lanes if stacked else _outputs)(network, x))
            right = right + np.sum(np.argmax(f, axis=-2) == np.argmax(y, axis=0), axis=-1)
            if network.output == "softmax":
                losses = -y * np.log(np.maximum(f, np.finfo(f.dtype).tiny))
            else:
                losses = (y - f) ** 2 / 2
            if split.mask is not None:
                losses = losses * split.mask[i : i + examples].T
            total = total + np.sum(losses, axis=(-2, -1), dtype=float)
    return {"loss": np.asarray(total / n).tolist(), "accuracy": np.asarray(right / n).tolist()}


def _all_outputs(network: Network, x: jax.Array) -> jax.Array:
    return outputs(network, batch_layout(network, x))


_outputs = eqx.filter_jit(_all_outputs)
_outputs_of_lanes = eqx.filter_jit(eqx.filter_vmap(_all_outputs, in_axes=(eqx.if_array(0), None)))
