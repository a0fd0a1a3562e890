"""Claims of the study: the conjecture by data and widths, and what theory says of every critical point."""

import numpy as np

from experiments.strict_saddles.batches import KINDS
from experiments.strict_saddles.points import FOUND, SORTS_OF_DATA, Points, points_of
from pcexp.report.claims import Claim, Records, Verdict, done, insufficient, rule

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
    n, distinct = int(np.sum(points.found)), points.distinct()
    observed = f"{n} of {points.n} starts found one, {distinct} distinct"
    if distinct < ASKED and records.scale != "thesis":
        return insufficient(records, expected, observed, scale="thesis")
    worst = float(np.max(points.at("gradient")[points.found], initial=0.0))
    return _verdict(records, expected, distinct >= ASKED, observed, f"largest gradient norm {worst:.1e}", n)


def _classes(points: Points) -> str:
    return ", ".join(f"{int(np.sum(chosen))} {name}" for name, chosen in points.classes().items())


def _extremes(points: Points) -> str:
    """Lowest curvature relative to the Hessian's norm: the highest of those counted as negative, the lowest of the others."""
    share = points.at("lambda_min") / np.maximum(points.at("lambda_max"), 1e-300)
    below, others = share[points.found & points.negative], share[points.found & ~points.negative]
    parts = [f"negative up to {np.max(below):.1e}"] if len(below) else []
    return "; ".join([*parts, *([f"else from {np.min(others):.1e}"] if len(others) else [])])


@rule
def _above(records: Records, name: str) -> Verdict:
    points = points_of(records).of(name)
    classes = points.classes()
    above = points.found & ~classes["global minimum"]
    holds = bool(np.array_equal(above, classes["strict saddle"]))
    expected = "lambda_min < 0 at each point found above the infimum of F*"
    return _verdict(records, expected, holds, _classes(points), _extremes(points), int(np.sum(above)))


@rule
def _strict(records: Records, name: str) -> Verdict:
    points = points_of(records).of(name)
    classes = points.classes()
    saddles, flat = classes["strict saddle"] | classes["non-strict saddle"], classes["non-strict saddle"]
    edges = int(np.sum(flat & (points.at("start") == 6)))
    observed = (
        f"{int(np.sum(flat))} of {int(np.sum(saddles))} saddles are not strict ({edges} on the edge of local minima)"
    )
    deepest = float(np.max(points.at("descent")[flat], initial=0.0))
    expected = "no point found without negative curvature from which descent lowers F*"
    interval = f"descent by up to {deepest:.2g}" if np.any(flat) else _extremes(points)
    return _verdict(records, expected, not np.any(flat), observed, interval, int(np.sum(saddles)))


@rule
def _largest(records: Records, column: str, bound: float, expected: str, *kinds: str) -> Verdict:
    points = points_of(records)
    chosen = points.found & np.array([not kinds or kind in kinds for kind in points.kind], bool)
    sizes = np.abs(points.at(column)[chosen])
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

assert set(NOISY) <= set(KINDS)
