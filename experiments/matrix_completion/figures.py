"""Figures of the study: losses, gradients and singular values over iterations, and iterations to leave each saddle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from experiments.matrix_completion.runs import (
    ACTIVATIONS,
    ETA,
    PROTOCOLS,
    RATES,
    SADDLES,
    START,
    Name,
    best_eta,
    name,
    named,
    one_scale_eta,
    published_eta,
    seeds,
)
from pcexp.report.claims import Run

if TYPE_CHECKING:  # figures are imported when a run has ended, not before
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pcexp.records.tables import Records

STARTS = {0: "-", 1: "--", 2: ":"}
"""Line of PC from each saddle."""
SETTINGS = {
    "published": ("published", published_eta, "s"),
    "one scale": ("corrected", one_scale_eta, "o"),
    "best rates": ("corrected", best_eta, "^"),
}
"""Protocol, choice of learning rates and mark."""


def _at_one_rate(records: Records, where: Mapping[str, Any] | None = None, **labels: str) -> list[Run]:
    """Runs at the one learning rate of both rules, PC from the last saddle first: later lines lie on top."""
    runs = records.select(where, **labels).runs.iter_rows(named=True)
    kept = [run for run in runs if run[ETA] == RATES[run["protocol"]] and run["outcome"] in ("done", "diverged")]
    return sorted(kept, key=lambda run: (run["learning"], -name(run).start, run["seed"]))


def _curves(records: Records, title: str, column: str, ylabel: str) -> Figure:
    """Rows are protocols, columns activations; PC from a saddle begins at the iteration at which BP is there."""
    from matplotlib.lines import Line2D

    from pcexp.report import plotting

    figure, axes = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title)
    diverged = False
    for i, protocol in enumerate(PROTOCOLS):
        for j, activation in enumerate(ACTIVATIONS):
            axis, runs = axes[i, j], _at_one_rate(records, protocol=protocol, activation=activation)
            for run in runs:
                rows = records.lane(run["cell"], run["lane"])
                if not len(rows) or run["visited_at"] < 0:
                    continue
                x = rows["iteration"].to_numpy() + run["visited_at"] + 1
                y = rows[column].to_numpy()
                colour, start = plotting.COLOURS[run["learning"]], name(run).start
                axis.plot(x, y, STARTS[start], color=colour, lw=1.0, alpha=0.8)
                if start:
                    axis.plot(x[0], y[0], "o", color=colour, ms=3.5, mec="white", mew=0.5, zorder=5)
                if run["outcome"] != "done":
                    axis.plot(x[-1], y[-1], "x", color=colour, ms=6)
                    diverged = True
            rate = f"$\\eta$ = {RATES[protocol]:g}"
            _dressed(axis, records, f"{plotting.written(activation)}, {protocol}, {rate}", len(runs))
            axis.set_xscale("log")
            axis.set_yscale("log")
            if i == len(PROTOCOLS) - 1:
                axis.set_xlabel("training iteration + 1")
            if j == 0:
                axis.set_ylabel(ylabel)
    colours = plotting.COLOURS
    marks = [
        Line2D([], [], color=colours["bp"], label="BP"),
        Line2D([], [], color=colours["pc"], label="PC"),
        Line2D([], [], color=colours["pc"], ls="--", marker="o", ms=4, label="PC from the saddle of rank 1"),
        Line2D([], [], color=colours["pc"], ls=":", marker="o", ms=4, label="PC from the saddle of rank 2"),
    ]
    if diverged:
        marks.append(plotting.diverged())
    plotting.legend(figure, marks)
    return figure


def _dressed(axis: Axes, records: Records, title: str, n: int) -> None:
    from pcexp.report import plotting

    axis.set_title(title, loc="left", pad=12)
    plotting.caption(axis, records.about, n)
    if not n:
        plotting.note(axis, "no runs yet")


def figure_4_6(records: Records) -> Figure:
    """Loss over iterations at one learning rate; PC also from each saddle that BP visits, drawn from where BP is there."""
    title = "Figure 4.6: matrix completion, one line a seed"
    return _curves(records, title, "loss", "loss (mean squared error)")


def figure_gradients(records: Records) -> Figure:
    """Norm of the gradient of F on all weights, over iterations at one learning rate; scales are taken out."""
    return _curves(records, "Figure 4.6: norm of the weight gradient of F", "gradient_norm", "gradient norm")


def figure_ranks(records: Records) -> Figure:
    """Singular values of the map over iterations at one scale, and the threshold above which they count for its rank."""
    from matplotlib.lines import Line2D

    from pcexp.report import plotting

    figure, axes = plotting.panels(2, len(ACTIVATIONS), "Singular values of the map, corrected, one line a seed")
    for i, learning in enumerate(("bp", "pc")):
        for j, activation in enumerate(ACTIVATIONS):
            axis = axes[i, j]
            runs = _at_one_rate(
                records, protocol="corrected", activation=activation, learning=learning, where={START: 0}
            )
            for run in runs:
                rows = records.lane(run["cell"], run["lane"])
                columns = sorted(column for column in rows.columns if column.startswith("singular_value_"))
                for colour, column in zip(plotting.shades(len(columns)), columns, strict=True):
                    axis.plot(rows["iteration"] + 1, rows[column], color=colour, lw=1.0, alpha=0.85)
                axis.axhline(run["rank_threshold"], color="#c1272d", lw=0.8, ls="--")
            _dressed(axis, records, f"{plotting.written(learning)}, {plotting.written(activation)}", len(runs))
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_ylim(bottom=1e-6)
            if i == 1:
                axis.set_xlabel("training iteration + 1")
            if j == 0:
                axis.set_ylabel("singular value")
    marks = [Line2D([], [], color=c, label=f"$\\sigma_{k}$") for k, c in enumerate(plotting.shades(4), start=1)]
    plotting.legend(figure, [*marks, Line2D([], [], color="#c1272d", ls="--", label="threshold of the rank")])
    return figure


def _passages(records: Records, activation: str, setting: str) -> Iterator[tuple[str, int, int, bool]]:
    """Of each rule and saddle, seed by seed, the iterations to leave it, and whether it was left."""
    protocol, rate, _ = SETTINGS[setting]
    part = records.select(protocol=protocol)
    found = named(part)
    for learning in ("bp", "pc"):
        eta = rate(part, learning, activation)
        for saddle in SADDLES if eta is not None else ():
            for seed in seeds(part, activation):
                assert eta is not None
                run = found.get(Name(learning, activation, saddle if learning == "pc" else 0, eta, seed))
                if run is not None and run.get(f"left_{saddle}") is not None:
                    yield learning, saddle, run[f"iterations_{saddle}"], run[f"left_{saddle}"]


def figure_iterations(records: Records) -> Figure:
    """Iterations to leave each saddle that BP visits, PC from the weights at which BP is there; hollow: not left until then."""
    from matplotlib.lines import Line2D

    from pcexp.report import plotting

    figure, axes = plotting.panels(1, len(ACTIVATIONS), "Iterations to leave each saddle that BP visits", height=3.0)
    for axis, activation in zip(axes[0], ACTIVATIONS, strict=True):
        n = 0
        for k, (setting, (_, _, mark)) in enumerate(SETTINGS.items()):
            for learning, saddle, count, left in _passages(records, activation, setting):
                colour = plotting.COLOURS[learning]
                shown: dict[str, Any] = {"color": colour, "mfc": colour if left else "none", "alpha": 0.85}
                axis.plot(saddle + 0.22 * (k - 1), max(count, 1), mark, ms=5, **shown)
                n += 1
        _dressed(axis, records, plotting.written(activation), n)
        axis.set_yscale("log")
        axis.set_xticks(SADDLES, ["origin", "rank 1", "rank 2"])
        axis.set_xlim(-0.5, 2.5)
        axis.set_xlabel("saddle")
    axes[0, 0].set_ylabel("iterations to leave it")
    marks = [Line2D([], [], color=plotting.COLOURS[r], marker="o", ls="", label=r.upper()) for r in ("bp", "pc")]
    marks += [Line2D([], [], color="#555555", marker=m, ls="", label=s) for s, (_, _, m) in SETTINGS.items()]
    plotting.legend(figure, marks)
    return figure


def figure_rates(records: Records) -> Figure:
    """Iterations from the origin to the end at one scale over the learning rate; crosses: the end was not reached."""
    from matplotlib.lines import Line2D

    from pcexp.report import plotting

    part = records.select({START: 0}, protocol="corrected")
    figure, axes = plotting.panels(1, len(ACTIVATIONS), "Iterations to a loss of 0.01, corrected", height=3.0)
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
        _dressed(axis, records, plotting.written(activation), len(runs))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("learning rate, summed gradients")
    axes[0, 0].set_ylabel("iterations")
    marks = [Line2D([], [], color=plotting.COLOURS[r], marker="o", ms=4, label=r.upper()) for r in ("bp", "pc")]
    marks.append(Line2D([], [], color="#555555", marker="x", ls="", label="end not reached, or diverged"))
    plotting.legend(figure, marks)
    return figure


def figure_hidden(records: Records) -> Figure:
    """Mean squared error over the hidden entries at one learning rate: whole targets show PC what the mask hides."""
    title = "Error of the hidden entries, one line a seed"
    return _curves(records, title, "hidden_loss", "mean squared error, hidden entries")


FIGURES: dict[str, Callable[[Records], Figure]] = {
    "4.6": figure_4_6,
    "4.6 iterations": figure_iterations,
    "4.6 gradients": figure_gradients,
    "4.6 ranks": figure_ranks,
    "4.6 rates": figure_rates,
    "4.6 hidden": figure_hidden,
}
