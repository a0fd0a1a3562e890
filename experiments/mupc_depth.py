"""muPC at depth: does it train 100+ layers as well as BP, where SP fails (figures 5.1 right, C.14, C.16-C.20, C.27)?

Setting. Pre-activation ResNets without biases, squared error on one-hot targets, Adam not rescaled with width or depth, batch
64; PC by gradient descent on activities from the forward pass. Models: muPC at eta = 0.1 and beta = 1 (linear, tanh) or 0.5
(relu), of the batch mean: 1/64 of it per sample; SP with skips over a grid of rates; BP with Depth-muP, muPC's net, at the
rates tuned at H = 8. Arms: `depth` (T = n_hidden); `width` at H = 8 (C.20); `one_step`, T = 1 (C.14, C.27; their condition numbers
are of another study); `long`, 5, 15 or 20 epochs (C.17-C.19); `rates`, eta times and over sqrt(N L) (5.8); `anchor`, N = 128, H = 29, T = 30, relu.

Text and code. SP is drawn U(+-1/sqrt(fan_in)), a third of the variance of Table 5.1. An epoch was 937 iterations with a test
every 300: a run has 900. SP's rates were chosen on test accuracy; here on that of the validation split, its
mean over seeds, a run that diverged counting as 0. Failed runs were entered as 10 %; here a run that
diverged has no accuracy, and both it and one without learning are drawn as failed. `published` infers in activities, where Adam
amplifies float32 round-off; `corrected` in deviations. BP has no inference: it is run once. Missing: C.19's code used
cross-entropy, batches of 128 and augmentation (crop, flip, rotation); this is the text's squared error at batch 64, without
augmentation. 5.8's premultipliers in the forward pass alone are not an option of the network.

Definitions. Accuracies are of all test examples, in per cent, at the end of a run unless said. No learning: at most 15 (a constant
guess has 11.4 on MNIST); failed: diverged, or no learning; trains: above 50 (CIFAR-10: above 30). layers_reached: layers whose weight
gradient is above 1e-6 of the largest layer's. Ours too: "a few points" is 3, "a little" 5, "does not fall" within 0.5.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pcexp.claims import Case, Claim, Verdict, insufficient, spread, verdict
from pcexp.data.dataset import Split
from pcexp.energy import outputs
from pcexp.network import Network
from pcexp.runner import Job
from pcexp.study import AbstractStudy
from pcexp.train import Observation, batch_layout, weight_norms

if TYPE_CHECKING:  # tables and figures are imported when a run has ended, not before
    from matplotlib.figure import Figure

    from pcexp.records import Records

NO_LEARNING, TRAINS, TRAINS_ON_CIFAR = 15.0, 50.0, 30.0
FEW_POINTS, LITTLE, NO_FALL = 3.0, 5.0, 0.5
ROUND_OFF = 1e-6
ETA, BETA = "optimiser.learning_rate", "learning.inference.activity_lr"
MUPC_ETA = 0.1
SP = "standard_uniform"


class MuPCDepth(AbstractStudy):
    """Training of a net of one arm, tested on the way. Its network has this width and n_hidden."""

    arm: Literal["depth", "width", "one_step", "rates", "anchor", "long"]
    width: int
    n_hidden: int

    def part(self, labels: Mapping[str, str]) -> str | None:
        mupc = labels["parameterisation"] == "mupc"
        if labels["learning"] == "bp":
            asked = mupc and self.arm in ("depth", "long") and labels["protocol"] == "published"
        else:
            asked = mupc or self.arm == "depth"
        only_relu = self.arm in ("anchor", "long")
        return self.arm if asked and not (only_relu and labels["activation"] != "relu") else None

    def run(self, job: Job) -> None:
        held_out = job.session.datasets(job.spec).validation

        def at_end(initial: Network, final: Network) -> dict[str, float]:
            return {"validation_accuracy": accuracy(final, held_out)}

        job.train(measure, probe_size=job.spec.training.batch_size, at_end=at_end)


def measure(seen: Observation) -> dict[str, Array]:
    """Loss of the batch at the forward pass, and how many layers get a gradient above round-off, before the update."""
    norms = weight_norms(seen.gradient)
    return {"loss": seen.loss, "layers_reached": jnp.sum(norms > ROUND_OFF * jnp.max(norms))}


@eqx.filter_jit
def _guesses(network: Network, x: Array) -> Int[Array, " examples"]:
    return jnp.argmax(outputs(network, x), axis=0)


def accuracy(network: Network, split: Split, batch: int = 900) -> float:
    """Share of examples of a split whose largest output is that of their class; NaN of an empty split."""
    parts = [
        np.asarray(_guesses(network, batch_layout(network, jnp.asarray(split.x[i : i + batch]))))
        for i in range(0, len(split.x), batch)
    ]
    return float(np.mean(np.concatenate(parts) == np.argmax(split.y, axis=1))) if parts else math.nan


# Runs

Run = Mapping[str, Any]


def ended(records: Records) -> list[Run]:
    """Runs that ended, with numbers or diverged, the shallowest first."""
    runs = [run for run in records.runs.iter_rows(named=True) if run["outcome"] in ("done", "diverged")]
    return sorted(runs, key=lambda run: (depth_of(run), width_of(run), run["seed"], run[ETA]))


def depth_of(run: Run) -> int:
    return int(run["config.network.n_hidden"])


def width_of(run: Run) -> int:
    return int(run["config.network.width"])


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
        sizes[run["activation"], depth_of(run), width_of(run)][run[ETA], run[BETA]].append(run)

    def score(pair: list[Run]) -> float:
        held_out = [run["validation_accuracy"] if run["outcome"] == "done" else 0.0 for run in pair]
        return float(np.sum([value or 0.0 for value in held_out]))  # not the mean: a seed that is not there counts as 0

    return [run for pairs in sizes.values() for run in max((pairs[k] for k in sorted(pairs)), key=score)]


def tests(records: Records) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Iterations and test accuracies of each lane, as long as its loss was finite."""
    if "test_accuracy" not in records.rows.columns:
        return {}
    rows = records.rows.select("cell", "lane", "iteration", "test_loss", "test_accuracy").drop_nulls().sort("iteration")
    found = {}
    for (cell, lane), part in rows.partition_by("cell", "lane", as_dict=True).items():
        finite = np.isfinite(part["test_loss"].to_numpy())
        found[cell, lane] = part["iteration"].to_numpy()[finite], 100 * part["test_accuracy"].to_numpy()[finite]
    return found


