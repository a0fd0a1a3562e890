"""Figures of the study: curvature against F*, how many points of each class and rank, and how well all are known."""

from typing import Any

import numpy as np

from pcexp.experiments.strict_saddles.claims import FOUND, RANK, SORTS_OF_DATA, TOLERANCE, points_of
from pcexp.experiments.strict_saddles.search import REACH
from pcexp.experiments.strict_saddles.starts import D_OUT, KINDS, Start
from pcexp.report import plotting
from pcexp.report.claims import Records

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


def figure_points(records: Records) -> plotting.Figure:
    """Lowest eigenvalue of F*'s Hessian at every critical point found, over F* above its infimum, by sort of start."""
    points, title = points_of(records), "Critical points of F*: lowest curvature over height"
    labels = "F* above its infimum (sorts side by side)", r"$\lambda_{\min}$ of the Hessian of F*"
    figure, panels = plotting.panels(1, len(SORTS_OF_DATA), title, *labels, width=3.4, height=3.0)
    for panel, name in zip(panels[0], SORTS_OF_DATA, strict=True):
        part = points.among(points["found"]).of(name)
        for sort, (_, colour, marker) in SORTS.items():
            here = part.among(part["start"] == sort)
            if here.n:
                size = 22 if sort is Start.EDGE else 9
                style = {"s": size, "c": colour, "marker": marker, "alpha": 0.7, "lw": 0, "zorder": 2 + (size > 9)}
                panel.scatter(here["excess"] + BESIDE * (sort - 3), here["lambda_min"], **style)
        panel.axhline(0, color="#000000", lw=0.6)
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.set(xlim=(-0.25, 5.0), ylim=(-1000, 1e-2))
        plotting.dress(panel, records.about, part.n, name.replace(">=", "≥"), of="points", pad=12)
    marks = [plotting.dots(name, colour, marker, ms=5) for name, colour, marker in SORTS.values()]
    return plotting.legend(figure, marks, columns=7)


def figure_counts(records: Records) -> plotting.Figure:
    """How many critical points of each class and of each rank of the map were found, by kind of data and width."""
    points, title = points_of(records), "Critical points of F* by class and by rank of the map"
    figure, panels = plotting.panels(2, 2, title, width=4.2, height=2.5)
    shades = plotting.shades(range(D_OUT + 1))
    kinds = [kind.replace("_", " ") for kind in KINDS]
    for column, (title, wide) in zip(panels.T, {"N < K": False, "N ≥ K": True}.items(), strict=True):
        part = points.among(points["found"] & ((points["width"] >= D_OUT) == wide))
        ranks = {rank: part["rank"] == rank for rank in shades}
        for panel, classes, colours in zip(column, (part.classes(), ranks), (CLASSES, shades), strict=True):
            left = np.zeros(len(KINDS))
            for name, chosen in classes.items():
                n = np.array([np.sum(chosen & (part["kind"] == kind)) for kind in KINDS])
                panel.barh(np.arange(len(KINDS)), n, left=left, color=colours[name], height=0.7)
                left = left + n
            panel.set_yticks(np.arange(len(KINDS)), [] if wide else kinds)
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            panel.set(xlabel="points", xlim=(0, max(1, 1.05 * float(np.max(left)))))
            plotting.dress(panel, records.about, part.n, title, of="points")
    marks = [plotting.patch(name, colour) for name, colour in CLASSES.items()]
    marks += [plotting.patch(f"rank {rank}", colour) for rank, colour in shades.items()]
    return plotting.legend(figure, marks, columns=4)


def figure_polish(records: Records) -> plotting.Figure:
    """How well points are known: gradient norms of all starts, singular values of the maps, curvatures, with the thresholds."""
    points, title = points_of(records), "What counts as found, as a rank, as negative curvature"
    figure, panels = plotting.panels(1, 3, title, y="count", width=3.4, height=2.8)
    gradients, found = points["gradient"], points["found"]
    far = ~found & (points["size"] > 0.9 * REACH)
    part = points.among(found)
    scale = np.maximum(part["lambda_max"], FLOOR)
    low = part["lambda_min"] / scale
    norms = {
        "found": (gradients[found], "#3b6ea5"),
        "not found: stalled": (gradients[~found & ~far], "#e08214"),
        f"not found: a weight near {REACH:g}": (gradients[far], "#c1272d"),
    }
    maps = {"maps": (np.concatenate([part[f"map_{i}"] for i in range(1, D_OUT + 1)]), "#4d4d4d")}
    curvatures = {
        r"$-\lambda_{\min}$, negative": (-low[low < -TOLERANCE], CLASSES["strict saddle"]),
        r"$|\lambda_{\min}|$, others": (np.abs(low[low >= -TOLERANCE]), CLASSES["local minimum"]),
        "rotations: |H t|": (part["zero_mode"] / scale, "#bbbbbb"),
    }
    _histogram(panels[0, 0], norms, FOUND, "norm of the gradient of F*", "found")
    _histogram(panels[0, 1], maps, RANK, "singular value of the map", "rank")
    _histogram(panels[0, 2], curvatures, TOLERANCE, "curvature / norm of the Hessian", "tolerance")
    for panel, n in zip(panels[0], (points.n, part.n, part.n), strict=True):
        plotting.caption(panel, records.about, n, "points")
    return figure


def _histogram(panel: Any, parts: dict[str, tuple[np.ndarray, str]], threshold: float, label: str, name: str) -> None:
    """Stacked counts over a logarithmic axis; what is below its end is drawn there."""
    values = [np.clip(values, FLOOR * 1.01, 99.0) for values, _ in parts.values()]
    colours = [colour for _, colour in parts.values()]
    panel.hist(values, np.geomspace(FLOOR, 1e2, 58), stacked=True, color=colours, label=list(parts))
    panel.axvline(threshold, color="#000000", lw=0.8, ls="--")
    style: dict[str, Any] = {"fontsize": 6.5, "rotation": 90, "ha": "right", "va": "top"}
    panel.annotate(f"{name} {threshold:g}", (threshold, 0.99), xycoords=("data", "axes fraction"), **style)
    panel.set(xscale="log", xlabel=label)
    panel.set_yscale("symlog", linthresh=1)
    if len(parts) > 1:
        panel.set_ylim(0, 100 * panel.get_ylim()[1])
        panel.legend(fontsize=6.5, loc="upper right")


FIGURES = {"points": figure_points, "counts": figure_counts, "polish": figure_polish}
