"""What is claimed, with thresholds that were set before the runs, and the rules that judge it."""

import dataclasses
import math
from collections.abc import Callable

from experiments.learning_depth import runs as of
from experiments.learning_depth.runs import (
    EQUILIBRIUM,
    MOVED,
    PUBLISHED,
    Arm,
    Size,
    by_network,
    lost,
    mean,
    moved,
    of_arm,
)
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, insufficient, rule, verdict


@rule
def _each(
    records: Records, arm: Arm, expected: str, value: Callable[[Run], float], holds: Callable[[float, Size], bool]
) -> Verdict:
    """Every run of an arm is a case; one that diverged does not hold."""
    cases = []
    for size, by_rates in by_network(records, arm.rule).items():
        for run in arm.choice(by_rates):
            seen = value(run) if run["outcome"] == "done" else math.nan
            cases.append((str(size), Case(run["outcome"] == "done" and holds(seen, size), seen)))
    return verdict(records, expected, cases, missing=lost(records, arm.rule))


def difference(records: Records, size: Size, one: Arm, other: Arm) -> float:
    """Mean test accuracy of one arm less that of the other at a size, in points; NaN where either has no runs."""
    runs = [of_arm(records, size, arm) for arm in (one, other)]
    if not all(runs):
        return math.nan
    a, b = (max(mean(r, "test_accuracy"), 0.0) for r in runs)
    return (a - b) / of.POINT


@rule
def _compared(
    records: Records,
    one: Arm,
    other: Arm,
    expected: str,
    holds: Callable[[float], bool],
    sizes: Callable[[Size], bool] = lambda _: True,
) -> Verdict:
    """One case a size: the difference of two arms' accuracies, in points. A rule's diverged runs have accuracy 0."""
    missing = lost(records, one.rule, other.rule)
    cases, n, without = [], 0, missing
    for size in sorted({size for arm in (one, other) for size in by_network(records, arm.rule) if sizes(size)}):
        value, runs = difference(records, size, one, other), sum(len(of_arm(records, size, a)) for a in (one, other))
        if math.isnan(value):
            without += runs or 1
        else:
            cases.append((str(size), Case(holds(value), value)))
            n += runs
    if missing or (without and not cases):  # a rate that is not there may be the best
        return insufficient(records, expected, f"{without} runs missing")
    return verdict(records, expected, cases, n=n, missing=without)


def _all_of_a_hundred(records: Records) -> Verdict:
    """Some rule of PC's own gradient moves every layer of every net of 100 layers and is close to BP there."""
    expected = f"one rule whose layers all move by > {MOVED}, every seed, with an accuracy within 2 points of BP's best"
    deep = {size: of.best(found) for size, found in by_network(records, "bp").items() if size.n_hidden >= 100}
    if not deep:
        return insufficient(records, expected, "no networks of 100 layers or more were trained here", scale="thesis")
    cases, observed, n = [], [], 0
    for size, rivals in deep.items():
        values, shown = [], False
        for name in of.PC_RULES:
            runs = of_arm(records, size, Arm(name, of.best))
            if mean(runs, "test_accuracy") == -math.inf or not rivals:
                continue
            least = min(moved(run) for run in runs)
            behind = (mean(rivals, "test_accuracy") - mean(runs, "test_accuracy")) / of.POINT
            shown = shown or (least == size.n_hidden + 1 and behind <= 2)
            observed.append(f"{size} {name}: {least} layers, {behind:.2f} points behind")
            n += len(runs)
            values.append(least)
        if values:
            cases.append((str(size), Case(shown, max(values))))
    missing = lost(records, "bp", *of.PC_RULES)
    if missing or not cases:
        return insufficient(records, expected, f"{missing} runs missing; {'; '.join(observed)}")
    return dataclasses.replace(verdict(records, expected, cases, n=n), observed="; ".join(observed))


def _above(run: Run) -> float:
    return max(run["start_above"], run["end_above"])


