"""Rules that judge: what holds of the runs of an arm, against thresholds that were set before them."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.mupc_depth.runs import (
    ACTIVATIONS,
    ANCHOR,
    ETA,
    MUPC_ETA,
    NO_LEARNING,
    accuracy_at,
    at_best_rates,
    bp,
    by_seed,
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
from pcexp.report.claims import Case, Run, Verdict, insufficient, spread, verdict

if TYPE_CHECKING:  # tables are imported when a run has ended, not before
    from pcexp.records.tables import Records

TRAINS = 50.0
FEW_POINTS, NO_FALL = 3.0, 0.5
Rule = Callable[["Records"], Verdict]
Kinds = dict[str, list[Case]]


def _judged(records: Records, expected: str, cases: Kinds, used: Iterable[Records], why: str) -> Verdict:
    """The verdict on cases in per cent that rest on these records; `why` says what is missing where there are none.

    Sizes are not among the labels of what was asked for: any run of an arm that is missing may be one that counts.
    """
    used = list(used)
    n = sum(len(runs_of(part)) for part in used)
    missing = sum(len(part.asked) for part in used) - n
    if not any(cases.values()) and not missing:
        return insufficient(records, expected, why, scale="thesis")
    found = verdict(records, expected, cases, n=n, missing=missing)
    lost = sum(not math.isfinite(case.value) for kind in cases.values() for case in kind)
    observed = ", ".join(
        f"{kind} {np.median(values):.3g}"
        for kind, part in cases.items()
        if (values := [case.value for case in part if math.isfinite(case.value)])
    )
    if found.status == "insufficient":
        return found
    return dataclasses.replace(
        found, observed="; ".join(filter(None, (observed, f"{lost} without numbers" * bool(lost))))
    )


def trains_rule(protocol: str, activations: Sequence[str]) -> Rule:
    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = [mupc(records, protocol, activation, "depth") for activation in activations]
        for run in (run for part in used for run in runs_of(part)):
            cases[_kind(run, activations)].append(Case(percent(run) > TRAINS, percent(run)))
        return _judged(records, f"> {TRAINS:g} % at every depth", cases, used, "no muPC runs were asked for")

    return rule


def _kind(run: Run, activations: Sequence[str]) -> str:
    size = f"H={depth_of(run)}"
    return size if len(activations) == 1 else f"{run['activation']} {size}"


def near_bp_rule(protocol: str, activations: Sequence[str], deepest: int | None) -> Rule:
    """Against BP of the same depth and seed; at one depth, or at all."""
    there = f" at H = {deepest}" if deepest else ""
    expected = f"BP's accuracy less muPC's <= {FEW_POINTS:g} points{there}"

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = []
        for activation in activations:
            pc, rival = mupc(records, protocol, activation, "depth"), bp(records, activation, "depth")
            used += [pc, rival]
            rivals = by_seed(runs_of(rival), depth_of)
            for run in runs_of(pc):
                other = rivals.get((depth_of(run), run["seed"]))
                if other is not None and (deepest is None or depth_of(run) == deepest):
                    gap = percent(other) - percent(run)
                    holds = gap <= FEW_POINTS if math.isfinite(gap) else not failed(run)
                    cases[_kind(run, activations)].append(Case(holds, gap))
        return _judged(records, expected, cases, used, f"no pairs of runs{there}")

    return rule


def sp_fails_rule(protocol: str, activation: str, from_depth: int) -> Rule:
    expected = f"at its best rates, at most {NO_LEARNING:g} % or diverged, H >= {from_depth}"

    def rule(records: Records) -> Verdict:
        part = sp(records, protocol, activation)
        cases: Kinds = defaultdict(list)
        for run in at_best_rates(runs_of(part)):
            if depth_of(run) >= from_depth:
                cases[f"H={depth_of(run)}"].append(Case(failed(run), percent(run)))
        return _judged(records, expected, cases, [part], f"no runs of H >= {from_depth}")

    return rule


def sp_below_rule(protocol: str, activation: str) -> Rule:
    expected = f"at its best rates, > {TRAINS:g} % and below muPC"

    def rule(records: Records) -> Verdict:
        part, rival = sp(records, protocol, activation), mupc(records, protocol, activation, "depth")
        rivals = by_seed(runs_of(rival), depth_of)
        cases: Kinds = defaultdict(list)
        for run in at_best_rates(runs_of(part)):
            other = rivals.get((depth_of(run), run["seed"]))
            if other is not None:
                gap = percent(other) - percent(run)
                cases[f"H={depth_of(run)}: muPC's less SP's"].append(Case(percent(run) > TRAINS and gap > 0, gap))
        return _judged(records, expected, cases, [part, rival], "no pairs of runs")

    return rule


def width_rule(protocol: str) -> Rule:
    expected = f"mean over seeds at each N >= the best of smaller N less {NO_FALL:g} points"

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
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
        return _judged(records, expected, cases, used, "fewer than two widths")

    return rule


def one_step_rule(protocol: str) -> Rule:
    expected = "T = 1 below T = H at each depth and seed, and lower at the deepest than at the shallowest"

    def rule(records: Records) -> Verdict:
        if (why := _caveat(records)) is not None:
            return insufficient(records, expected, why)
        cases: Kinds = defaultdict(list)
        used = []
        for activation in ACTIVATIONS:
            one, whole = (mupc(records, protocol, activation, arm) for arm in ("one_step", "depth"))
            used += [one, whole]
            rivals = by_seed(runs_of(whole), depth_of)
            for run in runs_of(one):
                other = rivals.get((depth_of(run), run["seed"]))
                if other is not None:
                    gap = percent(run) - percent(other)
                    holds = gap < 0 if math.isfinite(gap) else failed(run) and not failed(other)
                    cases[f"{activation} H={depth_of(run)}"].append(Case(holds, gap))
            values = means(runs_of(one), depth_of)
            if len(values) > 1:
                fall = values[max(values)] - values[min(values)]
                cases[f"{activation} H={min(values)} to {max(values)}"].append(Case(fall < 0, fall))
        return _judged(records, expected, cases, used, "no runs of T = 1")

    return rule


def _caveat(records: Records) -> str | None:
    """Why records of this copy of a data set cannot decide a claim on published accuracies."""
    caveats = records.runs["run.data_caveat"].drop_nulls() if "run.data_caveat" in records.runs.columns else ()
    return next((f"the copy of the data: {caveat}" for caveat in caveats if caveat), None)


def long_rule(protocol: str, iterations: int, expected: str, holds: Callable[[float, float], bool]) -> Rule:
    """On runs of H = 128 of so many iterations; `holds` sees the highest accuracy of a run, and BP's at the end less its own."""

    def rule(records: Records) -> Verdict:
        if (why := _caveat(records)) is not None:
            return insufficient(records, expected, why)
        part, rival = mupc(records, protocol, "relu", "long"), bp(records, "relu", "long")
        rivals, curves = by_seed(runs_of(rival), depth_of), tests(records)
        cases: Kinds = defaultdict(list)
        for run in runs_of(part):
            if depth_of(run) == 128 and run["config.training.max_iterations"] >= iterations:
                other = rivals.get((128, run["seed"]))
                seen = curves.get((run["cell"], run["lane"]), (np.zeros(0), np.zeros(0)))[1]
                highest = float(np.max(seen, initial=percent(run)))
                gap = math.nan if other is None else percent(other) - percent(run)
                cases["H=128"].append(Case(not failed(run) and holds(highest, gap), highest))
        return _judged(records, expected, cases, [part, rival], f"no runs of H = 128 over {iterations} iterations")

    return rule


