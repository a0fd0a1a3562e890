"""What a network does on a split that it does not learn from."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.data import Split
from pcexp.energy import forward_pass
from pcexp.model.network import Network


def batch_layout(network: Any, x: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """Examples with the batch axis where the network takes it."""
    return jnp.moveaxis(x, 0, network.input_batch_axis)


def evaluate(network: Network, split: Split, *, stacked: bool = False, examples: int = 1000) -> dict[str, Any]:
    """Loss and accuracy over all examples of a split, so many at a time; of each lane of a `stacked` network.

    The loss is the output's, averaged over the examples, of what the split's mask counts.
    """
    n, right, total = len(split.x), 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # of a lane that diverged
        for i in range(0, n, examples):
            x, y = jnp.asarray(split.x[i : i + examples], jnp.result_type(float)), split.y[i : i + examples].T
            f, losses = map(np.asarray, (_outputs_of_lanes if stacked else _outputs)(network, x, jnp.asarray(y)))
            right = right + np.sum(np.argmax(f, axis=-2) == np.argmax(y, axis=0), axis=-1)
            if split.mask is not None:
                losses = losses * split.mask[i : i + examples].T
            total = total + np.sum(losses, axis=(-2, -1), dtype=float)
    return {"loss": np.asarray(total / n).tolist(), "accuracy": np.asarray(right / n).tolist()}


def _all_outputs(network: Network, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    at = forward_pass(network, batch_layout(network, x))
    return at.activities[-1][-1], network.output.losses(at.references[-1].linear, y[None])[0]


_outputs = eqx.filter_jit(_all_outputs)
_outputs_of_lanes = eqx.filter_jit(eqx.filter_vmap(_all_outputs, in_axes=(eqx.if_array(0), None, None)))