# Claims

ACTIVATIONS = ("relu", "tanh", "linear")
PROTOCOLS = ("published", "corrected")
Rule = Callable[["Records"], Verdict]
Kinds = dict[str, list[Case]]


def mupc(records: Records, protocol: str, activation: str, arm: str) -> Records:
    return records.select(part=arm, parameterisation="mupc", learning="pc", protocol=protocol, activation=activation)


def bp(records: Records, activation: str, arm: str) -> Records:
    return records.select(part=arm, learning="bp", activation=activation)


def sp(records: Records, protocol: str, activation: str) -> Records:
    return records.select(part="depth", parameterisation=SP, protocol=protocol, activation=activation)


def by_seed(runs: Iterable[Run], *keys: Callable[[Run], Any]) -> dict[tuple[Any, ...], Run]:
    return {(*(key(run) for key in keys), run["seed"]): run for run in runs}


def _judged(records: Records, expected: str, cases: Kinds, used: Iterable[Records], why: str) -> Verdict:
    """The verdict on cases in per cent that rest on these records; `why` says what is missing where there are none.

    Sizes are not among the labels of what was asked for: any run of an arm that is missing may be one that counts.
    """
    used = list(used)
    n = sum(len(ended(part)) for part in used)
    missing = sum(len(part.asked) for part in used) - n
    if not any(cases.values()) and not missing:
        return insufficient(records, expected, why)
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
        for run in (run for part in used for run in ended(part)):
            cases[_kind(run, activations)].append(Case(percent(run) > TRAINS, percent(run)))
        return _judged(records, f"> {TRAINS:g} % at every depth", cases, used, "no muPC runs were asked for")

    return rule


