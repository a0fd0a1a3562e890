"""Figures of the study: columns are networks, seeds are shown one by one."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pcexp.experiments.learning_depth import claims as of
from pcexp.experiments.learning_depth.claims import BEST_BP, LAST_K, MOVED, PUBLISHED, Arm, Size, by_network, layers
from pcexp.report import plotting
from pcexp.report.claims import Records, Run

COLOURS = {
    "bp": "#3b6ea5",
    "bp_last_layers": "#8fb8de",
    "pc_activities": "#c1272d",
    "pc": "#f0a202",
    "pc_far": "#6a3d9a",
    "pc_float64": "#d01c8b",
    "pc_equilibrium": "#3a9b35",
}
"""BP and PC as published in the colours that they have everywhere."""
GRADIENTS = {
    "bp": "BP",
    "pc_equilibrium": "PC, equilibrium",
    "pc_float64": "PC, deviations, float64",
    "pc_far": r"PC, deviations, $\beta$ = 0.25, T = 4 H",
    "pc": "PC, deviations",
    "pc_activities": "PC as published (activities)",
}
FORMS = {"bp": "bp", "pc_equilibrium": "equilibrium", "pc_activities": "activities"}
"""By which gradients a rule is shown, if not those in deviations."""
SHOWN = {
    "BP, best rate": BEST_BP,
    "BP, last k layers, published rates": LAST_K,
    "PC as published": PUBLISHED,
    "PC in deviations, published rates": of.DEVIATIONS,
    r"PC in deviations, $\beta$ = 0.25, T = 4 H, best rate": of.FAR,
    r"PC in float64, $\epsilon$ near 0, best rate": of.BEST_EXACT,
    "PC at equilibrium, best rate": of.EQUILIBRIUM,
}
LAYER = "layer (1: input side)"


def sizes_of(records: Records) -> list[Size]:
    """All networks that some rule has runs of."""
    return sorted({size for rule in COLOURS for size in by_network(records, rule)}) or [Size("relu", 0, 0)]


def done(records: Records, size: Size, arm: Arm) -> list[Run]:
    """Runs of an arm at a size that ended with numbers."""
    return [run for run in arm.runs(records, size) if run["outcome"] == "done"]


def _line(axis: Any, y: np.ndarray, colour: str, marked: np.ndarray | None = None) -> None:
    """A vector over layers; filled marks where `marked`, crosses elsewhere."""
    x = np.arange(1, len(y) + 1)
    axis.plot(x, y, "-", color=colour, lw=0.9, alpha=0.8)
    if marked is not None:
        axis.plot(x[marked], y[marked], "o", color=colour, ms=3.5)
        axis.plot(x[~marked], y[~marked], "x", color=colour, ms=3.5, alpha=0.6)


def _gradients(records: Records, title: str, arms: Mapping[str, Arm], at: int) -> plotting.Figure:
    """Rows are norms and cosines, columns networks; a line a rule and run of its arm, in the run's first or last row."""
    sizes, labels = sizes_of(records), ("norm of the layer's gradient", "cosine with BP's")
    figure, panels = plotting.panels(2, len(sizes), title, LAYER, labels, width=3.6)
    for size, (norm, cosine) in zip(sizes, panels.T, strict=True):
        n = 0
        for rule, arm in arms.items():
            form = FORMS.get(rule, "deviations")
            for run in done(records, size, arm):
                row = records.lane(run["cell"], run["lane"]).row(at, named=True)
                y = layers(run, f"{form}_norm", row)
                marked = layers(run, "activities_error", row) < of.ROUND_OFF if form == "activities" else None
                _line(norm, np.where(y > 0, y, math.nan), COLOURS[rule], marked)
                if form != "bp":
                    _line(cosine, layers(run, f"{form}_cosine", row), COLOURS[rule], marked)
                n += 1
        if n:
            norm.set_yscale("log")
        plotting.dress(norm, records.about, n, str(size))
        cosine.set_ylim(-0.45, 1.05)
    marks = [plotting.mark(GRADIENTS[rule], COLOURS[rule]) for rule in arms]
    for marker, label in (("o", "above round-off"), ("x", "round-off")):
        marks.append(plotting.dots(label, COLOURS["pc_activities"], marker))
    return plotting.legend(figure, marks, columns=2 * len(sizes))


