"""What is claimed, with thresholds that were set before the runs, and the rules that judge it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from experiments.learning_depth.runs import (
    BEST_BP,
    BEST_EXACT,
    EQUILIBRIUM,
    EXACT,
    FAR,
    LAST_K,
    MOVED,
    PC_RULES,
    POINT,
    PUBLISHED,
    Arm,
    Choice,
    Size,
    best,
    by_network,
    mean,
    missing,
    moved,
    published,
)
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, insufficient, verdict


def _each(rule: str, choice: Choice, expected: str, value: Callable[[Run], float], holds: Callable[..., bool]) -> Any:
    """Every run of a rule at the chosen rates is a case; one that diverged does not hold."""

    def judge(records: Records) -> Verdict:
        cases, n = {}, 0
        for size, by_rates in by_network(records, rule).items():
            runs = choice(by_rates)
            values = [(run, value(run) if run["outcome"] == "done" else math.nan) for run in runs]
            cases[str(size)] = [Case(run["outcome"] == "done" and holds(v, size), v) for run, v in values]
            n += len(runs)
        return verdict(records, expected, cases, n=n, missing=missing(records, rule))

    return judge


def difference(records: Records, size: Size, one: Arm, other: Arm) -> float:
    """Mean test accuracy of one arm less that of the other at a size, in points; NaN where either has no runs."""
    runs = [arm.choice(by_network(records, arm.rule).get(size, {})) for arm in (one, other)]
    if not all(runs):
        return math.nan
    a, b = (max(mean(r, "test_accuracy"), 0.0) for r in runs)
    return (a - b) / POINT


def _compared(
    one: Arm,
    other: Arm,
    expected: str,
    holds: Callable[[float, Size], bool],
    sizes: Callable[[Size], bool] = lambda _: True,
) -> Any:
    """One case a size: the difference of two arms' accuracies, in points. A rule's diverged runs have accuracy 0."""

    def judge(records: Records) -> Verdict:
        cases, n, lost = {}, 0, missing(records, one.rule, other.rule)
        there = [by_network(records, arm.rule) for arm in (one, other)]
        for size in sorted(set(there[0]) | set(there[1])):
            if not sizes(size):
                continue
            value = difference(records, size, one, other)
            runs = sum(len(arm.choice(found.get(size, {}))) for arm, found in zip((one, other), there, strict=True))
            if math.isnan(value):
                lost += runs or 1
                continue
            cases[str(size)], n = [Case(holds(value, size), value)], n + runs
        if lost and (not cases or missing(records, one.rule, other.rule)):  # a rate that is not there may be the best
            return insufficient(records, expected, f"{lost} runs missing")
        return verdict(records, expected, cases, n=n, missing=lost)

    return judge


def _all_of_a_hundred(records: Records) -> Verdict:
    """Some rule of PC's own gradient moves every layer of every net of 100 layers and is close to BP there."""
    expected = f"one rule whose layers all move by > {MOVED}, every seed, with an accuracy within 2 points of BP's best"
    deep = {size: found for size, found in by_network(records, "bp").items() if size.n_hidden >= 100}
    if not deep:
        return insufficient(records, expected, "no networks of 100 layers or more were trained here", scale="thesis")
    cases, observed, n = {}, [], 0
    for size, by_rates in deep.items():
        values, shown = [], False
        for rule in PC_RULES:
            runs = best(by_network(records, rule).get(size, {}))
            if mean(runs, "test_accuracy") == -math.inf or not best(by_rates):
                continue
            least = min(moved(run) for run in runs)
            behind = (mean(best(by_rates), "test_accuracy") - mean(runs, "test_accuracy")) / POINT
            shown = shown or (least == size.n_hidden + 1 and behind <= 2)
            observed.append(f"{size} {rule}: {least} layers, {behind:.2f} points behind")
            n += len(runs)
            values.append(least)
        if values:
            cases[str(size)] = [Case(shown, max(values))]
    lost = missing(records, "bp", *PC_RULES)
    if lost or not cases:
        return insufficient(records, expected, f"{lost} runs missing; {'; '.join(observed)}")
    return dataclasses.replace(verdict(records, expected, cases, n=n, missing=0), observed="; ".join(observed))