def _kind(run: Run, activations: Sequence[str]) -> str:
    size = f"H={depth_of(run)}"
    return size if len(activations) == 1 else f"{run['activation']} {size}"


def near_bp_rule(protocol: str, activations: Sequence[str], deepest: int | None) -> Rule:
    """Against BP of the same depth and seed; at one depth, or at all."""
    expected = f"BP's accuracy less muPC's <= {FEW_POINTS:g} points" + (f" at H = {deepest}" if deepest else "")

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = []
        for activation in activations:
            pc, rival = mupc(records, protocol, activation, "depth"), bp(records, activation, "depth")
            used += [pc, rival]
            rivals = by_seed(ended(rival), depth_of)
            for run in ended(pc):
                other = rivals.get((depth_of(run), run["seed"]))
                if other is not None and (deepest is None or depth_of(run) == deepest):
                    gap = percent(other) - percent(run)
                    holds = gap <= FEW_POINTS if math.isfinite(gap) else not failed(run)
                    cases[_kind(run, activations)].append(Case(holds, gap))
        return _judged(
            records, expected, cases, used, f"no pairs of runs at H = {deepest}" if deepest else "no pairs of runs"
        )

    return rule


def sp_fails_rule(protocol: str, activation: str, from_depth: int) -> Rule:
    expected = f"at its best rates, at most {NO_LEARNING:g} % or diverged, H >= {from_depth}"

    def rule(records: Records) -> Verdict:
        part = sp(records, protocol, activation)
        cases: Kinds = defaultdict(list)
        for run in at_best_rates(ended(part)):
            if depth_of(run) >= from_depth:
                cases[f"H={depth_of(run)}"].append(Case(failed(run), percent(run)))
        return _judged(records, expected, cases, [part], f"no runs of H >= {from_depth}")

    return rule


def sp_below_rule(protocol: str, activation: str) -> Rule:
    expected = f"at its best rates, > {TRAINS:g} % and below muPC"

    def rule(records: Records) -> Verdict:
        part, rival = sp(records, protocol, activation), mupc(records, protocol, activation, "depth")
        rivals = by_seed(ended(rival), depth_of)
        cases: Kinds = defaultdict(list)
        for run in at_best_rates(ended(part)):
            other = rivals.get((depth_of(run), run["seed"]))
            if other is not None:
                gap = percent(other) - percent(run)
                cases[f"H={depth_of(run)}: muPC's less SP's"].append(Case(percent(run) > TRAINS and gap > 0, gap))
        return _judged(records, expected, cases, [part, rival], "no pairs of runs")

    return rule


def means(runs: Iterable[Run], size: Callable[[Run], int]) -> dict[int, float]:
    """Mean accuracy over seeds by size, NaN where a run diverged, the smallest first."""
    values = defaultdict(list)
    for run in runs:
        values[size(run)].append(percent(run))
    return {key: float(np.mean(values[key])) for key in sorted(values)}


def width_rule(protocol: str) -> Rule:
    expected = f"mean over seeds at each N >= the best of smaller N less {NO_FALL:g} points"

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = []
        for activation in ACTIVATIONS:
            part, other = (mupc(records, protocol, activation, arm) for arm in ("width", "depth"))
            used.append(part)
            runs = ended(part)
            depths = {depth_of(run) for run in runs}
            values = means([*runs, *(run for run in ended(other) if depth_of(run) in depths)], width_of)
            best = math.nan
            for width, value in values.items():
                if not math.isnan(best):
                    cases[f"{activation} N={width}"].append(Case(value >= best - NO_FALL, value - best))
                elif width != min(values):
                    cases[f"{activation} N={width}"].append(Case(False, math.nan))
                best = np.fmax(best, value)
        return _judged(records, expected, cases, used, "fewer than two widths")

    return rule


