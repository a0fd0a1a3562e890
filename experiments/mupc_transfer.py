"""muPC transfer: does the best pair (eta, beta) of the smallest net serve wider and deeper ones (figures 5.1 left, 5.5,
C.31, C.32)?

Setting. Pre-activation ResNets without biases in muPC, MNIST with one-hot targets, batch 64, one epoch; PC with T =
n_hidden steps of gradient descent on activities from the forward pass, Adam on weights, its rate not rescaled with
width or depth. The grid is the published one or a part of it: eta on weights, beta on activities, widths at one depth,
depths at one width.

Text and code. A published beta is a step on the batch mean of the energy, B times the per-sample step that is written
here (1 is 1/64). `published` infers in activities, where layers that no signal has reached get float32 round-off for a
gradient, which Adam amplifies to full steps; `corrected` infers in deviations, where they get exactly zero and stay.

Definitions. lowest_loss: the lowest loss of a training batch, 1/(2B) sum ||y - f(x)||^2, over the recorded iterations
(all of them); the published figure divides by the ten outputs as well. A run that diverged counts as infinitely bad.
Per size and (eta, beta) the geometric mean over seeds; ratio: its value at the smallest size's best pair, over the
size's own best. The published claim is by eye; that the ratio stays within 1.1 is ours.
"""

import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from pcexp.config.study import AbstractStudy
from pcexp.report import claims, plotting
from pcexp.report.claims import Case, Claim, Records, Verdict, ended, insufficient, missing, rule
from pcexp.run.job import Job
from pcexp.train import Observation

WITHIN = 1.1
ETA, BETA = "optimiser.learning_rate", "learning.inference.activity_lr"
BATCH = 64
"""Published betas are per-sample ones times this."""


class MuPCTransfer(AbstractStudy):
    """Training over a grid of learning rates, with the loss of every batch."""

    def run(self, job: Job) -> None:
        job.train(measure, probe_size=BATCH)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        finite = rows["loss"][np.isfinite(rows["loss"])]
        return {"lowest_loss": float(finite.min()) if finite.size else math.inf, "first_loss": float(rows["loss"][0])}


def measure(seen: Observation) -> dict[str, Array]:
    """Loss of the batch at the forward pass, before its update."""
    return {"loss": seen.loss}


# Grids


Pair = tuple[float, float]
"""Rates (eta, beta)."""


class Grid(NamedTuple):
    """Lowest loss of one size, by pair of rates: geometric mean over seeds, infinite where one diverged."""

    width: int
    n_hidden: int
    loss: dict[Pair, float]
    n: int

    @property
    def best(self) -> Pair:
        return min(sorted(self.loss), key=lambda pair: self.loss[pair])


