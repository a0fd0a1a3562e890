"""Full-batch descent of one lane: many cheap iterations in compiled calls, rows where something has changed, events exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pcexp.energy import Batch, loss, outputs
from pcexp.learning import AbstractLearning
from pcexp.model.network import Network
from pcexp.train import weight_norms

CAPACITY = 64
"""Rows that a call can hold; it returns when they are full."""
CALL_ITERATIONS = 20_000
"""Iterations of a call at most: between calls a run can be stopped."""
LOSS_CHANGE, NORM_CHANGE, GROWTH = 1.15, 2.0, 1.5
"""Factors by which loss, gradient norm or iteration number differ from the last row where the next is recorded."""
RANK_FRACTION = 0.1
"""Singular values of the map count where they are above this fraction of the largest of the observed target."""
SHOWN = 4
"""Singular values that are recorded."""

Optimiser = Callable[[], optax.GradientTransformation]


class Completion(eqx.Module):
    """The matrix, examples as columns: observed entries as inputs, all entries as targets, and which were observed.

    `masked`: the learning rule sees observed entries only. `levels` are losses, the highest first; the last one ends a descent.
    """

    x: Float[Array, "d_in batch"]
    y: Float[Array, "d_out batch"]
    observed: Float[Array, "d_out batch"]
    levels: Float[Array, " levels"]
    masked: bool = eqx.field(static=True)

    def losses(self, network: Network) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean squared error over all outputs, hidden entries counted as zero (the published loss); over hidden entries."""
        seen = 2 * loss(network, self.x, self.y, self.observed) / self.y.shape[0]
        hidden = 2 * loss(network, self.x, self.y, 1 - self.observed) * self.y.shape[1]
        return seen, hidden / jnp.maximum(jnp.sum(1 - self.observed), 1)

    @property
    def rank_threshold(self) -> Float[Array, ""]:
        """Singular value from which one counts for the rank of the map."""
        return RANK_FRACTION * jnp.linalg.svd(self.y * self.observed, compute_uv=False)[0]


class Position(eqx.Module):
    """Where a descent stands: `passed` levels, the smallest gradient norm since the last row, and what that row said."""

    network: Network
    optimiser_state: optax.OptState
    iteration: Int[Array, ""]
    passed: Int[Array, ""]
    least: Float[Array, ""]
    last: Float[Array, " 3"]
    ended: Bool[Array, ""]


class Rows(NamedTuple):
    """The first `n` rows of each column are filled."""

    n: Int[Array, ""]
    columns: dict[str, Array]


def start(network: Network, optimiser: Optimiser) -> Position:
    """Before the first iteration."""
    zero = jnp.zeros((), jnp.result_type(float))
    return Position(
        network=network,
        optimiser_state=optimiser().init(eqx.filter(network, eqx.is_inexact_array)),
        iteration=jnp.zeros((), jnp.int32),
        passed=jnp.zeros((), jnp.int32),
        least=jnp.full_like(zero, jnp.inf),
        last=jnp.full(3, jnp.nan, zero.dtype),
        ended=jnp.array(False),
    )


