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

    def part(self, labels: Mapping[str, str]) -> str | None:
        """The part of this study that a cell with these labels belongs to, itself a label; None: no cell of this study.

        A sweep is a product of axes, and a study of several parts has no use for some of its corners.
        """
        return ""

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Numbers of one finished lane, from all rows that the study measured (sorted by iteration, one array a column)."""
        return {}
