"""The one training loop: a lane advances by a traced number of iterations inside one compiled call.

Iteration t draws batch t, measures at the weights before its update (every `record_every` iterations, or where `Events`
say), then updates. Row 0 is therefore the initial network. Everything a lane needs to go on is in `TrainState`: the order
of batches is a function of (key, iteration) alone, so a checkpoint carries no permutation. A batch of all examples has them
in their own order.
"""

import abc
import dataclasses
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
from pcexp.energy import Batch
from pcexp.evaluation import in_batch
from pcexp.learning import AbstractLearning, WeightGradient

Optimiser = Callable[[], optax.GradientTransformation]


class Training(eqx.Module):
    """How long a lane trains, on what batches, and how often it is measured: `epochs`, or `max_iterations` if that is less.

    `stop_improvement` ends a lane when the epoch-mean training error (mean squared error over batch and outputs) improves
    by less than that over one epoch; `stop_error` when the epoch mean falls below it. Neither is needed. With `test_every`
    n the test set is evaluated at iterations 0, n, 2n, ... and at the end, in rows of their own. `regime`: pcexp/learning/regime.py.
    """

    batch_size: int
    epochs: int
    record_every: int
    max_iterations: int | None = None
    test_every: int | None = None
    stop_improvement: float | None = None
    stop_error: float | None = None
    regime: bool = False

    def __check_init__(self) -> None:
        for name in ("batch_size", "epochs", "record_every", "max_iterations", "test_every"):
            value, nullable = getattr(self, name), name in ("max_iterations", "test_every")
            if not (nullable if value is None else value >= 1):
                raise ValueError(f"{name} must be at least 1{' or null' if nullable else ''}, not {value}")


class TrainingSet(eqx.Module):
    """Training examples on the device (examples first) and a fixed probe batch in the network's batch layout.

    `augment` changes the examples of a batch as it is drawn; the error of an output counts where its `mask` is 1, and an input
    is clamped where its `x_mask` is.
    """

    x: Float[Array, "examples ..."]
    y: Float[Array, "examples d_out"]
    probe_x: Float[Array, "..."]
    probe_y: Float[Array, "d_out probe"]
    augment: Augment | None = None
    mask: Float[Array, "examples d_out"] | None = None
    x_mask: Float[Array, "examples ..."] | None = None


class Observation(NamedTuple):
    """What a measurement sees at a recorded iteration, before the update.

    `given` are constants of the lane, `events` what decided that a row is due, where a study has them.
    """

    network: Any
    gradient: Any
    loss: Float[Array, ""]
    diagnostics: dict[str, Array]
    data: TrainingSet
    given: Any = None
    events: Any = None
    iteration: Int[Array, ""] | None = None


Measure = Callable[[Observation], dict[str, Array]]
"""Named scalars or vectors at a recorded iteration; evaluated inside the compiled loop."""

MeasureAfter = Callable[[Observation, Any], dict[str, Array]]
"""As `Measure`, of what was seen before the update and the network after it."""


class AbstractEvents(eqx.Module):
    """Rows where something happens, and the end of a lane: what it remembers for that, part of its state and saved with it.

    A row is then `due` where this says so, where a lane ends, and nowhere else. A lane ends where it is `ended`, where a
    number is not finite, or at the weights after its last update: there it stays, without another update.
    """

    due: eqx.AbstractVar[Bool[Array, ""]]
    ended: eqx.AbstractVar[Bool[Array, ""]]

    @abc.abstractmethod
    def visit(self, seen: Observation) -> "AbstractEvents":
        """What is remembered once an iteration has been seen; `seen.events` is this object."""


class TrainState(eqx.Module):
    """Where a lane stands: what learns (a network, or several side by side), and all else that the next iteration needs."""

    network: Any
    optimiser_state: optax.OptState
    key: PRNGKeyArray
    iteration: Int[Array, ""]
    epoch_error: Float[Array, ""]
    last_epoch_error: Float[Array, ""]
    stopped: Bool[Array, ""]
    diverged: Bool[Array, ""]
    events: AbstractEvents | None = None


class Rows(NamedTuple):
    """Rows that one call recorded: the first `n_rows` entries, of those lanes (a second axis, in a pack) that were `due`."""

    n_rows: Int[Array, ""]
    due: Bool[Array, "capacity ..."]
    values: dict[str, Array]