def _cosine(row: str) -> Callable[[Run], float]:
    return lambda run: run[f"{row}_equilibrium_cosine"]


def _all(n: float, size: Size) -> bool:
    return n == size.n_hidden + 1


def _within(points: float) -> bool:
    return abs(points) <= 1


WITHIN = "difference of test accuracy within 1 point"
MOVES = f"layers that move by > {MOVED}"
ALIGNED = "mean cosine over layers"


CLAIMS = (
    Claim(
        "start",
        "published: at most 4 layers get a gradient above float32 round-off, at the start and at the end",
        _each(PUBLISHED, "layers above round-off <= 4", _above, lambda n, _: n <= 4),
    ),
    Claim(
        "grid",
        "published: inference closes less than a tenth of the energy gap at the start",
        _each(PUBLISHED, "closed fraction < 0.1", lambda run: run["start_closed"], lambda part, _: part < 0.1),
    ),
    Claim(
        "movement",
        "published: at most the top 5 layers move",
        _each(PUBLISHED, f"{MOVES} <= 5", moved, lambda n, _: n <= 5),
    ),
    Claim(
        "accuracy",
        "published: as accurate as BP on the last k layers alone, at the same rates",
        _compared(PUBLISHED, of.LAST_K, WITHIN, _within),
    ),
    Claim(
        "accuracy",
        "published: less accurate than BP on all layers at its best rate",
        _compared(PUBLISHED, of.BEST_BP, "difference < 0 points", lambda points: points < 0),
    ),
    Claim(
        "eps",
        "exact gradients alone change nothing: deviations at the published rates are as accurate as activities",
        _compared(Arm("pc", of.published), PUBLISHED, WITHIN, _within),
    ),
    Claim(
        "movement",
        "exact gradients, eps near 0 and eta = 0.01: every layer moves",
        _each(of.EXACT, f"{MOVES}: all", moved, _all),
    ),
    Claim(
        "eps",
        "exact gradients and eps near 0: as accurate as BP, each at its best rate",
        _compared(of.BEST_EXACT, of.BEST_BP, WITHIN, _within),
    ),
    Claim(
        "start",
        "at equilibrium PC's gradient has BP's direction at the start",
        _each(EQUILIBRIUM, f"{ALIGNED} >= 0.9", _cosine("start"), lambda cosine, _: cosine >= 0.9),
    ),
    Claim(
        "end",
        "trained at equilibrium, PC's gradient leaves BP's direction",
        _each(EQUILIBRIUM, f"{ALIGNED} <= 0.8", _cosine("end"), lambda cosine, _: cosine <= 0.8),
    ),
    Claim(
        "accuracy",
        "trained at equilibrium, up to 8 hidden layers: as accurate as BP, each at its best rate",
        _compared(EQUILIBRIUM, of.BEST_BP, WITHIN, _within, lambda size: size.n_hidden <= 8),
    ),
    Claim(
        "accuracy",
        "trained at equilibrium, 32 hidden layers and more: less accurate than BP, each at its best rate",
        _compared(
            EQUILIBRIUM, of.BEST_BP, "difference < -1 point", lambda points: points < -1, lambda s: s.n_hidden >= 32
        ),
    ),
    Claim(
        "movement",
        "beta = 0.25 and T = 4 H: every layer moves",
        _each(of.FAR, f"{MOVES}: all", moved, _all),
    ),
    Claim(
        "accuracy",
        "beta = 0.25 and T = 4 H: more accurate than as published",
        _compared(of.FAR, PUBLISHED, "difference > 1 point", lambda points: points > 1),
    ),
    Claim(
        "accuracy",
        "beta = 0.25 and T = 4 H: as accurate as BP, each at its best rate",
        _compared(of.FAR, of.BEST_BP, WITHIN, _within),
    ),
    Claim("movement", "some rule trains 100 layers and more, all of them, with PC's own gradient", _all_of_a_hundred),
)
