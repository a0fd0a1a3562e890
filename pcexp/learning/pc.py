"""Predictive coding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import Mask, energy_gradient, loss_at
from pcexp.inference.base import AbstractInference, InferenceProblem
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, gradient_factor
from pcexp.network import Network
from pcexp.segments import Precision


class PC(AbstractLearning):
    """Predictive coding: infer activities, then descend the energy on the weights at those activities."""

    inference: AbstractInference
    gradient_scale: GradientScale

    def gradient(
        self,
        network: Network,
        x: Float[Array, "..."],
        y: Float[Array, "d_out batch"],
        *,
        mask: Mask = None,
        precision: Precision = "float32",
        key: PRNGKeyArray | None = None,
    ) -> WeightGradient:
        problem = InferenceProblem.from_batch(network, x, y, mask=mask, precision=precision)
        equilibrium = self.inference.solve(problem, key=key)
        gradient = energy_gradient(problem.network, x, equilibrium.activities, equilibrium.errors)
        factor = gradient_factor(self.gradient_scale, y)
        loss = loss_at(problem.network, problem.at, y, mask)
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
