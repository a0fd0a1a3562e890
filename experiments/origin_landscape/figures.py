"""Figures of the study: surfaces and contours with the paths of SGD, curves of training, and ratios of escape iterations."""

from typing import Any

import numpy as np

from pcexp.experiments.origin_landscape.claims import ARMS, NAMES, escape_ratio, training
from pcexp.report import plotting
from pcexp.report.claims import Records, done, pc_and_bp, vectors

DRAWN = ("chain_1", "chain_2", "chain_3", "wide")
ENERGIES = (("loss", "loss", "bp", "probe_loss"), ("equilibrated", "$F^*$", "pc", "probe_equilibrated"))
AXES = {"chain_1": ("$w_1$", "$w_2$")}
EIGENVECTORS = (r"along $\lambda_{\min}$", r"along $\lambda_{\max}$")
CURVES = {"train_loss": "training loss", "test_loss": "test loss", "gradient_norm": "gradient norm"}


def _path(records: Records, net: str, learning: str, height: str) -> np.ndarray | None:
    """Coordinates and height of the first seed's path at one scale, one row a recorded iteration."""
    runs = done(training(records, net, "corrected").select(learning=learning))
    rows = records.lane(runs[0]["cell"], runs[0]["lane"]) if runs else None
    return None if rows is None else np.column_stack([vectors(rows, "path"), rows[height].to_numpy()])


def _surface(axis: Any, steps: np.ndarray, values: np.ndarray, path: np.ndarray | None, colour: str) -> None:
    a, b = np.meshgrid(steps, steps)
    axis.plot_surface(a, b, values, cmap="viridis", alpha=0.6, lw=0, rstride=1, cstride=1, antialiased=False)
    if path is not None:
        axis.plot(path[:, 0], path[:, 1], path[:, 2], color=colour, lw=1.6, zorder=10)
        axis.plot(*path[0][:, None], "o", color="black", ms=3.5, zorder=11)
        axis.plot(*path[-1][:, None], "*", color=colour, ms=7, zorder=11)
    axis.set_zlim(0, 1.05 * float(np.max(values)))
    axis.tick_params(labelsize=6, pad=-2)
    axis.view_init(elev=32, azim=-58)
    axis.set_box_aspect((1, 1, 0.75), zoom=1.1)


def _contours(axis: plotting.Axes, steps: np.ndarray, values: np.ndarray, path: np.ndarray | None, colour: str) -> Any:
    image: Any
    if np.ptp(values) < 1e-6 * np.max(values):
        image = axis.pcolormesh(steps, steps, values, cmap="viridis", vmin=0, vmax=2 * float(np.max(values)))
        axis.text(0.5, 0.9, "flat", transform=axis.transAxes, ha="center", color="white", fontsize=8)
    else:
        image = axis.contourf(steps, steps, values, levels=24, cmap="viridis")
    if path is not None:
        axis.plot(path[:, 0], path[:, 1], "-", color="white", lw=3.0)
        axis.plot(path[:, 0], path[:, 1], "-", color=colour, lw=1.5)
        axis.plot(*path[0][:2], "o", color="black", ms=3.5, zorder=5)
        axis.plot(*path[-1][:2], "*", color=colour, ms=8, mec="white", mew=0.4, zorder=6)
    axis.grid(visible=False)
    axis.set_aspect("equal")
    return image


def figure_4_2(records: Records) -> plotting.Figure:
    """Loss (with the path of BP) and equilibrated energy (with the path of PC, both at one scale, first seed) around the origin: of
    both weights for H = 1, along two eigenvectors of F*'s Hessian for H > 1. Paths of nets with more than two weights are projected;
    on surfaces they are drawn at their own height, which leaves the plane.
    """
    figure = plotting.pyplot().figure(figsize=(12.4, 11.4), layout="constrained")
    figure.suptitle("Figure 4.2: landscapes of the loss and of the equilibrated energy around the origin", fontsize=10)
    for column, net in enumerate(DRAWN):
        part = records.select(block=f"landscape_{net}")
        runs = done(part)
        for pair, (name, label, learning, height) in enumerate(ENERGIES):
            surface = figure.add_subplot(4, 4, 8 * pair + column + 1, projection="3d")
            contours = figure.add_subplot(4, 4, 8 * pair + 4 + column + 1)
            surface.set_title(f"{label}, {NAMES[net]}", fontsize=9, y=1.0)
            if not runs:
                surface.set_axis_off()
                plotting.note(contours, "no runs yet")
                continue
            values = vectors(part.lane(runs[0]["cell"], runs[0]["lane"]), name)
            extent = runs[0]["config.study.extent"]
            steps = np.linspace(-extent, extent, len(values))
            path, colour = _path(records, net, learning, height), plotting.COLOURS[learning]
            _surface(surface, steps, values, path, colour)
            image = _contours(contours, steps, values, path, colour)
            figure.colorbar(image, ax=contours, fraction=0.046, pad=0.03).ax.tick_params(labelsize=6)
            labels = AXES.get(net, EIGENVECTORS)
            contours.set(xlabel=labels[0], ylabel=labels[1])
            surface.set_xlabel(labels[0], fontsize=7, labelpad=-6)
            surface.set_ylabel(labels[1], fontsize=7, labelpad=-6)
            plotting.caption(contours, records.about, int(path is not None))
    marks = [
        plotting.mark("path of BP (on the loss)", plotting.COLOURS["bp"]),
        plotting.mark("path of PC (on $F^*$)", plotting.COLOURS["pc"]),
        plotting.dots("start", "black"),
        plotting.dots("end", marker="*", ms=8),
    ]
    return plotting.legend(figure, marks)


