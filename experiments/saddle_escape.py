"""Saddle escape: from near a saddle of the loss, PC leaves the plateau in fewer iterations than BP (figures 4.5, B.5, B.6).

Setting. Post-activation networks without biases (convolutional biases excepted), W ~ N(0, sigma^2) near the saddle at the
origin (4.5, B.5), or near the zero-rank saddle with the penultimate matrix at its default initialisation (B.6); SGD, batch
64, inference by gradient descent with beta = 0.1 per sample from the forward pass.

Text and code. The published code updates the weights with the errors before the last activity step; here `max_steps`
counts activity steps, and the errors after the last one are used. In the published comparison PC's gradient was summed
over the batch and BP's a mean over batch and outputs, so at one learning rate PC's was B K / 2 = 320 times larger
(protocol `published`); `corrected` sums both. The published rule "stop when the epoch-mean loss improves by less than 1e-3"
fires on the plateau itself where an epoch is short, so lanes run for a fixed number of epochs.

Definitions. escape_iteration: the first recorded iteration at which the loss on a fixed probe batch is below 0.9 of its
initial value; the iterations run if there is none, with `escaped` beside it. map_rank: singular values of the probe outputs
above a tenth of the largest.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pcexp import plotting
from pcexp.claims import Claim, Ratio, Verdict, censored_ratio, insufficient, median_ratio, spread
from pcexp.energy import outputs
from pcexp.records import Records
from pcexp.runner import Job
from pcexp.study import AbstractStudy
from pcexp.train import Observation, weight_norms

ESCAPE_FRACTION = 0.9
RANK_FRACTION = 0.1


class SaddleEscape(AbstractStudy):
    """Training from near a saddle, with the loss on a fixed probe batch of `probe_size` training examples."""

    probe_size: int
    revision = 1

    def run(self, job: Job) -> None:
        job.train(measure, self.probe_size)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        probe, iteration = rows["probe_loss"], rows["iteration"]
        below = np.flatnonzero(probe < ESCAPE_FRACTION * probe[0])
        escaped = below.size > 0
        first = int(below[0]) if escaped else len(probe) - 1
        norms = np.sqrt(np.sum(np.square(rows["gradient_norm"]), axis=1))
        after = rows["map_rank"][first:]
        rank_two = np.flatnonzero(after >= 2)
        return {
            "escape_iteration": int(iteration[first]),
            "escaped": escaped,
            # Of the gradient of F: the learning rule's scale is taken out, so that PC and BP compare.
            "plateau_gradient_norm": float(np.min((norms / rows["gradient_factor"])[: first + 1])),
            "rank_at_escape": int(rows["map_rank"][first]),
            # From the escape to rank two, or to the end if the map stays at rank one: the second plateau.
            "rank_one_iterations": int(iteration[first + (rank_two[0] if rank_two.size else len(after) - 1)] - iteration[first]),
            "final_probe_loss": float(probe[-1]),
        }


def measure(seen: Observation) -> dict[str, Array]:
    """Training error of the batch, probe loss, rank of the map, norm of each weight gradient (of F, whatever its scale)."""
    f = outputs(seen.network, seen.data.probe_x)
    y = seen.data.probe_y
    return {
        "train_error": 2 * seen.loss / y.shape[0],
        "probe_loss": jnp.sum(jnp.square(y - f)) / (2 * y.shape[1]),
        "map_rank": _numerical_rank(f),
        "gradient_norm": weight_norms(seen.gradient),
        **seen.diagnostics,
    }


def _numerical_rank(f: Float[Array, "d_out probe"]) -> Array:
    # Eigenvalues of f f^T are squared singular values.
    squares = jnp.linalg.eigvalsh(f @ f.T)
    return jnp.sum(squares > RANK_FRACTION**2 * squares[-1])


# Claims

PROTOCOLS = ("published", "corrected")
ACTIVATIONS = ("linear", "tanh", "relu")
STARTS = {"4.5": "near_origin", "B.6": "near_zero_rank"}


def _pairs(records: Records, activation: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(PC, BP) runs of the same seed that ended with numbers."""
    runs = {
        (run["learning"], run["seed"]): run
        for run in records.select(activation=activation).runs.iter_rows(named=True)
        if run["outcome"] == "done"
    }
    return [(run, runs["bp", seed]) for (rule, seed), run in sorted(runs.items()) if rule == "pc" and ("bp", seed) in runs]