def anchor_rule(protocol: str) -> Rule:
    expected = ", ".join(
        f"{value:g}{'' if math.isinf(within) else f' +- {within:g}'} % at {t}" for t, (value, within) in ANCHOR.items()
    )

    def rule(records: Records) -> Verdict:
        if (why := _caveat(records)) is not None:
            return insufficient(records, expected, why)
        part, curves = mupc(records, protocol, "relu", "anchor"), tests(records)
        runs = [run for run in runs_of(part) if (width_of(run), depth_of(run)) == (128, 29)]
        cases: Kinds = {}
        intervals = []
        for t, (value, within) in ANCHOR.items():
            found = [accuracy_at(curves.get((run["cell"], run["lane"])), t) for run in runs]
            mean = float(np.mean(found)) if found else math.nan
            cases[f"{t}:"] = [Case(abs(mean - value) <= within, mean)] if found else []
            intervals.append(f"{t}: {spread(found)}")
        judged = _judged(records, expected, cases, [part], "no runs of N = 128, H = 29")
        return judged if judged.status == "insufficient" else dataclasses.replace(judged, interval="; ".join(intervals))

    return rule


def forward_only_rule(protocol: str) -> Rule:
    expected = f"at every rate and beta, at most {NO_LEARNING:g} % or diverged"

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = [mupc(records, protocol, activation, "forward_only") for activation in ACTIVATIONS]
        for run in (run for part in used for run in runs_of(part)):
            cases[f"{run['activation']} eta={run[ETA]:g}"].append(Case(failed(run), percent(run)))
        return _judged(records, expected, cases, used, "no runs with premultipliers in the forward pass only")

    return rule


def rates_rule(protocol: str, above: bool) -> Rule:
    expected = f"at most {NO_LEARNING:g} % or diverged"

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = [mupc(records, protocol, activation, "rates") for activation in ACTIVATIONS]
        for run in (run for part in used for run in runs_of(part)):
            if (run[ETA] > MUPC_ETA) == above:
                cases[run["activation"]].append(Case(failed(run), percent(run)))
        return _judged(records, expected, cases, used, "no runs at scaled rates")

    return rule