def epoch_permutation(key: PRNGKeyArray, epoch: int | Int[Array, ""], n: int) -> Int[Array, " {n}"]:
    """Order of the n training examples in one epoch, the same whenever it is asked for."""
    # Folded in, not split off step by step: a run that resumes at epoch 7 needs no history.
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


def batch_indices(
    permutation: Int[Array, " n"], step_in_epoch: int | Int[Array, ""], batch_size: int
) -> Int[Array, " {batch_size}"]:
    """Examples of one batch: permutation[s B : (s+1) B], for s below the number of full batches."""
    if not 1 <= batch_size <= len(permutation):
        raise ValueError(f"batch_size={batch_size}: valid are 1 to the number of training examples, {len(permutation)}")
    # dynamic_slice clamps: a step beyond the last full batch would silently repeat examples. Callers take s modulo that number.
    return lax.dynamic_slice(permutation, (step_in_epoch * batch_size,), (batch_size,))


def initial_state(
    network: Any, optimiser: Optimiser, *, events: AbstractEvents | None = None, key: PRNGKeyArray
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
        events=events,
    )


def weight_norms(network: Any) -> Float[Array, " depth"]:
    """Frobenius norm of each of the L weight matrices (or of their gradients), from the input side."""
    return jnp.concatenate(
        [jnp.sqrt(jnp.sum(jnp.square(s.weight), axis=tuple(range(1, s.weight.ndim)))) for s in network.stacks]
    )


def _all_finite(gradient: Any) -> Bool[Array, ""]:
    """Whether the squares of a gradient have a finite sum."""
    # A product of vectors: XLA:CPU writes the squares to memory before it sums them.
    return jnp.isfinite(sum(jnp.vdot(s.weight, s.weight) for s in gradient.stacks))


