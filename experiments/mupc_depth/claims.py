"""What is claimed, protocol by protocol, and the rules that judge it, against thresholds that were set before the runs."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.mupc_depth import runs as of
from experiments.mupc_depth.runs import (
    ACTIVATIONS,
    ANCHOR,
    DEPTH,
    ETA,
    NO_LEARNING,
    PROTOCOLS,
    failed,
    mupc,
    percent,
    runs_of,
)
from pcexp.report import claims
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, n_hidden_of, pairs, rule, width_of

TRAINS, TRAINS_ON_CIFAR = 50.0, 30.0
FEW_POINTS, LITTLE, NO_FALL = 3.0, 5.0, 0.5


class Found(NamedTuple):
    """Cases, in per cent, with their kinds; the records that they rest on; what is missing where there are none."""

    expected: str
    cases: Sequence[tuple[str, Case]]
    used: Sequence[Records]
    why: str
    interval: str | None = None


def _judged(records: Records, found: Found) -> Verdict:
    """The verdict on the cases that are found.

    Sizes are not among the labels of what was asked for: any run of an arm that is missing may be one that counts.
    """
    lost = claims.missing(*found.used)
    if not found.cases and not lost:
        return claims.insufficient(records, found.expected, found.why, scale="thesis")
    told = claims.verdict(records, found.expected, found.cases, n=len(runs_of(*found.used)), missing=lost)
    if told.status == "insufficient":
        return told
    finite = defaultdict(list)
    for kind, case in found.cases:
        if math.isfinite(case.value):
            finite[kind].append(case.value)
    without = len(found.cases) - sum(map(len, finite.values()))
    observed = [", ".join(f"{kind} {np.median(values):.3g}" for kind, values in finite.items())]
    observed += [f"{without} without numbers"] * bool(without)
    interval = told.interval if found.interval is None else found.interval
    return dataclasses.replace(told, observed="; ".join(filter(None, observed)), interval=interval)


def _of_originals(records: Records, found: Found) -> Verdict:
    """The same of a claim on published accuracies, which a copy of the data with a caveat cannot decide."""
    caveats = records.runs["run.data_caveat"].drop_nulls() if "run.data_caveat" in records.runs.columns else ()
    if any(caveats):
        return claims.insufficient(records, found.expected, f"the copy of the data: {next(filter(None, caveats))}")
    return _judged(records, found)


def _kind(run: Run, activations: Sequence[str]) -> str:
    size = f"H={n_hidden_of(run)}"
    return size if len(activations) == 1 else f"{run['activation']} {size}"


@rule
def trains(records: Records, protocol: str, activations: Sequence[str]) -> Verdict:
    used = [mupc(records, protocol, activation, "depth") for activation in activations]
    runs = [run for part in used for run in runs_of(part)]
    cases = [(_kind(run, activations), Case(percent(run) > TRAINS, percent(run))) for run in runs]
    return _judged(records, Found(f"> {TRAINS:g} % at every depth", cases, used, "no muPC runs were asked for"))


@rule
def near_bp(records: Records, protocol: str, activations: Sequence[str], deepest: int | None) -> Verdict:
    """Against BP of the same depth and seed; at one depth, or at all."""
    used, cases = [], []
    for activation in activations:
        pc, rival = mupc(records, protocol, activation, "depth"), of.bp(records, activation, "depth")
        used += [pc, rival]
        for run, other in pairs(runs_of(pc), runs_of(rival), DEPTH):
            if deepest is None or n_hidden_of(run) == deepest:
                gap = percent(other) - percent(run)
                holds = gap <= FEW_POINTS if math.isfinite(gap) else not failed(run)
                cases.append((_kind(run, activations), Case(holds, gap)))
    there = f" at H = {deepest}" if deepest else ""
    expected = f"BP's accuracy less muPC's <= {FEW_POINTS:g} points{there}"
    return _judged(records, Found(expected, cases, used, f"no pairs of runs{there}"))


@rule
def sp_fails(records: Records, protocol: str, activation: str, from_depth: int) -> Verdict:
    part = of.sp(records, protocol, activation)
    runs = [run for run in of.at_best_rates(runs_of(part)) if n_hidden_of(run) >= from_depth]
    cases = [(f"H={n_hidden_of(run)}", Case(failed(run), percent(run))) for run in runs]
    expected = f"at its best rates, at most {NO_LEARNING:g} % or diverged, H >= {from_depth}"
    return _judged(records, Found(expected, cases, [part], f"no runs of H >= {from_depth}"))


@rule
def sp_below(records: Records, protocol: str, activation: str) -> Verdict:
    part, rival = of.sp(records, protocol, activation), mupc(records, protocol, activation, "depth")
    cases = []
    for run, other in pairs(of.at_best_rates(runs_of(part)), runs_of(rival), DEPTH):
        gap = percent(other) - percent(run)
        cases.append((f"H={n_hidden_of(run)}: muPC's less SP's", Case(percent(run) > TRAINS and gap > 0, gap)))
    expected = f"at its best rates, > {TRAINS:g} % and below muPC"
    return _judged(records, Found(expected, cases, [part, rival], "no pairs of runs"))


@rule
def keeps_with_width(records: Records, protocol: str) -> Verdict:
    used, cases = [], []
    for activation in ACTIVATIONS:
        part, other = (mupc(records, protocol, activation, arm) for arm in ("width", "depth"))
        used.append(part)
        runs = runs_of(part)
        depths = {n_hidden_of(run) for run in runs}
        values = of.means([*runs, *(run for run in runs_of(other) if n_hidden_of(run) in depths)], width_of)
        best = math.nan
        for width, value in values.items():
            if not math.isnan(best):
                cases.append((f"{activation} N={width}", Case(value >= best - NO_FALL, value - best)))
            elif width != min(values):
                cases.append((f"{activation} N={width}", Case(False, math.nan)))
            best = np.fmax(best, value)
    expected = f"mean over seeds at each N >= the best of smaller N less {NO_FALL:g} points"
    return _judged(records, Found(expected, cases, used, "fewer than two widths"))


@rule
def one_step_is_worse(records: Records, protocol: str) -> Verdict:
    used, cases = [], []
    for activation in ACTIVATIONS:
        one, whole = (mupc(records, protocol, activation, arm) for arm in ("one_step", "depth"))
        used += [one, whole]
        for run, other in pairs(runs_of(one), runs_of(whole), DEPTH):
            gap = percent(run) - percent(other)
            holds = gap < 0 if math.isfinite(gap) else failed(run) and not failed(other)
            cases.append((f"{activation} H={n_hidden_of(run)}", Case(holds, gap)))
        values = of.means(runs_of(one), n_hidden_of)
        if len(values) > 1:
            fall = values[max(values)] - values[min(values)]
            cases.append((f"{activation} H={min(values)} to {max(values)}", Case(fall < 0, fall)))
    expected = "T = 1 below T = H at each depth and seed, and lower at the deepest than at the shallowest"
    return _of_originals(records, Found(expected, cases, used, "no runs of T = 1"))


@rule
def long(
    records: Records, protocol: str, iterations: int, expected: str, holds: Callable[[float, float], bool]
) -> Verdict:
    """On runs of H = 128 of so many iterations; `holds` sees the highest accuracy of a run, and BP's at the end less its own."""
    part, rival = mupc(records, protocol, "relu", "long"), of.bp(records, "relu", "long")
    rivals = {run["seed"]: percent(run) for run in runs_of(rival) if n_hidden_of(run) == 128}
    curves, cases = of.tests(records), []
    for run in runs_of(part):
        if n_hidden_of(run) == 128 and run["config.training.max_iterations"] >= iterations:
            highest = float(np.max(of.curve(curves, run)[1], initial=percent(run)))
            gap = rivals.get(run["seed"], math.nan) - percent(run)
            cases.append(("H=128", Case(not failed(run) and holds(highest, gap), highest)))
    why = f"no runs of H = 128 over {iterations} iterations"
    return _of_originals(records, Found(expected, cases, [part, rival], why))


