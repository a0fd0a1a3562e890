"""Learning on the equilibrated energy."""

from typing import Any

from jaxtyping import PRNGKeyArray

from pcexp.energy import Batch, energy_gradient, forward_pass, loss_at, weighted
from pcexp.inference.closed_form import exactly_at
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, refuse_free_input, said_by, scaled
from pcexp.model.network import Network
from pcexp.model.segments import Precision
from pcexp.problem import InferenceProblem
from pcexp.theory.equilibrated import activities, equilibrium


class Equilibrated(AbstractLearning):
    """Predictive coding with perfect inference: the gradient of the equilibrated energy F* of a linear network, times a scale.

    Two passes and a solve of the size of the output (theorem 3.1): the price of backpropagation. The equilibrium itself is
    never rounded to bfloat16, only the product of errors and activities is.
    """

    gradient_scale: GradientScale
    precision: Precision = "float32"

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        self.check(network)
        refuse_free_input(batch, "learning=equilibrated")
        x, y, mask = batch.x, batch.y, batch.mask
        at = forward_pass(network, x)
        found = equilibrium(network, at, y, mask=mask)
        ended = exactly_at(InferenceProblem(network, x, y, at, mask), found.deviations, found.errors)
        errors = weighted(network, found.errors)
        gradient = energy_gradient(network.in_products(self.precision), x, activities(at, found, y), errors)
        loss = loss_at(network, at, y, mask)
        return scaled(self.gradient_scale, y, gradient, loss, equilibrated_energy=found.energy, **said_by(ended))

    def forward_passes(self) -> float:
        return 4.0

    def check(self, model: Any) -> None:
        super().check(model)
        if not model.is_linear:
            raise ValueError(
                "learning=equilibrated descends the equilibrated energy of linear networks, and this network is not linear. "
                "Choose network.activation=linear and a linear output, or learning=pc with inference=error_descent, "
                "whose residual says how near the equilibrium is"
            )
