"""Runs by network and rates, the arms that are compared, and what is claimed of them: thresholds were set before the runs."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from pcexp.report.claims import (
    Case,
    Claim,
    Records,
    Run,
    Verdict,
    ended,
    insufficient,
    n_hidden_of,
    rule,
    verdict,
    width_of,
)
from pcexp.report.claims import missing as missing_of

ROUND_OFF = 0.1
MOVED = 0.05
POINT = 0.01
ETA, EPS = "optimiser.learning_rate", "optimiser.eps"
PC_RULES = ("pc", "pc_far", "pc_float64", "pc_equilibrium")
"""PC with its own gradient, free of round-off."""


class Size(NamedTuple):
    activation: str
    width: int
    n_hidden: int

    def __str__(self) -> str:
        return f"{self.activation} N={self.width} H={self.n_hidden}"


class Rates(NamedTuple):
    eta: float
    eps: float


ByRates = Mapping[Rates, Sequence[Run]]


def by_network(records: Records, rule: str) -> dict[Size, ByRates]:
    """Runs of a rule that ended or diverged, by network and rates, in the order of seeds."""
    found: dict[Size, dict[Rates, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(ended(records.select(learning=rule)), key=lambda run: run["seed"]):
        size = Size(run["activation"], width_of(run), n_hidden_of(run))
        found[size][Rates(run[ETA], run[EPS])].append(run)
    return dict(sorted(found.items()))


def mean(runs: Sequence[Run], column: str) -> float:
    """Mean over seeds; -inf where there is no run or one diverged."""
    whole = runs and all(run["outcome"] == "done" for run in runs)
    return float(np.mean([run[column] for run in runs])) if whole else -math.inf


def layers(run: Run, name: str, row: Mapping[str, Any]) -> np.ndarray:
    """A vector over the layers of a run, from its summary or from one of its rows; NaN where it is not there."""
    values = [row.get(f"{name}_{i}") for i in range(1, n_hidden_of(run) + 2)]
    return np.array([math.nan if value is None else value for value in values], float)


def moved(run: Run) -> int:
    return int(np.sum(layers(run, "movement", run) > MOVED))


class Arm(NamedTuple):
    """A learning rule at its best rate on the validation split, of those with this eta, and with this eps or the smallest."""

    rule: str
    eta: float | None = None
    eps: float | Literal["smallest"] | None = None

    def chosen(self, by_rates: ByRates) -> Sequence[Run]:
        """Its runs, of rates that no seed is missing at."""
        found = {rates: runs for rates, runs in sorted(by_rates.items()) if self.eta in (None, rates.eta)}
        eps = min((rates.eps for rates in found), default=None) if self.eps == "smallest" else self.eps
        rated = [runs for rates, runs in found.items() if eps in (None, rates.eps)]
        whole = [runs for runs in rated if len(runs) == max(map(len, rated))]
        return max(whole, key=lambda runs: mean(runs, "validation_accuracy"), default=())

    def runs(self, records: Records, size: Size) -> Sequence[Run]:
        """Runs at a size, with numbers or diverged."""
        return self.chosen(by_network(records, self.rule).get(size, {}))


PUBLISHED, DEVIATIONS, LAST_K = (Arm(rule, 0.1, 1e-8) for rule in ("pc_activities", "pc", "bp_last_layers"))
BEST_BP, FAR, EQUILIBRIUM = (Arm(rule) for rule in ("bp", "pc_far", "pc_equilibrium"))
EXACT, BEST_EXACT = Arm("pc_float64", 0.01, "smallest"), Arm("pc_float64", eps="smallest")


def _lost(records: Records, *rules: str) -> int:
    """Runs of these rules that were asked for and did not end."""
    return missing_of(*(records.select(learning=rule) for rule in rules))


@rule
def _each(
    records: Records, arm: Arm, expected: str, value: Callable[[Run], float], holds: Callable[[float, Size], bool]
) -> Verdict:
    """Every run of an arm is a case; one that diverged does not hold."""
    cases = []
    for size, by_rates in by_network(records, arm.rule).items():
        for run in arm.chosen(by_rates):
            seen = value(run) if run["outcome"] == "done" else math.nan
            cases.append((str(size), Case(run["outcome"] == "done" and holds(seen, size), seen)))
    return verdict(records, expected, cases, missing=_lost(records, arm.rule))


def _all_of_a_hundred(records: Records) -> Verdict:
    """Some rule of PC's own gradient moves every layer of every net of 100 layers and is close to BP there."""
    expected = f"one rule whose layers all move by > {MOVED}, every seed, with an accuracy within 2 points of BP's best"
    deep = {size: BEST_BP.chosen(found) for size, found in by_network(records, "bp").items() if size.n_hidden >= 100}
    if not deep:
        return insufficient(records, expected, "no networks of 100 layers or more were trained here", scale="thesis")
    cases, observed, n = [], [], 0
    for size, rivals in deep.items():
        values, shown = [], False
        for name in PC_RULES:
            runs = Arm(name).runs(records, size)
            if mean(runs, "test_accuracy") == -math.inf or not rivals:
                continue
            least = min(moved(run) for run in runs)
            behind = (mean(rivals, "test_accuracy") - mean(runs, "test_accuracy")) / POINT
            shown = shown or (least == size.n_hidden + 1 and behind <= 2)
            observed.append(f"{size} {name}: {least} layers, {behind:.2f} points behind")
            n += len(runs)
            values.append(least)
        if values:
            cases.append((str(size), Case(shown, max(values))))
    missing = _lost(records, "bp", *PC_RULES)
    if missing or not cases:
        return insufficient(records, expected, f"{missing} runs missing; {'; '.join(observed)}")
    return dataclasses.replace(verdict(records, expected, cases, n=n), observed="; ".join(observed))


