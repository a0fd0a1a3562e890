"""Where inference starts."""

import abc
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pcexp.model.pair import Pair
from pcexp.problem import InferenceProblem


class AbstractStart(eqx.Module):
    """Activities that inference starts from."""

    @abc.abstractmethod
    def __call__(self, problem: InferenceProblem, model: Any, *, key: PRNGKeyArray | None) -> InferenceProblem:
        """The problem of a model, started there."""


class ForwardStart(AbstractStart):
    """The forward pass: every hidden error is zero."""

    def __call__(self, problem: InferenceProblem, model: Any, *, key: PRNGKeyArray | None) -> InferenceProblem:
        return problem


class RandomStart(AbstractStart):
    """Free activities drawn from N(0, scale^2)."""

    scale: float

    def __check_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale must not be negative, not {self.scale}")

    def __call__(self, problem: InferenceProblem, model: Any, *, key: PRNGKeyArray | None) -> InferenceProblem:
        if key is None:
            raise ValueError("a random start needs a key")
        at = problem.at.activities[:-1]
        keys = jax.random.split(key, len(at))
        drawn = (self.scale * jax.random.normal(k, z.shape, z.dtype) for k, z in zip(keys, at, strict=True))
        return problem.starting_at(tuple(drawn))


class AmortisedStart(AbstractStart):
    """The guess of a pair's amortiser."""

    def __call__(self, problem: InferenceProblem, model: Any, *, key: PRNGKeyArray | None) -> InferenceProblem:
        if not isinstance(model, Pair):
            raise ValueError("start: an amortised start needs an amortiser: choose network=hybrid")
        guess = model.guess(problem.y)
        return problem.starting_at(guess if problem.free is not None else guess[1:])
