"""Learning depth: which layers of a deep PC network learn, how far, and what else would explain the accuracy (beyond the sources).

Setting. Pre-activation ResNets in muPC without biases, MNIST with one-hot targets, batch 64, Adam on weights, about an epoch.
With T = n_hidden steps of beta from the forward pass the error k layers below the output is of order C(T, k) beta^k, beta =
0.5/64 per sample as published (0.5 on the batch mean). Rules, each an option of `learning`:

    pc_activities    as published: the steps in the activities z, whose float32 round-off may be larger than their change
    pc               the same steps in deviations d = z - zhat, free of round-off; Adam's eps down to 1e-30
    pc_float64       the same in float64, eps down to 1e-100: squares of gradients below 1e-19 underflow in float32
    pc_equilibrium   inference by error descent until a step lowers the energy by less than a thousandth
    bp               all layers; bp_last_layers: the last k alone, k as many as get a gradient above round-off as published

Definitions, all on one probe batch and the weights at hand. Above round-off: the gradient in activities is within a tenth, in
Frobenius norm, of that in deviations (which a test holds to float64). Cosine: of a layer's gradient with BP's; NaN where one
is exactly zero. Closed fraction: (F(zhat) - F(z_T)) / (F(zhat) - F0), F0 the lowest energy that error descent found,
with its residual beside it. Movement: ||W - W0|| / ||W0|| of a layer at the end; it has moved where that is above 0.05.
Best rate: the highest mean accuracy over seeds on the validation split. Accuracies are of the test split, differences of
means over seeds, in points (hundredths).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.claims import Case, Claim, Verdict, insufficient, verdict
from pcexp.configuration import Refused
from pcexp.data import Dataset
from pcexp.energy import energy, loss
from pcexp.inference import AbstractInference, GradientDescent
from pcexp.inference.base import Equilibrium, InferenceProblem
from pcexp.lanes import evaluate
from pcexp.learning.layerwise import cosines, norms, relative_errors
from pcexp.learning.pc import energy_gradient
from pcexp.network import Network
from pcexp.runner import Job
from pcexp.study import AbstractStudy
from pcexp.train import Observation, batch_layout

if TYPE_CHECKING:  # tables and figures are imported when a run has ended, not before
    from matplotlib.figure import Figure

    from pcexp.records import Records

ROUND_OFF = 0.1
MOVED = 0.05
POINT = 0.01
ETA, EPS = "optimiser.learning_rate", "optimiser.eps"
BATCH = 64
"""Published betas are per-sample ones times this."""


class LearningDepth(AbstractStudy):
    """Training, with the gradients that each inference would give on a probe batch, and how far each layer came.

    `activity_lr` and `max_steps` are those of the published inference, `equilibrium` the solver of F0. `horizons` (as
    multiples of max_steps) times `activity_lrs` is the grid of T and beta that is looked at on the initial weights.
    """

    probe_size: int
    activity_lr: float
    max_steps: int
    equilibrium: AbstractInference
    horizons: Sequence[float] = ()
    activity_lrs: Sequence[float] = ()

    def run(self, job: Job) -> None:
        dataset = job.session.datasets(job.spec)
        if not len(dataset.validation.x):
            raise Refused("data.validation_fraction=0: rates are chosen on the validation split; set it above 0")
        job.train(
            eqx.Partial(measure, self), probe_size=self.probe_size, at_end=eqx.Partial(outcome, self, dataset=dataset)
        )

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, i in (("start", 0), ("end", -1)):
            seen |= {
                f"{name}_above": int(np.sum(rows["activities_error"][i] < ROUND_OFF)),
                f"{name}_closed": float(rows["closed_fraction"][i]),
                f"{name}_equilibrium_cosine": float(np.mean(rows["equilibrium_cosine"][i])),
            }
        return seen


# Gradients of layers


class Seen(NamedTuple):
    """What an inference leads to on one batch: the gradient of F on the weights, F, and the residual."""

    gradient: Network
    energy: Float[Array, ""]
    residual: Float[Array, ""]


def seen_by(solver: AbstractInference, network: Network, x: Float[Array, ...], y: Float[Array, "d batch"]) -> Seen:
    """Gradient, energy and residual where a solver stops."""
    found: Equilibrium = solver.solve(InferenceProblem.from_batch(network, x, y))
    gradient = energy_gradient(network, x, found.activities, found.errors)
    return Seen(gradient, energy(network, found.errors), found.residual)


def closed_fraction(start: Array, reached: Array, lowest: Array) -> Array:
    """Part of the energy between the forward pass and the lowest energy found that inference has used up."""
    return (start - reached) / (start - jnp.minimum(lowest, reached))


def measure(study: LearningDepth, observed: Observation) -> dict[str, Array]:
    """Loss of the batch; norms, cosines and errors of the probe batch's gradients, by form of inference."""
    network, x, y = observed.network, observed.data.probe_x, observed.data.probe_y
    start, bp = eqx.filter_value_and_grad(loss)(network, x, y)
    activities, deviations = (
        seen_by(GradientDescent(study.activity_lr, study.max_steps, form), network, x, y)
        for form in ("activities", "deviations")
    )
    equilibrium = seen_by(study.equilibrium, network, x, y)
    forms = {"activities": activities, "deviations": deviations, "equilibrium": equilibrium}
    return {
        "loss": observed.loss,
        "closed_fraction": closed_fraction(start, deviations.energy, equilibrium.energy),
        "equilibrium_residual": equilibrium.residual,
        "activities_error": relative_errors(activities.gradient, deviations.gradient),
        "bp_norm": norms(bp),
        **{f"{form}_norm": norms(seen.gradient) for form, seen in forms.items()},
        **{f"{form}_cosine": cosines(seen.gradient, bp) for form, seen in forms.items()},
    }


