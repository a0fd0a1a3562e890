"""Runs of the study: by optimiser and depth, their horizons, and test accuracies on the way."""

import math
from collections import defaultdict

import numpy as np

from pcexp.report.claims import Records, Run, ended

HORIZON, ARM = "learning.inference.horizon", "config.study.arm"
PROTOCOLS = ("published", "corrected")


def runs_of(records: Records, arm: str, protocol: str, optimiser: str = "adam") -> list[Run]:
    """Runs that ended, with numbers or diverged: the shallowest first, then the longest horizons."""
    found = ended(records.select({ARM: arm}, protocol=protocol, optimiser=optimiser))
    return sorted(found, key=lambda run: (depth_of(run), -(horizon_of(run) or 0), run["seed"]))


def at_the_longest(runs: list[Run]) -> list[Run]:
    """Of each depth the runs to the longest horizon; all, where inference has none."""
    longest = {depth_of(run): horizon_of(run) for run in reversed(runs)}
    return [run for run in runs if horizon_of(run) == longest[depth_of(run)]]


def depth_of(run: Run) -> int:
    return int(run["config.network.n_hidden"])


def horizon_of(run: Run) -> float | None:
    """Horizon per sample; None of a run that infers to convergence."""
    value = run.get(HORIZON)
    return None if value is None or math.isnan(value) else float(value)


def published_horizon(run: Run) -> float:
    """The horizon t that is published for it: B/2 times as long as it is per sample."""
    return (horizon_of(run) or math.nan) * run["config.training.batch_size"] / 2


def missing(records: Records, arm: str, protocol: str, optimiser: str | None = "adam") -> int:
    """Runs that were asked for and have no numbers."""
    part = records.select({ARM: arm}, protocol=protocol)
    part = part if optimiser is None else part.select(optimiser=optimiser)
    return len(part.asked) - len(ended(part))


def several_horizons(records: Records) -> dict[int, dict[float, list[Run]]]:
    """Runs of Adam by depth and horizon, of depths with more than two horizons; the shortest horizon first."""
    found: dict[int, dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in reversed(runs_of(records, "energy", "published")):
        found[depth_of(run)][horizon_of(run) or math.nan].append(run)
    return {depth: found[depth] for depth in sorted(found) if len(found[depth]) > 2}


def accuracies(records: Records, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and accuracies (in per cent) of the tests of a run."""
    rows = records.lane(run["cell"], run["lane"])
    if "test_accuracy" not in rows.columns:
        return np.zeros(0), np.zeros(0)
    rows = rows.select("iteration", "test_accuracy").drop_nulls()
    return rows["iteration"].to_numpy(), 100 * rows["test_accuracy"].to_numpy()


def curve(records: Records, run: Run, *columns: str) -> list[np.ndarray]:
    """Iterations and these columns of a run, where they were measured."""
    rows = records.lane(run["cell"], run["lane"])
    if not set(columns) <= set(rows.columns):
        return [np.zeros(0)] * (1 + len(columns))
    rows = rows.select("iteration", *columns).drop_nulls()
    return [rows[name].to_numpy() for name in rows.columns]
