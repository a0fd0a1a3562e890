"""Figures of the study: columns are networks, seeds are shown one by one."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.learning_depth import runs as of
from experiments.learning_depth.runs import BEST_BP, LAST_K, MOVED, PUBLISHED, Arm, Size, by_network, layers, of_arm
from pcexp.report import plotting
from pcexp.report.claims import Records, Run
from pcexp.report.plotting import Figure

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
    "pc_activities": "PC as published (activities)",
    "pc": "PC, deviations",
    "pc_far": r"PC, deviations, $\beta$ = 0.25, T = 4 H",
    "pc_float64": "PC, deviations, float64",
    "pc_equilibrium": "PC, equilibrium",
}
SHOWN = (
    ("BP, best rate", BEST_BP),
    ("BP, last k layers, published rates", LAST_K),
    ("PC as published", PUBLISHED),
    ("PC in deviations, published rates", Arm("pc", of.published)),
    (r"PC in deviations, $\beta$ = 0.25, T = 4 H, best rate", of.FAR),
    (r"PC in float64, $\epsilon$ near 0, best rate", of.BEST_EXACT),
    ("PC at equilibrium, best rate", of.EQUILIBRIUM),
)


def sizes_of(records: Records) -> list[Size]:
    """All networks that some rule has runs of."""
    return sorted({size for rule in COLOURS for size in by_network(records, rule)}) or [Size("relu", 0, 0)]


def done(records: Records, size: Size, arm: Arm) -> list[Run]:
    """Runs of an arm at a size that ended with numbers."""
    return [run for run in of_arm(records, size, arm) if run["outcome"] == "done"]


def _line(axis: Any, y: np.ndarray, colour: str, marked: np.ndarray | None = None) -> None:
    """A vector over layers; filled marks where `marked`, crosses elsewhere."""
    x = np.arange(1, len(y) + 1)
    axis.plot(x, y, "-", color=colour, lw=0.9, alpha=0.8)
    if marked is not None:
        axis.plot(x[marked], y[marked], "o", color=colour, ms=3.5)
        axis.plot(x[~marked], y[~marked], "x", color=colour, ms=3.5, alpha=0.6)


def _gradients(records: Records, title: str, lines: Sequence[tuple[str, str, Arm]], at: int) -> Figure:
    """Rows are norms and cosines, columns networks; lines are (form, colour, arm), in the first or the last row of a run."""
    sizes = sizes_of(records)
    figure, panels = plotting.panels(2, len(sizes), title, width=3.6)
    for j, size in enumerate(sizes):
        norm, cosine = panels[0, j], panels[1, j]
        n = 0
        for form, colour, arm in lines:
            for run in done(records, size, arm):
                row = records.lane(run["cell"], run["lane"]).row(at, named=True)
                y = layers(run, f"{form}_norm", row)
                marked = layers(run, "activities_error", row) < of.ROUND_OFF if form == "activities" else None
                _line(norm, np.where(y > 0, y, math.nan), COLOURS[colour], marked)
                if form != "bp":
                    _line(cosine, layers(run, f"{form}_cosine", row), COLOURS[colour], marked)
                n += 1
        if n:
            norm.set_yscale("log")
        plotting.dress(norm, records.about, n, str(size))
        cosine.set(ylim=(-0.45, 1.05), xlabel="layer (1: input side)")
    panels[0, 0].set_ylabel("norm of the layer's gradient")
    panels[1, 0].set_ylabel("cosine with BP's")
    marks = [plotting.mark(GRADIENTS[rule], COLOURS[rule]) for _, rule, _ in lines]
    for marker, label in (("o", "above round-off"), ("x", "round-off")):
        marks.append(plotting.dots(label, COLOURS["pc_activities"], marker))
    plotting.legend(figure, marks, columns=2 * len(sizes))
    return figure


def figure_start(records: Records) -> Figure:
    """Gradient of every layer on the initial weights: its norm, and its cosine with BP's; one line a seed."""
    lines = [
        ("bp", "bp", PUBLISHED),
        ("equilibrium", "pc_equilibrium", PUBLISHED),
        ("deviations", "pc_float64", of.EXACT),
        ("deviations", "pc_far", of.FAR),
        ("deviations", "pc", PUBLISHED),
        ("activities", "pc_activities", PUBLISHED),
    ]
    return _gradients(records, "Gradients on the initial weights", lines, 0)


def figure_end(records: Records) -> Figure:
    """The same on the weights that each rule ended with (BP's norm on its own); one line a seed."""
    lines = [("bp", "bp", BEST_BP), ("equilibrium", "pc_equilibrium", of.EQUILIBRIUM)]
    lines += [
        ("deviations", "pc_float64", of.BEST_EXACT),
        ("deviations", "pc_far", of.FAR),
        ("activities", "pc_activities", PUBLISHED),
    ]
    return _gradients(records, "Gradients on the weights that each rule ends with", lines, -1)


GRIDS = {
    "grid_above": "layers above round-off\n(activities, float32)",
    "grid_alive": "layers with a gradient\n(deviations, float32)",
    "grid_cosine": "mean cosine with BP's\n(deviations)",
    "grid_closed": "closed fraction\nof the energy gap",
}