def _asked_pairs(records: Records, activation: str) -> int:
    asked = records.select(activation=activation, learning="pc").asked
    return len(asked)


def escape_ratio(pc: Mapping[str, Any], bp: Mapping[str, Any]) -> Ratio:
    """Iterations of BP to escape over those of PC; a bound where one did not escape."""
    return censored_ratio(bp["escape_iteration"], bp["escaped"], pc["escape_iteration"], pc["escaped"])


def _judge(
    records: Records, expected: str, ratio: Callable[[Mapping[str, Any], Mapping[str, Any]], Ratio]
) -> Verdict:
    """Reproduced if the ratio of every pair of every activation exceeds one, and no pair that was asked for is missing."""
    observed, intervals, everything, missing = [], [], [], 0
    for activation in ACTIVATIONS:
        ratios = [ratio(pc, bp) for pc, bp in _pairs(records, activation)]
        missing += _asked_pairs(records, activation) - len(ratios)
        everything += ratios
        if ratios:
            observed.append(f"{activation} {median_ratio(ratios)}")
            intervals.append(f"{activation} {spread([r.value for r in ratios])}")
    if not everything:
        return insufficient(records, expected, "no pair of runs")
    refuted = [r for r in everything if r.bound in ("exact", "at_most") and r.value <= 1]
    undecided = [r for r in everything if r.bound == "unknown" or (r.bound == "at_least" and r.value <= 1)]
    undecided += [r for r in everything if r.bound == "at_most" and r.value > 1]
    if not refuted and (undecided or missing):
        why = f"{len(undecided)} undecided and {missing} missing of {len(everything) + missing} pairs; {', '.join(observed)}"
        return insufficient(records, expected, why)
    status = "not_reproduced" if refuted else "reproduced"
    return Verdict(status, ", ".join(observed), "; ".join(intervals), expected, len(everything), records.scale)


def _escape_rule(protocol: str, start: str) -> Callable[[Records], Verdict]:
    def rule(records: Records) -> Verdict:
        part = records.select(protocol=protocol, parameterisation=start)
        return _judge(part, "iterations of BP / PC > 1", escape_ratio)

    return rule


def _gradient_rule(protocol: str) -> Callable[[Records], Verdict]:
    def ratio(pc: Mapping[str, Any], bp: Mapping[str, Any]) -> Ratio:
        return Ratio(pc["plateau_gradient_norm"] / max(bp["plateau_gradient_norm"], 1e-38), "exact")

    def rule(records: Records) -> Verdict:
        part = records.select(protocol=protocol, parameterisation="near_origin")
        return _judge(part, "smallest gradient norm on the plateau, PC / BP > 1", ratio)

    return rule


def _second_plateau_rule(protocol: str) -> Callable[[Records], Verdict]:
    expected = "at its escape PC's map has rank one, and stays there for over a tenth of the escape time"

    def rule(records: Records) -> Verdict:
        part = records.select(protocol=protocol, parameterisation="near_origin", learning="pc")
        runs = [r for r in part.runs.iter_rows(named=True) if r["outcome"] == "done" and r["escaped"]]
        if len(runs) < len(part.asked) or not runs:
            return insufficient(part, expected, f"{len(runs)} of {len(part.asked)} runs escaped")
        shown = [r["rank_at_escape"] == 1 and r["rank_one_iterations"] > r["escape_iteration"] / 10 for r in runs]
        fractions = {
            a: [r["rank_one_iterations"] / max(r["escape_iteration"], 1) for r in runs if r["activation"] == a]
            for a in ACTIVATIONS
        }
        observed = f"{sum(shown)} of {len(runs)} runs"
        interval = "rank-one stretch / escape: " + "; ".join(f"{a} {spread(v)}" for a, v in fractions.items() if v)
        return Verdict("reproduced" if all(shown) else "not_reproduced", observed, interval, expected, len(runs), part.scale)

    return rule


