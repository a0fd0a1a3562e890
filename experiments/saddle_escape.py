"""Saddle escape: from near a saddle of the loss, PC leaves the plateau in fewer iterations than BP (figures 4.5, B.5,
B.6).

Setting. Post-activation networks without biases (convolutional biases excepted), W ~ N(0, sigma^2) near the saddle at
the origin (4.5, B.5), or near the zero-rank saddle with the penultimate matrix at its default initialisation (B.6);
SGD, batch 64, inference by gradient descent with beta = 0.1 per sample from the forward pass.

Text and code. The published code updates the weights with the errors before the last activity step; here `max_steps`
counts activity steps, and the errors after the last one are used. In the published comparison PC's gradient was summed
over the batch and BP's a mean over batch and outputs, so at one learning rate PC's was B K / 2 = 320 times larger
(protocol `published`); `corrected` sums both. The published rule "stop when the epoch-mean loss improves by less than
1e-3" fires on the plateau itself where an epoch is short, so lanes run for a fixed number of epochs.

Definitions. escape_iteration: the first recorded iteration at which the loss on a fixed probe batch is below 0.9 of its
initial value; the iterations run if there is none, with `escaped` beside it. With ten balanced one-hot classes the best
map that is constant in x reaches exactly 0.9, so this can fall on the second plateau. Two events are reported beside
it: departure_iteration, the same at 0.95, lies between the two plateaus; beyond_constant_iteration, the first with a
probe loss below 0.97 of the best constant map's, lies after the second. Where biases are free (the convolutional net) a
constant map is a short way from the start, and the saddle that is hard to leave is the second plateau. map_rank: singular values of the probe outputs above a tenth of the largest.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pcexp.config.study import AbstractStudy
from pcexp.energy import outputs
from pcexp.report import claims, plotting
from pcexp.report.claims import Claim, Ratio, Records, Rule, Run, Verdict, done, rule
from pcexp.run.job import Job
from pcexp.train import Observation, weight_norms

ESCAPE_FRACTION = 0.9
DEPARTURE_FRACTION = 0.95
BEYOND_CONSTANT_FRACTION = 0.97
RANK_FRACTION = 0.1
DIAGNOSTICS = ("gradient_factor", "inference_residual", "inference_steps", "inference_halvings", "equilibrated_energy")


class SaddleEscape(AbstractStudy):
    """Training from near a saddle, with the loss on a fixed probe batch of `probe_size` training examples."""

    probe_size: int
    revision = 2  # since 2: constant_map_loss, and what follows from it; the small convolutional net learns faster

    def run(self, job: Job) -> None:
        job.train(measure, self.probe_size)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        start = rows["probe_loss"][0]
        departed, departure = _first_below(rows, DEPARTURE_FRACTION * start)
        escaped, escape = _first_below(rows, ESCAPE_FRACTION * start)
        beyond, beyond_constant = _first_below(rows, BEYOND_CONSTANT_FRACTION * rows["constant_map_loss"])
        iteration, rank = rows["iteration"], rows["map_rank"]
        norms = np.sqrt(np.sum(np.square(rows["gradient_norm"]), axis=1)) / rows["gradient_factor"]
        two = np.flatnonzero(rank[departure:] >= 2)
        end = departure + int(two[0]) if two.size else len(rank) - 1
        return {
            "escaped": escaped,
            "escape_iteration": int(iteration[escape]),
            "departed": departed,
            "departure_iteration": int(iteration[departure]),
            "beyond_constant": beyond,
            "beyond_constant_iteration": int(iteration[beyond_constant]),
            # Of the gradient of F: the learning rule's scale is taken out, so that PC and BP compare.
            "plateau_gradient_norm": float(np.min(norms[: departure + 1])),
            "rank_at_departure": int(rank[departure]),
            # From the departure to rank two, or to the end if the map stays at rank one: the second plateau.
            "rank_one_iterations": int(iteration[end] - iteration[departure]),
            "final_probe_loss": float(rows["probe_loss"][-1]),
        }


def _first_below(rows: Mapping[str, np.ndarray], level: float | np.ndarray) -> tuple[bool, int]:
    """Whether the probe loss falls below a level, and the first row where it does (else the last row)."""
    below = np.flatnonzero(rows["probe_loss"] < level)
    return below.size > 0, int(below[0]) if below.size else len(rows["probe_loss"]) - 1


def measure(seen: Observation) -> dict[str, Array]:
    """Training error of the batch, probe loss, rank of the map, norm of each weight gradient (of F, whatever its scale).

    `constant_map_loss` is the probe loss of the best map that is constant in x: the mean of the probe targets.
    """
    f, y = outputs(seen.network, seen.data.probe_x), seen.data.probe_y
    squares = jnp.linalg.eigvalsh(f @ f.T)  # of the singular values
    return {
        "train_error": 2 * seen.loss / y.shape[0],
        "probe_loss": jnp.sum(jnp.square(y - f)) / (2 * y.shape[1]),
        "constant_map_loss": jnp.sum(jnp.var(y, axis=1)) / 2,
        "map_rank": jnp.sum(squares > RANK_FRACTION**2 * squares[-1]),
        "gradient_norm": weight_norms(seen.gradient),
        **{name: value for name, value in seen.diagnostics.items() if name in DIAGNOSTICS},
    }


# Claims

PROTOCOLS = ("published", "corrected")
ACTIVATIONS = ("linear", "tanh", "relu")
EVENTS = {"escape": "escaped", "departure": "departed", "beyond_constant": "beyond_constant"}
"""Events of which a run has the iteration, and the column that says whether they were seen."""


@rule
def _exceeds_one(
    records: Records, protocol: str, start: str, expected: str, ratio: Callable[[Run, Run], Ratio]
) -> Verdict:
    """The ratio of (PC, BP) runs of the same seed exceeds one, for every seed of every activation."""
    records = records.select(protocol=protocol, parameterisation=start)
    ratios, lost = claims.ratios_of({a: records.select(activation=a) for a in ACTIVATIONS}, ratio)
    return claims.paired(records, expected, ratios, missing=lost)


def _escapes(protocol: str, start: str, event: str = "escape") -> Rule:
    columns = f"{event}_iteration", EVENTS[event]
    expected = "iterations of BP / PC > 1"
    return _exceeds_one(protocol, start, expected, lambda pc, bp: claims.passage_ratio(pc, bp, *columns))


def _norm_ratio(pc: Run, bp: Run) -> Ratio:
    if not pc["departed"]:  # then the plateau was not seen to its end
        return Ratio(float("nan"), "unknown")
    return Ratio(pc["plateau_gradient_norm"] / max(bp["plateau_gradient_norm"], 1e-38), "exact")


@rule
def _second_plateau(records: Records, protocol: str) -> Verdict:
    expected = "PC departs with a map of rank one, and stays there for over a tenth of its time to depart"
    part = records.select(protocol=protocol, parameterisation="near_origin", learning="pc")
    runs = [run for run in done(part) if run["departed"]]
    if len(runs) < len(part.asked) or not runs:
        return claims.insufficient(part, expected, f"{len(runs)} of {len(part.asked)} runs departed")
    shown = [r["rank_at_departure"] == 1 and r["rank_one_iterations"] > r["departure_iteration"] / 10 for r in runs]
    fractions = defaultdict(list)
    for run in runs:
        fractions[run["activation"]].append(run["rank_one_iterations"] / max(run["departure_iteration"], 1))
    spreads = "; ".join(f"{a} {claims.spread(fractions[a])}" for a in ACTIVATIONS if a in fractions)
    interval = f"rank-one stretch / departure: {spreads}"
    status: claims.Status = "reproduced" if all(shown) else "not_reproduced"
    return Verdict(status, f"{sum(shown)} of {len(runs)} runs", interval, expected, len(runs), part.scale)


FEWER = "in fewer iterations than BP"
CLAIMS = tuple(
    Claim(figure, f"{protocol}: {statement}", rule)
    for protocol in PROTOCOLS
    for figure, statement, rule in (
        ("4.5", f"PC leaves the plateau near the origin {FEWER}", _escapes(protocol, "near_origin")),
        ("4.5", "the same at 0.95, between the plateaus", _escapes(protocol, "near_origin", "departure")),
        ("4.5", f"PC gets beyond the best constant map {FEWER}", _escapes(protocol, "near_origin", "beyond_constant")),
        ("B.6", "the same near the zero-rank saddle", _escapes(protocol, "near_zero_rank")),
        (
            "B.5",
            "PC's gradient does not vanish on the plateau as BP's does",
            _exceeds_one(protocol, "near_origin", "smallest gradient norm on the plateau, PC / BP > 1", _norm_ratio),
        ),
        ("4.5", "PC passes a second plateau at rank one", _second_plateau(protocol)),
    )
)


# Figures

MARKERS = {"escape": "o", "beyond_constant": "^"}


def _curves(
    records: Records, start: str, title: str, column: Callable[[Any], np.ndarray], ylabel: str, yscale: str
) -> plotting.Figure:
    """Rows are protocols, columns activations; one thin line a seed, a mark at each event."""
    labels = "training iteration + 1", ylabel
    figure, axes = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title, *labels)
    for axis, (protocol, activation) in zip(axes.flat, itertools.product(PROTOCOLS, ACTIVATIONS), strict=True):
        runs = claims.with_rows(records.select(protocol=protocol, activation=activation, parameterisation=start))
        for run, rows in runs:
            x, y = rows["iteration"].to_numpy() + 1, column(rows)
            colour = plotting.COLOURS[run["learning"]]
            axis.plot(x, y, color=colour, lw=0.9, alpha=0.8)
            if run["outcome"] != "done":
                axis.plot(x[-1], y[-1], "x", color=colour, ms=6)
            for event, marker in MARKERS.items():
                if run["outcome"] == "done" and run[EVENTS[event]]:
                    nearest = int(np.argmin(np.abs(x - 1 - run[f"{event}_iteration"])))
                    axis.plot(x[nearest], y[nearest], marker, color=colour, ms=3.5, mec="white", mew=0.5, zorder=5)
        axis.set(xscale="log", yscale=yscale)
        plotting.dress(axis, records.about, len(runs), f"{plotting.written(activation)}, {protocol}")
    limits = [axis.dataLim for axis in axes.flat if axis.lines]
    if yscale == "linear" and limits and min(box.y0 for box in limits) < max(box.y1 for box in limits) / 2:
        for axis in axes.flat:
            axis.set_ylim(bottom=0)
    marks = [plotting.mark(f"{rule.upper()}, one line a seed", plotting.COLOURS[rule]) for rule in ("pc", "bp")]
    marks.append(plotting.dots("probe loss < 0.9 of its start"))
    marks.append(plotting.dots("< 0.97 of the best constant map's", marker="^"))
    if len(records.runs) and (records.runs["outcome"] != "done").any():
        marks.append(plotting.diverged())
    return plotting.legend(figure, marks)


def _train_error(rows: Any) -> np.ndarray:
    return rows["train_error"].to_numpy()


def _gradient_norm(rows: Any) -> np.ndarray:
    columns = [name for name in rows.columns if name.startswith("gradient_norm_")]
    norms = np.sqrt(np.sum(np.square(rows.select(columns).to_numpy()), axis=1))
    return norms / rows["gradient_factor"].to_numpy()


def figure_4_5(records: Records) -> plotting.Figure:
    """Training error per batch from near the origin."""
    title = "Figure 4.5: training error from near the saddle at the origin"
    return _curves(records, "near_origin", title, _train_error, "mean squared error", "linear")


def figure_b_5(records: Records) -> plotting.Figure:
    """Norm of the weight gradient from near the origin."""
    title = "Figure B.5: norm of the weight gradient, averaged over the batch"
    return _curves(records, "near_origin", title, _gradient_norm, "gradient norm", "log")


def figure_b_6(records: Records) -> plotting.Figure:
    """Training error per batch from near the zero-rank saddle."""
    title = "Figure B.6: training error from near the zero-rank saddle"
    return _curves(records, "near_zero_rank", title, _train_error, "mean squared error", "linear")


FIGURES = {"4.5": figure_4_5, "B.5": figure_b_5, "B.6": figure_b_6}