def outcome(study: LearningDepth, initial: Network, final: Network, *, dataset: Dataset) -> dict[str, Any]:
    """Movement of every layer, accuracy on the validation split, and the grid of T and beta on the initial weights."""
    held_out = evaluate(final, dataclasses.replace(dataset, test=dataset.validation))
    found: dict[str, Any] = {"validation_accuracy": held_out["test_accuracy"]} | _numbered(
        "movement", np.asarray(movement(initial, final))
    )
    if study.horizons and study.activity_lrs:
        x, y = dataset.train.x[: study.probe_size], dataset.train.y[: study.probe_size]
        for name, values in grid(study, initial, batch_layout(initial, jnp.asarray(x)), jnp.asarray(y).T).items():
            found |= _numbered(name, values)
    return found


def _numbered(name: str, values: Iterable[float]) -> dict[str, float]:
    """Columns name_1, name_2, ..."""
    return {f"{name}_{i}": float(value) for i, value in enumerate(values, start=1)}


def movement(initial: Network, final: Network) -> Float[Array, " depth"]:
    """||W - W0|| / ||W0|| of every layer."""
    return relative_errors(final, initial)


def grid(
    study: LearningDepth, network: Network, x: Float[Array, ...], y: Float[Array, "d batch"]
) -> dict[str, list[float]]:
    """By T and beta (T outside): layers above round-off and with any gradient, mean cosine, closed fraction."""
    start, bp = eqx.filter_value_and_grad(loss)(network, x, y)
    lowest = eqx.filter_jit(seen_by)(study.equilibrium, network, x, y).energy

    @eqx.filter_jit
    def at(beta: Array, steps: int) -> dict[str, Array]:
        activities, deviations = (
            seen_by(eqx.tree_at(lambda s: s.activity_lr, GradientDescent(0.0, steps, form), beta), network, x, y)
            for form in ("activities", "deviations")
        )
        finite = jnp.isfinite(deviations.energy)
        return {
            "grid_above": jnp.sum(relative_errors(activities.gradient, deviations.gradient) < ROUND_OFF),
            "grid_alive": jnp.where(finite, jnp.sum(norms(deviations.gradient) > 0), 0),
            "grid_cosine": jnp.where(finite, jnp.nanmean(cosines(deviations.gradient, bp)), jnp.nan),
            "grid_closed": jnp.where(finite, closed_fraction(start, deviations.energy, lowest), jnp.nan),
        }

    found: dict[str, list[float]] = defaultdict(list)
    for multiple in study.horizons:
        for beta in study.activity_lrs:
            values = at(jnp.asarray(beta), max(1, round(multiple * study.max_steps)))
            for name, value in values.items():
                found[name].append(float(value))
    return dict(found)


# Runs

Run = Mapping[str, Any]
PC_RULES = ("pc", "pc_float64", "pc_equilibrium")
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


