"""Figures that look like one paper: one colour a meaning, seeds visible, every panel says scale, data set and n."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # no display: figures are files

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

COLOURS = {
    "pc": "#c1272d",
    "bp": "#3b6ea5",
    "standard": "#4d4d4d",
    "mupc": "#7b3294",
    "ntk": "#e08214",
    "orthogonal": "#1b9e77",
    "theory": "#000000",
}
"""Colour of each learning rule and parameterisation, the same in every figure."""

NAMES = {"pc": "PC", "bp": "BP", "mupc": "muPC", "ntk": "NTK", "relu": "ReLU"}
"""How labels are written for people where that is not the label itself."""

STYLE: dict[str, Any] = {
    "figure.dpi": 130,
    "savefig.dpi": 130,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "svg.hashsalt": "pcexp",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
mpl.rcdefaults()  # a user's matplotlibrc must not change a figure
mpl.rcParams.update(STYLE)  # type: ignore[arg-type]  # its keys are literals


def written(label: str) -> str:
    """A label as people write it."""
    return NAMES.get(label, label)


def panels(rows: int, columns: int, title: str, width: float = 3.0, height: float = 2.4) -> tuple[Figure, Any]:
    """A grid of panels (always a 2-D array of axes) under one title."""
    size = (width * columns + 0.4, height * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, axes


def shades(n: int) -> list[Any]:
    """Colours of n values in order (depths, widths), from dark to light."""
    return [mpl.colormaps["viridis"](0.9 * i / max(n - 1, 1)) for i in range(n)]


def caption(axis: Axes, about: str, n: int) -> None:
    """Say in the panel what it shows (data and scale) and how many runs."""
    axis.annotate(
        f"{about}, {n} runs", (1, 1.0), xycoords="axes fraction", ha="right", va="bottom", fontsize=6.5, color="#555555"
    )


def note(axis: Axes, text: str) -> None:
    """A remark in the middle of a panel, for one that has nothing to draw."""
    axis.text(
        0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=8, color="#777777", wrap=True
    )


def diverged() -> Line2D:
    """The mark of runs that diverged, for a legend."""
    return Line2D([], [], color="#555555", marker="x", ls="", ms=5, label="diverged")


def legend(figure: Figure, handles: Sequence[Any], columns: int = 6) -> None:
    """One legend below all panels, in so many columns at most."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=min(len(handles), columns))


def rendered(figure: Figure, kind: str) -> bytes:
    """The figure as a PNG or PDF file; the same figure gives the same bytes on any day."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None, "ModDate": None, "Producer": "pcexp", "Creator": "pcexp"}
    figure.savefig(buffer, format=kind, metadata=metadata if kind == "pdf" else {"Software": "pcexp"})
    return _fewer_colours(buffer) if kind == "png" else buffer.getvalue()


def _fewer_colours(png: io.BytesIO) -> bytes:
    """The same picture with a palette: a third of the bytes, in a repository and in a page that embeds it."""
    small = io.BytesIO()
    Image.open(png).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