def _advance(
    state: TrainState,
    learning: AbstractLearning,
    optimiser: Optimiser,
    data: TrainingSet,
    training: Training,
    measure: Measure,
    capacity: int,
    n_iterations: Int[Array, ""],
    *,
    given: Any = None,
    after: MeasureAfter | None = None,
    over: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> tuple[TrainState, Rows]:
    """State after at most `n_iterations` more iterations, and the rows recorded on the way (at most `capacity`).

    `over` makes a function of one lane into one of all lanes. Only the work on a lane goes through it: the loop, its
    counter and what depends on the counter are shared, so that a row or a new order is computed when it is due. Under a
    vmap of the loop as a whole every condition would be a choice between two results, both computed in every iteration.
    """
    n_examples, batch_size = data.x.shape[0], training.batch_size
    per_epoch, total = n_examples // batch_size, iterations(training, n_examples)
    on_events = state.events is not None
    # Lanes of a pack stand at one iteration, but for those that have ended before.
    start = jnp.max(state.iteration)
    limit = jnp.minimum(start + n_iterations, total + on_events)  # events see the last weights too

    def active(state: TrainState) -> Array:
        return ~state.stopped & ~state.diverged

    def drawn(state: TrainState, order: Array, t: Array) -> tuple[Batch, PRNGKeyArray]:
        """The batch of an iteration, and the key of its rule."""
        chosen = ... if batch_size == n_examples else batch_indices(order, t % per_epoch, batch_size)
        x, (mask, x_mask) = data.x[chosen], (None if m is None else m[chosen] for m in (data.mask, data.x_mask))
        if data.augment is not None:
            x = data.augment(x, key=jax.random.fold_in(jax.random.fold_in(state.key, 2), t))
        key = jax.random.fold_in(jax.random.fold_in(state.key, 1), t)
        return in_batch(state.network, x, data.y[chosen], mask, x_mask), key

    def gradient(state: TrainState, order: Array, learning: AbstractLearning, t: Array) -> tuple[WeightGradient, Array]:
        batch, key = drawn(state, order, t)
        out = learning.gradient(state.network, batch, key=key)
        return out, jnp.isfinite(out.loss) & _all_finite(out.gradient)

    def observed(state: TrainState, out: WeightGradient, given: Any, t: Array) -> Observation:
        return Observation(state.network, *out, data, given, state.events, t)

    def visit(state: TrainState, out: WeightGradient, given: Any, t: Array) -> TrainState:
        events = state.events.visit(observed(state, out, given, t))  # type: ignore[union-attr]  # only called with events
        return dataclasses.replace(state, events=events)

    def see(
        state: TrainState, out: WeightGradient, given: Any, new: TrainState, order: Array, learning: Any, t: Array
    ) -> dict[str, Array]:
        seen = observed(state, out, given, t)
        found = {"iteration": t, **measure(seen)}
        if training.regime:
            batch, key = drawn(state, order, t)
            found |= learning.regime(state.network, batch, out, key=key)
        return found if after is None else found | after(seen, new.network)

    def update(
        state: TrainState, out: WeightGradient, finite: Array, ended: Array | None, optimiser: Optimiser, *, t: Array
    ) -> TrainState:
        updates, optimiser_state = optimiser().update(out.gradient, state.optimiser_state, state.network)
        error = state.epoch_error + 2 * out.loss / data.y.shape[1] / per_epoch
        ends_epoch = (t + 1) % per_epoch == 0
        rules = ((state.last_epoch_error - error, training.stop_improvement), (error, training.stop_error))
        met = [value < least for value, least in rules if least is not None and not on_events]
        new = dataclasses.replace(
            state,
            network=eqx.apply_updates(state.network, updates),
            optimiser_state=optimiser_state,
            iteration=t + 1,
            epoch_error=jnp.where(ends_epoch, 0.0, error),
            last_epoch_error=jnp.where(ends_epoch, error, state.last_epoch_error),
            stopped=jnp.any(jnp.array(met, bool)) & ends_epoch,
            diverged=~finite,
        )
        if ended is not None:
            new = _where(ended, dataclasses.replace(state, stopped=ended, diverged=~finite), new)
        # Of a pack, those that have ended stay as they were.
        return new if over is _one_lane else _where(active(state), new, state)

    def unfinished(carry: tuple[Array, TrainState, Array, Rows]) -> Array:
        t, state, _, rows = carry
        return (t < limit) & (rows.n_rows < capacity) & jnp.any(active(state))

    def iterate(carry: tuple[Array, TrainState, Array, Rows]) -> tuple[Array, TrainState, Array, Rows]:
        t, state, order, rows = carry
        if batch_size < n_examples:
            # The order is no part of the state: drawn at the start of a call and of an epoch.
            shuffled = over(lambda key: epoch_permutation(key, t // per_epoch, n_examples))
            order = lax.cond((t == start) | (t % per_epoch == 0), lambda: shuffled(state.key), lambda: order)
        out, finite = over(lambda state, order, learning: gradient(state, order, learning, t))(state, order, learning)
        here, ended = active(state), None
        if on_events:
            state = over(functools.partial(visit, t=t))(state, out, given)
            ended = state.events.ended | ~finite | (t == total)
            due = here & (state.events.due | ended)
        else:
            due = here & ((t % training.record_every == 0) | ~finite)
        new = over(functools.partial(update, t=t))(state, out, finite, ended, optimiser)

        def record() -> Rows:
            seen = over(functools.partial(see, t=t))(state, out, given, new, order, learning)
            values = {name: buffer.at[rows.n_rows].set(seen[name]) for name, buffer in rows.values.items()}
            return Rows(rows.n_rows + 1, rows.due.at[rows.n_rows].set(due), values)

        return t + 1, new, order, lax.cond(jnp.any(due), record, lambda: rows)

    order = over(lambda key: jnp.zeros(n_examples, int))(state.key)

    def first_row(state: TrainState, order: Array, learning: AbstractLearning, given: Any) -> dict[str, Array]:
        return see(state, gradient(state, order, learning, start)[0], given, state, order, learning, start)

    shapes = eqx.filter_eval_shape(over(first_row), state, order, learning, given)
    values = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    rows = Rows(jnp.zeros((), jnp.int32), jnp.zeros((capacity, *state.iteration.shape), bool), values)
    _, state, _, rows = lax.while_loop(unfinished, iterate, (start, state, order, rows))
    return state, rows


def _one_lane(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


def _where(condition: Array, new: TrainState, old: TrainState) -> TrainState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)


advance = eqx.filter_jit(functools.partial(_advance, over=_one_lane))
"""`_advance` compiled, for one lane."""

advance_pack = eqx.filter_jit(functools.partial(_advance, over=eqx.filter_vmap))
"""`_advance` compiled for lanes at one iteration, stacked along a first axis of state, learning and optimiser."""


def iterations(training: Training, n_examples: int) -> int:
    """Iterations of a lane that runs to its last epoch; the last partial batch of an epoch is dropped."""
    all_epochs = training.epochs * (n_examples // training.batch_size)
    return all_epochs if training.max_iterations is None else min(all_epochs, training.max_iterations)
