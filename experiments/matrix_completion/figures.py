"""Figures of the study: losses, gradients and singular values over iterations, and iterations to leave each saddle."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pcexp.experiments.matrix_completion import claims as of
from pcexp.experiments.matrix_completion.claims import ACTIVATIONS, ETA, PROTOCOLS, RATES, SADDLES, seeds
from pcexp.report import plotting
from pcexp.report.claims import Records, Run, ended

ITERATION = "training iteration + 1"
STARTS = {0: "-", 1: "--", 2: ":"}
"""Line of PC from each saddle."""
SETTINGS = {
    "published": ("published", False, "s"),
    "one scale": ("corrected", False, "o"),
    "best rates": ("corrected", True, "^"),
}
"""Protocol, whether rates are the best ones, and mark."""


def _at_one_rate(records: Records, where: Mapping[str, Any] | None = None, **labels: str) -> list[Run]:
    """Runs at the one learning rate of both rules, PC from the last saddle first: later lines lie on top."""
    kept = [run for run in ended(records.select(where, **labels)) if run[ETA] == RATES[run["protocol"]]]
    return sorted(kept, key=lambda run: (run["learning"], -run[of.START], run["seed"]))


def _curves(records: Records, title: str, column: str, ylabel: str) -> plotting.Figure:
    """Rows are protocols, columns activations; PC from a saddle begins at the iteration at which BP is there."""
    figure, axes = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title, ITERATION, ylabel)
    diverged = False
    for axis, (protocol, activation) in zip(axes.flat, itertools.product(PROTOCOLS, ACTIVATIONS), strict=True):
        runs = _at_one_rate(records, protocol=protocol, activation=activation)
        for run in runs:
            rows = records.lane(run["cell"], run["lane"])
            if not len(rows) or run["visited_at"] < 0:
                continue
            x = rows["iteration"].to_numpy() + run["visited_at"] + 1
            y = rows[column].to_numpy()
            colour, start = plotting.COLOURS[run["learning"]], int(run[of.START])
            axis.plot(x, y, STARTS[start], color=colour, lw=1.0, alpha=0.8)
            if start:
                axis.plot(x[0], y[0], "o", color=colour, ms=3.5, mec="white", mew=0.5, zorder=5)
            if run["outcome"] != "done":
                axis.plot(x[-1], y[-1], "x", color=colour, ms=6)
                diverged = True
        title = f"{plotting.written(activation)}, {protocol}, $\\eta$ = {RATES[protocol]:g}"
        plotting.dress(axis, records.about, len(runs), title, pad=12)
        axis.set(xscale="log", yscale="log")
    pc = plotting.COLOURS["pc"]
    marks = [plotting.mark("BP", plotting.COLOURS["bp"]), plotting.mark("PC", pc)]
    marks += [plotting.mark(f"PC from the saddle of rank {k}", pc, ls=STARTS[k], marker="o", ms=4) for k in (1, 2)]
    if diverged:
        marks.append(plotting.diverged())
    return plotting.legend(figure, marks)


def figure_4_6(records: Records) -> plotting.Figure:
    """Loss over iterations at one learning rate; PC also from each saddle that BP visits, drawn from where BP is there."""
    title = "Figure 4.6: matrix completion, one line a seed"
    return _curves(records, title, "loss", "loss (mean squared error)")


def figure_gradients(records: Records) -> plotting.Figure:
    """Norm of the gradient of F on all weights, over iterations at one learning rate; scales are taken out."""
    return _curves(records, "Figure 4.6: norm of the weight gradient of F", "gradient_norm", "gradient norm")


def figure_ranks(records: Records) -> plotting.Figure:
    """Singular values of the map over iterations at one scale, and the threshold above which they count for its rank."""
    title = "Singular values of the map, corrected, one line a seed"
    figure, axes = plotting.panels(2, len(ACTIVATIONS), title, ITERATION, "singular value")
    for axis, (learning, activation) in zip(axes.flat, itertools.product(("bp", "pc"), ACTIVATIONS), strict=True):
        runs = _at_one_rate(records, {of.START: 0}, protocol="corrected", activation=activation, learning=learning)
        for run in runs:
            rows = records.lane(run["cell"], run["lane"])
            columns = sorted(column for column in rows.columns if column.startswith("singular_value_"))
            for column, colour in plotting.shades(columns).items():
                axis.plot(rows["iteration"] + 1, rows[column], color=colour, lw=1.0, alpha=0.85)
            axis.axhline(run["rank_threshold"], color="#c1272d", lw=0.8, ls="--")
        title = f"{plotting.written(learning)}, {plotting.written(activation)}"
        plotting.dress(axis, records.about, len(runs), title, pad=12)
        axis.set(xscale="log", yscale="log")
        axis.set_ylim(bottom=1e-6)
    marks = [plotting.mark(f"$\\sigma_{k}$", colour) for k, colour in plotting.shades(range(1, 5)).items()]
    return plotting.legend(figure, [*marks, plotting.mark("threshold of the rank", "#c1272d", ls="--")])


def _passages(records: Records, activation: str, setting: str) -> Iterator[tuple[str, int, int, bool]]:
    """Of each rule and saddle, seed by seed, the iterations to leave it, and whether it was left."""
    protocol, best, _ = SETTINGS[setting]
    part = records.select(protocol=protocol)
    at = {saddle: of.runs_at(part, protocol, activation, saddle, best=best) for saddle in SADDLES}
    for i, learning in ((1, "bp"), (0, "pc")):
        for saddle, pairs in at.items():
            for run in (pair[i] for pair in pairs):
                if run is not None and run.get(f"left_{saddle}") is not None:
                    yield learning, saddle, run[f"iterations_{saddle}"], run[f"left_{saddle}"]


def figure_iterations(records: Records) -> plotting.Figure:
    """Iterations to leave each saddle that BP visits, PC from the weights at which BP is there; hollow: not left until then."""
    title, labels = "Iterations to leave each saddle that BP visits", ("saddle", "iterations to leave it")
    figure, axes = plotting.panels(1, len(ACTIVATIONS), title, *labels, height=3.0)
    for axis, activation in zip(axes[0], ACTIVATIONS, strict=True):
        n = 0
        for k, (setting, (_, _, mark)) in enumerate(SETTINGS.items()):
            for learning, saddle, count, left in _passages(records, activation, setting):
                colour = plotting.COLOURS[learning]
                shown: dict[str, Any] = {"color": colour, "mfc": colour if left else "none", "alpha": 0.85}
                axis.plot(saddle + 0.22 * (k - 1), max(count, 1), mark, ms=5, **shown)
                n += 1
        plotting.dress(axis, records.about, n, plotting.written(activation), pad=12)
        axis.set_xticks(SADDLES, ["origin", "rank 1", "rank 2"])
        axis.set(yscale="log", xlim=(-0.5, 2.5))
    marks = [plotting.mark(r.upper(), plotting.COLOURS[r], marker="o", ls="") for r in ("bp", "pc")]
    marks += [plotting.mark(setting, marker=marker, ls="") for setting, (_, _, marker) in SETTINGS.items()]
    return plotting.legend(figure, marks)


def figure_rates(records: Records) -> plotting.Figure:
    """Iterations from the origin to the end at one scale over the learning rate; crosses: the end was not reached."""
    part = records.select({of.START: 0}, protocol="corrected")
    title, labels = "Iterations to a loss of 0.01, corrected", ("learning rate, summed gradients", "iterations")
    figure, axes = plotting.panels(1, len(ACTIVATIONS), title, *labels, height=3.0)
    for axis, activation in zip(axes[0], ACTIVATIONS, strict=True):
        runs = list(part.select(activation=activation).runs.iter_rows(named=True))
        highest = max((run["iterations"] for run in runs if run.get("ended")), default=1)
        for learning in ("bp", "pc"):
            colour = plotting.COLOURS[learning]
            for seed in seeds(part, activation):
                mine = sorted((r for r in runs if (r["learning"], r["seed"]) == (learning, seed)), key=lambda r: r[ETA])
                there = [run for run in mine if run["outcome"] == "done" and run["ended"]]
                axis.plot([r[ETA] for r in there], [r["iterations"] for r in there], "o-", color=colour, ms=3.5, lw=0.9)
                lost = [run[ETA] for run in mine if run not in there]
                axis.plot(lost, [2 * highest] * len(lost), "x", color=colour, ms=5)
        plotting.dress(axis, records.about, len(runs), plotting.written(activation), pad=12)
        axis.set(xscale="log", yscale="log")
    marks = [plotting.mark(r.upper(), plotting.COLOURS[r], marker="o", ms=4) for r in ("bp", "pc")]
    marks.append(plotting.mark("end not reached, or diverged", marker="x", ls=""))
    return plotting.legend(figure, marks)


def figure_hidden(records: Records) -> plotting.Figure:
    """Mean squared error over the hidden entries at one learning rate: whole targets show PC what the mask hides."""
    title = "Error of the hidden entries, one line a seed"
    return _curves(records, title, "hidden_loss", "mean squared error, hidden entries")


FIGURES: dict[str, Callable[[Records], plotting.Figure]] = {
    "4.6": figure_4_6,
    "4.6 iterations": figure_iterations,
    "4.6 gradients": figure_gradients,
    "4.6 ranks": figure_ranks,
    "4.6 rates": figure_rates,
    "4.6 hidden": figure_hidden,
}