def figure_grid(records: Records) -> Figure:
    """Inference by T and beta on the initial weights: layers reached, cosine, closed fraction; means over seeds."""
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
                axis.set_xlabel(r"$\beta$ per sample (published: 0.0078)")
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
                text = f"{value:.3g}" if most > 1 else f"{value:.2f}" if value >= 0 else "< 0"
                text = "n.a." if math.isnan(value) and most == 1 else text
                shade = "white" if not value > 0.6 * most else "black"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
            axis.set_xticks(range(len(betas)), [f"{beta:.2g}" for beta in betas])
            steps = [max(1, round(multiple * about["config.study.max_steps"])) for multiple in horizons]
            axis.set_yticks(range(len(steps)), [str(t) for t in steps])
    return figure


def figure_movement(records: Records) -> Figure:
    """How far each layer's weights moved in training, by rule; one line a seed."""
    sizes = sizes_of(records)
    shown = [(label, arm) for label, arm in SHOWN if arm != Arm("pc", of.published)]
    figure, panels = plotting.panels(1, len(sizes), "Movement of the weights in training", width=3.6, height=2.8)
    for j, size in enumerate(sizes):
        axis, n = panels[0, j], 0
        for _, arm in shown:
            for run in done(records, size, arm):
                y = layers(run, "movement", run)
                _line(axis, np.where(y > 0, y, math.nan), COLOURS[arm.rule])
                n += 1
        axis.axhline(MOVED, color=plotting.GREY, lw=0.7, ls=":")
        axis.set(yscale="log", xlabel="layer (1: input side)")
        plotting.dress(axis, records.about, n, str(size))
    panels[0, 0].set_ylabel(r"$\|W - W_0\| / \|W_0\|$")
    marks = [plotting.mark(label, COLOURS[arm.rule]) for label, arm in shown]
    marks.append(plotting.mark(f"has moved ({MOVED})", lw=0.7, ls=":"))
    plotting.legend(figure, marks, columns=max(1, 3 * len(sizes) // 2))
    return figure


def figure_accuracy(records: Records) -> Figure:
    """Test accuracy by rule and rates: one point a seed."""
    sizes = sizes_of(records)
    figure, panels = plotting.panels(1, len(sizes), "Test accuracy by rule", width=3.4, height=2.6)
    for j, size in enumerate(sizes):
        axis, n = panels[0, j], 0
        for i, (_, arm) in enumerate(SHOWN):
            runs = of_arm(records, size, arm)
            values = [100 * run["test_accuracy"] for run in runs if run["outcome"] == "done"]
            axis.plot(values, [i] * len(values), "o", color=COLOURS[arm.rule], ms=5, alpha=0.7)
            if len(values) < len(runs):
                axis.text(0.02, i, "diverged", transform=axis.get_yaxis_transform(), va="center", fontsize=7)
            n += len(runs)
        axis.set_ylim(len(SHOWN) - 0.5, -0.5)
        axis.set_yticks(range(len(SHOWN)), [label if j == 0 else "" for label, _ in SHOWN])
        axis.set_xlabel("test accuracy (%)")
        axis.set_title(str(size), loc="left")
        plotting.caption(axis, records.about, n)
    return figure


def figure_eps(records: Records) -> Figure:
    """Accuracy and the number of layers that moved against Adam's eps, gradients in deviations: one point a seed."""
    sizes = sizes_of(records)
    curves = [("pc", 0.1, "^"), ("pc", 0.01, "o"), ("pc_float64", 0.01, "s")]
    figure, panels = plotting.panels(2, len(sizes), "Adam's eps, with gradients free of round-off", width=3.4)
    for j, size in enumerate(sizes):
        top, bottom = panels[:, j]
        n = 0
        for rule, eta, marker in curves:
            by_rates = by_network(records, rule).get(size, {})
            runs = [run for rates, found in by_rates.items() if rates.eta == eta for run in found]
            for run in runs:
                style = {"color": COLOURS[rule], "ms": 4, "alpha": 0.7, "mec": "white", "mew": 0.3}
                if run["outcome"] == "done":
                    top.plot(run[of.EPS], 100 * run["test_accuracy"], marker, **style)
                    bottom.plot(run[of.EPS], of.moved(run), marker, **style)
                else:
                    top.plot(run[of.EPS], 0.03, "x", color=COLOURS[rule], transform=top.get_xaxis_transform())
            n += len(runs)
        for run in done(records, size, BEST_BP):
            top.axhline(100 * run["test_accuracy"], color=COLOURS["bp"], lw=0.8)
        bottom.axhline(size.n_hidden + 1, color=plotting.GREY, lw=0.7, ls=":")
        for axis in (top, bottom):
            axis.set_xscale("log")
            axis.invert_xaxis()
        bottom.set(ylim=(0, 1.1 * (size.n_hidden + 1)), xlabel=r"Adam's $\epsilon$")
        top.set_title(str(size), loc="left")
        plotting.caption(top, records.about, n)
    panels[0, 0].set_ylabel("test accuracy (%)")
    panels[1, 0].set_ylabel(f"layers that moved by > {MOVED}")
    marks = [
        plotting.dots(rf"{'float64' if '64' in rule else 'float32'}, $\eta$ = {eta}", COLOURS[rule], marker)
        for rule, eta, marker in curves
    ]  # fmt: skip
    marks += [plotting.mark("BP, best rate", COLOURS["bp"], lw=0.8)]
    marks += [plotting.mark("all layers", lw=0.7, ls=":")]
    marks += [plotting.diverged()]
    plotting.legend(figure, marks, columns=2 * len(sizes))
    return figure


FIGURES = {
    "start": figure_start,
    "end": figure_end,
    "grid": figure_grid,
    "movement": figure_movement,
    "accuracy": figure_accuracy,
    "eps": figure_eps,
}
