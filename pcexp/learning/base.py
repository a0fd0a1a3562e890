"""What every learning rule returns, and the scale of its gradient."""

import abc
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.data import Split
from pcexp.energy import Batch
from pcexp.evaluation import AbstractEvaluation, ByForwardPass, evaluate
from pcexp.inference.base import Equilibrium
from pcexp.model.checks import check_choices
from pcexp.model.network import Network

GradientScale = Literal["batch_mean", "batch_sum", "mean_squared_error"]
"""Units of a weight gradient: of F (the mean over the batch); B F (summed); or 2F/K, the mean over batch and outputs."""


def gradient_factor(scale: GradientScale, y: Float[Array, "d_out batch"]) -> float:
    """Factor that turns the gradient of F, averaged over the batch, into the asked scale: 1, B or 2/K."""
    d_out, batch = y.shape
    return {"batch_mean": 1.0, "batch_sum": float(batch), "mean_squared_error": 2.0 / d_out}[scale]


def scaled(scale: GradientScale, y: Array, gradient: Any, loss: Array, **seen: Array) -> "WeightGradient":
    """A gradient of F in the asked scale, with the factor among what was seen."""
    factor = gradient_factor(scale, y)
    diagnostics = {"gradient_factor": jnp.asarray(factor), **seen}
    return WeightGradient(jax.tree.map(lambda g: factor * g, gradient), loss, diagnostics)


def said_by(ended: Equilibrium) -> dict[str, Array]:
    """What an inference says of itself, by its name in the diagnostics: how far it came, in how many steps, and why it stopped."""
    seen = {
        "residual": ended.residual,
        "steps": ended.n_steps,
        "stopped_by": ended.stopped_by,
        "energy": ended.energy,
        **ended.stats,
    }
    return {f"inference_{name}": value for name, value in seen.items()}


def refuse_free_input(batch: Batch, rule: str) -> None:
    """Raise ValueError where inputs are free and a rule infers none."""
    if batch.x_mask is not None:
        raise ValueError(f"{rule} infers no free input: choose learning=pc, or leave x_mask out")


class WeightGradient(NamedTuple):
    """Scaled gradient of the weights, in the shape of the model, the batch's loss at the forward pass, and what was seen on the way.

    Of a rule that infers, the `diagnostics` say how that ended: `inference_residual`, `inference_steps`, `inference_stopped_by` (an
    index of STOPPED_BY), `inference_energy` (F there), and what one solver alone can say.
    """

    gradient: Any
    loss: Float[Array, ""]
    diagnostics: dict[str, Array]


class AbstractLearning(eqx.Module):
    """A learning rule; its fields are its hyperparameters, among them the `precision` of its products, and how it evaluates."""

    evaluation: AbstractEvaluation = eqx.field(default=ByForwardPass(), kw_only=True)
    infers_inputs: ClassVar[bool] = False
    """Whether it learns where inputs are free."""

    def __check_init__(self) -> None:
        check_choices(self)

    @abc.abstractmethod
    def gradient(self, model: Any, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        """Weight gradient of one batch; output errors count where its `mask` is 1, everywhere if it is None.

        Raises ValueError as `check` does.
        """

    @abc.abstractmethod
    def forward_passes(self) -> float:
        """Matrix products of a gradient in units of one forward pass."""

    def check(self, model: Any) -> None:
        """Raise ValueError where this rule cannot work on a model; called before anything is compiled."""
        if not isinstance(model, Network):
            raise ValueError("this rule trains one network, and this is a pair: choose learning=hybrid")

    def check_regime(self, model: Any) -> None:
        """Raise ValueError where rows cannot say what `regime` says; called before anything is compiled."""

    def regime(
        self, model: Any, batch: Batch, found: WeightGradient, *, key: PRNGKeyArray | None = None
    ) -> dict[str, Array]:
        """Columns that say where the inference of a gradient stands (`pcexp.learning.regime`); none of a rule that does not infer."""
        return {}

    def evaluate(self, model: Any, split: Split, *, stacked: bool = False) -> dict[str, Any]:
        """Scores of a model on a split: of each lane of a `stacked` model and rule."""
        return evaluate(model, split, self.evaluation, stacked=stacked)
