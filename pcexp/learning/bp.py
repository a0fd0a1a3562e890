"""Backpropagation."""

from typing import Any

from jaxtyping import PRNGKeyArray

from pcexp.energy import Batch, backpropagated, energy_gradient, forward_pass, loss_at, masked
from pcexp.learning.base import AbstractLearning, GradientScale, WeightGradient, refuse_free_input, scaled
from pcexp.model.checks import check_shapes
from pcexp.model.network import Network
from pcexp.model.segments import Precision


class BP(AbstractLearning):
    """Backpropagation: the gradient of the loss, 1/(2B) sum ||y - f(x)||^2 or cross-entropy, times an explicit scale.

    With `last_layers` k only the last k weight matrices learn; the gradient of the others is exactly zero.
    """

    gradient_scale: GradientScale
    last_layers: int | None = None
    precision: Precision = "float32"

    def __check_init__(self) -> None:
        if self.last_layers is not None and self.last_layers < 1:
            raise ValueError(f"last_layers must be at least 1, or null for all, not {self.last_layers}")

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        self.check(network)
        refuse_free_input(batch, "learning=bp")
        x, y, mask = batch.x, batch.y, batch.mask
        check_shapes(network, x, y, mask)
        at = forward_pass(network, x)
        error = masked(y - at.activities[-1][0], mask)
        low = network.in_products(self.precision)
        gradient = energy_gradient(low, x, at.activities, backpropagated(low, at, error))
        if self.last_layers is not None:
            gradient = last_layers_of(gradient, self.last_layers)
        return scaled(self.gradient_scale, y, gradient, loss_at(network, at, y, mask))

    def forward_passes(self) -> float:
        return 3.0

    def check(self, model: Any) -> None:
        super().check(model)
        if self.last_layers is not None and self.last_layers > model.depth:
            raise ValueError(f"last_layers={self.last_layers}: the network has {model.depth} weight matrices")


def last_layers_of(gradient: Network, k: int) -> Network:
    """A gradient with all but the last k weight matrices (and their biases) set to zero."""
    first, segments = 0, []
    for segment in gradient.segments:
        frozen = min(max(gradient.depth - k - first, 0), segment.depth)
        weight = segment.weight.at[:frozen].set(0)
        bias = None if segment.bias is None else segment.bias.at[:frozen].set(0)
        segments.append(segment.with_parameters(weight, bias))
        first += segment.depth
    return gradient.with_segments(segments)
