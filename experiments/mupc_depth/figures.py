"""Figures of the study: test accuracy over iterations, one line a seed."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.mupc_depth.runs import (
    ACTIVATIONS,
    ANCHOR,
    BETA,
    ETA,
    MUPC_ETA,
    PROTOCOLS,
    at_best_rates,
    bp,
    depth_of,
    failed,
    mupc,
    percent,
    runs_of,
    sp,
    tests,
    width_of,
)
from pcexp.report import plotting
from pcexp.report.claims import Records, Run
from pcexp.report.plotting import Figure

CLOSE_UP = 60
Curves = Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]
Drawing = Callable[[Records], Figure]


def _where_asked(arm: str, *activations: str) -> Callable[[Drawing], Callable[[Records], Figure | None]]:
    """Leaves a figure out where no such runs of muPC are."""

    def decorate(draw: Drawing) -> Callable[[Records], Figure | None]:
        @functools.wraps(draw)
        def drawn(records: Records) -> Figure | None:
            parts = (mupc(records, p, a, arm) for p in PROTOCOLS for a in activations or ACTIVATIONS)
            return draw(records) if any(len(part.runs) for part in parts) else None

        return drawn

    return decorate


def _draw(panel: Any, curves: Curves, runs: Iterable[Run], colour: Any, **style: Any) -> None:
    """A line a run; of one that failed a cross where it ended, at the bottom where it has no accuracy."""
    for run in runs:
        at, values = curves.get((run["cell"], run["lane"]), (np.zeros(0), np.zeros(0)))
        panel.plot(at, values, **{"color": colour, "lw": 1.0, "alpha": 0.85} | style)
        if failed(run):
            height = 1.5 if run["outcome"] == "diverged" or not len(values) else values[-1]
            panel.plot(run["iterations"], height, "x", color=colour, ms=6, mew=1.4, clip_on=False)


def _finish(panel: Any, records: Records, title: str, runs: Sequence[Run], last: bool, first: bool) -> None:
    plotting.dress(panel, records.about, len(runs), title, fontsize=8, pad=12)
    panel.set_ylim(0, 100)
    if last:
        panel.set_xlabel("iteration")
    if first:
        panel.set_ylabel("test accuracy (%)")


def _marks(*names: tuple[str, Any, str]) -> list[Any]:
    lines = [plotting.mark(name, colour, ls=style) for name, colour, style in names]
    return [*lines, plotting.dots("failed", marker="x", ms=6, mew=1.4)]


def _models(records: Records, arm: str, activations: Sequence[str], title: str) -> Figure:
    """Rows are activations and protocols, columns depths, colours models."""
    curves = tests(records)
    rows = [(activation, protocol) for activation in activations for protocol in PROTOCOLS]
    chosen = {}
    for activation, protocol in rows:
        tried = runs_of(sp(records, protocol, activation)) if arm == "depth" else []
        chosen[activation, protocol] = {
            "mupc": runs_of(mupc(records, protocol, activation, arm)),
            "standard": at_best_rates(tried),
            "bp": runs_of(bp(records, activation, arm)),
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
    curves = tests(records)
    figure, panels = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title)
    sizes: set[int] = set()
    shown = {}
    for protocol in PROTOCOLS:
        for activation in ACTIVATIONS:
            own, depth = (runs_of(mupc(records, protocol, activation, name)) for name in (arm, "depth"))
            if arm == "width":
                fixed = {depth_of(run) for run in own}
                own, depth = [*own, *(run for run in depth if depth_of(run) in fixed)], []
            shown[protocol, activation] = own, depth
            sizes |= {size(run) for run in (*own, *depth)}
    colours = plotting.shades(sorted(sizes))
    for i, protocol in enumerate(PROTOCOLS):
        for j, activation in enumerate(ACTIVATIONS):
            own, depth = shown[protocol, activation]
            for value, colour in colours.items():
                _draw(panels[i, j], curves, [run for run in own if size(run) == value], colour)
                _draw(panels[i, j], curves, [run for run in depth if size(run) == value], colour, ls=":", lw=0.9)
            title = f"{protocol}, {plotting.written(activation)}"
            _finish(panels[i, j], records, title, [*own, *depth], last=i == len(PROTOCOLS) - 1, first=j == 0)
            ends = [percent(run) for run in (*own, *depth)]
            if ends and min(ends) > CLOSE_UP and not any(map(failed, (*own, *depth))):
                panels[i, j].set_ylim(CLOSE_UP, 100)  # curves lie close, and they all begin at chance
    dotted = [("dotted: T = H", "#555555", ":")] if arm == "one_step" else []
    plotting.legend(
        figure, _marks(*((f"{letter} = {value}", colour, "-") for value, colour in colours.items()), *dotted)
    )
    return figure


@_where_asked("depth", "relu")
def figure_5_1_right(records: Records) -> Figure:
    """Test accuracy over one epoch at each depth, ReLU: muPC, SP with skips, BP. One line a seed."""
    return _models(records, "depth", ("relu",), "Figure 5.1, right: test accuracy, ReLU")


@_where_asked("depth", "tanh", "linear")
def figure_c_16(records: Records) -> Figure:
    """Test accuracy over one epoch at each depth, tanh and linear: muPC, SP with skips, BP. One line a seed."""
    return _models(records, "depth", ("tanh", "linear"), "Figure C.16: test accuracy, tanh and linear")


@_where_asked("long", "relu")
def figure_c_17(records: Records) -> Figure:
    """Test accuracy over several epochs, ReLU: muPC and BP. One line a seed."""
    return _models(records, "long", ("relu",), "Figures C.17-C.19: test accuracy over several epochs, ReLU")


@_where_asked("width")
def figure_c_20(records: Records) -> Figure:
    """Test accuracy of muPC by width. One line a seed."""
    return _shaded(records, "width", width_of, "N", "Figure C.20: test accuracy of muPC by width")


@_where_asked("one_step")
def figure_c_14(records: Records) -> Figure:
    """Test accuracy of muPC with one step of inference, by depth, and dotted with T = H. One line a seed."""
    return _shaded(records, "one_step", depth_of, "H", "Figures C.14, C.27: test accuracy of muPC with T = 1")


@_where_asked("rates")
def figure_5_8(records: Records) -> Figure:
    """Test accuracy of muPC at Adam's rate, and at that rate times and over sqrt(N L). One line a seed."""
    curves = tests(records)
    figure, panels = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), "Section 5.8: muPC at scaled rates of Adam")
    names = ("rate over sqrt(N L)", "rate", "rate times sqrt(N L)")
    colours = list(plotting.shades(names).values())
    for i, protocol in enumerate(PROTOCOLS):
        for j, activation in enumerate(ACTIVATIONS):
            scaled = runs_of(mupc(records, protocol, activation, "rates"))
            sizes = {(width_of(run), depth_of(run)) for run in scaled}
            depth = runs_of(mupc(records, protocol, activation, "depth"))
            runs = [*scaled, *(run for run in depth if (width_of(run), depth_of(run)) in sizes)]
            for sign, colour in zip((-1, 0, 1), colours, strict=True):
                part = [run for run in runs if np.sign(run[ETA] - MUPC_ETA) == sign]
                _draw(panels[i, j], curves, part, colour)
            title = f"{protocol}, {plotting.written(activation)}"
            title += "".join(f", N = {width}, H = {n_hidden}" for width, n_hidden in sorted(sizes))
            _finish(panels[i, j], records, title, runs, last=i == len(PROTOCOLS) - 1, first=j == 0)
    plotting.legend(figure, _marks(*((name, colour, "-") for name, colour in zip(names, colours, strict=True))))
    return figure