@rule
def anchor(records: Records, protocol: str) -> Verdict:
    part, curves = mupc(records, protocol, "relu", "anchor"), of.tests(records)
    runs = [run for run in runs_of(part) if (width_of(run), n_hidden_of(run)) == (128, 29)]
    found = {t: [of.accuracy_at(of.curve(curves, run), t) for run in runs] for t in ANCHOR}
    means = {t: float(np.mean(values)) for t, values in found.items() if values}
    cases = [(f"{t}:", Case(abs(mean - ANCHOR[t][0]) <= ANCHOR[t][1], mean)) for t, mean in means.items()]
    expected = ", ".join(
        f"{value:g}{'' if math.isinf(within) else f' +- {within:g}'} % at {t}" for t, (value, within) in ANCHOR.items()
    )
    interval = "; ".join(f"{t}: {claims.spread(values)}" for t, values in found.items() if values)
    return _of_originals(records, Found(expected, cases, [part], "no runs of N = 128, H = 29", interval))


@rule
def forward_only_fails(records: Records, protocol: str) -> Verdict:
    used = [mupc(records, protocol, activation, "forward_only") for activation in ACTIVATIONS]
    runs = [run for part in used for run in runs_of(part)]
    cases = [(f"{run['activation']} eta={run[ETA]:g}", Case(failed(run), percent(run))) for run in runs]
    expected = f"at every rate and beta, at most {NO_LEARNING:g} % or diverged"
    return _judged(records, Found(expected, cases, used, "no runs with premultipliers in the forward pass only"))


