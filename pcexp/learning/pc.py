"""Predictive coding."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from pcexp.energy import Batch, energy_gradient, loss_at, weighted
from pcexp.inference.base import AbstractInference, Equilibrium
from pcexp.inference.starts import AbstractStart, AmortisedStart, ForwardStart
from pcexp.learning import regime
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, said_by, scaled
from pcexp.model.network import Network
from pcexp.model.segments import Precision
from pcexp.problem import InferenceProblem, check_prior, check_products


class AbstractPC(AbstractLearning):
    """Rules that infer activities from the `start`, then descend the energy on the weights at those activities.

    Free inputs have a prior of the `input_precision`.
    """

    inference: AbstractInference
    gradient_scale: GradientScale
    precision: Precision = "float32"
    start: AbstractStart = eqx.field(default=ForwardStart(), kw_only=True)
    input_precision: float = eqx.field(default=0.0, kw_only=True, static=True)
    infers_inputs = True

    def __check_init__(self) -> None:
        check_prior(self.input_precision)
        check_products(self.precision, getattr(self.inference, "form", "deviations"))

    def problem(self, model: Any, batch: Batch, *, key: PRNGKeyArray | None) -> InferenceProblem:
        """The problem of one batch, started."""
        network, prior = model.generator, self.input_precision
        problem = InferenceProblem.from_batch(network, batch, precision=self.precision, input_precision=prior)
        # The solver has the key itself: no number of what was there before may move.
        return self.start(problem, model, key=None if key is None else jax.random.fold_in(key, 1))

    def learned(
        self, network: Network, batch: Batch, problem: InferenceProblem, equilibrium: Equilibrium
    ) -> WeightGradient:
        """The weight gradient of a network at inferred activities."""
        x, low, z, e = batch.x, problem.network, equilibrium.activities, weighted(problem.network, equilibrium.errors)
        if problem.free is not None:  # a prior learns nothing, and x is what was inferred
            x, low, z, e = z[0][0], low.above_prior, z[1:], e[1:]
        gradient = network.with_segments(energy_gradient(low, x, z, e).segments)
        loss = loss_at(problem.network, problem.at, batch.y, batch.mask)
        return scaled(self.gradient_scale, batch.y, gradient, loss, **said_by(equilibrium))

    def check_regime(self, model: Any) -> None:
        regime.check(model.generator)

    def regime(
        self, model: Any, batch: Batch, found: WeightGradient, *, key: PRNGKeyArray | None = None
    ) -> dict[str, Array]:
        self.check_regime(model)
        return regime.columns(self.problem(model, batch, key=key), self.inference, found.diagnostics)

    def forward_passes(self) -> float:
        return 2.0 + self.inference.forward_passes()


class PC(AbstractPC):
    """Predictive coding: infer activities, then descend the energy on the weights at those activities."""

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        self.check(network)
        problem = self.problem(network, batch, key=key)
        return self.learned(network, batch, problem, self.inference.solve(problem, key=key))

    def check(self, model: Any) -> None:
        super().check(model)
        if isinstance(self.start, AmortisedStart):
            raise ValueError("start: an amortised start needs an amortiser: choose network=hybrid with learning=hybrid")
        self.inference.check(model)