def ended(records: Records, rule: str) -> dict[Size, dict[Rates, list[Run]]]:
    """Runs of a rule that ended or diverged, by network and rates, in the order of seeds."""
    found: dict[Size, dict[Rates, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(records.select(learning=rule).runs.iter_rows(named=True), key=lambda run: run["seed"]):
        if run["outcome"] in ("done", "diverged"):
            size = Size(run["activation"], run["config.network.width"], run["config.network.n_hidden"])
            found[size][Rates(run[ETA], run[EPS])].append(run)
    return dict(sorted(found.items()))


def missing(records: Records, *rules: str) -> int:
    """Runs of these rules that were asked for and have no numbers."""
    part = [records.select(learning=rule) for rule in rules]
    return sum(len(p.asked) for p in part) - sum(
        len(runs) for rule in rules for by_rates in ended(records, rule).values() for runs in by_rates.values()
    )


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
    values = [row.get(f"{name}_{i}") for i in range(1, run["config.network.n_hidden"] + 2)]
    return np.array([math.nan if value is None else value for value in values], float)


def moved(run: Run) -> int:
    """How many layers have moved."""
    return int(np.sum(layers(run, "movement", run) > MOVED))


Choice = Callable[[Mapping[Rates, Sequence[Run]]], Sequence[Run]]


def published(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    """Runs at the published rates."""
    return by_rates.get(Rates(0.1, 1e-8), ())


def exact(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    """Runs at eta = 0.01 with the smallest eps."""
    return by_rates.get(min((rates for rates in by_rates if rates.eta == 0.01), default=Rates(0, 0)), ())


def best_exact(by_rates: Mapping[Rates, Sequence[Run]]) -> Sequence[Run]:
    """Runs at the best rate with the smallest eps."""
    smallest = min((rates.eps for rates in by_rates), default=0.0)
    return best({rates: runs for rates, runs in by_rates.items() if rates.eps == smallest})


# Claims


def _each(rule: str, choice: Choice, expected: str, value: Callable[[Run], float], holds: Callable[..., bool]) -> Any:
    """Every run of a rule at the chosen rates is a case; one that diverged does not hold."""

    def judge(records: Records) -> Verdict:
        cases, n = {}, 0
        for size, by_rates in ended(records, rule).items():
            runs = choice(by_rates)
            values = [(run, value(run) if run["outcome"] == "done" else math.nan) for run in runs]
            cases[str(size)] = [Case(run["outcome"] == "done" and holds(v, size), v) for run, v in values]
            n += len(runs)
        return verdict(records, expected, cases, n=n, missing=missing(records, rule))

    return judge


class Arm(NamedTuple):
    """A learning rule at the rates that are chosen for it."""

    rule: str
    choice: Choice


def difference(records: Records, size: Size, one: Arm, other: Arm) -> float:
    """Mean test accuracy of one arm less that of the other at a size, in points; NaN where either has no runs."""
    runs = [arm.choice(ended(records, arm.rule).get(size, {})) for arm in (one, other)]
    if not all(runs):
        return math.nan
    a, b = (max(mean(r, "test_accuracy"), 0.0) for r in runs)
    return (a - b) / POINT


def _compared(
    one: Arm,
    other: Arm,
    expected: str,
    holds: Callable[[float, Size], bool],
    sizes: Callable[[Size], bool] = lambda _: True,
) -> Any:
    """One case a size: the difference of two arms' accuracies, in points. A rule's diverged runs have accuracy 0."""

    def judge(records: Records) -> Verdict:
        cases, n, lost = {}, 0, missing(records, one.rule, other.rule)
        there = [ended(records, arm.rule) for arm in (one, other)]
        for size in sorted(set(there[0]) | set(there[1])):
            if not sizes(size):
                continue
            value = difference(records, size, one, other)
            runs = sum(len(arm.choice(found.get(size, {}))) for arm, found in zip((one, other), there, strict=True))
            if math.isnan(value):
                lost += runs or 1
                continue
            cases[str(size)], n = [Case(holds(value, size), value)], n + runs
        if lost and (not cases or missing(records, one.rule, other.rule)):  # a rate that is not there may be the best
            return insufficient(records, expected, f"{lost} runs missing")
        return verdict(records, expected, cases, n=n, missing=lost)

    return judge


def _all_of_a_hundred(records: Records) -> Verdict:
    """Some rule of PC's own gradient moves every layer of every net of 100 layers and is close to BP there."""
    expected = f"one rule whose layers all move by > {MOVED}, every seed, with an accuracy within 2 points of BP's best"
    deep = {size: found for size, found in ended(records, "bp").items() if size.n_hidden >= 100}
    if not deep:
        answer = insufficient(records, expected, "no networks of 100 layers or more were trained at this scale")
        return dataclasses.replace(answer, interval="run " + records.command.replace("scale=small", "scale=thesis"))
    cases, observed, n = {}, [], 0
    for size, by_rates in deep.items():
        values, shown = [], False
        for rule in PC_RULES:
            runs = best(ended(records, rule).get(size, {}))
            if mean(runs, "test_accuracy") == -math.inf or not best(by_rates):
                continue
            least = min(moved(run) for run in runs)
            behind = (mean(best(by_rates), "test_accuracy") - mean(runs, "test_accuracy")) / POINT
            shown = shown or (least == size.n_hidden + 1 and behind <= 2)
            observed.append(f"{size} {rule}: {least} layers, {behind:.2f} points behind")
            n += len(runs)
            values.append(least)
        if values:
            cases[str(size)] = [Case(shown, max(values))]
    lost = missing(records, "bp", *PC_RULES)
    if lost or not cases:
        return insufficient(records, expected, f"{lost} runs missing; {'; '.join(observed)}")
    return dataclasses.replace(verdict(records, expected, cases, n=n, missing=0), observed="; ".join(observed))


def _above(run: Run) -> float:
    return max(run["start_above"], run["end_above"])


PUBLISHED, LAST_K, BEST_BP = Arm("pc_activities", published), Arm("bp_last_layers", published), Arm("bp", best)
EQUILIBRIUM, EXACT, BEST_EXACT = Arm("pc_equilibrium", best), Arm("pc_float64", exact), Arm("pc_float64", best_exact)
WITHIN = "difference of test accuracy within 1 point"
MOVES = f"that move by > {MOVED}"


def _within(points: float, _: Size) -> bool:
    return abs(points) <= 1


CLAIMS = (
    Claim(
        "start",
        "published: at most 4 layers get a gradient above float32 round-off, at the start and at the end",
        _each(*PUBLISHED, "layers above round-off <= 4", _above, lambda n, _: n <= 4),
    ),
    Claim(
        "grid",
        "published: inference closes less than a tenth of the energy gap at the start",
        _each(*PUBLISHED, "closed fraction < 0.1", lambda run: run["start_closed"], lambda part, _: part < 0.1),
    ),
    Claim(
        "movement",
        "published: at most the top 5 layers move",
        _each(*PUBLISHED, f"layers {MOVES} <= 5", moved, lambda n, _: n <= 5),
    ),
    Claim(
        "accuracy",
        "published: as accurate as BP on the last k layers alone, at the same rates",
        _compared(PUBLISHED, LAST_K, WITHIN, _within),
    ),
    Claim(
        "accuracy",
        "published: less accurate than BP on all layers at its best rate",
        _compared(PUBLISHED, BEST_BP, "difference < 0 points", lambda points, _: points < 0),
    ),
    Claim(
        "eps",
        "exact gradients alone change nothing: deviations at the published rates are as accurate as activities",
        _compared(Arm("pc", published), PUBLISHED, WITHIN, _within),
    ),
    Claim(
        "movement",
        "exact gradients, eps near 0 and eta = 0.01: every layer moves",
        _each(*EXACT, f"layers {MOVES}: all", moved, lambda n, size: n == size.n_hidden + 1),
    ),
    Claim(
        "eps",
        "exact gradients and eps near 0: as accurate as BP, each at its best rate",
        _compared(BEST_EXACT, BEST_BP, WITHIN, _within),
    ),
    Claim(
        "start",
        "at equilibrium PC's gradient has BP's direction at the start",
        _each(
            *EQUILIBRIUM,
            "mean cosine over layers >= 0.9",
            lambda r: r["start_equilibrium_cosine"],
            lambda c, _: c >= 0.9,
        ),
    ),
    Claim(
        "end",
        "trained at equilibrium, PC's gradient leaves BP's direction",
        _each(
            *EQUILIBRIUM, "mean cosine over layers <= 0.8", lambda r: r["end_equilibrium_cosine"], lambda c, _: c <= 0.8
        ),
    ),
    Claim(
        "accuracy",
        "trained at equilibrium, up to 8 hidden layers: as accurate as BP, each at its best rate",
        _compared(EQUILIBRIUM, BEST_BP, WITHIN, _within, lambda size: size.n_hidden <= 8),
    ),
    Claim(
        "accuracy",
        "trained at equilibrium, 32 hidden layers and more: less accurate than BP, each at its best rate",
        _compared(
            EQUILIBRIUM, BEST_BP, "difference < -1 point", lambda points, _: points < -1, lambda s: s.n_hidden >= 32
        ),
    ),
    Claim("movement", "some rule trains 100 layers and more, all of them, with PC's own gradient", _all_of_a_hundred),
)


# Figures

COLOURS = {
    "bp": "#3b6ea5",
    "bp_last_layers": "#8fb8de",
    "pc_activities": "#c1272d",
    "pc": "#f0a202",
    "pc_float64": "#7a4b00",
    "pc_equilibrium": "#2a9d8f",
}
"""BP and PC as published in the colours that they have everywhere."""


class Shown(NamedTuple):
    """An arm as a figure draws it."""

    label: str
    arm: Arm


SHOWN = (
    Shown("BP, best rate", BEST_BP),
    Shown("BP, last k layers, published rates", LAST_K),
    Shown("PC as published", PUBLISHED),
    Shown("PC in deviations, published rates", Arm("pc", published)),
    Shown(r"PC in float64, $\epsilon$ near 0, best rate", BEST_EXACT),
    Shown("PC at equilibrium, best rate", EQUILIBRIUM),
)


def sizes_of(records: Records) -> list[Size]:
    """All networks that some rule has runs of."""
    return sorted({size for rule in COLOURS for size in ended(records, rule)}) or [Size("relu", 0, 0)]


def done(records: Records, size: Size, arm: Arm) -> list[Run]:
    """Runs of an arm at a size that ended with numbers."""
    return [run for run in arm.choice(ended(records, arm.rule).get(size, {})) if run["outcome"] == "done"]


def _line(axis: Any, y: np.ndarray, colour: str, marked: np.ndarray | None = None) -> None:
    """A vector over layers; filled marks where `marked`, crosses elsewhere."""
    x = np.arange(1, len(y) + 1)
    axis.plot(x, y, "-", color=colour, lw=0.9, alpha=0.8)
    if marked is not None:
        axis.plot(x[marked], y[marked], "o", color=colour, ms=3.5)
        axis.plot(x[~marked], y[~marked], "x", color=colour, ms=3.5, alpha=0.6)


def _gradients(records: Records, title: str, lines: Sequence[tuple[str, str, Arm]], at: int) -> Figure:
    """Rows are norms and cosines, columns networks; lines are (form, colour, arm), in the first or the last row of a run."""
    from matplotlib.lines import Line2D

    from pcexp import plotting

    sizes = sizes_of(records)
    figure, panels = plotting.panels(2, len(sizes), title, width=3.6)
    for j, size in enumerate(sizes):
        norm, cosine = panels[0, j], panels[1, j]
        n = 0
        for form, colour, arm in lines:
            for run in done(records, size, arm):
                row = records.lane(run["cell"], run["lane"]).row(at, named=True)
                y = layers(run, f"{form}_norm", row)
                marked = layers(run, "activities_error", row) < ROUND_OFF if form == "activities" else None
                _line(norm, np.where(y > 0, y, math.nan), COLOURS[colour], marked)
                if form != "bp":
                    _line(cosine, layers(run, f"{form}_cosine", row), COLOURS[colour], marked)
                n += 1
        norm.set_title(str(size), loc="left")
        if norm.lines:
            norm.set_yscale("log")
        else:
            plotting.note(norm, "no runs yet")
        plotting.caption(norm, records.about, n)
        cosine.set_ylim(-0.45, 1.05)
        cosine.set_xlabel("layer (1: input side)")
    panels[0, 0].set_ylabel("norm of the layer's gradient")
    panels[1, 0].set_ylabel("cosine with BP's")
    names = {"bp": "BP", "pc_activities": "PC as published (activities)", "pc": "PC, deviations"}
    names |= {"pc_float64": "PC, deviations, float64", "pc_equilibrium": "PC, equilibrium"}
    marks = [Line2D([], [], color=COLOURS[colour], label=names[colour]) for _, colour, _ in lines]
    for marker, label in (("o", "above round-off"), ("x", "round-off")):
        marks.append(Line2D([], [], color=COLOURS["pc_activities"], marker=marker, ls="", ms=4, label=label))
    plotting.legend(figure, marks)
    return figure


def figure_start(records: Records) -> Figure:
    """Gradient of every layer on the initial weights: its norm, and its cosine with BP's; one line a seed."""
    lines = [("bp", "bp", PUBLISHED), ("equilibrium", "pc_equilibrium", PUBLISHED), ("deviations", "pc_float64", EXACT)]
    lines += [("deviations", "pc", PUBLISHED), ("activities", "pc_activities", PUBLISHED)]
    return _gradients(records, "Gradients on the initial weights", lines, 0)


def figure_end(records: Records) -> Figure:
    """The same on the weights that each rule ended with (BP's norm on its own); one line a seed."""
    lines = [("bp", "bp", BEST_BP), ("equilibrium", "pc_equilibrium", EQUILIBRIUM)]
    lines += [("deviations", "pc_float64", BEST_EXACT), ("activities", "pc_activities", PUBLISHED)]
    return _gradients(records, "Gradients on the weights that each rule ends with", lines, -1)


GRIDS = {
    "grid_above": "layers above round-off\n(activities, float32)",
    "grid_alive": "layers with a gradient\n(deviations, float32)",
    "grid_cosine": "mean cosine with BP's\n(deviations)",
    "grid_closed": "closed fraction\nof the energy gap",
}


def figure_grid(records: Records) -> Figure:
    """Inference by T and beta on the initial weights: layers reached, cosine, closed fraction; means over seeds."""
    from pcexp import plotting

    sizes = sizes_of(records)
    figure, panels = plotting.panels(len(GRIDS), len(sizes), "Reach of inference on the initial weights", width=3.2)
    for j, size in enumerate(sizes):
        runs = done(records, size, LAST_K)
        for i, (name, label) in enumerate(GRIDS.items()):
            axis, most = panels[i, j], size.n_hidden + 1 if name in ("grid_above", "grid_alive") else 1
            plotting.caption(axis, records.about, len(runs))
            axis.grid(False)
            if j == 0:
                axis.set_ylabel(f"{label}\n\nsteps T")
            if i == 0:
                axis.set_title(str(size), loc="left", pad=12)
            if i == len(GRIDS) - 1:
                axis.set_xlabel(r"$\beta$, per sample")
            if not runs:
                plotting.note(axis, "no runs yet")
                continue
            about = runs[0]
            horizons, betas = (json.loads(about[f"config.study.{key}"]) for key in ("horizons", "activity_lrs"))
            shape = (len(horizons), len(betas))
            cells = [[run.get(f"{name}_{k + 1}") for k in range(len(horizons) * len(betas))] for run in runs]
            values = np.mean(np.array(cells, float), axis=0).reshape(shape)
            axis.imshow(values, vmin=0, vmax=most, cmap="viridis", aspect="auto")
            for (row, column), value in np.ndenumerate(values):
                text = "n.a." if math.isnan(value) else f"{value:.3g}" if most > 1 else f"{value:.2f}"
                shade = "white" if not value > 0.6 * most else "black"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
            axis.set_xticks(range(len(betas)), [f"{beta:.2g}" for beta in betas])
            steps = [max(1, round(multiple * about["config.study.max_steps"])) for multiple in horizons]
            axis.set_yticks(range(len(steps)), [str(t) for t in steps])
    return figure


def figure_movement(records: Records) -> Figure:
    """How far each layer's weights moved in training, by rule; one line a seed."""
    from matplotlib.lines import Line2D

    from pcexp import plotting

    sizes = sizes_of(records)
    shown = [one for one in SHOWN if one.arm.rule != "pc" or one.arm.choice is not published]
    figure, panels = plotting.panels(1, len(sizes), "Movement of the weights in training", width=3.6, height=2.8)
    for j, size in enumerate(sizes):
        axis, n = panels[0, j], 0
        for one in shown:
            for run in done(records, size, one.arm):
                y = layers(run, "movement", run)
                _line(axis, np.where(y > 0, y, math.nan), COLOURS[one.arm.rule])
                n += 1
        axis.axhline(MOVED, color="#555555", lw=0.7, ls=":")
        axis.set_yscale("log")
        axis.set_title(str(size), loc="left")
        axis.set_xlabel("layer (1: input side)")
        plotting.caption(axis, records.about, n)
        if not n:
            plotting.note(axis, "no runs yet")
    panels[0, 0].set_ylabel(r"$\|W - W_0\| / \|W_0\|$")
    marks = [Line2D([], [], color=COLOURS[one.arm.rule], label=one.label) for one in shown]
    plotting.legend(figure, [*marks, Line2D([], [], color="#555555", lw=0.7, ls=":", label=f"has moved ({MOVED})")])
    return figure


def figure_accuracy(records: Records) -> Figure:
    """Test accuracy by rule and rates: one point a seed."""
    from pcexp import plotting

    sizes = sizes_of(records)
    figure, panels = plotting.panels(1, len(sizes), "Test accuracy by rule", width=3.4, height=2.6)
    for j, size in enumerate(sizes):
        axis, n = panels[0, j], 0
        for i, one in enumerate(SHOWN):
            runs = one.arm.choice(ended(records, one.arm.rule).get(size, {}))
            values = [100 * run["test_accuracy"] for run in runs if run["outcome"] == "done"]
            axis.plot(values, [i] * len(values), "o", color=COLOURS[one.arm.rule], ms=5, alpha=0.7)
            if len(values) < len(runs):
                axis.text(0.02, i, "diverged", transform=axis.get_yaxis_transform(), va="center", fontsize=7)
            n += len(runs)
        axis.set_ylim(len(SHOWN) - 0.5, -0.5)
        axis.set_yticks(range(len(SHOWN)), [one.label for one in SHOWN] if j == 0 else [""] * len(SHOWN))
        axis.set_xlabel("test accuracy (%)")
        axis.set_title(str(size), loc="left")
        plotting.caption(axis, records.about, n)
    return figure


def figure_eps(records: Records) -> Figure:
    """Accuracy and the number of layers that moved against Adam's eps, gradients in deviations: one point a seed."""
    from matplotlib.lines import Line2D

    from pcexp import plotting

    sizes = sizes_of(records)
    curves = [("pc", 0.1, "^"), ("pc", 0.01, "o"), ("pc_float64", 0.01, "s")]
    figure, panels = plotting.panels(2, len(sizes), "Adam's eps, with gradients free of round-off", width=3.4)
    for j, size in enumerate(sizes):
        top, bottom = panels[:, j]
        n = 0
        for rule, eta, marker in curves:
            runs = [
                run for rates, found in ended(records, rule).get(size, {}).items() if rates.eta == eta for run in found
            ]
            for run in runs:
                style = {"color": COLOURS[rule], "ms": 4, "alpha": 0.7, "mec": "white", "mew": 0.3}
                if run["outcome"] == "done":
                    top.plot(run[EPS], 100 * run["test_accuracy"], marker, **style)
                    bottom.plot(run[EPS], moved(run), marker, **style)
                else:
                    top.plot(run[EPS], 0.03, "x", color=COLOURS[rule], transform=top.get_xaxis_transform())
            n += len(runs)
        best_bp = [100 * run["test_accuracy"] for run in done(records, size, BEST_BP)]
        for value in best_bp:
            top.axhline(value, color=COLOURS["bp"], lw=0.8)
        bottom.axhline(size.n_hidden + 1, color="#555555", lw=0.7, ls=":")
        for axis in (top, bottom):
            axis.set_xscale("log")
            axis.invert_xaxis()
        bottom.set_ylim(0, 1.1 * (size.n_hidden + 1))
        bottom.set_xlabel(r"Adam's $\epsilon$")
        top.set_title(str(size), loc="left")
        plotting.caption(top, records.about, n)
    panels[0, 0].set_ylabel("test accuracy (%)")
    panels[1, 0].set_ylabel(f"layers that moved by > {MOVED}")
    marks = [
        Line2D([], [], color=COLOURS[rule], marker=marker, ls="", ms=4, label=rf"{'float64' if '64' in rule else 'float32'}, $\eta$ = {eta}")
        for rule, eta, marker in curves
    ]  # fmt: skip
    marks += [Line2D([], [], color=COLOURS["bp"], lw=0.8, label="BP, best rate")]
    marks += [Line2D([], [], color="#555555", lw=0.7, ls=":", label="all layers")]
    marks += [Line2D([], [], color="#555555", marker="x", ls="", ms=5, label="diverged")]
    plotting.legend(figure, marks)
    return figure


FIGURES = {
    "start": figure_start,
    "end": figure_end,
    "grid": figure_grid,
    "movement": figure_movement,
    "accuracy": figure_accuracy,
    "eps": figure_eps,
}