def grids(records: Records, axis: str) -> list[Grid]:
    """One grid a size along one arm of the L, the smallest first, of runs that ended or diverged.

    A pair whose seeds are not all there is left out.
    """
    seeds: dict[tuple[int, int], dict[Pair, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in ended(records):
        size = claims.width_of(run), claims.n_hidden_of(run)
        seeds[size][run[ETA], run[BETA]].append(run["lowest_loss"] if run["outcome"] == "done" else math.inf)
    found = []
    for size, pairs in sorted(seeds.items()):
        whole = max(len(values) for values in pairs.values())
        loss = {pair: float(np.exp(np.mean(np.log(v)))) for pair, v in pairs.items() if len(v) == whole}
        found.append(Grid(*size, loss, sum(len(values) for values in pairs.values())))
    sizes = operator.attrgetter("width"), operator.attrgetter("n_hidden")
    return claims.arm_of_an_l(found, *(sizes if axis == "width" else reversed(sizes)))


def transfer_ratio(small: Grid, large: Grid) -> float:
    """Loss of the large net at the small one's best pair, over its own best."""
    at = large.loss.get(small.best, math.inf)
    return at / large.loss[large.best] if math.isfinite(at) else math.inf


# Claims

PROTOCOLS = ("published", "corrected")
FIGURE_OF = {"tanh": "5.5", "linear": "C.31", "relu": "C.32"}
LEARNING_RATES = "the best learning rates transfer"


@rule
def _transfers(records: Records, protocol: str, activation: str, axis: str) -> Verdict:
    expected = f"loss at the smallest net's best (eta, beta), over the best loss of each larger net <= {WITHIN}"
    part = records.select(protocol=protocol, activation=activation)
    if not len(part.asked):
        return insufficient(records, expected, f"no {activation} runs were asked for")
    if lost := missing(part):  # any pair that is not there may be the best one
        return insufficient(part, expected, f"{lost} of {len(part.asked)} runs missing")
    line = grids(part, axis)
    if len(line) < 2 or not math.isfinite(line[0].loss[line[0].best]):
        return insufficient(part, expected, f"{len(line)} sizes with numbers")
    ratios = [(grid, transfer_ratio(line[0], grid)) for grid in line[1:]]
    name = "N={0.width}" if axis == "width" else "H={0.n_hidden}"
    cases = [(name.format(grid), Case(ratio <= WITHIN, ratio)) for grid, ratio in ratios]
    return claims.verdict(part, expected, cases, n=sum(grid.n for grid in line))


CLAIMS = tuple(
    Claim(figure, f"{protocol}, {activation}: {LEARNING_RATES} over {axis}", _transfers(protocol, activation, axis))
    for activation, figure in FIGURE_OF.items()
    for protocol in PROTOCOLS
    for axis in ("width", "depth")
)


# Figures


def _draw(axis: Any, grid: Grid, smallest: Grid, levels: np.ndarray) -> Any:
    """Contours of log10 lowest loss over (beta, eta); the optimum, and the smallest net's."""
    etas, betas = (sorted({pair[i] for pair in grid.loss}) for i in (0, 1))
    values = np.array([[grid.loss.get((eta, beta), math.nan) for beta in betas] for eta in etas])
    failed = ~np.isfinite(values)
    shown = np.ma.masked_array(np.log10(np.where(failed, 1.0, values)), failed)
    x, y = np.array(betas) * BATCH, np.array(etas)
    drawn = None
    if min(shown.shape) > 1:
        drawn = axis.contourf(x, y, np.clip(shown, levels[0], levels[-1]), levels=levels, cmap="viridis_r")
    axis.plot(*np.meshgrid(x, y), ".", color="white", ms=2, alpha=0.6, clip_on=False)
    for i, j in zip(*np.nonzero(failed), strict=True):
        axis.plot(x[j], y[i], "x", color="#c1272d", ms=5, clip_on=False)
    for (eta, beta), marker, fill in ((smallest.best, "o", "none"), (grid.best, "*", "white")):
        style = {"color": "white", "mec": "black", "mew": 0.8, "ms": 9, "clip_on": False}
        axis.plot(beta * BATCH, eta, marker, mfc=fill, **style)
    axis.set(xscale="log", yscale="log")
    axis.grid(False)
    return drawn


def _contours(
    records: Records, title: str, activation: str, arms: Sequence[str] = ("width", "depth")
) -> plotting.Figure | None:
    """Rows are arms and protocols, columns sizes (of one arm its ends); of what was asked for, if there is any."""
    lines = {}
    for axis, protocol in itertools.product(arms, PROTOCOLS):
        part = records.select(protocol=protocol, activation=activation)
        if len(part.runs):
            line = grids(part, axis)
            lines[protocol, axis] = [line[0], line[-1]] if len(arms) == 1 and len(line) > 2 else line
    # A size alone shows no transfer: a row of it is there only where nothing else is.
    lines = {key: line for key, line in lines.items() if len(line) != 1} or ({} if len(arms) == 1 else lines)
    if not lines:
        return None
    columns = max(1, *(len(line) for line in lines.values()))
    labels = r"$\beta$ (on the batch mean)", r"$\eta$"
    figure, panels = plotting.panels(len(lines), columns, title, *labels, width=2.6, height=2.3)
    seen = [np.log10(loss) for line in lines.values() for g in line for loss in g.loss.values() if math.isfinite(loss)]
    # Loss 1/2 is that of f = 0: what is far above it is all alike.
    lowest, highest = math.floor(10 * min(seen, default=-1)) / 10, math.ceil(10 * min(max(seen, default=0), 0)) / 10
    levels = np.linspace(lowest, max(highest, lowest + 0.1), 11)
    drawn = None
    for row, ((protocol, _), line) in zip(panels, lines.items(), strict=True):
        for axis, grid in zip(row, line, strict=False):
            drawn = _draw(axis, grid, line[0], levels) or drawn
            title = f"{protocol}, N = {grid.width}, H = {grid.n_hidden}"
            plotting.dress(axis, records.about, grid.n, title, fontsize=8, pad=12)
        if not line:
            plotting.note(row[0], "no runs yet")
        for axis in row[max(1, len(line)) :]:
            axis.set_axis_off()
    if drawn is not None:
        figure.colorbar(drawn, ax=panels, label="log10 of the lowest batch loss", shrink=0.6, format="%.2f")
    marks = [
        plotting.dots("best of this net", "#999999", "*", ms=9, mec="black"),
        plotting.dots("best of the smallest", "#999999", ms=9, mec="black", mfc="none"),
        plotting.dots("a seed diverged", "#c1272d", "x", ms=5),
    ]
    return plotting.legend(figure, marks)


def figure_5_1_left(records: Records) -> plotting.Figure | None:
    """Lowest loss over both learning rates, the shallowest and the deepest net, tanh."""
    return _contours(records, "Figure 5.1, left: lowest training loss, tanh", "tanh", ("depth",))


def _by_size(activation: str) -> Callable[[Records], plotting.Figure | None]:
    title = f"lowest training loss over learning rates, {plotting.written(activation)}"

    def figure(records: Records) -> plotting.Figure | None:
        return _contours(records, f"Figure {FIGURE_OF[activation]}: {title}", activation)

    figure.__doc__ = f"Lowest loss over both learning rates, by width and by depth, {plotting.written(activation)}."
    return figure


FIGURES = {"5.1 left": figure_5_1_left} | {name: _by_size(activation) for activation, name in FIGURE_OF.items()}
