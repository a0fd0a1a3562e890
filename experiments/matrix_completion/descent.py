"""Full-batch descent past levels of the loss: rows where something has changed, events exact."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.energy import Batch, loss, outputs
from pcexp.learning import AbstractLearning, WeightGradient
from pcexp.model.network import Network
from pcexp.train import AbstractEvents, Observation, weight_norms

LOSS_CHANGE, NORM_CHANGE, GROWTH = 1.15, 2.0, 1.5
"""Factors by which loss, gradient norm or iteration number differ from the last row where the next is recorded."""
RANK_FRACTION = 0.1
"""Singular values of the map count where they are above this fraction of the largest of the observed target."""
SHOWN = 4
"""Singular values that are recorded."""
DIAGNOSTICS = ("inference_residual", "inference_steps", "inference_halvings")


class WholeTargets(AbstractLearning):
    """A learning rule that is given hidden entries too."""

    rule: AbstractLearning

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        return self.rule.gradient(network, Batch(batch.x, batch.y), key=key)

    def forward_passes(self) -> float:
        return self.rule.forward_passes()

    def check(self, model: Any) -> None:
        self.rule.check(model)

    def check_regime(self, model: Any) -> None:
        self.rule.check_regime(model)

    def regime(
        self, model: Any, batch: Batch, found: WeightGradient, *, key: PRNGKeyArray | None = None
    ) -> dict[str, Any]:
        return self.rule.regime(model, Batch(batch.x, batch.y), found, key=key)


class Levels(AbstractEvents):
    """Levels of the loss, the highest first, and how many are passed; a lane ends where it has passed `goal` of them.

    A row is due where one is passed, and where loss, gradient norm or iteration have changed by a factor since the last
    one; `least` is the smallest gradient norm since then. `start`: iteration of BP at which this lane starts, -1 where BP
    did not get there, and nothing is left to do.
    """

    levels: Float[Array, " levels"]
    goal: Int[Array, ""]
    start: Int[Array, ""]
    passed: Int[Array, ""]
    loss: Float[Array, ""]
    norm: Float[Array, ""]
    least: Float[Array, ""]
    last: Float[Array, " 3"]
    due: Bool[Array, ""]
    ended: Bool[Array, ""]

    def visit(self, seen: Observation) -> "Levels":
        at = losses(seen)[0]
        norm = jnp.sqrt(jnp.sum(jnp.square(weight_norms(seen.gradient)))) / seen.diagnostics["gradient_factor"]
        passed = jnp.maximum(self.passed, jnp.sum(at < self.levels).astype(jnp.int32))
        ended = (passed >= self.goal) | (self.start < 0)
        assert seen.iteration is not None
        now = jnp.log(jnp.stack([at, norm, seen.iteration.astype(norm.dtype) + 1]))
        moved = jnp.abs(now - self.last) > jnp.log(jnp.array([LOSS_CHANGE, NORM_CHANGE, GROWTH], now.dtype))
        due = jnp.any(moved) | (seen.iteration == 0) | (passed > self.passed) | ended
        return dataclasses.replace(
            self,
            passed=passed,
            loss=at,
            norm=norm,
            least=jnp.minimum(jnp.where(self.due, jnp.inf, self.least), norm),
            last=jnp.where(due, now, self.last),
            due=due,
            ended=ended,
        )


def levels_above(levels: list[float], goal: int, start: int = 0) -> Levels:
    """Before the first iteration, none of the levels passed."""
    values = jnp.asarray(levels, jnp.result_type(float))
    none, nowhere = jnp.zeros((), values.dtype), jnp.full((), jnp.inf, values.dtype)
    return Levels(
        levels=values,
        goal=jnp.asarray(goal, jnp.int32),
        start=jnp.asarray(start, jnp.int32),
        passed=jnp.zeros((), jnp.int32),
        loss=none,
        norm=none,
        least=nowhere,
        last=jnp.full(3, jnp.nan, values.dtype),
        due=jnp.array(False),
        ended=jnp.array(False),
    )


def observed_entries(seen: Observation) -> Float[Array, "d_out batch"]:
    """1 where an entry was observed, 0 where it is hidden."""
    assert seen.data.mask is not None
    return seen.data.mask.T


def losses(seen: Observation) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean squared error over all outputs, hidden entries counted as zero (the published loss); over hidden entries."""
    x, y, observed = seen.data.probe_x, seen.data.probe_y, observed_entries(seen)
    published = 2 * loss(seen.network, x, y, observed) / y.shape[0]
    hidden = 2 * loss(seen.network, x, y, 1 - observed) * y.shape[1]
    return published, hidden / jnp.maximum(jnp.sum(1 - observed), 1)


def measure(seen: Observation) -> dict[str, Any]:
    """Where the descent stands, and the singular values of its map."""
    f, events = outputs(seen.network, seen.data.probe_x), seen.events
    # LAPACK complains on standard output of what is not finite.
    singular = jnp.linalg.svd(jnp.where(jnp.isfinite(f), f, 0), compute_uv=False)
    target = jnp.linalg.svd(seen.data.probe_y * observed_entries(seen), compute_uv=False)
    threshold = RANK_FRACTION * target[0]
    return {
        "visited_at": events.start,
        "loss": events.loss,
        "hidden_loss": losses(seen)[1],
        "passed": events.passed,
        "gradient_norm": events.norm,
        "least_gradient_norm": events.least,
        "rank_threshold": threshold,
        "end": events.levels[-1],
        "map_rank": jnp.sum(singular > threshold),
        "singular_value": singular[:SHOWN],
        **{name: value for name, value in seen.diagnostics.items() if name in DIAGNOSTICS},
    }
