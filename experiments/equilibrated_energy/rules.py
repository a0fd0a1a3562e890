"""PC on a linear network, with what theorem 3.1 says of the same weights and the same batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import Batch, energy, energy_gradient, loss_at, weighted
from pcexp.learning import WeightGradient
from pcexp.learning.base import gradient_factor
from pcexp.learning.pc import AbstractPC
from pcexp.model.network import Network
from pcexp.theory.equilibrated import activities, equilibrium


class PCBesideTheory(AbstractPC):
    """Predictive coding; beside its gradient F where inference stopped, F*, and how far the gradient is from that of F*.

    Inference knows nothing of F*: no number of the closed form enters the gradient.
    """

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        x, y, mask = batch.x, batch.y, batch.mask
        problem = self.problem(network, batch, key=key)
        found = self.inference.solve(problem, key=key)
        gradient = energy_gradient(network, x, found.activities, weighted(network, found.errors))
        theory = equilibrium(network, problem.at, y, mask=mask)
        exact = energy_gradient(network, x, activities(problem.at, theory, y), weighted(network, theory.errors))
        factor = gradient_factor(self.gradient_scale, y)
        diagnostics = {
            "energy": energy(network, found.errors),
            "equilibrated_energy": theory.energy,
            "residual": found.residual,
            "inference_steps": found.n_steps,
            "gradient_error": distance(gradient, exact) / length(exact),
        }
        return WeightGradient(
            jax.tree.map(lambda g: factor * g, gradient), loss_at(network, problem.at, y, mask), diagnostics
        )

    def forward_passes(self) -> float:
        return 6.0 + self.inference.forward_passes()

    def check(self, model: Any) -> None:
        super().check(model)
        if not model.is_linear:
            raise ValueError(
                "the equilibrated energy has a closed form for linear networks only: choose network.activation=linear"
            )
        self.inference.check(model)


def length(tree: Network) -> Float[Array, ""]:
    """Norm over all parameters."""
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)])))


def distance(a: Network, b: Network) -> Float[Array, ""]:
    """Norm of the difference over all parameters."""
    return length(jax.tree.map(jnp.subtract, a, b))
