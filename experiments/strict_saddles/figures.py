"""Figures of the study: curvature against F*, how many points of each class and rank, and how well all are known."""

from typing import Any

import numpy as np

from experiments.strict_saddles.batches import D_OUT, KINDS
from experiments.strict_saddles.points import FOUND, RANK, SORTS_OF_DATA, TOLERANCE, Points, points_of
from experiments.strict_saddles.search import REACH
from experiments.strict_saddles.starts import Start
from pcexp.report import plotting
from pcexp.report.claims import Records
from pcexp.report.plotting import Figure

SORTS = {
    Start.RANDOM: ("random weights", "#3b6ea5", "o"),
    Start.SMALL_OUTPUT: ("random, small $W_L$", "#56b4e9", "o"),
    Start.SADDLE: ("saddle of the loss", "#1b9e77", "^"),
    Start.NEAR_SADDLE: ("near a saddle", "#a6d854", "^"),
    Start.TIGHTENED: ("tightened saddle", "#7b3294", "s"),
    Start.NEAR_TIGHTENED: ("near a tightened one", "#c2a5cf", "s"),
    Start.EDGE: ("edge of local minima", "#c1272d", "D"),
}
CLASSES = {
    "strict saddle": "#3b6ea5",
    "global minimum": "#bbbbbb",
    "local minimum": "#e08214",
    "non-strict saddle": "#c1272d",
}
"""Colours of the classes of points."""
FLOOR = 1e-17
BESIDE = 0.035
"""How far apart sorts of start are drawn at one height."""


def figure_points(records: Records) -> Figure:
    """Lowest eigenvalue of F*'s Hessian at every critical point found, over F* above its infimum, by sort of start."""
    points = points_of(records)
    title = "Critical points of F*: lowest curvature over height"
    figure, panels = plotting.panels(1, len(SORTS_OF_DATA), title, width=3.4, height=3.0)
    for panel, name in zip(panels[0], SORTS_OF_DATA, strict=True):
        part = points.of(name)
        part = part.among(part.found)
        for sort, (_, colour, marker) in SORTS.items():
            here = part.among(part.at("start") == sort)
            if here.n:
                size = 22 if sort is Start.EDGE else 9
                style = {"s": size, "c": colour, "marker": marker, "alpha": 0.7, "lw": 0, "zorder": 2 + (size > 9)}
                panel.scatter(here.at("excess") + BESIDE * (sort - 3), here.at("lambda_min"), **style)
        panel.axhline(0, color="#000000", lw=0.6)
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.set(xlim=(-0.25, 5.0), ylim=(-1000, 1e-2), xlabel="F* above its infimum (sorts side by side)")
        plotting.dress(panel, records.about, part.n, name.replace(">=", "≥"), of="points", pad=12)
    panels[0, 0].set_ylabel(r"$\lambda_{\min}$ of the Hessian of F*")
    marks = [plotting.dots(name, colour, marker, ms=5) for name, colour, marker in SORTS.values()]
    plotting.legend(figure, marks, columns=7)
    return figure


def figure_counts(records: Records) -> Figure:
    """How many critical points of each class and of each rank of the map were found, by kind of data and width."""
    points = points_of(records)
    title = "Critical points of F* by class and by rank of the map"
    figure, panels = plotting.panels(2, 2, title, width=4.2, height=2.5)
    shades = list(plotting.shades(range(D_OUT + 1)).values())
    for column, (title, wide) in enumerate({"N < K": False, "N ≥ K": True}.items()):
        part = points.among(points.found & ((points.width >= D_OUT) == wide))
        kinds = np.array(part.kind, str)
        ranks = {f"rank {r}": part.rank == r for r in range(D_OUT + 1)}
        for panel, classes, colours in (
            (panels[0, column], part.classes(), CLASSES),
            (panels[1, column], ranks, dict(zip(ranks, shades, strict=True))),
        ):
            left = np.zeros(len(KINDS))
            for name, chosen in classes.items():
                n = np.array([np.sum(chosen & (kinds == kind)) for kind in KINDS])
                panel.barh(np.arange(len(KINDS)), n, left=left, color=colours[name], height=0.7)
                left = left + n
            panel.set_yticks(np.arange(len(KINDS)), [kind.replace("_", " ") for kind in KINDS] if column == 0 else [])
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            panel.set_title(title, loc="left")
            panel.set_xlabel("points")
            panel.set_xlim(0, max(1, 1.05 * float(np.max(left))))
            plotting.caption(panel, records.about, part.n, "points")
    marks = [plotting.patch(name, colour) for name, colour in CLASSES.items()]
    marks += [plotting.patch(f"rank {rank}", colour) for rank, colour in enumerate(shades)]
    plotting.legend(figure, marks, columns=4)
    return figure


