"""PC on a linear network, with what theorem 3.1 says of the same weights and the same batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import Batch, energy, energy_gradient, loss_at
from pcexp.inference import AbstractInference, InferenceProblem
from pcexp.learning import AbstractLearning, GradientScale, WeightGradient
from pcexp.learning.base import gradient_factor
from pcexp.model.network import Network
from pcexp.model.segments import Precision
from pcexp.theory.equilibrated import activities, equilibrium


class PCBesideTheory(AbstractLearning):
    """Predictive coding; beside its gradient F where inference stopped, F*, and how far the gradient is from that of F*.

    Inference knows nothing of F*: no number of the closed form enters the gradient.
    """

    inference: AbstractInference
    gradient_scale: GradientScale
    precision: Precision = "float32"

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        x, y, mask = batch.x, batch.y, batch.mask
        problem = InferenceProblem.from_batch(network, batch, precision=self.precision)
        found = self.inference.solve(problem, key=key)
        gradient = energy_gradient(network, x, found.activities, found.errors)
        theory = equilibrium(network, problem.at, y, mask=mask)
        exact = energy_gradient(network, x, activities(problem.at, theory, y), theory.errors)
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

    def check(self, network: Network) -> None:
        if not network.is_linear:
            raise ValueError(
                "the equilibrated energy has a closed form for linear networks only: choose network.activation=linear"
            )
        self.inference.check(network)


def length(tree: Network) -> Float[Array, ""]:
    """Norm over all parameters."""
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)])))


def distance(a: Network, b: Network) -> Float[Array, ""]:
    """Norm of the difference over all parameters."""
    return length(jax.tree.map(jnp.subtract, a, b))