@_where_asked("forward_only")
def figure_forward_only(records: Records) -> Figure:
    """Test accuracy of muPC with premultipliers in the forward pass only, by Adam's rate and by beta. One line a seed."""
    curves = tests(records)
    found = {(p, a): runs_of(mupc(records, p, a, "forward_only")) for p in PROTOCOLS for a in ACTIVATIONS}
    rates = sorted({run[ETA] for runs in found.values() for run in runs})
    colours = plotting.shades(rates)
    title = "Section 5.8: muPC with premultipliers in the forward pass only"
    figure, panels = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title)
    for panel, ((protocol, activation), runs) in zip(panels.flat, found.items(), strict=True):
        largest = max((run[BETA] for run in runs), default=0.0)
        for run in runs:
            _draw(panel, curves, [run], colours[run[ETA]], ls="-" if run[BETA] == largest else ":")
        name = f"{protocol}, {plotting.written(activation)}"
        name += "".join(f", N = {n}, H = {h}" for n, h in sorted({(width_of(run), depth_of(run)) for run in runs}))
        _finish(panel, records, name, runs, last=protocol == PROTOCOLS[-1], first=activation == ACTIVATIONS[0])
    names = [(f"eta = {rate:g}", colour, "-") for rate, colour in colours.items()]
    plotting.legend(figure, _marks(*names, ("published beta", "#555555", "-"), ("beta = 0.01 / 64", "#555555", ":")))
    return figure


@_where_asked("anchor", "relu")
def figure_anchor(records: Records) -> Figure:
    """Test accuracy of muPC at the anchor, with the published values and the tolerances asked for. One line a seed."""
    curves = tests(records)
    figure, panels = plotting.panels(1, len(PROTOCOLS), "Anchor: muPC, ReLU, T = 30", width=3.8, height=3.0)
    for panel, protocol in zip(panels[0], PROTOCOLS, strict=True):
        runs = runs_of(mupc(records, protocol, "relu", "anchor"))
        _draw(panel, curves, runs, plotting.COLOURS["mupc"])
        for t, (value, within) in ANCHOR.items():
            error = None if math.isinf(within) else within
            panel.errorbar(t, value, yerr=error, fmt="o", ms=4, mfc="none", color="black", capsize=3, lw=1)
        size = f", N = {width_of(runs[0])}, H = {depth_of(runs[0])}" if runs else ""
        _finish(panel, records, f"{protocol}{size}", runs, last=True, first=panel is panels[0, 0])
        if runs and min(map(percent, runs)) > 80:
            panel.set_ylim(75, 100)
    published = plotting.mark("published, tolerance", "black", marker="o", mfc="none", ls="")
    plotting.legend(figure, [*_marks(("muPC", plotting.COLOURS["mupc"], "-")), published])
    return figure


FIGURES = {
    "5.1 right": figure_5_1_right,
    "C.16": figure_c_16,
    "C.17-C.19": figure_c_17,
    "C.20": figure_c_20,
    "C.14, C.27": figure_c_14,
    "5.8": figure_5_8,
    "5.8 forward pass": figure_forward_only,
    "anchor": figure_anchor,
}