def figure_start(records: Records) -> plotting.Figure:
    """Gradient of every layer on the initial weights: its norm, and its cosine with BP's; one line a seed."""
    arms = dict.fromkeys(GRADIENTS, PUBLISHED) | {"pc_float64": of.EXACT, "pc_far": of.FAR}
    return _gradients(records, "Gradients on the initial weights", arms, 0)


def figure_end(records: Records) -> plotting.Figure:
    """The same on the weights that each rule ended with (BP's norm on its own); one line a seed."""
    arms = {"bp": BEST_BP, "pc_equilibrium": of.EQUILIBRIUM, "pc_float64": of.BEST_EXACT, "pc_far": of.FAR}
    arms["pc_activities"] = PUBLISHED
    return _gradients(records, "Gradients on the weights that each rule ends with", arms, -1)


GRIDS = {
    "grid_above": "layers above round-off\n(activities, float32)",
    "grid_alive": "layers with a gradient\n(deviations, float32)",
    "grid_cosine": "mean cosine with BP's\n(deviations)",
    "grid_closed": "closed fraction\nof the energy gap",
}


def figure_grid(records: Records) -> plotting.Figure:
    """Inference by T and beta on the initial weights: layers reached, cosine, closed fraction; means over seeds."""
    sizes, title = sizes_of(records), "Reach of inference on the initial weights"
    beta, labels = r"$\beta$ per sample (published: 0.0078)", [f"{label}\n\nsteps T" for label in GRIDS.values()]
    figure, panels = plotting.panels(len(GRIDS), len(sizes), title, beta, labels, width=3.2)
    for size, column in zip(sizes, panels.T, strict=True):
        column[0].set_title(str(size), loc="left", pad=12)
        runs = done(records, size, LAST_K)
        for axis, name in zip(column, GRIDS, strict=True):
            plotting.dress(axis, records.about, len(runs))
            axis.grid(False)
            if not runs:
                continue
            study = {key: runs[0][f"config.study.{key}"] for key in ("horizons", "activity_lrs", "max_steps")}
            horizons, betas = json.loads(study["horizons"]), json.loads(study["activity_lrs"])
            cells = [[run.get(f"{name}_{k + 1}") for k in range(len(horizons) * len(betas))] for run in runs]
            values = np.mean(np.array(cells, float), axis=0).reshape(len(horizons), len(betas))
            most = size.n_hidden + 1 if name in ("grid_above", "grid_alive") else 1
            axis.imshow(values, vmin=0, vmax=most, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                text = f"{value:.3g}" if most > 1 else f"{value:.2f}" if value >= 0 else "< 0"
                text = "n.a." if math.isnan(value) and most == 1 else text
                shade = "white" if not value > 0.6 * most else "black"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color=shade)
            axis.set_xticks(range(len(betas)), [f"{beta:.2g}" for beta in betas])
            steps = [max(1, round(multiple * study["max_steps"])) for multiple in horizons]
            axis.set_yticks(range(len(steps)), [str(t) for t in steps])
    return figure


