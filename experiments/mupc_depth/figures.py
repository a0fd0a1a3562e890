"""Figures of the study: test accuracy over iterations, one line a seed."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pcexp.experiments.mupc_depth import claims as of
from pcexp.experiments.mupc_depth.claims import ACTIVATIONS, ETA, PROTOCOLS, curve, failed, mupc, percent, runs_of
from pcexp.report import plotting
from pcexp.report.claims import Records, Run, n_hidden_of, width_of

CLOSE_UP = 60
GRID = tuple(itertools.product(PROTOCOLS, ACTIVATIONS))
LABELS = ("iteration", "test accuracy (%)")
Line = tuple[Run, Any, dict[str, Any]]
"""A run, its colour, and what else is its own of how it is drawn."""
MODELS = {"mupc": "muPC", "standard": "SP with skips, rates best on validation", "bp": "BP, Depth-muP (no protocol)"}


def _draw(panel: Any, records: Records, title: str, lines: Sequence[Line]) -> None:
    """A line a run; of one that failed a cross where it ended, at the bottom where it has no accuracy."""
    for run, colour, style in lines:
        at, values = curve(records, run)
        panel.plot(at, values, **{"color": colour, "lw": 1.0, "alpha": 0.85} | style)
        if failed(run):
            height = 1.5 if run["outcome"] == "diverged" or not len(values) else values[-1]
            panel.plot(run["iterations"], height, "x", color=colour, ms=6, mew=1.4, clip_on=False)
    plotting.dress(panel, records.about, len(lines), title, fontsize=8, pad=12)
    panel.set_ylim(0, 100)


def _marks(names: Iterable[tuple[str, Any, str]]) -> list[Any]:
    lines = [plotting.mark(name, colour, ls=style) for name, colour, style in names]
    return [*lines, plotting.dots("failed", marker="x", ms=6, mew=1.4)]


def _asked(records: Records, arm: str, activations: Sequence[str] = ACTIVATIONS) -> bool:
    """Whether there are such runs of muPC: a figure is left out where there are none."""
    return any(len(mupc(records, p, a, arm).runs) for p in PROTOCOLS for a in activations)


def _sized(runs: Iterable[Run]) -> str:
    return "".join(f", N = {n}, H = {h}" for n, h in sorted({(width_of(run), n_hidden_of(run)) for run in runs}))


def _models(records: Records, arm: str, activations: Sequence[str], title: str) -> plotting.Figure | None:
    """Rows are activations and protocols, columns depths, colours models."""
    if not _asked(records, arm, activations):
        return None
    chosen = {}
    for activation, protocol in itertools.product(activations, PROTOCOLS):
        tried = runs_of(of.sp(records, protocol, activation)) if arm == "depth" else []
        chosen[activation, protocol] = {
            "mupc": runs_of(mupc(records, protocol, activation, arm)),
            "standard": of.at_best_rates(tried),
            "bp": runs_of(of.bp(records, activation, arm)),
        }
    depths = sorted({n_hidden_of(run) for models in chosen.values() for runs in models.values() for run in runs}) or [0]
    wide = max(3.0, 8.0 / len(depths))  # the legend is wide
    figure, panels = plotting.panels(len(chosen), len(depths), title, *LABELS, width=wide)
    for row, ((activation, protocol), models) in zip(panels, chosen.items(), strict=True):
        for panel, depth in zip(row, depths, strict=True):
            lines: list[Line] = [
                (run, plotting.COLOURS[model], {})
                for model, runs in models.items()
                for run in runs
                if n_hidden_of(run) == depth
            ]
            width = f", N = {width_of(lines[0][0])}" if lines else ""
            name = f"{protocol}, {plotting.written(activation)}, H = {depth}{width}"
            _draw(panel, records, name, lines)
    shown = [model for model in MODELS if any(models[model] for models in chosen.values())]
    return plotting.legend(figure, _marks((MODELS[model], plotting.COLOURS[model], "-") for model in shown))


def _grid(
    records: Records, title: str, lines: Sequence[Sequence[Line]], marks: list[Any], sized: bool = True
) -> plotting.Figure:
    """muPC: rows are protocols, columns activations; `sized` panels name the size of their nets."""
    figure, panels = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title, *LABELS)
    for panel, (protocol, activation), of_panel in zip(panels.flat, GRID, lines, strict=True):
        runs = [run for run, *_ in of_panel]
        name = f"{protocol}, {plotting.written(activation)}"
        _draw(panel, records, name + (_sized(runs) if sized else ""), of_panel)
        if not sized and runs and min(map(percent, runs)) > CLOSE_UP and not any(map(failed, runs)):
            panel.set_ylim(CLOSE_UP, 100)  # curves lie close, and they all begin at chance
    return plotting.legend(figure, marks)


def _shaded(records: Records, arm: str, size: Callable[[Run], int], letter: str, title: str) -> plotting.Figure | None:
    """muPC in shades of its sizes; T = H dotted beside T = 1."""
    if not _asked(records, arm):
        return None
    dotted: dict[str, Any] = {"ls": ":", "lw": 0.9}
    shown: list[list[tuple[Run, dict[str, Any]]]] = []
    for protocol, activation in GRID:
        own, depth = (runs_of(mupc(records, protocol, activation, name)) for name in (arm, "depth"))
        if arm == "width":
            fixed = {n_hidden_of(run) for run in own}
            own, depth = [*own, *(run for run in depth if n_hidden_of(run) in fixed)], []
        both: list[tuple[Run, dict[str, Any]]] = [*((run, {}) for run in own), *((run, dotted) for run in depth)]
        shown.append(sorted(both, key=lambda line: size(line[0])))
    colours = plotting.shades(sorted({size(run) for both in shown for run, _ in both}))
    marks = [(f"{letter} = {value}", colour, "-") for value, colour in colours.items()]
    marks += [("dotted: T = H", plotting.GREY, ":")] * (arm == "one_step")
    lines = [[(run, colours[size(run)], style) for run, style in both] for both in shown]
    return _grid(records, title, lines, _marks(marks), sized=False)


def figure_5_1_right(records: Records) -> plotting.Figure | None:
    """Test accuracy over one epoch at each depth, ReLU: muPC, SP with skips, BP. One line a seed."""
    return _models(records, "depth", ("relu",), "Figure 5.1, right: test accuracy, ReLU")


def figure_c_16(records: Records) -> plotting.Figure | None:
    """Test accuracy over one epoch at each depth, tanh and linear: muPC, SP with skips, BP. One line a seed."""
    return _models(records, "depth", ("tanh", "linear"), "Figure C.16: test accuracy, tanh and linear")


def figure_c_17(records: Records) -> plotting.Figure | None:
    """Test accuracy over several epochs, ReLU: muPC and BP. One line a seed."""
    return _models(records, "long", ("relu",), "Figures C.17-C.19: test accuracy over several epochs, ReLU")


def figure_c_20(records: Records) -> plotting.Figure | None:
    """Test accuracy of muPC by width. One line a seed."""
    return _shaded(records, "width", width_of, "N", "Figure C.20: test accuracy of muPC by width")


def figure_c_14(records: Records) -> plotting.Figure | None:
    """Test accuracy of muPC with one step of inference, by depth, and dotted with T = H. One line a seed."""
    return _shaded(records, "one_step", n_hidden_of, "H", "Figures C.14, C.27: test accuracy of muPC with T = 1")


def figure_5_8(records: Records) -> plotting.Figure | None:
    """Test accuracy of muPC at Adam's rate, and at that rate times and over sqrt(N L). One line a seed."""
    if not _asked(records, "rates"):
        return None
    colours = plotting.shades(("rate over sqrt(N L)", "rate", "rate times sqrt(N L)"))
    by_sign = list(colours.values())
    lines: list[list[Line]] = []
    for protocol, activation in GRID:
        scaled, depth = (runs_of(mupc(records, protocol, activation, arm)) for arm in ("rates", "depth"))
        sizes = {(width_of(run), n_hidden_of(run)) for run in scaled}
        runs = [*scaled, *(run for run in depth if (width_of(run), n_hidden_of(run)) in sizes)]
        by_rate = [(int(np.sign(run[ETA] - of.MUPC_ETA)), run) for run in runs]
        lines.append([(run, by_sign[sign + 1], {}) for sign, run in sorted(by_rate, key=lambda pair: pair[0])])
    marks = _marks((name, colour, "-") for name, colour in colours.items())
    return _grid(records, "Section 5.8: muPC at scaled rates of Adam", lines, marks)


