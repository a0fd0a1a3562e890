"""What a model does on a split that it does not learn from: by its forward pass, or by inference of what is below it.

Scores are one an example, losses one an output of each; `evaluate` averages their sums over a split, in 64 bits.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from pcexp.data import Split
from pcexp.energy import Batch, forward_pass, masked
from pcexp.inference.base import AbstractInference
from pcexp.inference.starts import AmortisedStart
from pcexp.model.checks import check_shapes
from pcexp.model.network import AbstractModel, Network
from pcexp.model.pair import Pair
from pcexp.problem import InferenceProblem, check_prior

Scores = dict[str, Shaped[Array, "outputs batch"]]


def batch_layout(model: AbstractModel, x: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """Examples with the batch axis where the model takes it."""
    return jnp.moveaxis(x, 0, model.input_batch_axis)


def in_batch(model: AbstractModel, x: Array, y: Array, mask: Array | None, x_mask: Array | None) -> Batch:
    """Examples, along the first axis of all, as the model takes them."""
    check_shapes(model, x, y, mask, x_mask, examples_first=True)
    free = None if x_mask is None else batch_layout(model, x_mask)
    return Batch(batch_layout(model, x), y.T, None if mask is None else mask.T, free)


class AbstractEvaluation(eqx.Module):
    """How a model is evaluated; with `top` k, the fraction of examples whose class is among the k largest too."""

    top: int | None = eqx.field(default=None, kw_only=True)
    generative: ClassVar[bool] = False
    """Whether it is for networks with targets below; the other kind has them above."""

    def __check_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ValueError(f"top={self.top}: valid are null, and 1 or more")

    def check(self, model: Any, *, generative: bool) -> None:
        """Raise ValueError where a model cannot be evaluated so; called before anything is compiled."""
        if generative != self.generative:
            kind, by = ("generative", "inference") if generative else ("discriminative", "forward")
            raise ValueError(f"evaluation: this network is {kind}: choose evaluation={by}")

    @abc.abstractmethod
    def scores(self, model: Any, batch: Batch) -> Scores:
        """Named scores of the examples of a batch: the `loss` of what is above, and others."""

    def forward_passes(self) -> float:
        """Matrix products of the scores of an example in units of one forward pass."""
        return 1.0

    def hits(self, guess: Float[Array, "k batch"], target: Float[Array, "k batch"]) -> Scores:
        """Whether the largest entry is the target's, and whether the `top` largest have it."""
        right = jnp.argmax(target, axis=0)
        found = {"accuracy": (jnp.argmax(guess, axis=0) == right)[None]}
        if self.top is not None:
            _, best = jax.lax.top_k(guess.T, min(self.top, guess.shape[0]))
            found[f"accuracy_top_{self.top}"] = jnp.any(best == right[:, None], axis=1)[None]
        return found


def _losses(network: Network, batch: Batch) -> tuple[Float[Array, "d_out batch"], Float[Array, "d_out batch"]]:
    """Outputs of the forward pass, and their losses where a mask counts them."""
    at = forward_pass(network, batch.x)
    losses = network.output.losses(at.references[-1].linear, batch.y[None])[0]
    return at.activities[-1][-1], masked(losses, batch.mask)


class ByForwardPass(AbstractEvaluation):
    """Loss and accuracy of the outputs f(x)."""

    def scores(self, model: Any, batch: Batch) -> Scores:
        f, loss = _losses(model, batch)
        return {"loss": loss} | self.hits(f, batch.y)


class ByInference(AbstractEvaluation):
    """What is below a generative network, inferred from what is above it alone: z_0 is free, and its largest entry the class.

    Where a split has a mask of what is below (free inputs, or labels of which some are not known) nothing is compared with it.
    Inference starts where all classes are alike (at zero, for latents), or at a pair's guess, whose own accuracy is there
    too. `loss` is that of the forward pass from what is known to be below, `reconstruction_loss` from what was inferred. With
    `outcome` the residual of the inference is there too, and the fraction of examples whose batch had converged.
    """

    inference: AbstractInference
    input_precision: float = eqx.field(default=0.0, static=True)
    outcome: bool = eqx.field(default=False, kw_only=True)
    generative = True

    def __check_init__(self) -> None:
        check_prior(self.input_precision)

    def check(self, model: Any, *, generative: bool) -> None:
        super().check(model, generative=generative)
        self.inference.check(model.generator)

    def forward_passes(self) -> float:
        return 3.0 + self.inference.forward_passes()

    def scores(self, model: Any, batch: Batch) -> Scores:
        network = model.generator
        known = batch.x_mask is None
        x = jnp.full_like(batch.x, 1 / batch.x.shape[0]) if known else batch.x
        free = Batch(x, batch.y, batch.mask, jnp.zeros_like(x))
        problem = InferenceProblem.from_batch(network, free, input_precision=self.input_precision)
        guess: dict[str, Array] = {}
        if isinstance(model, Pair):
            problem = AmortisedStart()(problem, model, key=None)
            if known:
                first = model.guess(batch.y)[0][0]
                guess = {f"guess_{name}": value for name, value in self.hits(first, batch.x).items()}
        found = self.inference.solve(problem)
        below = found.activities[0][0]
        _, loss = _losses(network, batch)
        _, again = _losses(network, Batch(below, batch.y, batch.mask))
        named = self.hits(below, batch.x) if known else {}
        if self.outcome:
            ended = {"inference_residual": found.residual, "inference_converged": found.converged}
            named |= {name: jnp.full((1, below.shape[-1]), value) for name, value in ended.items()}
        return {"loss": loss, "reconstruction_loss": again} | named | guess


def evaluate(
    model: Any,
    split: Split,
    by: AbstractEvaluation = ByForwardPass(),  # noqa: B008  # it has no state
    *,
    stacked: bool = False,
    examples: int = 1000,
) -> dict[str, Any]:
    """Scores averaged over all examples of a split, so many at a time; of each lane of a `stacked` model.

    The loss is the output's, of what the split's mask counts.
    """
    n, total = len(split.x), dict[str, Any]()
    compiled = _scores_of_lanes if stacked else _scores
    floats = jnp.result_type(float)
    with np.errstate(over="ignore", invalid="ignore"):  # of a lane that diverged
        for i in range(0, n, examples):
            some = [None if array is None else jnp.asarray(array[i : i + examples], floats) for array in split]
            for name, scores in compiled(by, model, *some).items():
                total[name] = total.get(name, 0.0) + np.sum(np.asarray(scores), axis=(-2, -1), dtype=float)
    return {name: np.asarray(value / n).tolist() for name, value in total.items()}


def _all_scores(by: AbstractEvaluation, model: AbstractModel, *arrays: Any) -> Mapping[str, Array]:
    return by.scores(model, in_batch(model, *arrays))


_scores: Callable[..., Mapping[str, Array]] = eqx.filter_jit(_all_scores)
_scores_of_lanes: Callable[..., Mapping[str, Array]] = eqx.filter_jit(
    eqx.filter_vmap(_all_scores, in_axes=(eqx.if_array(0), eqx.if_array(0), None, None, None, None))
)