def one_step_rule(protocol: str, data: str) -> Rule:
    expected = "T = 1 below T = H at each depth and seed, and lower at the deepest than at the shallowest"

    def rule(records: Records) -> Verdict:
        if (why := _other_data(records, data)) is not None:
            return insufficient(records, expected, why)
        cases: Kinds = defaultdict(list)
        used = []
        for activation in ACTIVATIONS:
            one, whole = (mupc(records, protocol, activation, arm) for arm in ("one_step", "depth"))
            used += [one, whole]
            rivals = by_seed(ended(whole), depth_of)
            for run in ended(one):
                other = rivals.get((depth_of(run), run["seed"]))
                if other is not None:
                    gap = percent(run) - percent(other)
                    holds = gap < 0 if math.isfinite(gap) else failed(run) and not failed(other)
                    cases[f"{activation} H={depth_of(run)}"].append(Case(holds, gap))
            values = means(ended(one), depth_of)
            if len(values) > 1:
                fall = values[max(values)] - values[min(values)]
                cases[f"{activation} H={min(values)} to {max(values)}"].append(Case(fall < 0, fall))
        return _judged(records, expected, cases, used, "no runs of T = 1")

    return rule


def _other_data(records: Records, data: str) -> str | None:
    """Why these records cannot decide a claim on published accuracies of a data set."""
    found = records.asked["data"].unique().to_list() if len(records.asked) else []
    if found != [data]:
        return f"the claim is about {data}"
    caveats = (
        records.runs["run.data_caveat"].drop_nulls().unique().to_list()
        if "run.data_caveat" in records.runs.columns
        else []
    )
    return next((f"the copy of {data}: {caveat}" for caveat in caveats if caveat), None)


def long_rule(protocol: str, data: str, iterations: int, expected: str, holds: Callable[[float, float], bool]) -> Rule:
    """On runs of H = 128 of so many iterations; `holds` sees the highest accuracy of a run, and BP's at the end less its own."""

    def rule(records: Records) -> Verdict:
        if (why := _other_data(records, data)) is not None:
            return insufficient(records, expected, why)
        part, rival = mupc(records, protocol, "relu", "long"), bp(records, "relu", "long")
        rivals, curves = by_seed(ended(rival), depth_of), tests(records)
        cases: Kinds = defaultdict(list)
        for run in ended(part):
            if depth_of(run) == 128 and run["config.training.max_iterations"] >= iterations:
                other = rivals.get((128, run["seed"]))
                seen = curves.get((run["cell"], run["lane"]), (np.zeros(0), np.zeros(0)))[1]
                highest = float(np.max(seen, initial=percent(run)))
                gap = math.nan if other is None else percent(other) - percent(run)
                cases["H=128"].append(Case(not failed(run) and holds(highest, gap), highest))
        return _judged(records, expected, cases, [part, rival], f"no runs of H = 128 over {iterations} iterations")

    return rule


ANCHOR = {100: (85.0, 2.0), 200: (89.0, math.inf), 500: (92.0, math.inf), 900: (94.0, 1.0)}
"""Published test accuracy by iteration, and the tolerance that is asked for."""


def anchor_rule(protocol: str) -> Rule:
    expected = ", ".join(
        f"{value:g}{'' if math.isinf(within) else f' +- {within:g}'} % at {t}" for t, (value, within) in ANCHOR.items()
    )

    def rule(records: Records) -> Verdict:
        if (why := _other_data(records, "mnist")) is not None:
            return insufficient(records, expected, why)
        part, curves = mupc(records, protocol, "relu", "anchor"), tests(records)
        runs = [run for run in ended(part) if (width_of(run), depth_of(run)) == (128, 29)]
        cases: Kinds = {}
        intervals = []
        for t, (value, within) in ANCHOR.items():
            found = [_at(curves.get((run["cell"], run["lane"])), t) for run in runs]
            mean = float(np.mean(found)) if found else math.nan
            cases[f"{t}:"] = [Case(abs(mean - value) <= within, mean)] if found else []
            intervals.append(f"{t}: {spread(found)}")
        judged = _judged(records, expected, cases, [part], "no runs of N = 128, H = 29")
        return judged if judged.status == "insufficient" else dataclasses.replace(judged, interval="; ".join(intervals))

    return rule


