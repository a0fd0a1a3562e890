"""Points of the records: which count as found, of what class each is, and which are alike."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.strict_saddles.batches import D_OUT, FULL_RANK
from pcexp.report.claims import Records, done, width_of

FOUND = 1e-10
"""A point is found if the norm of the gradient of F* is below this, times the largest weight too where that is above 1.

Any other is no evidence of anything. The factor came after the first run: F* flattens on the way to infinity.
"""
TOLERANCE = FOUND**0.5
"""A curvature is negative if it is below minus this share of the Hessian's norm.

Where curvature vanishes at a critical point, at a distance d from it the gradient is of order d^2 and curvatures are off by
d: a point that is found has them to the root of its gradient norm. Rotations of hidden units, along which F* is constant,
say what round-off leaves of zero (`zero_mode`): far less.
"""
LOWEST = 1e-9
"""F* is at its infimum within this; descent that lowers F* by more has left a saddle."""
RANK = 1e-6
"""Rank of the map: its singular values above this."""
ALIKE = 5
"""Points of a cell are alike if F*, the map's singular values, the norms of all weights, Frobenius' and W_L's largest
singular value, agree to so many decimals: of rotations of hidden units one is counted."""

SORTS_OF_DATA = {
    "full rank, N >= K": lambda kind, width: kind in FULL_RANK and width >= D_OUT,
    "full rank, N < K": lambda kind, width: kind in FULL_RANK and width < D_OUT,
    "deficient": lambda kind, width: kind not in FULL_RANK,
}
"""Covariances of full rank and a hidden layer that lets every map pass, one that does not, and deficient covariances."""


class Points(NamedTuple):
    """Points of some runs, one entry each; those that were not found too."""

    kind: Sequence[str]
    cell: Sequence[str]
    width: Int[np.ndarray, " n"]
    columns: dict[str, Float[np.ndarray, " n"]]

    def at(self, name: str) -> Float[np.ndarray, " n"]:
        return self.columns[name] if self.n else np.zeros(0)  # no rows have no columns

    @property
    def n(self) -> int:
        return len(self.kind)

    @property
    def found(self) -> Bool[np.ndarray, " n"]:
        return self.at("gradient") * np.maximum(self.at("size"), 1.0) < FOUND

    @property
    def negative(self) -> Bool[np.ndarray, " n"]:
        """Whether the lowest curvature is below zero by more than round-off."""
        return self.at("lambda_min") < -TOLERANCE * self.at("lambda_max")

    @property
    def lowest(self) -> Bool[np.ndarray, " n"]:
        return self.at("excess") < LOWEST

    @property
    def rank(self) -> Int[np.ndarray, " n"]:
        return np.sum([self.at(f"map_{i}") > RANK for i in range(1, D_OUT + 1)], axis=0)

    def classes(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """What each point found is. A local minimum is one as far as descent from near it tells."""
        found, negative, lowest = self.found, self.negative, self.lowest
        left = found & ~negative & ~lowest
        return {
            "strict saddle": found & negative,
            "global minimum": found & ~negative & lowest,
            "local minimum": left & ~(self.at("descent") > LOWEST),
            "non-strict saddle": left & (self.at("descent") > LOWEST),
        }

    def distinct(self) -> int:
        """Points found that are not alike."""
        names = [*sorted(name for name in self.columns if name.startswith(("map_", "norms_"))), "energy", "output"]
        table = np.round(np.nan_to_num([self.at(name) for name in names]), ALIKE).T
        cells = np.unique(np.asarray(self.cell), return_inverse=True)[1] if self.n else np.zeros(0)
        return len(np.unique(np.column_stack([cells, table])[self.found], axis=0))

    def among(self, chosen: Bool[np.ndarray, " n"]) -> "Points":
        return Points(
            [k for k, here in zip(self.kind, chosen, strict=True) if here],
            [c for c, here in zip(self.cell, chosen, strict=True) if here],
            self.width[chosen],
            {name: values[chosen] for name, values in self.columns.items()},
        )

    def of(self, name: str) -> "Points":
        """Points of one of `SORTS_OF_DATA`."""
        inside = SORTS_OF_DATA[name]
        return self.among(np.array([inside(k, w) for k, w in zip(self.kind, self.width, strict=True)], bool))


def points_of(records: Records) -> Points:
    """All points of runs that ended."""
    about = {(run["cell"], run["lane"]): run for run in done(records)}
    rows = [row for row in records.rows.iter_rows(named=True) if (row["cell"], row["lane"]) in about]
    of = [about[row["cell"], row["lane"]] for row in rows]
    names = [name for name in records.rows.columns if name not in ("cell", "lane")]
    return Points(
        [run["config.study.kind"] for run in of],
        [row["cell"] for row in rows],
        np.array([width_of(run) for run in of], int),
        {name: np.array([row[name] for row in rows], float) for name in names},
    )
