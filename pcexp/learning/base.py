"""What every learning rule returns, and the scale of its gradient."""

import abc
from typing import Literal, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import Batch
from pcexp.model.network import Network

GradientScale = Literal["batch_mean", "batch_sum", "mean_squared_error"]
"""Units of a weight gradient: of F (the mean over the batch); B F (summed); or 2F/K, the mean over batch and outputs."""


def gradient_factor(scale: GradientScale, y: Float[Array, "d_out batch"]) -> float:
    """Factor that turns the gradient of F, averaged over the batch, into the asked scale: 1, B or 2/K."""
    d_out, batch = y.shape
    return {"batch_mean": 1.0, "batch_sum": float(batch), "mean_squared_error": 2.0 / d_out}[scale]


def refuse_free_input(batch: Batch, rule: str) -> None:
    """Raise ValueError where inputs are free and a rule infers none."""
    if batch.x_mask is not None:
        raise ValueError(f"{rule} infers no free input: choose learning=pc, or leave x_mask out")


class WeightGradient(NamedTuple):
    """Scaled gradient of the weights, the batch's loss at the forward pass, and what was seen on the way."""

    gradient: Network
    loss: Float[Array, ""]
    diagnostics: dict[str, Array]


class AbstractLearning(eqx.Module):
    """A learning rule; its fields are its hyperparameters, among them the `precision` of its products."""

    @abc.abstractmethod
    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        """Weight gradient of one batch; output errors count where its `mask` is 1, everywhere if it is None."""

    @abc.abstractmethod
    def forward_passes(self) -> float:
        """Matrix products of a gradient in units of one forward pass."""

    def check(self, network: Network) -> None:
        """Raise ValueError where this rule cannot work on a network; called before anything is compiled."""
