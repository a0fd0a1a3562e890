"""Predictive coding."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import batched_predictions
from pcexp.inference.base import AbstractInference, InferenceProblem
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, gradient_factor
from pcexp.network import Activities, Network


def energy_gradient(network: Network, x: Float[Array, "..."], activities: Activities, errors: Activities) -> Network:
    """Gradient of the energy with respect to the weights at fixed activities: dF/dtheta = -1/B sum_b J_b^T e_b.

    J_b is the derivative of the predictions with respect to the weights; the errors come from the solver, which may have
    them to higher relative accuracy than activities minus predictions would.
    """
    batch = activities[-1].shape[-1]
    parameters, static = eqx.partition(network, eqx.is_inexact_array)
    _, pullback = jax.vjp(lambda p: batched_predictions(eqx.combine(p, static), x, activities), parameters)
    return pullback(jax.tree.map(lambda e: -e / batch, errors))[0]


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
        key: PRNGKeyArray | None = None,
    ) -> WeightGradient:
        problem = InferenceProblem.from_batch(network, x, y)
        equilibrium = self.inference.solve(problem, key=key)
        gradient = energy_gradient(network, x, equilibrium.activities, equilibrium.errors)
        factor = gradient_factor(self.gradient_scale, y)
        loss = jnp.sum(jnp.square(y - problem.at.activities[-1][0])) / (2 * y.shape[-1])
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
