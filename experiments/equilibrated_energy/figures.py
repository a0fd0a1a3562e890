"""Energies where inference stopped against F*, the gap by horizon, and two trainings side by side."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pcexp.experiments.equilibrated_energy import claims as of
from pcexp.experiments.equilibrated_energy.claims import PROTOCOLS, published_horizon, runs_of, select, several_horizons
from pcexp.report import plotting
from pcexp.report.claims import Records, Run, curve, n_hidden_of

COLOURS = {"published": "#c1272d", "corrected": "#b35806"}
"""Inference to the published horizon is in PC's own colour."""
LABELS = {"published": "published: ODE to a fixed horizon, float32", "corrected": "corrected: converged, float64"}
LARGEST = " (gaps: the largest of a run)"
ROUND_OFF = 1e-17
"""Gaps below it, an exact zero among them, are drawn there."""


def _gap(energy: np.ndarray, theory: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(energy / theory - 1), ROUND_OFF)


def _level(t: np.ndarray, run: Run, name: str) -> np.ndarray:
    """The largest of a run at all of its iterations: rows that are kept have too few digits for what is at round-off."""
    value = run[name] if run["outcome"] == "done" else np.nan
    return np.full(len(t), max(value, ROUND_OFF))


def _by_depth(
    title: str, runs: Iterable[Sequence[Run]], labels: Sequence[str]
) -> tuple[plotting.Figure, dict[int, Any]]:
    """A figure with a column of three panels a depth."""
    depths = sorted({n_hidden_of(run) for found in runs for run in found}) or [2, 5, 10]
    width = 3.0 if len(depths) > 1 else 5.0
    figure, axes = plotting.panels(3, len(depths), title, "training iteration", labels, width=width)
    return figure, dict(zip(depths, axes.T, strict=True))