def _moves(statement: str, arm: Arm, most: int | None = None) -> Claim:
    """So many layers at the most, or all of them, move in every run."""
    expected = f"layers that move by > {MOVED}" + (": all" if most is None else f" <= {most}")
    holds = lambda n, size: n == size.n_hidden + 1 if most is None else n <= most  # noqa: E731
    return Claim("movement", statement, _each(arm, expected, moved, holds))


def _accuracy(
    statement: str,
    one: Arm,
    other: Arm = BEST_BP,
    expected: str = "difference of test accuracy within 1 point",
    holds: Callable[[float], bool] = lambda points: abs(points) <= 1,
    sizes: Callable[[Size], bool] = lambda _: True,
    figure: str = "accuracy",
) -> Claim:
    """One case a size: the difference of two arms' mean test accuracies, in points. A rule's diverged runs have accuracy 0."""

    def judge(records: Records) -> Verdict:
        missing = without = _lost(records, one.rule, other.rule)
        cases, n = [], 0
        for size in sorted({size for arm in (one, other) for size in by_network(records, arm.rule) if sizes(size)}):
            of_both = [arm.runs(records, size) for arm in (one, other)]
            a, b = (max(mean(runs, "test_accuracy"), 0.0) for runs in of_both)
            if all(of_both) and not math.isnan(a - b):
                cases.append((str(size), Case(holds((a - b) / POINT), (a - b) / POINT)))
                n += sum(map(len, of_both))
            else:
                without += sum(map(len, of_both)) or 1
        if missing or (without and not cases):  # a rate that is not there may be the best
            return insufficient(records, expected, f"{without} runs missing")
        return verdict(records, expected, cases, n=n, missing=without)

    return Claim(figure, statement, judge)


def _aligned(row: str, statement: str, expected: str, holds: Callable[[float], bool]) -> Claim:
    expected = f"mean cosine over layers {expected}"
    cosine = f"{row}_equilibrium_cosine"
    return Claim(row, statement, _each(EQUILIBRIUM, expected, lambda run: run[cosine], lambda value, _: holds(value)))


CLAIMS = (
    Claim(
        "start", "published: at most 4 layers get a gradient above float32 round-off, at the start and at the end",
        _each(
            PUBLISHED, "layers above round-off <= 4",
            lambda run: max(run["start_above"], run["end_above"]), lambda n, _: n <= 4,
        ),
    ),
    Claim(
        "grid", "published: inference closes less than a tenth of the energy gap at the start",
        _each(PUBLISHED, "closed fraction < 0.1", lambda run: run["start_closed"], lambda part, _: part < 0.1),
    ),
    _moves("published: at most the top 5 layers move", PUBLISHED, 5),
    _accuracy("published: as accurate as BP on the last k layers alone, at the same rates", PUBLISHED, LAST_K),
    _accuracy(
        "published: less accurate than BP on all layers at its best rate", PUBLISHED,
        expected="difference < 0 points", holds=lambda points: points < 0,
    ),
    _accuracy(
        "exact gradients alone change nothing: deviations at the published rates are as accurate as activities",
        DEVIATIONS, PUBLISHED, figure="eps",
    ),
    _moves("exact gradients, eps near 0 and eta = 0.01: every layer moves", EXACT),
    _accuracy("exact gradients and eps near 0: as accurate as BP, each at its best rate", BEST_EXACT, figure="eps"),
    _aligned("start", "at equilibrium PC's gradient has BP's direction at the start", ">= 0.9", lambda c: c >= 0.9),
    _aligned("end", "trained at equilibrium, PC's gradient leaves BP's direction", "<= 0.8", lambda c: c <= 0.8),
    _accuracy(
        "trained at equilibrium, up to 8 hidden layers: as accurate as BP, each at its best rate",
        EQUILIBRIUM, sizes=lambda size: size.n_hidden <= 8,
    ),
    _accuracy(
        "trained at equilibrium, 32 hidden layers and more: less accurate than BP, each at its best rate", EQUILIBRIUM,
        expected="difference < -1 point", holds=lambda points: points < -1, sizes=lambda size: size.n_hidden >= 32,
    ),
    _moves("beta = 0.25 and T = 4 H: every layer moves", FAR),
    _accuracy(
        "beta = 0.25 and T = 4 H: more accurate than as published", FAR, PUBLISHED,
        expected="difference > 1 point", holds=lambda points: points > 1,
    ),
    _accuracy("beta = 0.25 and T = 4 H: as accurate as BP, each at its best rate", FAR),
    Claim("movement", "some rule trains 100 layers and more, all of them, with PC's own gradient", _all_of_a_hundred),
)  # fmt: skip
