"""Predictive coding."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pcexp.energy import Batch, energy_gradient, loss_at, weighted
from pcexp.inference.base import AbstractInference
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, gradient_factor
from pcexp.model.network import Network
from pcexp.model.segments import Precision
from pcexp.problem import InferenceProblem


class PC(AbstractLearning):
    """Predictive coding: infer activities, then descend the energy on the weights at those activities."""

    inference: AbstractInference
    gradient_scale: GradientScale
    precision: Precision = "float32"

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        problem = InferenceProblem.from_batch(network, batch, precision=self.precision)
        equilibrium = self.inference.solve(problem, key=key)
        x, low, z, e = batch.x, problem.network, equilibrium.activities, weighted(problem.network, equilibrium.errors)
        if problem.free is not None:  # a prior learns nothing, and x is what was inferred
            x, low, z, e = z[0][0], low.above_prior, z[1:], e[1:]
        factor = gradient_factor(self.gradient_scale, batch.y)
        diagnostics = {
            "gradient_factor": jnp.asarray(factor),
            "inference_residual": equilibrium.residual,
            "inference_steps": equilibrium.n_steps,
            **{f"inference_{name}": value for name, value in equilibrium.stats.items()},
        }
        loss = loss_at(problem.network, problem.at, batch.y, batch.mask)
        return WeightGradient(jax.tree.map(lambda g: factor * g, energy_gradient(low, x, z, e)), loss, diagnostics)

    def forward_passes(self) -> float:
        return 2.0 + self.inference.forward_passes()

    def check(self, network: Network) -> None:
        self.inference.check(network)
