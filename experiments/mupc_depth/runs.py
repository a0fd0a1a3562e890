"""Runs of the study: those that ended, by model and arm, the rates that are chosen, accuracies by iteration and by size."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pcexp.report.claims import Records, Run, ended, n_hidden_of, width_of

NO_LEARNING = 15.0
ETA, BETA = "optimiser.learning_rate", "learning.inference.activity_lr"
DEPTH = "config.network.n_hidden"
MUPC_ETA = 0.1
SP = "standard_uniform"
ACTIVATIONS = ("relu", "tanh", "linear")
PROTOCOLS = ("published", "corrected")
ANCHOR = {100: (85.0, 2.0), 200: (89.0, math.inf), 500: (92.0, math.inf), 900: (94.0, 1.0)}
"""Published test accuracy of the anchor by iteration, and the tolerance that is asked for."""


def runs_of(*parts: Records) -> list[Run]:
    """Runs that ended, with numbers or diverged, the shallowest first."""
    runs = [run for part in parts for run in ended(part)]
    return sorted(runs, key=lambda run: (n_hidden_of(run), width_of(run), run["seed"], run[ETA]))


def percent(run: Run) -> float:
    """Test accuracy at the end; a run that diverged has none."""
    return math.nan if run["outcome"] == "diverged" else 100 * run["test_accuracy"]


def failed(run: Run) -> bool:
    """Diverged, or no better than a constant guess."""
    return not percent(run) > NO_LEARNING


def at_best_rates(runs: Sequence[Run]) -> list[Run]:
    """Of each activation and size the runs at the pair of rates with the highest mean validation accuracy over seeds."""
    sizes: dict[tuple[str, int, int], dict[tuple[float, float], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        sizes[run["activation"], n_hidden_of(run), width_of(run)][run[ETA], run[BETA]].append(run)

    def score(pair: list[Run]) -> float:
        held_out = [run["validation_accuracy"] if run["outcome"] == "done" else 0.0 for run in pair]
        return float(np.sum([value or 0.0 for value in held_out]))  # not the mean: a seed that is not there counts as 0

    return [run for pairs in sizes.values() for run in max((pairs[k] for k in sorted(pairs)), key=score)]


Curve = tuple[np.ndarray, np.ndarray]
"""Iterations and test accuracies."""
Curves = dict[tuple[str, str], Curve]


def tests(records: Records) -> Curves:
    """Iterations and test accuracies of each lane, as long as its loss was finite."""
    if "test_accuracy" not in records.rows.columns:
        return {}
    rows = records.rows.select("cell", "lane", "iteration", "test_loss", "test_accuracy").drop_nulls().sort("iteration")
    found = {}
    for (cell, lane), part in rows.partition_by("cell", "lane", as_dict=True).items():
        finite = np.isfinite(part["test_loss"].to_numpy())
        found[cell, lane] = part["iteration"].to_numpy()[finite], 100 * part["test_accuracy"].to_numpy()[finite]
    return found


def curve(curves: Curves, run: Run) -> Curve:
    """The curve of a run, which may have had no test."""
    return curves.get((run["cell"], run["lane"]), (np.zeros(0), np.zeros(0)))


def accuracy_at(curve: Curve, iteration: int) -> float:
    """Accuracy of a test at that iteration; NaN where there was none."""
    here = curve[1][curve[0] == iteration]
    return float(here[0]) if len(here) else math.nan


def mupc(records: Records, protocol: str, activation: str, arm: str) -> Records:
    return records.select(block=arm, parameterisation="mupc", learning="pc", protocol=protocol, activation=activation)


def bp(records: Records, activation: str, arm: str) -> Records:
    return records.select(block={"depth": "bp", "long": "bp_long"}[arm], activation=activation)


def sp(records: Records, protocol: str, activation: str) -> Records:
    return records.select(block=("sp", "sp_beyond"), parameterisation=SP, protocol=protocol, activation=activation)


def means(runs: Iterable[Run], size: Callable[[Run], int]) -> dict[int, float]:
    """Mean accuracy over seeds by size, NaN where a run diverged, the smallest first."""
    values = defaultdict(list)
    for run in runs:
        values[size(run)].append(percent(run))
    return {key: float(np.mean(values[key])) for key in sorted(values)}