def figure_movement(records: Records) -> plotting.Figure:
    """How far each layer's weights moved in training, by rule; one line a seed."""
    sizes, title, movement = sizes_of(records), "Movement of the weights in training", r"$\|W - W_0\| / \|W_0\|$"
    figure, panels = plotting.panels(1, len(sizes), title, LAYER, movement, width=3.6, height=2.8)
    shown = {label: arm for label, arm in SHOWN.items() if arm != of.DEVIATIONS}
    for axis, size in zip(panels[0], sizes, strict=True):
        runs = [(arm, run) for arm in shown.values() for run in done(records, size, arm)]
        for arm, run in runs:
            y = layers(run, "movement", run)
            _line(axis, np.where(y > 0, y, math.nan), COLOURS[arm.rule])
        axis.axhline(MOVED, color=plotting.GREY, lw=0.7, ls=":")
        axis.set_yscale("log")
        plotting.dress(axis, records.about, len(runs), str(size))
    marks = [plotting.mark(label, COLOURS[arm.rule]) for label, arm in shown.items()]
    marks.append(plotting.mark(f"has moved ({MOVED})", lw=0.7, ls=":"))
    return plotting.legend(figure, marks, columns=max(1, 3 * len(sizes) // 2))


def figure_accuracy(records: Records) -> plotting.Figure:
    """Test accuracy by rule and rates: one point a seed."""
    sizes, title = sizes_of(records), "Test accuracy by rule"
    figure, panels = plotting.panels(1, len(sizes), title, "test accuracy (%)", width=3.4, height=2.6)
    for axis, size in zip(panels[0], sizes, strict=True):
        n = 0
        for i, arm in enumerate(SHOWN.values()):
            runs = arm.runs(records, size)
            values = [100 * run["test_accuracy"] for run in runs if run["outcome"] == "done"]
            axis.plot(values, [i] * len(values), "o", color=COLOURS[arm.rule], ms=5, alpha=0.7)
            if len(values) < len(runs):
                axis.text(0.02, i, "diverged", transform=axis.get_yaxis_transform(), va="center", fontsize=7)
            n += len(runs)
        axis.set_ylim(len(SHOWN) - 0.5, -0.5)
        axis.set_yticks(range(len(SHOWN)), SHOWN if axis is panels[0, 0] else [""] * len(SHOWN))
        plotting.dress(axis, records.about, n, str(size))
    return figure


def figure_eps(records: Records) -> plotting.Figure:
    """Accuracy and the number of layers that moved against Adam's eps, gradients in deviations: one point a seed."""
    curves = [("pc", 0.1, "^"), ("pc", 0.01, "o"), ("pc_float64", 0.01, "s")]
    sizes, title = sizes_of(records), "Adam's eps, with gradients free of round-off"
    labels = "test accuracy (%)", f"layers that moved by > {MOVED}"
    figure, panels = plotting.panels(2, len(sizes), title, r"Adam's $\epsilon$", labels, width=3.4)
    for size, (top, bottom) in zip(sizes, panels.T, strict=True):
        n = 0
        for rule, eta, marker in curves:
            by_rates = by_network(records, rule).get(size, {})
            for run in (run for rates, found in by_rates.items() if rates.eta == eta for run in found):
                style = {"color": COLOURS[rule], "ms": 4, "alpha": 0.7, "mec": "white", "mew": 0.3}
                if run["outcome"] == "done":
                    top.plot(run[of.EPS], 100 * run["test_accuracy"], marker, **style)
                    bottom.plot(run[of.EPS], of.moved(run), marker, **style)
                else:
                    top.plot(run[of.EPS], 0.03, "x", color=COLOURS[rule], transform=top.get_xaxis_transform())
                n += 1
        for run in done(records, size, BEST_BP):
            top.axhline(100 * run["test_accuracy"], color=COLOURS["bp"], lw=0.8)
        bottom.axhline(size.n_hidden + 1, color=plotting.GREY, lw=0.7, ls=":")
        for axis in (top, bottom):
            axis.set_xscale("log")
            axis.invert_xaxis()
        bottom.set_ylim(0, 1.1 * (size.n_hidden + 1))
        plotting.dress(top, records.about, n, str(size))
    names = {"pc": "float32", "pc_float64": "float64"}
    marks = [plotting.dots(rf"{names[rule]}, $\eta$ = {eta}", COLOURS[rule], marker) for rule, eta, marker in curves]
    lines = [plotting.mark("BP, best rate", COLOURS["bp"], lw=0.8), plotting.mark("all layers", lw=0.7, ls=":")]
    return plotting.legend(figure, [*marks, *lines, plotting.diverged()], columns=2 * len(sizes))


FIGURES = {
    "start": figure_start,
    "end": figure_end,
    "grid": figure_grid,
    "movement": figure_movement,
    "accuracy": figure_accuracy,
    "eps": figure_eps,
}
