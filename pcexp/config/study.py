"""What a study is: one class with its own hyperparameters, one way to run a cell, and what it says of a finished lane."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import numpy as np

from pcexp.model.segments import Precision


class Work(NamedTuple):
    """What a cell computes. Of each lane: operations of matrix products, entries that anything else reads or writes, and
    array operations that wait for one another; where arrays are small, the last take the time. `bytes` are those that a
    lane holds at the most, `programs` those that are compiled for all lanes, in units of one training step's.
    """

    flops: float
    bytes: float
    entries: float = 0.0
    operations: float = 0.0
    programs: float = 1.0


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

    def cost(self, spec: Any, dataset: Any) -> Work | None:
        """Work of a cell (a Spec) on a Dataset, from shapes alone.

        None, of a study that trains and does little else: `pcexp.run.cost.training`, which others add theirs to.
        """
        return None

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Numbers of one finished lane, from all rows that the study measured (sorted by iteration, one array a column)."""
        return {}