def _at(curve: tuple[np.ndarray, np.ndarray] | None, iteration: int) -> float:
    """Accuracy of a test at that iteration; NaN where there was none."""
    here = [] if curve is None else curve[1][curve[0] == iteration]
    return float(here[0]) if len(here) else math.nan


def rates_rule(protocol: str, above: bool) -> Rule:
    expected = f"at most {NO_LEARNING:g} % or diverged"

    def rule(records: Records) -> Verdict:
        cases: Kinds = defaultdict(list)
        used = [mupc(records, protocol, activation, "rates") for activation in ACTIVATIONS]
        for run in (run for part in used for run in ended(part)):
            if (run[ETA] > MUPC_ETA) == above:
                cases[run["activation"]].append(Case(failed(run), percent(run)))
        return _judged(records, expected, cases, used, "no runs at scaled rates")

    return rule


def _claims(p: str) -> Iterable[Claim]:
    others = ("tanh", "linear")
    for figure, part in (("5.1 right", ("relu",)), ("C.16", others)):
        names = " and ".join(part)
        yield Claim(figure, f"{p}, {names}: muPC trains at every depth", trains_rule(p, part))
        yield Claim(figure, f"{p}, {names}: muPC within 3 points of BP at H = 128", near_bp_rule(p, part, 128))
        yield Claim(
            figure, f"{p}, {names}: muPC within 3 points of BP at every depth (ours)", near_bp_rule(p, part, None)
        )
    yield Claim("5.1 right", f"{p}, relu: SP fails from H = 64", sp_fails_rule(p, "relu", 64))
    yield Claim("C.16", f"{p}, linear: SP fails from H = 32", sp_fails_rule(p, "linear", 32))
    yield Claim("C.16", f"{p}, tanh: SP trains, below muPC", sp_below_rule(p, "tanh"))
    yield Claim("C.20", f"{p}: muPC's accuracy does not fall with width", width_rule(p))
    for figure, data in (("C.14", "mnist"), ("C.27", "fashion_mnist")):
        yield Claim(
            "C.14, C.27", f"{p}, {figure}: T = 1 is worse than T = H and falls with depth", one_step_rule(p, data)
        )
    long = (
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
    for statement, data, iterations, expected, holds in long:
        yield Claim("C.17-C.19", f"{p}, {statement}", long_rule(p, data, iterations, expected, holds))
    yield Claim("5.8", f"{p}: muPC at Adam's rate times sqrt(N L) does not train", rates_rule(p, above=True))
    yield Claim("5.8", f"{p}: nor at the rate over sqrt(N L), the other reading", rates_rule(p, above=False))
    yield Claim("anchor", f"{p}: muPC, L = 30, N = 128, relu, as published", anchor_rule(p))


CLAIMS = tuple(claim for protocol in PROTOCOLS for claim in _claims(protocol))


# Figures

Curves = Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def _draw(panel: Any, curves: Curves, runs: Iterable[Run], colour: Any, **style: Any) -> None:
    """A line a run; of one that failed a cross where it ended, at the bottom where it has no accuracy."""
    for run in runs:
        at, values = curves.get((run["cell"], run["lane"]), (np.zeros(0), np.zeros(0)))
        panel.plot(at, values, **{"color": colour, "lw": 1.0, "alpha": 0.85} | style)
        if failed(run):
            height = 1.5 if run["outcome"] == "diverged" or not len(values) else values[-1]
            panel.plot(run["iterations"], height, "x", color=colour, ms=6, mew=1.4, clip_on=False)


def _finish(panel: Any, records: Records, title: str, runs: Sequence[Run], last: bool, first: bool) -> None:
    from pcexp import plotting

    panel.set_title(title, loc="left", fontsize=8, pad=12)
    plotting.caption(panel, records.about, len(runs))
    if not runs:
        plotting.note(panel, "no runs yet")
    panel.set_ylim(0, 100)
    if last:
        panel.set_xlabel("iteration")
    if first:
        panel.set_ylabel("test accuracy (%)")


def _marks(*names: tuple[str, Any, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, ls=style, label=name) for name, colour, style in names]
    return [*lines, Line2D([], [], color="#555555", marker="x", ls="", ms=6, mew=1.4, label="failed")]


def _models(records: Records, arm: str, activations: Sequence[str], title: str) -> Figure:
    """Rows are activations and protocols, columns depths, colours models."""
    from pcexp import plotting

    curves = tests(records)
    rows = [(activation, protocol) for activation in activations for protocol in PROTOCOLS]
    chosen = {}
    for activation, protocol in rows:
        tried = ended(sp(records, protocol, activation)) if arm == "depth" else []
        chosen[activation, protocol] = {
            "mupc": ended(mupc(records, protocol, activation, arm)),
            "standard": at_best_rates(tried),
            "bp": ended(bp(records, activation, arm)),
        }
    depths = sorted({depth_of(run) for models in chosen.values() for runs in models.values() for run in runs})
    columns = max(len(depths), 1)
    figure, panels = plotting.panels(len(rows), columns, title, width=max(3.0, 8.0 / columns))  # the legend is wide
    for i, key in enumerate(rows):
        for j, depth in enumerate(depths or [0]):
            panel, drawn = panels[i, j], []
            for model, runs in chosen[key].items():
                part = [run for run in runs if depth_of(run) == depth]
                _draw(panel, curves, part, plotting.COLOURS[model])
                drawn += part
            width = f", N = {width_of(drawn[0])}" if drawn else ""
            title = f"{key[1]}, {plotting.written(key[0])}, H = {depth}{width}"
            _finish(panel, records, title, drawn, last=i == len(rows) - 1, first=j == 0)
    names = {"mupc": "muPC", "standard": "SP with skips, rates best on validation", "bp": "BP, Depth-muP (no protocol)"}
    shown = [model for model in names if any(models[model] for models in chosen.values())]
    plotting.legend(figure, _marks(*((names[model], plotting.COLOURS[model], "-") for model in shown)))
    return figure


def _shaded(records: Records, arm: str, size: Callable[[Run], int], letter: str, title: str) -> Figure:
    """muPC: rows are protocols, columns activations, shades sizes; T = H dotted beside T = 1."""
    from pcexp import plotting

    curves = tests(records)
    figure, panels = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title)
    sizes: set[int] = set()
    shown = {}
    for protocol in PROTOCOLS:
        for activation in ACTIVATIONS:
            own, depth = (ended(mupc(records, protocol, activation, name)) for name in (arm, "depth"))
            if arm == "width":
                fixed = {depth_of(run) for run in own}
                own, depth = [*own, *(run for run in depth if depth_of(run) in fixed)], []
            shown[protocol, activation] = own, depth
            sizes |= {size(run) for run in (*own, *depth)}
    colours = dict(zip(sorted(sizes), plotting.shades(len(sizes)), strict=True))
    for i, protocol in enumerate(PROTOCOLS):
        for j, activation in enumerate(ACTIVATIONS):
            own, depth = shown[protocol, activation]
            for value, colour in colours.items():
                _draw(panels[i, j], curves, [run for run in own if size(run) == value], colour)
                _draw(panels[i, j], curves, [run for run in depth if size(run) == value], colour, ls=":", lw=0.9)
            title = f"{protocol}, {plotting.written(activation)}"
            _finish(panels[i, j], records, title, [*own, *depth], last=i == len(PROTOCOLS) - 1, first=j == 0)
    dotted = [("dotted: T = H", "#555555", ":")] if arm == "one_step" else []
    plotting.legend(
        figure, _marks(*((f"{letter} = {value}", colour, "-") for value, colour in colours.items()), *dotted)
    )
    return figure


