"""Rules that judge: what holds of the runs of an arm, against thresholds that were set before them."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from experiments.mupc_depth.runs import (
    ACTIVATIONS,
    ANCHOR,
    DEPTH,
    ETA,
    MUPC_ETA,
    NO_LEARNING,
    accuracy_at,
    at_best_rates,
    bp,
    depth_of,
    failed,
    means,
    mupc,
    percent,
    runs_of,
    sp,
    tests,
    width_of,
)
from pcexp.report.claims import Case, Records, Rule, Run, Verdict, insufficient, pairs, spread, verdict

TRAINS = 50.0
FEW_POINTS, NO_FALL = 3.0, 0.5
Kinds = dict[str, list[Case]]
Find = Callable[[Records, Kinds], Iterable[Records]]
"""Fills in cases, in per cent, by kind; and says on which records they rest."""


def _rule(expected: str, why: str, find: Find, *, of_originals: bool = False) -> Rule:
    """The verdict on the cases that are found; `why` says what is missing where there are none.

    Sizes are not among the labels of what was asked for: any run of an arm that is missing may be one that counts.
    A claim `of_originals` is on published accuracies, which a copy of the data with a caveat cannot decide.
    """

    def rule(records: Records) -> Verdict:
        caveats = records.runs["run.data_caveat"].drop_nulls() if "run.data_caveat" in records.runs.columns else ()
        if of_originals and any(caveats):
            return insufficient(records, expected, f"the copy of the data: {next(filter(None, caveats))}")
        cases: Kinds = defaultdict(list)
        used = list(find(records, cases))
        n = sum(len(runs_of(part)) for part in used)
        missing = sum(len(part.asked) for part in used) - n
        if not any(cases.values()) and not missing:
            return insufficient(records, expected, why, scale="thesis")
        found = verdict(records, expected, cases, n=n, missing=missing)
        finite = {kind: [c.value for c in part if math.isfinite(c.value)] for kind, part in cases.items()}
        lost = sum(map(len, cases.values())) - sum(map(len, finite.values()))
        observed = ", ".join(f"{kind} {np.median(values):.3g}" for kind, values in finite.items() if values)
        if found.status == "insufficient":
            return found
        told = "; ".join(filter(None, (observed, f"{lost} without numbers" * bool(lost))))
        return dataclasses.replace(found, observed=told)

    return rule


def _kind(run: Run, activations: Sequence[str]) -> str:
    size = f"H={depth_of(run)}"
    return size if len(activations) == 1 else f"{run['activation']} {size}"


def trains_rule(protocol: str, activations: Sequence[str]) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        used = [mupc(records, protocol, activation, "depth") for activation in activations]
        for run in (run for part in used for run in runs_of(part)):
            cases[_kind(run, activations)].append(Case(percent(run) > TRAINS, percent(run)))
        return used

    return _rule(f"> {TRAINS:g} % at every depth", "no muPC runs were asked for", find)


def near_bp_rule(protocol: str, activations: Sequence[str], deepest: int | None) -> Rule:
    """Against BP of the same depth and seed; at one depth, or at all."""
    there = f" at H = {deepest}" if deepest else ""

    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        used = []
        for activation in activations:
            pc, rival = mupc(records, protocol, activation, "depth"), bp(records, activation, "depth")
            used += [pc, rival]
            for run, other in pairs(runs_of(pc), runs_of(rival), DEPTH):
                if deepest is None or depth_of(run) == deepest:
                    gap = percent(other) - percent(run)
                    holds = gap <= FEW_POINTS if math.isfinite(gap) else not failed(run)
                    cases[_kind(run, activations)].append(Case(holds, gap))
        return used

    return _rule(f"BP's accuracy less muPC's <= {FEW_POINTS:g} points{there}", f"no pairs of runs{there}", find)


def sp_fails_rule(protocol: str, activation: str, from_depth: int) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        part = sp(records, protocol, activation)
        for run in at_best_rates(runs_of(part)):
            if depth_of(run) >= from_depth:
                cases[f"H={depth_of(run)}"].append(Case(failed(run), percent(run)))
        return [part]

    expected = f"at its best rates, at most {NO_LEARNING:g} % or diverged, H >= {from_depth}"
    return _rule(expected, f"no runs of H >= {from_depth}", find)


def sp_below_rule(protocol: str, activation: str) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        part, rival = sp(records, protocol, activation), mupc(records, protocol, activation, "depth")
        for run, other in pairs(at_best_rates(runs_of(part)), runs_of(rival), DEPTH):
            gap = percent(other) - percent(run)
            cases[f"H={depth_of(run)}: muPC's less SP's"].append(Case(percent(run) > TRAINS and gap > 0, gap))
        return [part, rival]

    return _rule(f"at its best rates, > {TRAINS:g} % and below muPC", "no pairs of runs", find)


def width_rule(protocol: str) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        used = []
        for activation in ACTIVATIONS:
            part, other = (mupc(records, protocol, activation, arm) for arm in ("width", "depth"))
            used.append(part)
            runs = runs_of(part)
            depths = {depth_of(run) for run in runs}
            values = means([*runs, *(run for run in runs_of(other) if depth_of(run) in depths)], width_of)
            best = math.nan
            for width, value in values.items():
                if not math.isnan(best):
                    cases[f"{activation} N={width}"].append(Case(value >= best - NO_FALL, value - best))
                elif width != min(values):
                    cases[f"{activation} N={width}"].append(Case(False, math.nan))
                best = np.fmax(best, value)
        return used

    expected = f"mean over seeds at each N >= the best of smaller N less {NO_FALL:g} points"
    return _rule(expected, "fewer than two widths", find)


def one_step_rule(protocol: str) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        used = []
        for activation in ACTIVATIONS:
            one, whole = (mupc(records, protocol, activation, arm) for arm in ("one_step", "depth"))
            used += [one, whole]
            for run, other in pairs(runs_of(one), runs_of(whole), DEPTH):
                gap = percent(run) - percent(other)
                holds = gap < 0 if math.isfinite(gap) else failed(run) and not failed(other)
                cases[f"{activation} H={depth_of(run)}"].append(Case(holds, gap))
            values = means(runs_of(one), depth_of)
            if len(values) > 1:
                fall = values[max(values)] - values[min(values)]
                cases[f"{activation} H={min(values)} to {max(values)}"].append(Case(fall < 0, fall))
        return used

    expected = "T = 1 below T = H at each depth and seed, and lower at the deepest than at the shallowest"
    return _rule(expected, "no runs of T = 1", find, of_originals=True)


def long_rule(protocol: str, iterations: int, expected: str, holds: Callable[[float, float], bool]) -> Rule:
    """On runs of H = 128 of so many iterations; `holds` sees the highest accuracy of a run, and BP's at the end less its own."""

    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        part, rival = mupc(records, protocol, "relu", "long"), bp(records, "relu", "long")
        rivals = {run["seed"]: percent(run) for run in runs_of(rival) if depth_of(run) == 128}
        curves = tests(records)
        for run in runs_of(part):
            if depth_of(run) == 128 and run["config.training.max_iterations"] >= iterations:
                seen = curves.get((run["cell"], run["lane"]), (np.zeros(0), np.zeros(0)))[1]
                highest = float(np.max(seen, initial=percent(run)))
                gap = rivals.get(run["seed"], math.nan) - percent(run)
                cases["H=128"].append(Case(not failed(run) and holds(highest, gap), highest))
        return [part, rival]

    return _rule(expected, f"no runs of H = 128 over {iterations} iterations", find, of_originals=True)


