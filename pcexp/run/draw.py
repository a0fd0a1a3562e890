"""What a lane starts from: its components, its key, its network, its data, and the arithmetic that it is computed in."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.data import Dataset
from pcexp.evaluation import batch_layout
from pcexp.learning import AbstractLearning
from pcexp.model.segments import Precision
from pcexp.train import AbstractEvents, TrainingSet, TrainState, initial_state


class Start(NamedTuple):
    """What a lane starts from: what learns, by what rule, updated how; where rows are due, if not after every period.

    `given` are constants of the lane that its measurements see.
    """

    model: Any
    learning: AbstractLearning
    optimiser: Callable[[], optax.GradientTransformation]
    events: AbstractEvents | None = None
    given: Any = None


class Drawn(NamedTuple):
    """What a lane, or a pack of lanes along a first axis, trains with: `Start` with its state."""

    state: TrainState
    learning: Any
    optimiser: Any
    given: Any = None


def initial_start(spec: Spec, lane: Lane, dataset: Dataset) -> Start:
    """What the configuration says: the initial network, the learning rule and the optimiser."""
    _, learning, optimiser = components(spec, lane)
    return Start(initial_network(spec, lane, dataset), learning, optimiser)


def drawn(start: Start, spec: Spec, lane: Lane) -> Drawn:
    """A lane before its first iteration."""
    key = lane_key(spec, lane, 1)
    state = initial_state(start.model, start.optimiser, events=start.events, key=key)
    return Drawn(state, start.learning, start.optimiser, start.given)


def training_set(dataset: Dataset, model: Any, probe_size: int) -> TrainingSet:
    """The training split on the device, its first examples as the probe, in the type of floats that holds here."""
    floats = jnp.result_type(float)
    x, y = jnp.asarray(dataset.train.x, floats), jnp.asarray(dataset.train.y, floats)
    masks = (None if m is None else jnp.asarray(m, floats) for m in (dataset.train.mask, dataset.train.x_mask))
    return TrainingSet(x, y, batch_layout(model, x[:probe_size]), y[:probe_size].T, dataset.augment, *masks)


def components(spec: Spec, lane: Lane) -> tuple[Any, Any, Any]:
    """Parameterisation, learning and optimiser (None where nothing learns) of one lane, every float traced: a new value compiles nothing."""
    parts: dict[str, Any] = {"parameterisation": spec.parameterisation, "learning": None, "optimiser": None}
    if spec.learns:
        parts |= {"learning": spec.learning, "optimiser": spec.optimiser}
    for key, value in lane.values.items():
        if key != "seed":
            leaf = functools.partial(_leaf, path=key.split("."))
            parts = eqx.tree_at(leaf, parts, value, is_leaf=lambda leaf: leaf is None)
    floats = jnp.result_type(float)
    traced = jax.tree.map(lambda leaf: jnp.asarray(leaf, floats) if isinstance(leaf, float) else leaf, parts)
    return traced["parameterisation"], traced["learning"], traced["optimiser"]


def _leaf(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.keywords if isinstance(tree, eqx.Partial) else tree
        tree = tree[name] if isinstance(tree, dict) else getattr(tree, name)
    return tree


def lane_key(spec: Spec, lane: Lane, purpose: int) -> jax.Array:
    """Random key of a lane; purposes are 0 (initial weights) and 1 (order of the batches)."""
    return jr.fold_in(jr.fold_in(jr.key(spec.root_seed), int(lane.values["seed"])), purpose)


def initial_network(spec: Spec, lane: Lane, dataset: Dataset) -> Any:
    """The network that a lane starts from: the same draw in every precision."""
    with jax.enable_x64(False):
        parameterisation, _, _ = components(spec, lane)
        network = spec.network.build(parameterisation, dataset.input_shape, dataset.d_out, key=lane_key(spec, lane, 0))
    return in_floats(network)


def network_size(spec: Spec, dataset: Dataset, *, inputs: int | None = None, outputs: int | None = None) -> int:
    """Number of parameters of a cell's network, which is not drawn for it; of so many inputs and outputs, where given."""
    shape = dataset.input_shape if inputs is None else (inputs,)
    d_out = dataset.d_out if outputs is None else outputs
    network = jax.eval_shape(lambda: spec.network.build(spec.parameterisation, shape, d_out, key=jr.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(network))


def in_floats(network: Any) -> Any:
    """A model in the type of floats that holds here."""
    floats = jnp.result_type(float)
    return jax.tree.map(lambda leaf: leaf.astype(floats) if eqx.is_inexact_array(leaf) else leaf, network)


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """How arrays are made and programs compiled: 64 bits for float64, and never TF32. It holds for the thread that enters it."""
    # A GPU multiplies float32 in TF32 (10 bits) unless told not to; products of bfloat16 are not touched by this.
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("float32"):
        yield


def on_device(device: jax.Device | None, tree: Any) -> Any:
    """A tree with its arrays on a device."""
    if device is None:
        return tree
    return jax.tree.map(lambda leaf: jax.device_put(leaf, device) if eqx.is_array(leaf) else leaf, tree)