def figure_5_1_right(records: Records) -> Figure:
    """Test accuracy over one epoch at each depth, ReLU: muPC, SP with skips, BP. One line a seed."""
    return _models(records, "depth", ("relu",), "Figure 5.1, right: test accuracy, ReLU")


def figure_c_16(records: Records) -> Figure:
    """Test accuracy over one epoch at each depth, tanh and linear: muPC, SP with skips, BP. One line a seed."""
    return _models(records, "depth", ("tanh", "linear"), "Figure C.16: test accuracy, tanh and linear")


def figure_c_17(records: Records) -> Figure:
    """Test accuracy over several epochs, ReLU: muPC and BP. One line a seed."""
    return _models(records, "long", ("relu",), "Figures C.17-C.19: test accuracy over several epochs, ReLU")


def figure_c_20(records: Records) -> Figure:
    """Test accuracy of muPC by width. One line a seed."""
    return _shaded(records, "width", width_of, "N", "Figure C.20: test accuracy of muPC by width")


def figure_c_14(records: Records) -> Figure:
    """Test accuracy of muPC with one step of inference, by depth, and dotted with T = H. One line a seed."""
    return _shaded(records, "one_step", depth_of, "H", "Figures C.14, C.27: test accuracy of muPC with T = 1")


def figure_5_8(records: Records) -> Figure:
    """Test accuracy of muPC at Adam's rate, and at that rate times and over sqrt(N L). One line a seed."""
    from pcexp import plotting

    curves = tests(records)
    figure, panels = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), "Section 5.8: muPC at scaled rates of Adam")
    names = ("rate over sqrt(N L)", "rate", "rate times sqrt(N L)")
    colours = plotting.shades(len(names))
    for i, protocol in enumerate(PROTOCOLS):
        for j, activation in enumerate(ACTIVATIONS):
            scaled = ended(mupc(records, protocol, activation, "rates"))
            sizes = {(width_of(run), depth_of(run)) for run in scaled}
            depth = ended(mupc(records, protocol, activation, "depth"))
            runs = [*scaled, *(run for run in depth if (width_of(run), depth_of(run)) in sizes)]
            for sign, colour in zip((-1, 0, 1), colours, strict=True):
                part = [run for run in runs if np.sign(run[ETA] - MUPC_ETA) == sign]
                _draw(panels[i, j], curves, part, colour)
            title = f"{protocol}, {plotting.written(activation)}"
            title += "".join(f", N = {width}, H = {n_hidden}" for width, n_hidden in sorted(sizes))
            _finish(panels[i, j], records, title, runs, last=i == len(PROTOCOLS) - 1, first=j == 0)
    plotting.legend(figure, _marks(*((name, colour, "-") for name, colour in zip(names, colours, strict=True))))
    return figure