def anchor_rule(protocol: str) -> Rule:
    def at(records: Records) -> tuple[Records, dict[int, list[float]]]:
        """Accuracies of all seeds by iteration."""
        part, curves = mupc(records, protocol, "relu", "anchor"), tests(records)
        runs = [run for run in runs_of(part) if (width_of(run), depth_of(run)) == (128, 29)]
        return part, {t: [accuracy_at(curves.get((run["cell"], run["lane"])), t) for run in runs] for t in ANCHOR}

    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        part, found = at(records)
        for t, (value, within) in ANCHOR.items():
            if found[t]:
                mean = float(np.mean(found[t]))
                cases[f"{t}:"].append(Case(abs(mean - value) <= within, mean))
        return [part]

    expected = ", ".join(
        f"{value:g}{'' if math.isinf(within) else f' +- {within:g}'} % at {t}" for t, (value, within) in ANCHOR.items()
    )
    judged = _rule(expected, "no runs of N = 128, H = 29", find, of_originals=True)

    def rule(records: Records) -> Verdict:
        interval = "; ".join(f"{t}: {spread(values)}" for t, values in at(records)[1].items())
        found = judged(records)
        return found if found.status == "insufficient" else dataclasses.replace(found, interval=interval)

    return rule


def forward_only_rule(protocol: str) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        used = [mupc(records, protocol, activation, "forward_only") for activation in ACTIVATIONS]
        for run in (run for part in used for run in runs_of(part)):
            cases[f"{run['activation']} eta={run[ETA]:g}"].append(Case(failed(run), percent(run)))
        return used

    expected = f"at every rate and beta, at most {NO_LEARNING:g} % or diverged"
    return _rule(expected, "no runs with premultipliers in the forward pass only", find)


def rates_rule(protocol: str, above: bool) -> Rule:
    def find(records: Records, cases: Kinds) -> Iterable[Records]:
        used = [mupc(records, protocol, activation, "rates") for activation in ACTIVATIONS]
        for run in (run for part in used for run in runs_of(part)):
            if (run[ETA] > MUPC_ETA) == above:
                cases[run["activation"]].append(Case(failed(run), percent(run)))
        return used

    return _rule(f"at most {NO_LEARNING:g} % or diverged", "no runs at scaled rates", find)
