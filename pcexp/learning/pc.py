"""Predictive coding."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pcexp.energy import Batch, energy_gradient, loss_at
from pcexp.inference.base import AbstractInference, InferenceProblem
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, gradient_factor
from pcexp.model.network import Network
from pcexp.model.segments import Precision


class PC(AbstractLearning):
    """Predictive coding: infer activities, then descend the energy on the weights at those activities."""

    inference: AbstractInference
    gradient_scale: GradientScale
    precision: Precision = "float32"

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        problem = InferenceProblem.from_batch(network, batch, precision=self.precision)
        equilibrium = self.inference.solve(problem, key=key)
        gradient = energy_gradient(problem.network, batch.x, equilibrium.activities, equilibrium.errors)
        factor = gradient_factor(self.gradient_scale, batch.y)
        loss = loss_at(problem.network, problem.at, batch.y, batch.mask)
        diagnostics = {
            "gradient_factor": jnp.asarray(factor),
            "inference_residual": equilibrium.residual,
            "inference_steps": equilibrium.n_steps,
            "inference_halvings": equilibrium.halvings,
        }
        return WeightGradient(jax.tree.map(lambda g: factor * g, gradient), loss, diagnostics)

    def forward_passes(self) -> float:
        return 2.0 + self.inference.forward_passes()

    def check(self, network: Network) -> None:
        self.inference.check(network)