def figure_anchor(records: Records) -> Figure:
    """Test accuracy of muPC at the anchor, with the published values and the tolerances asked for. One line a seed."""
    from matplotlib.lines import Line2D

    from pcexp import plotting

    curves = tests(records)
    figure, panels = plotting.panels(1, len(PROTOCOLS), "Anchor: muPC, ReLU, T = 30", width=3.8, height=3.0)
    for panel, protocol in zip(panels[0], PROTOCOLS, strict=True):
        runs = ended(mupc(records, protocol, "relu", "anchor"))
        _draw(panel, curves, runs, plotting.COLOURS["mupc"])
        for t, (value, within) in ANCHOR.items():
            error = None if math.isinf(within) else within
            panel.errorbar(t, value, yerr=error, fmt="o", ms=4, mfc="none", color="black", capsize=3, lw=1)
        size = f", N = {width_of(runs[0])}, H = {depth_of(runs[0])}" if runs else ""
        _finish(panel, records, f"{protocol}{size}", runs, last=True, first=panel is panels[0, 0])
        if runs and min(map(percent, runs)) > 80:
            panel.set_ylim(75, 100)
    published = Line2D([], [], color="black", marker="o", mfc="none", ls="", label="published, tolerance")
    plotting.legend(figure, [*_marks(("muPC", plotting.COLOURS["mupc"], "-")), published])
    return figure


FIGURES = {
    "5.1 right": figure_5_1_right,
    "C.16": figure_c_16,
    "C.17-C.19": figure_c_17,
    "C.20": figure_c_20,
    "C.14, C.27": figure_c_14,
    "5.8": figure_5_8,
    "anchor": figure_anchor,
}