@eqx.filter_jit
def advanced(
    at: Position,
    completion: Completion,
    rule: AbstractLearning,
    optimiser: Optimiser,
    goal: Int[Array, ""],
    limit: Int[Array, ""],
    n_iterations: Int[Array, ""],
) -> tuple[Position, Rows]:
    """The position after at most so many iterations, and the rows on the way.

    A descent ends at the iterate that has passed `goal` levels, at iteration `limit`, or where its loss is not finite: at
    the weights that its last row describes, without another update.
    """
    last_iteration = at.iteration + n_iterations
    mask = completion.observed if completion.masked else None

    def row(at: Position, found: Any, seen: Array, norm: Array) -> dict[str, Array]:
        f = outputs(at.network, completion.x)
        # LAPACK complains on standard output of what is not finite.
        singular = jnp.linalg.svd(jnp.where(jnp.isfinite(f), f, 0), compute_uv=False)
        return {
            "iteration": at.iteration,
            "loss": seen,
            "hidden_loss": completion.losses(at.network)[1],
            "passed": at.passed,
            "gradient_norm": norm,
            "least_gradient_norm": at.least,
            "rank_threshold": completion.rank_threshold,
            "end": completion.levels[-1],
            "map_rank": jnp.sum(singular > completion.rank_threshold),
            "singular_value": singular[:SHOWN],
            **{name: value for name, value in found.diagnostics.items() if name.startswith("inference_")},
        }

    def visit(at: Position) -> tuple[Position, Any, Array, Array, Array]:
        """The position with what its iterate says, the gradient, loss and norm, and whether a row is due."""
        found = rule.gradient(at.network, Batch(completion.x, completion.y, mask))
        seen = 2 * found.loss / completion.y.shape[0] if completion.masked else completion.losses(at.network)[0]
        norm = jnp.sqrt(jnp.sum(jnp.square(weight_norms(found.gradient)))) / found.diagnostics["gradient_factor"]
        passed = jnp.maximum(at.passed, jnp.sum(seen < completion.levels).astype(jnp.int32))
        ended = (passed >= goal) | (at.iteration >= limit) | ~jnp.isfinite(seen) | ~jnp.isfinite(norm)
        now = jnp.log(jnp.stack([seen, norm, at.iteration.astype(norm.dtype) + 1]))
        moved = jnp.abs(now - at.last) > jnp.log(jnp.array([LOSS_CHANGE, NORM_CHANGE, GROWTH], now.dtype))
        due = jnp.any(moved) | (at.iteration == 0) | (passed > at.passed) | ended
        changed = Position(
            network=at.network,
            optimiser_state=at.optimiser_state,
            iteration=at.iteration,
            passed=passed,
            least=jnp.minimum(at.least, norm),
            last=jnp.where(due, now, at.last),
            ended=ended,
        )
        return changed, found, seen, norm, due

    def iterate(carry: tuple[Position, Rows]) -> tuple[Position, Rows]:
        at, found, seen, norm, due = visit(carry[0])

        def recorded(rows: Rows) -> Rows:
            values = row(at, found, seen, norm)
            return Rows(rows.n + 1, {name: rows.columns[name].at[rows.n].set(value) for name, value in values.items()})

        rows = lax.cond(due, recorded, lambda rows: rows, carry[1])
        updates, optimiser_state = optimiser().update(found.gradient, at.optimiser_state, at.network)
        moved = eqx.apply_updates(at.network, updates)
        new = Position(
            network=jax.tree.map(
                lambda now, then: jnp.where(at.ended, now, then) if eqx.is_array(now) else now, at.network, moved
            ),
            optimiser_state=optimiser_state,
            iteration=at.iteration + ~at.ended,
            passed=at.passed,
            least=jnp.where(due, jnp.inf, at.least),
            last=at.last,
            ended=at.ended,
        )
        return new, rows

    def unfinished(carry: tuple[Position, Rows]) -> Array:
        at, rows = carry
        return ~at.ended & (at.iteration < last_iteration) & (rows.n < CAPACITY)

    shapes = eqx.filter_eval_shape(lambda at: row(*visit(at)[:4]), at)
    empty = {name: jnp.zeros((CAPACITY, *s.shape), s.dtype) for name, s in shapes.items()}
    return lax.while_loop(unfinished, iterate, (at, Rows(jnp.zeros((), jnp.int32), empty)))


def descended(
    network: Network, completion: Completion, rule: AbstractLearning, optimiser: Optimiser, *, goal: int, limit: int
) -> Iterator[tuple[Position, list[dict[str, np.ndarray]]]]:
    """Positions and rows of a descent, call by call, to its end."""
    at = start(network, optimiser)
    while not bool(at.ended):
        at, rows = advanced(
            at, completion, rule, optimiser,
            jnp.asarray(goal, jnp.int32), jnp.asarray(limit, jnp.int32), jnp.asarray(CALL_ITERATIONS, jnp.int32),
        )  # fmt: skip
        columns = {name: np.asarray(values) for name, values in rows.columns.items()}
        yield at, [{name: values[i] for name, values in columns.items()} for i in range(int(rows.n))]