CLAIMS = tuple(
    claim
    for protocol in PROTOCOLS
    for claim in (
        Claim("4.5", f"{protocol}: PC leaves the plateau near the origin in fewer iterations than BP", _escape_rule(protocol, "near_origin")),
        Claim("B.6", f"{protocol}: the same near the zero-rank saddle", _escape_rule(protocol, "near_zero_rank")),
        Claim("B.5", f"{protocol}: PC's gradient does not vanish on the plateau as BP's does", _gradient_rule(protocol)),
        Claim("4.5", f"{protocol}: PC passes a second plateau at rank one", _second_plateau_rule(protocol)),
    )
)


# Figures


def _curves(records: Records, start: str, title: str, column: Callable[[Any], np.ndarray], ylabel: str) -> Figure:
    """Rows are protocols, columns activations; one thin line a seed, a mark where it escapes."""
    figure, axes = plotting.panels(len(PROTOCOLS), len(ACTIVATIONS), title)
    data = ", ".join(records.datasets())
    for i, protocol in enumerate(PROTOCOLS):
        for j, activation in enumerate(ACTIVATIONS):
            axis = axes[i, j]
            part = records.select(protocol=protocol, activation=activation, parameterisation=start)
            n = 0
            for run in part.runs.iter_rows(named=True):
                rows = part.lane(run["cell"], run["lane"])
                if not len(rows):
                    continue
                x, y = rows["iteration"].to_numpy() + 1, column(rows)
                colour = plotting.COLOURS[run["learning"]]
                axis.plot(x, y, color=colour, lw=0.9, alpha=0.8)
                if run["outcome"] != "done":
                    axis.plot(x[-1], y[-1], "x", color=colour, ms=6)
                elif run["escaped"]:
                    nearest = int(np.argmin(np.abs(x - 1 - run["escape_iteration"])))
                    axis.plot(x[nearest], y[nearest], "o", color=colour, ms=3.5, mec="white", mew=0.5, zorder=5)
                n += 1
            if n == 0:
                plotting.note(axis, "no runs yet")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_title(f"{plotting.written(activation)}, {protocol}", loc="left")
            plotting.caption(axis, data, records.scale, n)
            if i == len(PROTOCOLS) - 1:
                axis.set_xlabel("training iteration + 1")
            if j == 0:
                axis.set_ylabel(ylabel)
    marks = [
        Line2D([], [], color=plotting.COLOURS["pc"], label="PC, one line a seed"),
        Line2D([], [], color=plotting.COLOURS["bp"], label="BP, one line a seed"),
        Line2D([], [], color="#555555", marker="o", ls="", ms=4, label="escape: probe loss < 0.9 of its start"),
    ]
    if len(records.runs) and (records.runs["outcome"] != "done").any():
        marks.append(Line2D([], [], color="#555555", marker="x", ls="", ms=5, label="diverged"))
    plotting.legend(figure, marks)
    return figure


def _train_error(rows: Any) -> np.ndarray:
    return rows["train_error"].to_numpy()


def _gradient_norm(rows: Any) -> np.ndarray:
    columns = [name for name in rows.columns if name.startswith("gradient_norm_")]
    return np.sqrt(np.sum(np.square(rows.select(columns).to_numpy()), axis=1))


def figure_4_5(records: Records) -> Figure:
    """Training error per batch from near the origin."""
    return _curves(
        records, "near_origin", "Figure 4.5: training error from near the saddle at the origin", _train_error, "mean squared error"
    )


def figure_b_5(records: Records) -> Figure:
    """Norm of the weight gradient from near the origin."""
    return _curves(
        records, "near_origin", "Figure B.5: norm of the weight gradient (as scaled)", _gradient_norm, "gradient norm"
    )


def figure_b_6(records: Records) -> Figure:
    """Training error per batch from near the zero-rank saddle."""
    return _curves(
        records, "near_zero_rank", "Figure B.6: training error from near the zero-rank saddle", _train_error, "mean squared error"
    )


FIGURES = {"4.5": figure_4_5, "B.5": figure_b_5, "B.6": figure_b_6}