def figure_forward_only(records: Records) -> plotting.Figure | None:
    """Test accuracy of muPC with premultipliers in the forward pass only, by Adam's rate and by beta. One line a seed."""
    if not _asked(records, "forward_only"):
        return None
    found = [runs_of(mupc(records, p, a, "forward_only")) for p, a in GRID]
    colours = plotting.shades(sorted({run[ETA] for runs in found for run in runs}))
    largest = [max((run[of.BETA] for run in runs), default=0.0) for runs in found]
    lines = [
        [(run, colours[run[ETA]], {"ls": "-" if run[of.BETA] == beta else ":"}) for run in runs]
        for runs, beta in zip(found, largest, strict=True)
    ]
    marks = [(f"eta = {rate:g}", colour, "-") for rate, colour in colours.items()]
    marks += [("published beta", plotting.GREY, "-"), ("beta = 0.01 / 64", plotting.GREY, ":")]
    title = "Section 5.8: muPC with premultipliers in the forward pass only"
    return _grid(records, title, lines, _marks(marks))


def figure_anchor(records: Records) -> plotting.Figure | None:
    """Test accuracy of muPC at the anchor, with the published values and the tolerances asked for. One line a seed."""
    if not _asked(records, "anchor", ("relu",)):
        return None
    colour, title = plotting.COLOURS["mupc"], "Anchor: muPC, ReLU, T = 30"
    figure, panels = plotting.panels(1, len(PROTOCOLS), title, *LABELS, width=3.8, height=3.0)
    for panel, protocol in zip(panels[0], PROTOCOLS, strict=True):
        runs = runs_of(mupc(records, protocol, "relu", "anchor"))
        _draw(panel, records, f"{protocol}{_sized(runs[:1])}", [(run, colour, {}) for run in runs])
        for t, (value, within) in of.ANCHOR.items():
            error = None if math.isinf(within) else within
            panel.errorbar(t, value, yerr=error, fmt="o", ms=4, mfc="none", color="black", capsize=3, lw=1)
        if runs and min(map(percent, runs)) > 80:
            panel.set_ylim(75, 100)
    published = plotting.mark("published, tolerance", "black", marker="o", mfc="none", ls="")
    return plotting.legend(figure, [*_marks([("muPC", colour, "-")]), published])


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
