"""The one training loop: a lane advances by a traced number of iterations inside one compiled call.

Iteration t draws batch t, measures at the weights before its update (every `record_every` iterations), then updates. Row 0
is therefore the initial network. Everything a lane needs to go on is in `TrainState`: the order of batches is a function
of (key, iteration) alone, so a checkpoint carries no permutation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.data.batches import batch_indices, epoch_permutation
from pcexp.learning import AbstractLearning
from pcexp.network import Network


class Training(eqx.Module):
    """How long a lane trains, on what batches, and how often it is measured: `epochs`, or `max_iterations` if that is less.

    `stop_improvement` ends a lane when the epoch-mean training error (mean squared error over batch and outputs) improves
    by less than that over one epoch; `stop_error` when the epoch mean falls below it. Neither is needed.
    """

    batch_size: int
    epochs: int
    record_every: int
    max_iterations: int | None = None
    stop_improvement: float | None = None
    stop_error: float | None = None

    def __check_init__(self) -> None:
        for name in ("batch_size", "epochs", "record_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, not {self.max_iterations}")


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
    """Training examples on the device (examples first) and a fixed probe batch in the network's batch layout."""

    x: Float[Array, "examples ..."]
    y: Float[Array, "examples d_out"]
    probe_x: Float[Array, "..."]
    probe_y: Float[Array, "d_out probe"]


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
    """Rows that one call recorded: the first `n_rows` entries of each array are valid."""

    n_rows: Int[Array, ""]
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


def _advance(
    state: TrainState,
    learning: AbstractLearning,
    optimiser: Callable[[], optax.GradientTransformation],
    data: TrainingSet,
    training: Training,
    measure: Measure,
    capacity: int,
    n_iterations: Int[Array, ""],
) -> tuple[TrainState, Rows]:
    """State after at most `n_iterations` more iterations, and the rows recorded on the way (at most `capacity`)."""
    n_examples, batch_size = data.x.shape[0], training.batch_size
    per_epoch = n_examples // batch_size
    limit = jnp.minimum(state.iteration + n_iterations, iterations(training, n_examples))
    d_out = data.y.shape[1]

    def permutation(iteration: Array) -> Array:
        return epoch_permutation(state.key, iteration // per_epoch, n_examples)

    start = state.iteration

    def unfinished(carry: tuple[TrainState, Array, Rows]) -> Array:
        state, _, rows = carry
        return (state.iteration < limit) & (rows.n_rows < capacity) & ~state.stopped & ~state.diverged

    def iterate(carry: tuple[TrainState, Array, Rows]) -> tuple[TrainState, Array, Rows]:
        state, order, rows = carry
        t = state.iteration
        # The order is no part of the state: drawn at the start of a call and of an epoch.
        order = lax.cond((t == start) | (t % per_epoch == 0), permutation, lambda _: order, t)
        index = batch_indices(order, t % per_epoch, batch_size)
        x, y = batch_layout(state.network, data.x[index]), data.y[index].T
        out = learning.gradient(state.network, x, y, key=jax.random.fold_in(jax.random.fold_in(state.key, 1), t))
        finite = jnp.isfinite(out.loss) & jnp.isfinite(jnp.sum(weight_norms(out.gradient)))

        seen = Observation(state.network, out.gradient, out.loss, out.diagnostics, data)
        record = (t % training.record_every == 0) | ~finite
        rows = lax.cond(record, lambda rows: _append(rows, {"iteration": t, **measure(seen)}), lambda rows: rows, rows)

        updates, optimiser_state = optimiser().update(out.gradient, state.optimiser_state, state.network)
        network = eqx.apply_updates(state.network, updates)
        error = state.epoch_error + 2 * out.loss / d_out / per_epoch
        ends_epoch = (t + 1) % per_epoch == 0
        stopped = jnp.array(False)
        if training.stop_improvement is not None:
            stopped = stopped | (state.last_epoch_error - error < training.stop_improvement)
        if training.stop_error is not None:
            stopped = stopped | (error < training.stop_error)
        new = TrainState(
            network=network,
            optimiser_state=optimiser_state,
            key=state.key,
            iteration=t + 1,
            epoch_error=jnp.where(ends_epoch, 0.0, error),
            last_epoch_error=jnp.where(ends_epoch, error, state.last_epoch_error),
            stopped=stopped & ends_epoch,
            diverged=~finite,
        )
        return new, order, rows

    seen = eqx.filter_eval_shape(_first_observation, state, learning, data, training)
    shapes = {"iteration": state.iteration, **eqx.filter_eval_shape(measure, seen)}
    values = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    order = jnp.zeros(n_examples, int)
    rows = Rows(jnp.zeros((), jnp.int32), values)
    state, _, rows = lax.while_loop(unfinished, iterate, (state, order, rows))
    return state, rows


advance = eqx.filter_jit(_advance)
"""`_advance` compiled, for one lane."""

advance_pack = eqx.filter_jit(
    eqx.filter_vmap(_advance, in_axes=(eqx.if_array(0), eqx.if_array(0), eqx.if_array(0), None, None, None, None, None))
)
"""`_advance` compiled for lanes stacked along a first axis of state, learning and optimiser."""


def _first_observation(
    state: TrainState, learning: AbstractLearning, data: TrainingSet, training: Training
) -> Observation:
    x, y = batch_layout(state.network, data.x[: training.batch_size]), data.y[: training.batch_size].T
    out = learning.gradient(state.network, x, y, key=state.key)
    return Observation(state.network, out.gradient, out.loss, out.diagnostics, data)


def _append(rows: Rows, values: dict[str, Any]) -> Rows:
    stored = {name: buffer.at[rows.n_rows].set(values[name]) for name, buffer in rows.values.items()}
    return Rows(rows.n_rows + 1, stored)


def iterations(training: Training, n_examples: int) -> int:
    """Iterations of a lane that runs to its last epoch; the last partial batch of an epoch is dropped."""
    all_epochs = training.epochs * (n_examples // training.batch_size)
    return all_epochs if training.max_iterations is None else min(all_epochs, training.max_iterations)
