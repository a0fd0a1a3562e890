"""Runs by arm, depth and horizon, what is claimed of them, with thresholds that were set before, and the rules that judge it."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from pcexp.report import claims
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, ended, missing, n_hidden_of, verdict

HORIZON = "learning.inference.horizon"
PROTOCOLS = ("published", "corrected")


def select(records: Records, arm: str, protocol: str, optimiser: str = "adam") -> Records:
    return records.select({"config.study.arm": arm}, protocol=protocol, optimiser=optimiser)


def runs_of(part: Records) -> list[Run]:
    """Runs that ended, with numbers or diverged: the shallowest first, then the longest horizons."""
    return sorted(ended(part), key=lambda run: (n_hidden_of(run), -(horizon_of(run) or 0), run["seed"]))


def at_the_longest(runs: list[Run]) -> list[Run]:
    """Of each depth the runs to the longest horizon; all, where inference has none."""
    longest = {n_hidden_of(run): horizon_of(run) for run in reversed(runs)}
    return [run for run in runs if horizon_of(run) == longest[n_hidden_of(run)]]


def horizon_of(run: Run) -> float | None:
    """Horizon per sample; None of a run that infers to convergence."""
    value = run.get(HORIZON)
    return None if value is None or math.isnan(value) else float(value)


def published_horizon(run: Run) -> float:
    """The horizon t that is published for it: B/2 times as long as it is per sample."""
    return (horizon_of(run) or math.nan) * run["config.training.batch_size"] / 2


def several_horizons(records: Records) -> dict[int, dict[float, list[Run]]]:
    """Runs of Adam by depth and horizon, of depths with more than two horizons; the shortest horizon first."""
    found: dict[int, dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in reversed(runs_of(select(records, "energy", "published"))):
        found[n_hidden_of(run)][horizon_of(run) or math.nan].append(run)
    return {depth: found[depth] for depth in sorted(found) if len(found[depth]) > 2}


def accuracies(records: Records, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and accuracies (in per cent) of the tests of a run."""
    at, values = claims.curve(records, run, "test_accuracy")
    return at, 100 * values


EXACT, CLOSE, APART = 1e-6, 1e-3, 1e-2
CONVERGED = 1e-8
POINTS = 0.5
ARMS = {"4.1": ("energy", ("adam", "sgd")), "beside": ("beside", ("adam",))}
"""Arm of a figure, and its optimisers."""


def _gap_falls(records: Records) -> Verdict:
    """A case a seed and depth: the mean gap is smaller at every longer horizon."""
    expected = "mean of F / F* - 1 over iterations smaller at each longer horizon, every seed"
    cases, found = [], several_horizons(records)
    for depth, by_horizon in found.items():
        for seed in sorted({run["seed"] for runs in by_horizon.values() for run in runs}):
            runs = [run for found in by_horizon.values() for run in found if run["seed"] == seed]
            gaps = [run["mean_gap"] if run["outcome"] == "done" else math.nan for run in runs]
            if len(gaps) == len(by_horizon):
                falls = all(b < a for a, b in itertools.pairwise(gaps))
                cases.append((f"H={depth}: longest over shortest", Case(falls, gaps[-1] / gaps[0])))
    n = sum(len(runs) for by_horizon in found.values() for runs in by_horizon.values())
    return verdict(records, expected, cases, n=n, missing=missing(select(records, "energy", "published")))


def _accuracy_rises(records: Records) -> Verdict:
    """A case a depth: the mean accuracy over seeds rises with the horizon, but for half a point."""
    expected = f"final accuracy at the longest horizon above the shortest's, no step down by more than {POINTS} points"
    cases, n = [], 0
    for depth, by_horizon in several_horizons(records).items():
        done = [
            [r["test_accuracy"] if r["outcome"] == "done" else math.nan for r in runs] for runs in by_horizon.values()
        ]
        means = [float(np.mean([100 * accuracy for accuracy in accuracies])) for accuracies in done]
        rises = means[-1] > means[0] and all(b - a >= -POINTS for a, b in itertools.pairwise(means))
        cases.append((f"H={depth}: longest less shortest, in points", Case(rises, means[-1] - means[0])))
        n += sum(len(runs) for runs in by_horizon.values())
    return verdict(records, expected, cases, n=n, missing=missing(select(records, "energy", "published")))


def _each(
    figure: str,
    protocol: str,
    statement: str,
    expected: str,
    value: str,
    holds: Callable[[Run], bool],
    depths: Callable[[int], bool] = lambda _: True,
) -> Claim:
    """Every run of the figure's arm at its longest horizon is a case; one that diverged does not hold."""
    arm, optimisers = ARMS[figure]

    def judge(records: Records) -> Verdict:
        parts = {optimiser: select(records, arm, protocol, optimiser) for optimiser in optimisers}
        cases = []
        for optimiser, part in parts.items():
            for run in at_the_longest(runs_of(part)):
                if depths(n_hidden_of(run)):
                    done = run["outcome"] == "done"
                    case = Case(done and holds(run), run[value] if done else math.nan)
                    cases.append((f"H={n_hidden_of(run)} {optimiser}", case))
        if not cases:
            return claims.insufficient(records, expected, "no runs of these depths", scale="thesis")
        return verdict(records, expected, cases, missing=missing(*parts.values()))

    return Claim(figure, f"{protocol}: {statement}", judge)


CLAIMS = (
    _each(
        "4.1", "corrected", "inference that has converged ends at F*",
        f"|F / F* - 1| < {EXACT:g} with a residual < {CONVERGED:g} at every iteration",
        "largest_gap", lambda run: run["largest_gap"] < EXACT and run["largest_residual"] < CONVERGED,
    ),
    _each(
        "4.1", "published", "the horizon of 300 is enough for two hidden layers",
        f"|F / F* - 1| < {CLOSE:g} at every iteration, H = 2",
        "largest_gap", lambda run: run["largest_gap"] < CLOSE, lambda n_hidden: n_hidden == 2,
    ),
    _each(
        "4.1", "published", "five and ten hidden layers are not at equilibrium at a horizon of 300",
        f"F / F* - 1 > {CLOSE:g} at some iteration, H = 5 and 10",
        "largest_gap", lambda run: run["largest_gap"] > CLOSE, lambda n_hidden: n_hidden >= 5,
    ),
    Claim("6.1", "published: the energy comes nearer to F* with the horizon", _gap_falls),
    Claim("6.1", "published: accuracy rises with the horizon", _accuracy_rises),
    _each(
        "beside", "corrected", "training by converged inference is training on F*, step by step",
        f"weights within {EXACT:g} of the movement, and F* within {EXACT:g}, at every iteration",
        "largest_difference", lambda run: run["largest_difference"] < EXACT and run["largest_drift"] < EXACT,
    ),
    _each(
        "beside", "published", "at a horizon of 300 five and ten hidden layers train another way than on F*",
        f"weights apart by > {APART:g} of the movement at the end, H = 5 and 10",
        "last_difference", lambda run: run["last_difference"] > APART, lambda n_hidden: n_hidden >= 5,
    ),
)  # fmt: skip