def _both(panel: Any, protocol: str, t: np.ndarray, energy: np.ndarray, theory: np.ndarray) -> None:
    """A run's energies, and over them what theory says, dashed; marks of converged inference, which would hide it."""
    marks: dict[str, Any] = {"marker": "o", "ms": 2.5, "ls": "", "markevery": max(1, len(t) // 12)}
    panel.plot(t, energy, color=COLOURS[protocol], alpha=0.8, **(marks if protocol == "corrected" else {"lw": 1.4}))
    panel.plot(t, theory, color=plotting.COLOURS["theory"], lw=0.7, ls="--")


def _legend(figure: plotting.Figure, theory: str, levels: str, columns: int) -> plotting.Figure:
    marks = [
        plotting.mark(theory, plotting.COLOURS["theory"], lw=0.7, ls="--"),
        plotting.mark(LABELS["published"], COLOURS["published"], lw=1.4),
        plotting.mark(LABELS["corrected"] + LARGEST, COLOURS["corrected"], lw=0.8, marker="o", ms=2.5),
        plotting.mark(levels, "#777777", lw=0.7, ls=":"),
    ]
    return plotting.legend(figure, marks, columns=4 if columns > 2 else 1)


def _energies(records: Records, optimiser: str, title: str) -> plotting.Figure:
    """Rows: energies by either inference, and their gap; columns: depths. One line a seed."""
    runs = {p: of.at_the_longest(runs_of(select(records, "energy", p, optimiser))) for p in PROTOCOLS}
    figure, columns = _by_depth(title, runs.values(), ("energy", "energy", "|F / F* - 1|"))
    for depth, (*energies, gaps) in columns.items():
        total = 0
        for axis, protocol in zip(energies, PROTOCOLS, strict=True):
            here = [run for run in runs[protocol] if n_hidden_of(run) == depth]
            for run in here:
                t, energy, theory = curve(records, run, "energy", "equilibrated_energy")
                _both(axis, protocol, t, energy, theory)
                shown = _gap(energy, theory) if protocol == "published" else _level(t, run, "largest_gap")
                gaps.plot(t, shown, color=COLOURS[protocol], lw=0.8, alpha=0.8)
            if not here:
                plotting.note(axis, "no runs yet")
            axis.set_yscale("log")
            axis.set_title(f"{protocol}, H = {depth}", loc="left")
            plotting.caption(axis, records.about, len(here))
            total += len(here)
        gaps.set(yscale="log", ylim=(ROUND_OFF / 3, 30))
        for level in (of.CLOSE, of.EXACT):
            gaps.axhline(level, color="#777777", lw=0.7, ls=":")
        gaps.set_title(f"both, H = {depth}", loc="left")
        plotting.caption(gaps, records.about, total)
    return _legend(figure, "theory F*", f"{of.CLOSE:g} and {of.EXACT:g}", len(columns))


def figure_4_1(records: Records) -> plotting.Figure:
    """Energy at the end of inference against F* of theorem 3.1 at each iteration, Adam; below, how far apart they are."""
    return _energies(records, "adam", "Figure 4.1: numerical against theoretical energy in training (Adam)")


def figure_4_1_sgd(records: Records) -> plotting.Figure:
    """The same with SGD, as in the text."""
    return _energies(records, "sgd", "Figure 4.1, SGD as in the text")


def figure_6_1(records: Records) -> plotting.Figure:
    """Gap and test accuracy in training by horizon, and against it; converged inference beside them. One line a seed."""
    found = several_horizons(records)
    depths = sorted(found) or [0]
    figure, axes = plotting.panels(len(depths), 4, "Figure 6.1: how long inference runs (Adam)", width=2.7)
    handles: dict[str, Any] = {}
    for depth, (gap, accuracy, mean_gap, final) in zip(depths, axes, strict=True):
        horizons = list(found.get(depth, {}))
        for horizon, colour in zip(horizons, reversed(plotting.shades(horizons).values()), strict=True):
            t_end = published_horizon(found[depth][horizon][0])
            for run in found[depth][horizon]:
                t, energy, theory = curve(records, run, "energy", "equilibrated_energy")
                gap.plot(t, _gap(energy, theory), color=colour, lw=0.8, alpha=0.8)
                accuracy.plot(*of.accuracies(records, run), color=colour, lw=0.9, alpha=0.8)
                if run["outcome"] == "done":
                    mean_gap.plot(t_end, run["mean_gap"], "o", color=colour, ms=3.5)
                    final.plot(t_end, 100 * run["test_accuracy"], "o", color=colour, ms=3.5)
            label = f"t = {t_end:g} ({horizon:.4g} per sample)"
            handles[label] = plotting.mark(label, colour)
        converged = [run for run in runs_of(select(records, "energy", "corrected")) if n_hidden_of(run) == depth]
        for run in converged:
            accuracy.plot(*of.accuracies(records, run), color=COLOURS["corrected"], lw=0.9, ls="--")
            if run["outcome"] == "done":
                final.axhline(100 * run["test_accuracy"], color=COLOURS["corrected"], lw=0.9, ls="--")
        n = sum(len(runs) for runs in found.get(depth, {}).values())
        for axis in (gap, accuracy, mean_gap, final):
            count = n + len(converged) if axis in (accuracy, final) else n
            plotting.dress(axis, records.about, count, f"H = {depth}")
        gap.set(yscale="log", xlabel="training iteration", ylabel="F / F* - 1")
        accuracy.set(xlabel="training iteration", ylabel="test accuracy (%)")
        mean_gap.set(xscale="log", yscale="log", xlabel="horizon t, as published", ylabel="mean of F / F* - 1")
        final.set(xscale="log", xlabel="horizon t, as published", ylabel="final test accuracy (%)")
    converging = plotting.mark(LABELS["corrected"], COLOURS["corrected"], ls="--")
    return plotting.legend(figure, [*handles.values(), converging], columns=4)


def figure_d_5(records: Records) -> plotting.Figure:
    """Energy at the end of inference against F*, a panel a horizon. One line a seed."""
    found = several_horizons(records)
    shown = [(depth, horizon) for depth in found for horizon in reversed(found[depth])] or [(0, 0.0)]
    columns = min(3, len(shown))
    title, labels = "Figure D.5: energies by horizon (Adam)", ("training iteration", "energy")
    figure, axes = plotting.panels(-(-len(shown) // columns), columns, title, *labels)
    low = high = None
    for axis, (depth, horizon) in zip(axes.flat, shown, strict=False):
        runs = found.get(depth, {}).get(horizon, [])
        for run in runs:
            t, energy, theory = curve(records, run, "energy", "equilibrated_energy")
            _both(axis, "published", t, energy, theory)
        name = f"H = {depth}, t = {published_horizon(runs[0]):g}" if runs else None
        plotting.dress(axis, records.about, len(runs), name)
        axis.set_yscale("log")
        if axis.lines:
            bottom, top = axis.get_ylim()
            low, high = min(low or bottom, bottom), max(high or top, top)
    for i, axis in enumerate(axes.flat):
        axis.set(ylim=(low, high), visible=i < len(shown))
    handles = [
        plotting.mark(LABELS["published"], COLOURS["published"], lw=1.4),
        plotting.mark("theory F* at the same weights", plotting.COLOURS["theory"], lw=0.7, ls="--"),
    ]
    return plotting.legend(figure, handles)


def figure_beside(records: Records) -> plotting.Figure:
    """Training by inference beside training on F*: how far F* and the weights are apart. One line a seed."""
    runs = {protocol: runs_of(select(records, "beside", protocol)) for protocol in PROTOCOLS}
    title = "Training by inference beside training on F*: same start, same batches (Adam)"
    labels = "F* at the weights", "difference of F*, relative", "difference of weights\nover movement"
    figure, columns = _by_depth(title, runs.values(), labels)
    for depth, (energies, drifts, differences) in columns.items():
        lines = [(p, run) for p in PROTOCOLS for run in runs[p] if n_hidden_of(run) == depth]
        for protocol, run in lines:
            colour = COLOURS[protocol]
            names = ("equilibrated_energy", "equilibrated_energy_beside", "difference")
            t, mine, theirs, apart = curve(records, run, *names)
            _both(energies, protocol, t, mine, theirs)
            shown = _gap(mine, theirs) if protocol == "published" else _level(t, run, "largest_drift")
            drifts.plot(t, shown, color=colour, lw=0.8, alpha=0.8)
            differences.plot(t + 1, np.maximum(apart, ROUND_OFF), color=colour, lw=0.8, alpha=0.8)
        for axis in (energies, drifts, differences):
            axis.set_yscale("log")
            plotting.dress(axis, records.about, len(lines), f"H = {depth}")
        for axis in (drifts, differences):
            axis.set_ylim(ROUND_OFF / 3, 30)
            axis.axhline(of.EXACT, color="#777777", lw=0.7, ls=":")
    return _legend(figure, "trained on F*", f"{of.EXACT:g}", len(columns))


FIGURES = {
    "4.1": figure_4_1,
    "4.1.sgd": figure_4_1_sgd,
    "6.1": figure_6_1,
    "D.5": figure_d_5,
    "beside": figure_beside,
}