@rule
def scaled_rate_fails(records: Records, protocol: str, above: bool) -> Verdict:
    used = [mupc(records, protocol, activation, "rates") for activation in ACTIVATIONS]
    runs = [run for part in used for run in runs_of(part) if (run[ETA] > of.MUPC_ETA) == above]
    cases = [(run["activation"], Case(failed(run), percent(run))) for run in runs]
    expected = f"at most {NO_LEARNING:g} % or diverged"
    return _judged(records, Found(expected, cases, used, "no runs at scaled rates"))


def _claims(p: str) -> Iterable[Claim]:
    for figure, part in (("5.1 right", ("relu",)), ("C.16", ("tanh", "linear"))):
        of_part = f"{p}, {' and '.join(part)}: muPC"
        yield Claim(figure, f"{of_part} trains at every depth", trains(p, part))
        yield Claim(figure, f"{of_part} within 3 points of BP at H = 128", near_bp(p, part, 128))
        yield Claim(figure, f"{of_part} within 3 points of BP at every depth (ours)", near_bp(p, part, None))
    yield Claim("5.1 right", f"{p}, relu: SP fails from H = 64", sp_fails(p, "relu", 64))
    yield Claim("C.16", f"{p}, linear: SP fails from H = 32", sp_fails(p, "linear", 32))
    yield Claim("C.16", f"{p}, tanh: SP trains, below muPC", sp_below(p, "tanh"))
    yield Claim("C.20", f"{p}: muPC's accuracy does not fall with width", keeps_with_width(p))
    for figure, data in (("C.14", "mnist"), ("C.27", "fashion_mnist")):
        statement = f"{p}, {figure}: T = 1 is worse than T = H and falls with depth"
        yield Claim("C.14, C.27", statement, one_step_is_worse(p), data)
    several_epochs = (
        ("C.17: relu, H = 128, at least 97.5 % in 5 epochs", "mnist", 4685, ">= 97.5 %", lambda best, _: best >= 97.5),
        (
            "C.18: relu, H = 128, about 89 % in 15 epochs", "fashion_mnist", 14055, "highest 89 +- 1 %",
            lambda best, _: abs(best - 89) <= 1,
        ),
        (
            "C.19: relu, H = 128, trains, a little behind BP (squared error, no augmentation)", "cifar10", 15620,
            f"> {TRAINS_ON_CIFAR:g} %, 0 to {LITTLE:g} points below BP",
            lambda best, gap: best > TRAINS_ON_CIFAR and 0 <= gap <= LITTLE,
        ),
    )  # fmt: skip
    for statement, data, iterations, expected, holds in several_epochs:
        yield Claim("C.17-C.19", f"{p}, {statement}", long(p, iterations, expected, holds), data)
    yield Claim("5.8", f"{p}: muPC at Adam's rate times sqrt(N L) does not train", scaled_rate_fails(p, above=True))
    yield Claim("5.8", f"{p}: nor at the rate over sqrt(N L), the other reading", scaled_rate_fails(p, above=False))
    statement = f"{p}: muPC with premultipliers in the forward pass only does not train"
    yield Claim("5.8 forward pass", statement, forward_only_fails(p))
    yield Claim("anchor", f"{p}: muPC, L = 30, N = 128, relu, as published", anchor(p), "mnist")


CLAIMS = tuple(claim for protocol in PROTOCOLS for claim in _claims(protocol))
