"""Runs by model and arm, and what is claimed of them, protocol by protocol, against thresholds that were set before the runs."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pcexp.report import claims
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, ended, n_hidden_of, pairs, rule, width_of

TRAINS, TRAINS_ON_CIFAR = 50.0, 30.0
FEW_POINTS, LITTLE, NO_FALL = 3.0, 5.0, 0.5
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


def curve(records: Records, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and test accuracies, in per cent, of a run as long as its loss was finite."""
    at, losses, values = claims.curve(records, run, "test_loss", "test_accuracy")
    finite = np.isfinite(losses)
    return at[finite], 100 * values[finite]


def mupc(records: Records, protocol: str, activation: str, arm: str) -> Records:
    return records.select(block=arm, parameterisation="mupc", learning="pc", protocol=protocol, activation=activation)


def bp(records: Records, activation: str, arm: str) -> Records:
    return records.select(block={"depth": "bp", "long": "bp_long"}[arm], activation=activation)


def sp(records: Records, protocol: str, activation: str) -> Records:
    return records.select(block=("sp", "sp_beyond"), parameterisation=SP, protocol=protocol, activation=activation)


def means(runs: Sequence[Run], size: Callable[[Run], int]) -> dict[int, float]:
    """Mean accuracy over seeds by size, NaN where a run diverged, the smallest first."""
    sizes = sorted({size(run) for run in runs})
    return {key: float(np.mean([percent(run) for run in runs if size(run) == key])) for key in sizes}


def _judged(
    records: Records,
    expected: str,
    cases: Sequence[tuple[str, Case]],
    used: Sequence[Records],
    why: str,
    *,
    interval: str | None = None,
    originals: bool = False,
) -> Verdict:
    """The verdict on the cases, in per cent; `used` are the records that they rest on, `why` what is missing without cases.

    On published accuracies (`originals`) a copy of the data with a caveat cannot decide.

    Sizes are not among the labels of what was asked for: any run of an arm that is missing may be one that counts.
    """
    caveats = records.runs["run.data_caveat"].drop_nulls() if "run.data_caveat" in records.runs.columns else ()
    if originals and any(caveats):
        return claims.insufficient(records, expected, f"the copy of the data: {next(filter(None, caveats))}")
    lost = claims.missing(*used)
    if not cases and not lost:
        return claims.insufficient(records, expected, why, scale="thesis")
    told = claims.verdict(records, expected, cases, n=len(runs_of(*used)), missing=lost)
    if told.status == "insufficient":
        return told
    finite = defaultdict(list)
    for kind, case in cases:
        if math.isfinite(case.value):
            finite[kind].append(case.value)
    without = len(cases) - sum(map(len, finite.values()))
    observed = [", ".join(f"{kind} {np.median(values):.3g}" for kind, values in finite.items())]
    observed += [f"{without} without numbers"] * bool(without)
    shown = told.interval if interval is None else interval
    return dataclasses.replace(told, observed="; ".join(filter(None, observed)), interval=shown)


def _kind(run: Run, activations: Sequence[str]) -> str:
    size = f"H={n_hidden_of(run)}"
    return size if len(activations) == 1 else f"{run['activation']} {size}"


@rule
def trains(records: Records, protocol: str, activations: Sequence[str]) -> Verdict:
    used = [mupc(records, protocol, activation, "depth") for activation in activations]
    runs = [run for part in used for run in runs_of(part)]
    cases = [(_kind(run, activations), Case(percent(run) > TRAINS, percent(run))) for run in runs]
    return _judged(records, f"> {TRAINS:g} % at every depth", cases, used, "no muPC runs were asked for")


@rule
def near_bp(records: Records, protocol: str, activations: Sequence[str], deepest: int | None) -> Verdict:
    """Against BP of the same depth and seed; at one depth, or at all."""
    used, cases = [], []
    for activation in activations:
        pc, rival = mupc(records, protocol, activation, "depth"), bp(records, activation, "depth")
        used += [pc, rival]
        for run, other in pairs(runs_of(pc), runs_of(rival), DEPTH):
            if deepest is None or n_hidden_of(run) == deepest:
                gap = percent(other) - percent(run)
                holds = gap <= FEW_POINTS if math.isfinite(gap) else not failed(run)
                cases.append((_kind(run, activations), Case(holds, gap)))
    there = f" at H = {deepest}" if deepest else ""
    expected = f"BP's accuracy less muPC's <= {FEW_POINTS:g} points{there}"
    return _judged(records, expected, cases, used, f"no pairs of runs{there}")


@rule
def sp_fails(records: Records, protocol: str, activation: str, from_depth: int) -> Verdict:
    part = sp(records, protocol, activation)
    runs = [run for run in at_best_rates(runs_of(part)) if n_hidden_of(run) >= from_depth]
    cases = [(f"H={n_hidden_of(run)}", Case(failed(run), percent(run))) for run in runs]
    expected = f"at its best rates, at most {NO_LEARNING:g} % or diverged, H >= {from_depth}"
    return _judged(records, expected, cases, [part], f"no runs of H >= {from_depth}")


