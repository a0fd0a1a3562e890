"""Figures that look like one paper: one colour a meaning, seeds visible, every panel says scale, data set and n.

matplotlib is imported when the first figure is drawn: a run needs none, and studies import this module.
"""

import functools
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any

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
GREY = "#555555"
"""What is of no rule and no parameterisation."""

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


@functools.cache
def pyplot() -> Any:
    """matplotlib's pyplot in this style, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    mpl.use("agg")  # no display: figures are files
    import matplotlib.pyplot as plt

    mpl.rcdefaults()
    mpl.rcParams.update(STYLE)  # type: ignore[arg-type]  # its keys are literals
    return plt


def written(label: str) -> str:
    """A label as people write it."""
    return NAMES.get(label, label)


def panels(
    rows: int,
    columns: int,
    title: str,
    x: str = "",
    y: str | Sequence[str] = "",
    *,
    width: float = 3.0,
    height: float = 2.4,
) -> tuple[Figure, Any]:
    """A grid of panels (always a 2-D array of axes) under one title; width and height of a panel in inches.

    `x` is written below the last row, and `y` left of the first column, one for all rows or each its own.
    """
    size = (width * columns + 0.4, height * rows + 0.6)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel(x)
    for axis, label in zip(axes[:, 0], [y] * rows if isinstance(y, str) else y, strict=True):
        axis.set_ylabel(label)
    return figure, axes


def shades(values: Iterable[Any]) -> dict[Any, Any]:
    """The colour of each value (depths, widths), from dark to light in their order."""
    several, colours = list(values), pyplot().get_cmap("viridis")
    return {value: colours(0.9 * i / max(len(several) - 1, 1)) for i, value in enumerate(several)}


def dress(axis: Axes, about: str, n: int, title: str | None = None, *, of: str = "runs", **style: Any) -> None:
    """Title of a panel, and its caption: what it shows (data and scale) and how many runs; a note where there are none."""
    if title is not None:
        axis.set_title(title, **({"loc": "left"} | style))
    caption(axis, about, n, of)
    if not n:
        note(axis, f"no {of} yet")


def caption(axis: Axes, about: str, n: int, of: str = "runs") -> None:
    """Say in the panel what it shows (data and scale) and how many runs."""
    axis.annotate(
        f"{about}, {n} {of}", (1, 1.0), xycoords="axes fraction", ha="right", va="bottom", fontsize=6.5, color=GREY
    )


def note(axis: Axes, text: str) -> None:
    """A remark in the middle of a panel, for one that has nothing to draw."""
    axis.text(
        0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=8, color="#777777", wrap=True
    )


def mark(label: str, colour: Any = GREY, **style: Any) -> Any:
    """A line or a marker, for a legend."""
    return pyplot().Line2D([], [], color=colour, label=label, **style)


def dots(label: str, colour: Any = GREY, marker: str = "o", ms: float = 4, **style: Any) -> Any:
    """A marker without a line, for a legend."""
    return mark(label, colour, marker=marker, ls="", ms=ms, **style)


def patch(label: str, colour: Any, **style: Any) -> Any:
    """A filled area, for a legend."""
    return pyplot().Rectangle((0, 0), 1, 1, color=colour, label=label, **style)


def diverged() -> Any:
    """The mark of runs that diverged, for a legend."""
    return dots("diverged", marker="x", ms=5)


def legend(figure: Figure, handles: Iterable[Any], columns: int = 6) -> Figure:
    """The figure with one legend below all panels, in so many columns at most."""
    shown = list(handles)
    figure.legend(handles=shown, loc="outside lower center", ncols=min(len(shown), columns))
    return figure


def rendered(figure: Figure, kind: str) -> bytes:
    """The figure as a PNG or PDF file; the same figure gives the same bytes on any day."""
    for axes in figure.axes:
        # Of runs that diverged at once nothing is above zero, and matplotlib ends there.
        if axes.get_xscale() == "log" and not min(axes.get_xlim()) > 0:
            axes.set_xscale("linear")
        if axes.get_yscale() == "log" and not min(axes.get_ylim()) > 0:
            axes.set_yscale("linear")
    buffer = io.BytesIO()
    metadata = {"CreationDate": None, "ModDate": None, "Producer": "pcexp", "Creator": "pcexp"}
    figure.savefig(buffer, format=kind, metadata=metadata if kind == "pdf" else {"Software": "pcexp"})
    return _fewer_colours(buffer) if kind == "png" else buffer.getvalue()


def _fewer_colours(png: io.BytesIO) -> bytes:
    """The same picture with a palette: a third of the bytes, in a repository and in a page that embeds it."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(png).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
