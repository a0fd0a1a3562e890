"""Runs of the study: by network and rates, the arms that are compared, and what layers did."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pcexp.report.claims import Records, Run, ended, missing, n_hidden_of, width_of

ROUND_OFF = 0.1
MOVED = 0.05
POINT = 0.01
ETA, EPS = "optimiser.learning_rate", "optimiser.eps"
PC_RULES = ("pc", "pc_far", "pc_float64", "pc_equilibrium")
"""PC with its own gradient, free of round-off."""


class Size(NamedTuple):
    """A network: its activation, width and number of hidden layers."""

    activation: str
    width: int
    n_hidden: int

    def __str__(self) -> str:
        return f"{self.activation} N={self.width} H={self.n_hidden}"


class Rates(NamedTuple):
    """Adam's rate and eps."""

    eta: float
    eps: float


def by_network(records: Records, rule: str) -> dict[Size, dict[Rates, list[Run]]]:
    """Runs of a rule that ended or diverged, by network and rates, in the order of seeds."""
    found: dict[Size, dict[Rates, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(ended(records.select(learning=rule)), key=lambda run: run["seed"]):
        size = Size(run["activation"], width_of(run), n_hidden_of(run))
        found[size][Rates(run[ETA], run[EPS])].append(run)
    return dict(sorted(found.items()))


def lost(records: Records, *rules: str) -> int:
    """Runs of these rules that were asked for and did not end."""
    return missing(*(records.select(learning=rule) for rule in rules))


def mean(runs: Sequence[Run], column: str) -> float:
    """Mean over seeds; -inf where there is no run or one diverged."""
    whole = runs and all(run["outcome"] == "done" for run in runs)
    return float(np.mean([run[column] for run in runs])) if whole else -math.inf


def best(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    """Runs at the rates with the highest validation accuracy, of those that no seed is missing at."""
    whole = max((len(runs) for runs in by_rates.values()), default=0)
    rated = [runs for _, runs in sorted(by_rates.items()) if len(runs) == whole]
    return max(rated, key=lambda runs: mean(runs, "validation_accuracy"), default=())


def layers(run: Run, name: str, row: Mapping[str, Any]) -> np.ndarray:
    """A vector over the layers of a run, from its summary or from one of its rows; NaN where it is not there."""
    values = [row.get(f"{name}_{i}") for i in range(1, n_hidden_of(run) + 2)]
    return np.array([math.nan if value is None else value for value in values], float)


def moved(run: Run) -> int:
    return int(np.sum(layers(run, "movement", run) > MOVED))


Choice = Callable[[Mapping[Rates, Sequence[Run]]], Sequence[Run]]


def published(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    return by_rates.get(Rates(0.1, 1e-8), ())


def exact(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    """Runs at eta = 0.01 with the smallest eps."""
    return by_rates.get(min((rates for rates in by_rates if rates.eta == 0.01), default=Rates(0, 0)), ())


def best_exact(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    """Runs at the best rate with the smallest eps."""
    smallest = min((rates.eps for rates in by_rates), default=0.0)
    return best({rates: runs for rates, runs in by_rates.items() if rates.eps == smallest})


class Arm(NamedTuple):
    """A learning rule at the rates that are chosen for it."""

    rule: str
    choice: Choice


def of_arm(records: Records, size: Size, arm: Arm) -> Sequence[Run]:
    """Runs of an arm at a size, with numbers or diverged."""
    return arm.choice(by_network(records, arm.rule).get(size, {}))


PUBLISHED, LAST_K, BEST_BP = Arm("pc_activities", published), Arm("bp_last_layers", published), Arm("bp", best)
EQUILIBRIUM, EXACT, BEST_EXACT = Arm("pc_equilibrium", best), Arm("pc_float64", exact), Arm("pc_float64", best_exact)
FAR = Arm("pc_far", best)