@rule
def sp_below(records: Records, protocol: str, activation: str) -> Verdict:
    part, rival = sp(records, protocol, activation), mupc(records, protocol, activation, "depth")
    cases = []
    for run, other in pairs(at_best_rates(runs_of(part)), runs_of(rival), DEPTH):
        gap = percent(other) - percent(run)
        cases.append((f"H={n_hidden_of(run)}: muPC's less SP's", Case(percent(run) > TRAINS and gap > 0, gap)))
    expected = f"at its best rates, > {TRAINS:g} % and below muPC"
    return _judged(records, expected, cases, [part, rival], "no pairs of runs")


@rule
def keeps_with_width(records: Records, protocol: str) -> Verdict:
    used, cases = [], []
    for activation in ACTIVATIONS:
        part, other = (mupc(records, protocol, activation, arm) for arm in ("width", "depth"))
        used.append(part)
        runs = runs_of(part)
        depths = {n_hidden_of(run) for run in runs}
        values = means([*runs, *(run for run in runs_of(other) if n_hidden_of(run) in depths)], width_of)
        best = math.nan
        for width, value in values.items():
            if not math.isnan(best):
                cases.append((f"{activation} N={width}", Case(value >= best - NO_FALL, value - best)))
            elif width != min(values):
                cases.append((f"{activation} N={width}", Case(False, math.nan)))
            best = np.fmax(best, value)
    expected = f"mean over seeds at each N >= the best of smaller N less {NO_FALL:g} points"
    return _judged(records, expected, cases, used, "fewer than two widths")


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
        values = means(runs_of(one), n_hidden_of)
        if len(values) > 1:
            fall = values[max(values)] - values[min(values)]
            cases.append((f"{activation} H={min(values)} to {max(values)}", Case(fall < 0, fall)))
    expected = "T = 1 below T = H at each depth and seed, and lower at the deepest than at the shallowest"
    return _judged(records, expected, cases, used, "no runs of T = 1", originals=True)


@rule
def long(
    records: Records, protocol: str, iterations: int, expected: str, holds: Callable[[float, float], bool]
) -> Verdict:
    """On runs of H = 128 of so many iterations; `holds` sees the highest accuracy of a run, and BP's at the end less its own."""
    part, rival = mupc(records, protocol, "relu", "long"), bp(records, "relu", "long")
    rivals = {run["seed"]: percent(run) for run in runs_of(rival) if n_hidden_of(run) == 128}
    cases = []
    for run in runs_of(part):
        if n_hidden_of(run) == 128 and run["config.training.max_iterations"] >= iterations:
            highest = float(np.max(curve(records, run)[1], initial=percent(run)))
            gap = rivals.get(run["seed"], math.nan) - percent(run)
            cases.append(("H=128", Case(not failed(run) and holds(highest, gap), highest)))
    why = f"no runs of H = 128 over {iterations} iterations"
    return _judged(records, expected, cases, [part, rival], why, originals=True)


@rule
def anchor(records: Records, protocol: str) -> Verdict:
    part = mupc(records, protocol, "relu", "anchor")
    runs = [run for run in runs_of(part) if (width_of(run), n_hidden_of(run)) == (128, 29)]
    curves = [dict(zip(*curve(records, run), strict=True)) for run in runs]
    found = {t: [float(curve.get(t, math.nan)) for curve in curves] for t in ANCHOR}
    means = {t: float(np.mean(values)) for t, values in found.items() if values}
    cases = [(f"{t}:", Case(abs(mean - ANCHOR[t][0]) <= ANCHOR[t][1], mean)) for t, mean in means.items()]
    expected = ", ".join(
        f"{value:g}{'' if math.isinf(within) else f' +- {within:g}'} % at {t}" for t, (value, within) in ANCHOR.items()
    )
    interval = "; ".join(f"{t}: {claims.spread(values)}" for t, values in found.items() if values)
    return _judged(records, expected, cases, [part], "no runs of N = 128, H = 29", interval=interval, originals=True)


@rule
def forward_only_fails(records: Records, protocol: str) -> Verdict:
    used = [mupc(records, protocol, activation, "forward_only") for activation in ACTIVATIONS]
    runs = [run for part in used for run in runs_of(part)]
    cases = [(f"{run['activation']} eta={run[ETA]:g}", Case(failed(run), percent(run))) for run in runs]
    expected = f"at every rate and beta, at most {NO_LEARNING:g} % or diverged"
    return _judged(records, expected, cases, used, "no runs with premultipliers in the forward pass only")


@rule
def scaled_rate_fails(records: Records, protocol: str, above: bool) -> Verdict:
    used = [mupc(records, protocol, activation, "rates") for activation in ACTIVATIONS]
    runs = [run for part in used for run in runs_of(part) if (run[ETA] > MUPC_ETA) == above]
    cases = [(run["activation"], Case(failed(run), percent(run))) for run in runs]
    expected = f"at most {NO_LEARNING:g} % or diverged"
    return _judged(records, expected, cases, used, "no runs at scaled rates")


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
