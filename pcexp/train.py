"""The one training loop: a lane advances by a traced number of iterations inside one compiled call.

Iteration t draws batch t, measures at the weights before its update (every `record_every` iterations), then updates. Row 0
is therefore the initial network. Everything a lane needs to go on is in `TrainState`: the order of batches is a function
of (key, iteration) alone, so a checkpoint carries no permutation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.data.augmentation import Augment
from pcexp.data.batches import batch_indices, epoch_permutation
from pcexp.energy import Batch
from pcexp.learning import AbstractLearning, WeightGradient
from pcexp.model.network import Network
from pcexp.model.segments import Precision


class Training(eqx.Module):
    """How long a lane trains, on what batches, and how often it is measured: `epochs`, or `max_iterations` if that is less.

    `stop_improvement` ends a lane when the epoch-mean training error (mean squared error over batch and outputs) improves
    by less than that over one epoch; `stop_error` when the epoch mean falls below it. Neither is needed. With `test_every`
    n the test set is evaluated at iterations 0, n, 2n, ... and at the end, in rows of their own.
    """

    batch_size: int
    epochs: int
    record_every: int
    max_iterations: int | None = None
    test_every: int | None = None
    stop_improvement: float | None = None
    stop_error: float | None = None
    precision: Precision = "float32"

    def __check_init__(self) -> None:
        for name in ("batch_size", "epochs", "record_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_iterations", "test_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


class TrainState(eqx.Module):
    """Where a lane stands."""

    network: Network
    optimiser_state: optax.OptState
    key: PRNGKeyArray
    iteration: Int[Array, ""]
    epoch_error: Float[Array, ""]
    last_epoch_error: Float[Array, ""]
    stopped: Bool[Array, ""]
    diverged: Bool[Array, ""]


class TrainingSet(eqx.Module):
    """Training examples on the device (examples first) and a fixed probe batch in the network's batch layout.

    `augment` changes the examples of a batch as it is drawn; the error of an output counts where its `mask` is 1.
    """

    x: Float[Array, "examples ..."]
    y: Float[Array, "examples d_out"]
    probe_x: Float[Array, "..."]
    probe_y: Float[Array, "d_out probe"]
    augment: Augment | None = None
    mask: Float[Array, "examples d_out"] | None = None


class Observation(NamedTuple):
    """What a measurement sees at a recorded iteration, before the update."""

    network: Network
    gradient: Network
    loss: Float[Array, ""]
    diagnostics: dict[str, Array]
    data: TrainingSet


Measure = Callable[[Observation], dict[str, Array]]
"""Named scalars or vectors at a recorded iteration; evaluated inside the compiled loop."""


class Rows(NamedTuple):
    """Rows that one call recorded: the first `n_rows` entries, of those lanes (a second axis, in a pack) that were `due`."""

    n_rows: Int[Array, ""]
    due: Bool[Array, "capacity ..."]
    values: dict[str, Array]


def batch_layout(network: Network, x: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """Examples with the batch axis where the network takes it."""
    return jnp.moveaxis(x, 0, network.input_batch_axis)


def initial_state(
    network: Network, optimiser: Callable[[], optax.GradientTransformation], *, key: PRNGKeyArray
) -> TrainState:
    """State before the first iteration. `key` orders the batches."""
    # Strong types throughout: a weakly typed scalar would become strong in the first call and compile the second again.
    zero = jnp.zeros((), jnp.result_type(float))
    return TrainState(
        network=network,
        optimiser_state=optimiser().init(eqx.filter(network, eqx.is_inexact_array)),
        key=key,
        iteration=jnp.zeros((), jnp.int32),
        epoch_error=zero,
        last_epoch_error=jnp.full_like(zero, jnp.inf),
        stopped=jnp.array(False),
        diverged=jnp.array(False),
    )


def weight_norms(network: Network) -> Float[Array, " depth"]:
    """Frobenius norm of each of the L weight matrices (or of their gradients), from the input side."""
    return jnp.concatenate(
        [jnp.sqrt(jnp.sum(jnp.square(s.weight), axis=tuple(range(1, s.weight.ndim)))) for s in network.segments]
    )


def _all_finite(gradient: Network) -> Bool[Array, ""]:
    """Whether the squares of a gradient have a finite sum."""
    # A product of vectors: XLA:CPU writes the squares to memory before it sums them.
    return jnp.isfinite(sum(jnp.vdot(s.weight, s.weight) for s in gradient.segments))


def _advance(
    state: TrainState,
    learning: AbstractLearning,
    optimiser: Callable[[], optax.GradientTransformation],
    data: TrainingSet,
    training: Training,
    measure: Measure,
    capacity: int,
    n_iterations: Int[Array, ""],
    *,
    over: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> tuple[TrainState, Rows]:
    """State after at most `n_iterations` more iterations, and the rows recorded on the way (at most `capacity`).

    `over` makes a function of one lane into one of all lanes. Only the work on a lane goes through it: the loop, its
    counter and what depends on the counter are shared, so that a row or a new order is computed when it is due. Under a
    vmap of the loop as a whole every condition would be a choice between two results, both computed in every iteration.
    """
    n_examples, batch_size = data.x.shape[0], training.batch_size
    per_epoch = n_examples // batch_size
    # Lanes of a pack stand at one iteration, but for those that have ended before.
    start = jnp.max(state.iteration)
    limit = jnp.minimum(start + n_iterations, iterations(training, n_examples))
    d_out = data.y.shape[1]

    def active(state: TrainState) -> Array:
        return ~state.stopped & ~state.diverged

    def gradient(state: TrainState, order: Array, learning: AbstractLearning, t: Array) -> tuple[WeightGradient, Array]:
        index = batch_indices(order, t % per_epoch, batch_size)
        examples = data.x[index]
        if data.augment is not None:
            examples = data.augment(examples, key=jax.random.fold_in(jax.random.fold_in(state.key, 2), t))
        x, y = batch_layout(state.network, examples), data.y[index].T
        key = jax.random.fold_in(jax.random.fold_in(state.key, 1), t)
        mask = None if data.mask is None else data.mask[index].T
        out = learning.gradient(state.network, Batch(x, y, mask), key=key)
        return out, jnp.isfinite(out.loss) & _all_finite(out.gradient)

    def see(state: TrainState, out: WeightGradient, t: Array) -> dict[str, Array]:
        return {"iteration": t, **measure(Observation(state.network, *out, data))}

    def update(
        state: TrainState,
        out: WeightGradient,
        finite: Array,
        optimiser: Callable[[], optax.GradientTransformation],
        *,
        t: Array,
    ) -> TrainState:
        updates, optimiser_state = optimiser().update(out.gradient, state.optimiser_state, state.network)
        error = state.epoch_error + 2 * out.loss / d_out / per_epoch
        ends_epoch = (t + 1) % per_epoch == 0
        stopped = jnp.array(False)
        if training.stop_improvement is not None:
            stopped = stopped | (state.last_epoch_error - error < training.stop_improvement)
        if training.stop_error is not None:
            stopped = stopped | (error < training.stop_error)
        new = TrainState(
            network=eqx.apply_updates(state.network, updates),
            optimiser_state=optimiser_state,
            key=state.key,
            iteration=t + 1,
            epoch_error=jnp.where(ends_epoch, 0.0, error),
            last_epoch_error=jnp.where(ends_epoch, error, state.last_epoch_error),
            stopped=stopped & ends_epoch,
            diverged=~finite,
        )
        if over is _one_lane:
            return new
        here = active(state)  # of a pack, those that have ended stay as they were
        return jax.tree.map(lambda old, now: jnp.where(here, now, old) if eqx.is_array(now) else now, state, new)

    def unfinished(carry: tuple[Array, TrainState, Array, Rows]) -> Array:
        t, state, _, rows = carry
        return (t < limit) & (rows.n_rows < capacity) & jnp.any(active(state))

    def iterate(carry: tuple[Array, TrainState, Array, Rows]) -> tuple[Array, TrainState, Array, Rows]:
        t, state, order, rows = carry
        # The order is no part of the state: drawn at the start of a call and of an epoch.
        shuffled = over(lambda key: epoch_permutation(key, t // per_epoch, n_examples))
        order = lax.cond((t == start) | (t % per_epoch == 0), lambda: shuffled(state.key), lambda: order)
        out, finite = over(lambda state, order, learning: gradient(state, order, learning, t))(state, order, learning)
        here = active(state)
        due = here & ((t % training.record_every == 0) | ~finite)

        def record() -> Rows:
            return _append(rows, due, over(lambda state, out: see(state, out, t))(state, out))

        rows = lax.cond(jnp.any(due), record, lambda: rows)
        state = over(functools.partial(update, t=t))(state, out, finite, optimiser)
        return t + 1, state, order, rows

    order = over(lambda key: jnp.zeros(n_examples, int))(state.key)
    shapes = eqx.filter_eval_shape(
        lambda state, order, learning: over(
            lambda state, order, learning: see(state, gradient(state, order, learning, start)[0], start)
        )(state, order, learning),
        state,
        order,
        learning,
    )
    values = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    rows = Rows(jnp.zeros((), jnp.int32), jnp.zeros((capacity, *state.iteration.shape), bool), values)
    _, state, _, rows = lax.while_loop(unfinished, iterate, (start, state, order, rows))
    return state, rows


def _one_lane(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


advance = eqx.filter_jit(functools.partial(_advance, over=_one_lane))
"""`_advance` compiled, for one lane."""

advance_pack = eqx.filter_jit(functools.partial(_advance, over=eqx.filter_vmap))
"""`_advance` compiled for lanes at one iteration, stacked along a first axis of state, learning and optimiser."""


def _append(rows: Rows, due: Array, values: dict[str, Any]) -> Rows:
    stored = {name: buffer.at[rows.n_rows].set(values[name]) for name, buffer in rows.values.items()}
    return Rows(rows.n_rows + 1, rows.due.at[rows.n_rows].set(due), stored)


def iterations(training: Training, n_examples: int) -> int:
    """Iterations of a lane that runs to its last epoch; the last partial batch of an epoch is dropped."""
    all_epochs = training.epochs * (n_examples // training.batch_size)
    return all_epochs if training.max_iterations is None else min(all_epochs, training.max_iterations)
