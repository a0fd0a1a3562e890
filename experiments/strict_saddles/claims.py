"""Points of the records, and what is claimed of them: the conjecture by data and widths, and what theory says of all."""

import numpy as np
from jaxtyping import Bool

from pcexp.experiments.strict_saddles.starts import D_OUT, FULL_RANK, Start
from pcexp.report.claims import Claim, Records, Verdict, done, insufficient, rule, width_of

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
    "full rank, N >= K": lambda kind, width: np.isin(kind, FULL_RANK) & (width >= D_OUT),
    "full rank, N < K": lambda kind, width: np.isin(kind, FULL_RANK) & (width < D_OUT),
    "deficient": lambda kind, width: ~np.isin(kind, FULL_RANK),
}
"""Covariances of full rank and a hidden layer that lets every map pass, one that does not, and deficient covariances."""


class Points(dict[str, np.ndarray]):
    """Points of some runs, an array a column, those that were not found too."""

    def __missing__(self, name: str) -> np.ndarray:
        return np.zeros(0)  # no rows have no columns

    @property
    def n(self) -> int:
        return len(self["kind"])

    def among(self, chosen: Bool[np.ndarray, " n"]) -> "Points":
        return Points({name: values[chosen] for name, values in self.items()})

    def of(self, name: str) -> "Points":
        """Points of one of `SORTS_OF_DATA`."""
        return self.among(SORTS_OF_DATA[name](self["kind"], self["width"]))

    def classes(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """What each point found is. A local minimum is one as far as descent from near it tells."""
        found, negative, lowest = self["found"], self["negative"], self["excess"] < LOWEST
        left, lowered = found & ~negative & ~lowest, self["descent"] > LOWEST
        return {
            "strict saddle": found & negative,
            "global minimum": found & ~negative & lowest,
            "local minimum": left & ~lowered,
            "non-strict saddle": left & lowered,
        }

    def distinct(self) -> int:
        """Points found that are not alike."""
        names = [*sorted(name for name in self if name.startswith(("map_", "norms_"))), "energy", "output"]
        table = np.round(np.nan_to_num([self[name] for name in names]), ALIKE).T
        cells = np.unique(self["cell"], return_inverse=True)[1]
        return len(np.unique(np.column_stack([cells, table])[self["found"]], axis=0))


def points_of(records: Records) -> Points:
    """All points of runs that ended: what was measured there, of what data and width, and what that makes of them."""
    about = {(run["cell"], run["lane"]): run for run in done(records)}
    rows = [row for row in records.rows.iter_rows(named=True) if (row["cell"], row["lane"]) in about]
    names = [name for name in records.rows.columns if name not in ("cell", "lane")]
    runs = [about[row["cell"], row["lane"]] for row in rows]
    points = Points({name: np.array([row[name] for row in rows], float) for name in names})
    points["kind"], points["cell"] = (
        np.array([run[key] for run in runs], str) for key in ("config.study.kind", "cell")
    )
    points["width"] = np.array([width_of(run) for run in runs], int)
    points["found"] = points["gradient"] * np.maximum(points["size"], 1.0) < FOUND
    points["negative"] = points["lambda_min"] < -TOLERANCE * points["lambda_max"]
    points["rank"] = np.sum([points[f"map_{i}"] > RANK for i in range(1, D_OUT + 1)], axis=0)
    return points


ASKED = 1000
"""Critical points that the question asks for."""
EXACT = 1e-8
"""What theory says of a point holds to this: 100 times the gradient norm at which a point counts as found."""
SMALL_OUTPUT = 1e-6
NOISY = ("noisy", "uncorrelated")
"""Kinds of data with noise in every direction of the targets."""


def _verdict(records: Records, expected: str, holds: bool, observed: str, interval: str, n: int) -> Verdict:
    """What the points say; of a part of the runs that were asked for only that a claim is wrong."""
    lost = len(records.asked) - len(done(records))
    if n == 0 or (lost and holds):
        why = "; ".join(filter(None, (f"{lost} runs missing" if lost else "", observed if n else "no points")))
        return insufficient(records, expected, why)
    return Verdict("reproduced" if holds else "not_reproduced", observed, interval, expected, n, records.scale)


def _count(records: Records) -> Verdict:
    expected = f"at least {ASKED} distinct points with a gradient norm below {FOUND:g}"
    points = points_of(records)
    n, distinct = int(np.sum(points["found"])), points.distinct()
    observed = f"{n} of {points.n} starts found one, {distinct} distinct"
    if distinct < ASKED and records.scale != "thesis":
        return insufficient(records, expected, observed, scale="thesis")
    worst = float(np.max(points["gradient"][points["found"]], initial=0.0))
    return _verdict(records, expected, distinct >= ASKED, observed, f"largest gradient norm {worst:.1e}", n)


def _extremes(points: Points) -> str:
    """Lowest curvature relative to the Hessian's norm: the highest of those counted as negative, the lowest of the others."""
    share = points["lambda_min"] / np.maximum(points["lambda_max"], 1e-300)
    below, others = share[points["found"] & points["negative"]], share[points["found"] & ~points["negative"]]
    parts = [f"negative up to {np.max(below):.1e}"] if len(below) else []
    return "; ".join([*parts, *([f"else from {np.min(others):.1e}"] if len(others) else [])])


@rule
def _above(records: Records, name: str) -> Verdict:
    points = points_of(records).of(name)
    classes = points.classes()
    above = points["found"] & ~classes["global minimum"]
    holds = bool(np.array_equal(above, classes["strict saddle"]))
    expected = "lambda_min < 0 at each point found above the infimum of F*"
    counts = ", ".join(f"{int(np.sum(chosen))} {name}" for name, chosen in classes.items())
    return _verdict(records, expected, holds, counts, _extremes(points), int(np.sum(above)))


@rule
def _strict(records: Records, name: str) -> Verdict:
    points = points_of(records).of(name)
    classes = points.classes()
    saddles, flat = classes["strict saddle"] | classes["non-strict saddle"], classes["non-strict saddle"]
    n_flat, n, edges = (int(np.sum(chosen)) for chosen in (flat, saddles, flat & (points["start"] == Start.EDGE)))
    observed = f"{n_flat} of {n} saddles are not strict ({edges} on the edge of local minima)"
    deepest = float(np.max(points["descent"][flat], initial=0.0))
    expected = "no point found without negative curvature from which descent lowers F*"
    interval = f"descent by up to {deepest:.2g}" if np.any(flat) else _extremes(points)
    return _verdict(records, expected, not np.any(flat), observed, interval, n)


@rule
def _largest(records: Records, column: str, bound: float, expected: str, *kinds: str) -> Verdict:
    points = points_of(records)
    chosen = points["found"] & (np.isin(points["kind"], kinds) if kinds else True)
    sizes = np.abs(points[column][chosen])
    worst = float(np.max(sizes, initial=0.0))
    interval = f"median {np.median(sizes):.1e}" if len(sizes) else ""
    return _verdict(records, expected, worst < bound, f"largest {worst:.1e}", interval, len(sizes))


CLAIMS = (
    Claim("polish", "1,000 distinct critical points of F* are found", _count),
    *(
        Claim("points", f"every critical point found above the infimum has lambda_min < 0 ({name})", _above(name))
        for name in SORTS_OF_DATA
    ),
    *(Claim("counts", f"every saddle found is strict ({name})", _strict(name)) for name in SORTS_OF_DATA),
    Claim(
        "points",
        "F* is the loss at every critical point",
        _largest("gap", EXACT, f"loss - F* below {EXACT:g} at each point found"),
    ),
    Claim(
        "points",
        "F* is half of tr Sigma_yy less some of its eigenvalues at every critical point",
        _largest("level_error", EXACT, f"nearest such value within {EXACT:g}"),
    ),
    Claim(
        "counts",
        "with noise in every direction of the targets W_L is zero at every critical point",
        _largest("output", SMALL_OUTPUT, f"largest singular value of W_L below {SMALL_OUTPUT:g}", *NOISY),
    ),
)
