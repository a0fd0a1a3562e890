"""Hybrid predictive coding: a generator that infers, and an amortiser that guesses where inference will end."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pcexp.energy import Batch, energy_gradient, prediction_errors
from pcexp.evaluation import AbstractEvaluation, ByInference
from pcexp.inference.gradient_descent import GradientDescent
from pcexp.inference.starts import AbstractStart, AmortisedStart
from pcexp.learning.base import WeightGradient, gradient_factor
from pcexp.learning.pc import AbstractPC
from pcexp.model.pair import Pair


class Hybrid(AbstractPC):
    """Inference starts at the amortiser's guess (`start`), the generator learns at its end, and the amortiser to guess that end.

    The generator descends its energy as under PC. The amortiser, whose activities q are clamped to those that were inferred, in
    reverse, descends 1/(2B) sum_b sum_l ||q_l - nu_l(q_{l-1})||^2, q_0 = y (Tschantz et al., 2023): every layer learns from its
    own error alone.
    """

    start: AbstractStart = eqx.field(default=AmortisedStart(), kw_only=True)
    evaluation: AbstractEvaluation = eqx.field(default=ByInference(GradientDescent(0.1, 100)), kw_only=True)

    def gradient(self, model: Pair, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        self.check(model)
        problem = self.problem(model, batch, key=key)
        equilibrium = self.inference.solve(problem, key=key)
        up, z = self.learned(model.generator, batch, problem, equilibrium), equilibrium.activities[:-1]
        x, inferred = (batch.x, z) if problem.free is None else (z[0][0], z[1:])
        low, q = model.amortiser.in_products(self.precision), model.as_amortised(x, inferred)
        down = energy_gradient(low, batch.y, q, prediction_errors(low, batch.y, q))
        factor = gradient_factor(self.gradient_scale, batch.y)
        return up._replace(gradient=Pair(up.gradient, jax.tree.map(lambda g: factor * g, down)))

    def forward_passes(self) -> float:
        return 4.0 + super().forward_passes()

    def check(self, model: Any) -> None:
        if not isinstance(model, Pair):
            raise ValueError("learning=hybrid trains a generator and its amortiser: choose network=hybrid")
        self.inference.check(model.generator)