def _above(run: Run) -> float:
    return max(run["start_above"], run["end_above"])


WITHIN = "difference of test accuracy within 1 point"
MOVES = f"that move by > {MOVED}"


def _within(points: float, _: Size) -> bool:
    return abs(points) <= 1


CLAIMS = (
    Claim(
        "start",
        "published: at most 4 layers get a gradient above float32 round-off, at the start and at the end",
        _each(*PUBLISHED, "layers above round-off <= 4", _above, lambda n, _: n <= 4),
    ),
    Claim(
        "grid",
        "published: inference closes less than a tenth of the energy gap at the start",
        _each(*PUBLISHED, "closed fraction < 0.1", lambda run: run["start_closed"], lambda part, _: part < 0.1),
    ),
    Claim(
        "movement",
        "published: at most the top 5 layers move",
        _each(*PUBLISHED, f"layers {MOVES} <= 5", moved, lambda n, _: n <= 5),
    ),
    Claim(
        "accuracy",
        "published: as accurate as BP on the last k layers alone, at the same rates",
        _compared(PUBLISHED, LAST_K, WITHIN, _within),
    ),
    Claim(
        "accuracy",
        "published: less accurate than BP on all layers at its best rate",
        _compared(PUBLISHED, BEST_BP, "difference < 0 points", lambda points, _: points < 0),
    ),
    Claim(
        "eps",
        "exact gradients alone change nothing: deviations at the published rates are as accurate as activities",
        _compared(Arm("pc", published), PUBLISHED, WITHIN, _within),
    ),
    Claim(
        "movement",
        "exact gradients, eps near 0 and eta = 0.01: every layer moves",
        _each(*EXACT, f"layers {MOVES}: all", moved, lambda n, size: n == size.n_hidden + 1),
    ),
    Claim(
        "eps",
        "exact gradients and eps near 0: as accurate as BP, each at its best rate",
        _compared(BEST_EXACT, BEST_BP, WITHIN, _within),
    ),
    Claim(
        "start",
        "at equilibrium PC's gradient has BP's direction at the start",
        _each(
            *EQUILIBRIUM,
            "mean cosine over layers >= 0.9",
            lambda r: r["start_equilibrium_cosine"],
            lambda c, _: c >= 0.9,
        ),
    ),
    Claim(
        "end",
        "trained at equilibrium, PC's gradient leaves BP's direction",
        _each(
            *EQUILIBRIUM, "mean cosine over layers <= 0.8", lambda r: r["end_equilibrium_cosine"], lambda c, _: c <= 0.8
        ),
    ),
    Claim(
        "accuracy",
        "trained at equilibrium, up to 8 hidden layers: as accurate as BP, each at its best rate",
        _compared(EQUILIBRIUM, BEST_BP, WITHIN, _within, lambda size: size.n_hidden <= 8),
    ),
    Claim(
        "accuracy",
        "trained at equilibrium, 32 hidden layers and more: less accurate than BP, each at its best rate",
        _compared(
            EQUILIBRIUM, BEST_BP, "difference < -1 point", lambda points, _: points < -1, lambda s: s.n_hidden >= 32
        ),
    ),
    Claim(
        "movement",
        "beta = 0.25 and T = 4 H: every layer moves",
        _each(*FAR, f"layers {MOVES}: all", moved, lambda n, size: n == size.n_hidden + 1),
    ),
    Claim(
        "accuracy",
        "beta = 0.25 and T = 4 H: more accurate than as published",
        _compared(FAR, PUBLISHED, "difference > 1 point", lambda points, _: points > 1),
    ),
    Claim(
        "accuracy",
        "beta = 0.25 and T = 4 H: as accurate as BP, each at its best rate",
        _compared(FAR, BEST_BP, WITHIN, _within),
    ),
    Claim("movement", "some rule trains 100 layers and more, all of them, with PC's own gradient", _all_of_a_hundred),
)
