"""What a study is: one class with its own hyperparameters, one way to run a cell, and what it says of a finished lane."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import numpy as np

from pcexp.model.segments import Precision


class AbstractStudy(eqx.Module):
    """A study; fields are its own hyperparameters.

    `revision` is raised when its numbers change meaning, its rows gain a column, or its settings move: cells of an older
    revision are then no longer asked for, neither drawn nor judged.
    """

    revision: ClassVar[int] = 1
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "bfloat16", "float64")
    """Valid ones: bfloat16 is a way to train, and nothing to a study that computes otherwise."""
    outputs: ClassVar[tuple[str, ...]] = ("squared", "softmax", "sigmoid")
    """Valid ones: a study that reads energies asks for squared, because a cross-entropy is no function of the output's error."""

    @abc.abstractmethod
    def run(self, job: Any) -> None:
        """Run the lanes of the job's cell that are not finished, appending rows and outcomes as they come; `job` is a pcexp.run.job.Job."""

    def cost(self, spec: Any, dataset: Any) -> tuple[float, float] | None:
        """Floating point operations of a lane, and bytes held at the most, of a cell (a Spec) on a Dataset.

        None, of a study that trains: from the shapes of its network, its rule and its training.
        """
        return None

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Numbers of one finished lane, from all rows that the study measured (sorted by iteration, one array a column)."""
        return {}
