"""Backpropagation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import loss
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, gradient_factor
from pcexp.network import Network


class BP(AbstractLearning):
    """Backpropagation: the gradient of the loss 1/(2B) sum ||y - f(x)||^2, times an explicit scale."""

    gradient_scale: GradientScale

    def gradient(
        self,
        network: Network,
        x: Float[Array, "..."],
        y: Float[Array, "d_out batch"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> WeightGradient:
        value, gradient = eqx.filter_value_and_grad(loss)(network, x, y)
        factor = gradient_factor(self.gradient_scale, y)
        return WeightGradient(
            jax.tree.map(lambda g: factor * g, gradient), value, {"gradient_factor": jnp.asarray(factor)}
        )

    def forward_passes(self) -> float:
        return 3.0