def figure_polish(records: Records) -> Figure:
    """How well points are known: gradient norms of all starts, singular values of the maps, curvatures, with the thresholds."""
    points = points_of(records)
    title = "What counts as found, as a rank, as negative curvature"
    figure, panels = plotting.panels(1, 3, title, width=3.4, height=2.8)
    part = points.among(points.found)
    _gradients(panels[0, 0], points)
    _histogram(
        panels[0, 1],
        {"maps": (np.concatenate([part.at(f"map_{i}") for i in range(1, D_OUT + 1)]), "#4d4d4d")},
        RANK, "singular value of the map", "rank",
    )  # fmt: skip
    scale = np.maximum(part.at("lambda_max"), FLOOR)
    low = part.at("lambda_min") / scale
    _histogram(
        panels[0, 2],
        {
            r"$-\lambda_{\min}$, negative": (-low[low < -TOLERANCE], CLASSES["strict saddle"]),
            r"$|\lambda_{\min}|$, others": (np.abs(low[low >= -TOLERANCE]), CLASSES["local minimum"]),
            "rotations: |H t|": (part.at("zero_mode") / scale, "#bbbbbb"),
        },
        TOLERANCE, "curvature / norm of the Hessian", "tolerance",
    )  # fmt: skip
    for panel, n in zip(panels[0], (points.n, part.n, part.n), strict=True):
        plotting.caption(panel, records.about, n, "points")
    panels[0, 0].set_ylabel("count")
    return figure


def _gradients(panel: Any, points: Points) -> None:
    ended, found = points.at("gradient"), points.found
    far = ~found & (points.at("size") > 0.9 * REACH)
    _histogram(
        panel,
        {
            "found": (ended[found], "#3b6ea5"),
            "not found: stalled": (ended[~found & ~far], "#e08214"),
            f"not found: a weight near {REACH:g}": (ended[far], "#c1272d"),
        },
        FOUND, "norm of the gradient of F*", "found",
    )  # fmt: skip


def _histogram(panel: Any, parts: dict[str, tuple[np.ndarray, str]], threshold: float, label: str, name: str) -> None:
    """Stacked counts over a logarithmic axis; what is below its end is drawn there."""
    edges = np.geomspace(FLOOR, 1e2, 58)
    panel.hist(
        [np.clip(values, FLOOR * 1.01, 99.0) for values, _ in parts.values()], bins=edges,
        stacked=True, color=[colour for _, colour in parts.values()], label=list(parts),
    )  # fmt: skip
    panel.axvline(threshold, color="#000000", lw=0.8, ls="--")
    style: dict[str, Any] = {"fontsize": 6.5, "rotation": 90, "ha": "right", "va": "top"}
    panel.annotate(f"{name} {threshold:g}", (threshold, 0.99), xycoords=("data", "axes fraction"), **style)
    panel.set(xscale="log", xlabel=label)
    panel.set_yscale("symlog", linthresh=1)
    if len(parts) > 1:
        panel.set_ylim(0, 100 * panel.get_ylim()[1])
        panel.legend(fontsize=6.5, loc="upper right")


FIGURES = {"points": figure_points, "counts": figure_counts, "polish": figure_polish}
