"""What is claimed, with thresholds that were set before the runs, and the rules that judge it."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from experiments.equilibrated_energy.runs import at_the_longest, depth_of, missing, runs_of, several_horizons
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, insufficient, verdict

EXACT = 1e-6
CONVERGED = 1e-8
CLOSE = 1e-3
APART = 1e-2
POINTS = 0.5
OPTIMISERS = ("adam", "sgd")

Rule = Callable[[Records], Verdict]


def _each(
    arm: str,
    protocol: str,
    optimisers: Sequence[str],
    expected: str,
    value: Callable[[Run], float],
    holds: Callable[[Run], bool],
    depths: Callable[[int], bool] = lambda _: True,
) -> Rule:
    """Every run of an arm at its longest horizon is a case; one that diverged does not hold."""

    def judge(records: Records) -> Verdict:
        cases, lost = defaultdict(list), 0
        for optimiser in optimisers:
            lost += missing(records, arm, protocol, optimiser)
            for run in at_the_longest(runs_of(records, arm, protocol, optimiser)):
                if depths(depth_of(run)):
                    done = run["outcome"] == "done"
                    kind = f"H={depth_of(run)} {optimiser}"
                    cases[kind].append(Case(done and holds(run), value(run) if done else math.nan))
        n = sum(len(found) for found in cases.values())
        if not n:
            return insufficient(records, expected, "no runs of these depths", scale="thesis")
        return verdict(records, expected, cases, n=n, missing=lost)

    return judge


def gap_falls(records: Records) -> Verdict:
    """A case a seed and depth: the mean gap is smaller at every longer horizon."""
    expected = "mean of F / F* - 1 over iterations smaller at each longer horizon, every seed"
    cases, lost = defaultdict(list), missing(records, "energy", "published")
    for depth, by_horizon in several_horizons(records).items():
        for seed in sorted({run["seed"] for runs in by_horizon.values() for run in runs}):
            runs = [run for found in by_horizon.values() for run in found if run["seed"] == seed]
            if len(runs) < len(by_horizon):
                continue
            gaps = [run["mean_gap"] if run["outcome"] == "done" else math.nan for run in runs]
            falls = all(b < a for a, b in itertools.pairwise(gaps))
            cases[f"H={depth}: longest over shortest"].append(Case(falls, gaps[-1] / gaps[0]))
    n = sum(len(runs) for by_horizon in several_horizons(records).values() for runs in by_horizon.values())
    return verdict(records, expected, cases, n=n, missing=lost)


def accuracy_rises(records: Records) -> Verdict:
    """A case a depth: the mean accuracy over seeds rises with the horizon, but for half a point."""
    expected = f"final accuracy at the longest horizon above the shortest's, no step down by more than {POINTS} points"
    cases, n, lost = {}, 0, missing(records, "energy", "published")
    for depth, by_horizon in several_horizons(records).items():
        means = [
            float(np.mean([100 * run["test_accuracy"] if run["outcome"] == "done" else math.nan for run in runs]))
            for runs in by_horizon.values()
        ]
        rises = means[-1] > means[0] and all(b - a >= -POINTS for a, b in itertools.pairwise(means))
        cases[f"H={depth}: longest less shortest, in points"] = [Case(rises, means[-1] - means[0])]
        n += sum(len(runs) for runs in by_horizon.values())
    return verdict(records, expected, cases, n=n, missing=lost)


def _same_way(run: Run) -> bool:
    return run["largest_difference"] < EXACT and run["largest_drift"] < EXACT


CLAIMS = (
    Claim(
        "4.1",
        "corrected: inference that has converged ends at F*",
        _each(
            "energy",
            "corrected",
            OPTIMISERS,
            f"|F / F* - 1| < {EXACT:g} with a residual < {CONVERGED:g} at every iteration",
            lambda run: run["largest_gap"],
            lambda run: run["largest_gap"] < EXACT and run["largest_residual"] < CONVERGED,
        ),
    ),
    Claim(
        "4.1",
        "published: the horizon of 300 is enough for two hidden layers",
        _each(
            "energy",
            "published",
            OPTIMISERS,
            f"|F / F* - 1| < {CLOSE:g} at every iteration, H = 2",
            lambda run: run["largest_gap"],
            lambda run: run["largest_gap"] < CLOSE,
            lambda depth: depth == 2,
        ),
    ),
    Claim(
        "4.1",
        "published: five and ten hidden layers are not at equilibrium at a horizon of 300",
        _each(
            "energy",
            "published",
            OPTIMISERS,
            f"F / F* - 1 > {CLOSE:g} at some iteration, H = 5 and 10",
            lambda run: run["largest_gap"],
            lambda run: run["largest_gap"] > CLOSE,
            lambda depth: depth >= 5,
        ),
    ),
    Claim("6.1", "published: the energy comes nearer to F* with the horizon", gap_falls),
    Claim("6.1", "published: accuracy rises with the horizon", accuracy_rises),
    Claim(
        "beside",
        "corrected: training by converged inference is training on F*, step by step",
        _each(
            "beside",
            "corrected",
            ("adam",),
            f"weights within {EXACT:g} of the movement, and F* within {EXACT:g}, at every iteration",
            lambda run: run["largest_difference"],
            _same_way,
        ),
    ),
    Claim(
        "beside",
        "published: at a horizon of 300 five and ten hidden layers train another way than on F*",
        _each(
            "beside",
            "published",
            ("adam",),
            f"weights apart by > {APART:g} of the movement at the end, H = 5 and 10",
            lambda run: run["last_difference"],
            lambda run: run["last_difference"] > APART,
            lambda depth: depth >= 5,
        ),
    ),
)