def figure_b_1(records: Records) -> plotting.Figure:
    """Training loss, test loss and gradient norm of BP and PC from near the origin: mean (line) and standard deviation (band, no
    lower than the lowest seed) over seeds. Wide nets at the published gradient scales, where BP's is 96 times smaller, and at one scale.
    """
    title = "Figure B.1: training from near the origin, mean and standard deviation over seeds"
    labels = "iteration + 1", list(CURVES.values())
    figure, axes = plotting.panels(len(CURVES), len(ARMS), title, *labels, width=2.05, height=2.0)
    for (net, protocol), column in zip(ARMS, axes.T, strict=True):
        scale = "one scale" if protocol == "corrected" else "published"
        for axis, name in zip(column, CURVES, strict=True):
            n = 0
            for learning in ("bp", "pc"):
                part = training(records, net, protocol).select(learning=learning)
                lanes = [part.lane(run["cell"], run["lane"]) for run in done(part)]
                if not lanes:
                    continue
                n += len(lanes)
                shared = sorted(set.intersection(*({*rows["iteration"].to_list()} for rows in lanes)))
                kept = [rows.filter(rows["iteration"].is_in(shared)) for rows in lanes]
                values = np.array([rows[name].to_numpy() for rows in kept], float)
                mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1 if len(lanes) > 1 else 0)
                x, colour = np.array(shared) + 1, plotting.COLOURS[learning]
                axis.plot(x, mean, color=colour, lw=1.2)
                # On a logarithmic axis: no lower than the lowest seed.
                low = np.maximum(mean - sd, values.min(axis=0))
                axis.fill_between(x, low, mean + sd, color=colour, alpha=0.2, lw=0)
            axis.set(xscale="log", yscale="log")
            above = f"{NAMES[net]}\n{scale}" if axis is column[0] else None
            plotting.dress(axis, records.about, n, above, fontsize=8, pad=12)
    marks = [plotting.mark(plotting.written(rule), plotting.COLOURS[rule]) for rule in ("pc", "bp")]
    return plotting.legend(figure, marks)


def figure_escape(records: Records) -> plotting.Figure:
    """Iterations that BP takes to leave the origin over those that PC takes, one mark a seed, a line at the median. An arrow marks a
    bound: BP was still on the plateau when its run ended.
    """
    columns = sorted(ARMS, key=lambda arm: arm[1])
    title = "Escape from the origin: iterations of BP over iterations of PC"
    figure, axes = plotting.panels(1, 1, title, y="ratio of escape iterations", width=7.2, height=2.9)
    axis, n = axes[0, 0], 0
    for place, (net, protocol) in enumerate(columns):
        both, _ = pc_and_bp(training(records, net, protocol))
        colour = "#333333" if protocol == "corrected" else "#999999"
        ratios = [ratio for pc, bp in both if np.isfinite((ratio := escape_ratio(pc, bp)).value)]
        for k, ratio in enumerate(ratios):
            marker = "o" if ratio.bound == "exact" else "^" if ratio.bound == "at_least" else "v"
            axis.plot(place + 0.08 * (k - (len(ratios) - 1) / 2), ratio.value, marker, color=colour, ms=4.5)
        if ratios:
            median = float(np.median([ratio.value for ratio in ratios]))
            axis.plot([place - 0.3, place + 0.3], [median, median], color=colour, lw=1.2)
        n += 2 * len(ratios)
    axis.axhline(1, color="#777777", lw=0.8, ls="--")
    axis.set_yscale("log")
    names = [NAMES[net].replace(", ", "\n").replace("chain H", "chain\nH") for net, _ in columns]
    scales = ["published" if protocol == "published" else "one scale" for _, protocol in columns]
    axis.set_xticks(range(len(columns)), [f"{n}\n{s}" for n, s in zip(names, scales, strict=True)], fontsize=7.5)
    plotting.dress(axis, records.about, n)
    marks = [plotting.dots("a seed", "#333333"), plotting.dots("at least (BP did not escape)", "#333333", "^")]
    return plotting.legend(figure, [*marks, plotting.mark("median", "#333333")])


FIGURES = {"4.2": figure_4_2, "B.1": figure_b_1, "escape": figure_escape}
