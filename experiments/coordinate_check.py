"""Coordinate check: how far do the first updates move the activities, against width and against depth? (beyond the
sources)

In a parameterisation whose hyperparameters transfer, an update moves every activity by an amount that depends neither
on width nor on depth. The check makes three updates and measures that.

Setting. Pre-activation ResNets without biases, batch 64, Adam with eta = 0.01, not rescaled with width or depth (as in
chapter 5), squared error on one-hot targets; the standard parameterisation (N(0, 1/fan_in)), NTK and muPC, all with
skips. PC by gradient descent on activities from the forward pass, T = n_hidden steps of beta = 0.5/64 per sample
(chapter 5's 0.5 on the batch mean), and BP. An L-shaped grid: widths at one depth, depths at one width.

Control. Beside every run, from the same weights, one in which Adam's rate on weight matrices 2..L-1 is eta sqrt(n / (N
L)), n a constant: what Depth-muP asks for. Adam's steps have the size of the rate, whatever the gradient's, so with
premultipliers (N L)^-1/2 an update of aligned signs moves a layer by about (N L)^-1/2 N eta, and L of them by eta
sqrt(N L).

Definitions. change: mean |zhat_l(t) - zhat_l(0)| over units and a fixed batch of training inputs, zhat_l(t) the forward
pass after t updates; size: mean |zhat_l(t)|. Both at the first, the middle and the last hidden layer and at the output;
control_* are those of the control. slope: of log change after the last update against log width (or log L), least
squares over the sizes that ended with numbers, one a seed and activation. Flat: |slope| < 0.15. Growing: slope > 0.3.

Claims on hidden activities are on the last hidden layer, where what all layers below have moved adds up: with PC's T =
n_hidden steps an error k layers below the output is of order beta^k, so its lower layers hardly move.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.energy import forward_pass
from pcexp.learning import Beside, Networks
from pcexp.model.network import Network
from pcexp.report import claims, plotting
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, ended, missing, rule
from pcexp.run.cost import training
from pcexp.run.draw import Start, initial_start
from pcexp.run.job import Job
from pcexp.train import Observation, weight_norms

FLAT_SLOPE = 0.15
GROWING_SLOPE = 0.3
LAYERS = ("first hidden", "middle hidden", "last hidden", "output")
"""Entries of the recorded vectors."""
LAST_HIDDEN, OUTPUT = 2, 3


class CoordinateCheck(AbstractStudy):
    """A few updates, with the activities of `probe_size` training inputs before each.

    The control's rate is the optimiser's own where width times depth is `reference`.
    """

    precisions = ("float32", "float64")

    probe_size: int
    reference: int

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        return training(spec, dataset, networks=2, probe=4)

    def run(self, job: Job) -> None:
        job.train(measure, self.probe_size, at=lambda lane, data: self.beside_control(job, lane, data), tested=False)

    def beside_control(self, job: Job, lane: Lane, dataset: Dataset) -> Start:
        """The run and its control on the same batches from the same weights."""
        network, rule, optimiser, *_ = initial_start(job.spec, lane, dataset)
        factor = math.sqrt(self.reference / (network.segments[-1].weight.shape[-1] * network.depth))
        # Traced: cells of one shape share a program.
        rated = eqx.Partial(hidden_rate, optimiser, (jnp.asarray(1.0), jnp.asarray(factor)))
        return Start(Networks((network, network)), Beside((rule, rule)), rated, given=network)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            f"{name}{layer}_change": float(rows[f"{name}change"][-1][i])
            for name in ("", "control_")
            for layer, i in (("hidden", LAST_HIDDEN), ("output", OUTPUT))
        }


def hidden_rate(
    optimiser: Callable[[], optax.GradientTransformation], factors: Sequence[Float[Array, ""]]
) -> optax.GradientTransformation:
    """The optimiser with its updates of weight matrices 2..L-1 multiplied by a factor, one for each network."""

    def scaled(updates: Networks, _: Any = None) -> Networks:
        members = []
        for network, factor in zip(updates.members, factors, strict=True):
            first, *hidden, last = network.segments
            hidden = [eqx.tree_at(lambda s: s.weight, s, factor * s.weight) for s in hidden]
            members.append(Network((first, *hidden, last)))
        return Networks(tuple(members))

    return optax.chain(optimiser(), optax.stateless(scaled))


def measure(seen: Observation) -> dict[str, Array]:
    """Of the run and its control, before the update: what moved, loss of the batch, gradient norms (of F) at the layers."""
    found: dict[str, Array] = {}
    for i, name in enumerate(("", "control_")):
        norms = weight_norms(seen.gradient.members[i]) / seen.diagnostics[f"gradient_factor_{i}"]
        row = movement(seen.network.members[i], seen.given, seen.data.probe_x)
        row |= {"loss": seen.diagnostics[f"loss_{i}"], "gradient_norm": norms[jnp.array(positions(len(norms)))]}
        found |= {f"{name}{column}": value for column, value in row.items()}
    return found


def positions(depth: int) -> list[int]:
    """The layers that are recorded, counted from 0: first, middle and last hidden layer, output."""
    return [0, (depth - 2) // 2, depth - 2, depth - 1]


def movement(network: Network, start: Network, x: Float[Array, "d_in batch"]) -> dict[str, Float[Array, " 4"]]:
    """Mean |zhat_l|, and mean |zhat_l - zhat_l of the start|, over units and inputs at the recorded layers."""
    z, z0 = ([layer for stack in forward_pass(n, x).activities for layer in stack] for n in (network, start))
    at = positions(len(z))
    return {
        "size": jnp.stack([jnp.mean(jnp.abs(z[i])) for i in at]),
        "change": jnp.stack([jnp.mean(jnp.abs(z[i] - z0[i])) for i in at]),
    }


# Claims

ACTIVATIONS = ("linear", "tanh", "relu")
SIZES: Mapping[str, Callable[[Run], int]] = {"width": claims.width_of, "depth": lambda run: claims.n_hidden_of(run) + 1}
"""Width N, and depth L."""


def arm(records: Records, axis: str) -> list[Run]:
    """Runs that ended on one arm of the grid, smallest first."""
    return claims.arm_of_an_l(ended(records), SIZES[axis], SIZES["depth" if axis == "width" else "width"])


def slope(runs: Sequence[Run], axis: str, column: str) -> float:
    """Log-log slope of a column against a size; NaN with fewer than three sizes, or where nothing moved."""
    points = [(SIZES[axis](run), run[column]) for run in runs if run["outcome"] == "done"]
    if len({size for size, _ in points}) < 3 or min(y for _, y in points) <= 0:
        return math.nan
    size, value = np.log(np.array(points, float)).T
    return float(np.polyfit(size, value, 1)[0])


@rule
def _slopes(records: Records, labels: Mapping[str, str], axis: str, column: str, flat: bool) -> Verdict:
    """One case a seed and activation. A run that diverged refutes flatness; growth is judged on the sizes that ended."""
    records = records.select(labels)
    expected = f"|slope in {axis}| < {FLAT_SLOPE}" if flat else f"slope in {axis} > {GROWING_SLOPE}"
    runs, cases, n = arm(records, axis), [], 0
    # Sizes are not among the labels of what was asked for: any run that is missing may be one of this arm.
    lost = missing(records)
    for key in sorted({(ACTIVATIONS.index(run["activation"]), run["seed"]) for run in runs}):
        line = [run for run in runs if (ACTIVATIONS.index(run["activation"]), run["seed"]) == key]
        value, beyond = slope(line, axis, column), any(run["outcome"] == "diverged" for run in line)
        if math.isnan(value) and not (flat and beyond):
            lost += len(line)
            continue
        holds = abs(value) < FLAT_SLOPE and not beyond if flat else value > GROWING_SLOPE
        cases.append((ACTIVATIONS[key[0]], Case(holds, value)))
        n += len(line)
    found = claims.verdict(records, expected, cases, n=n, missing=lost)
    diverged = sum(run["outcome"] == "diverged" for run in runs)
    return dataclasses.replace(found, observed=f"{found.observed}; {diverged} runs diverged") if diverged else found


STATEMENTS = (
    ("SP: the change of hidden activities grows with {}", "standard", "hidden_change", False, ("width", "depth")),
    ("muPC: the change of hidden activities is flat in {}", "mupc", "hidden_change", True, ("width", "depth")),
    ("control, muPC with Depth-muP's rate: the same, in {}", "mupc", "control_hidden_change", True, ("width", "depth")),
    ("muPC: the change of the output is flat in {}", "mupc", "output_change", True, ("width",)),
    ("NTK: the change of the output grows with {}", "ntk", "output_change", False, ("width",)),
)
CLAIMS = tuple(
    Claim(
        f"{axis}.{learning}",
        f"{learning.upper()}, {statement.format(axis)}",
        _slopes({"parameterisation": model, "learning": learning}, axis, column, flat),
    )
    for learning in ("pc", "bp")
    for statement, model, column, flat, axes in STATEMENTS
    for axis in axes
)


# Figures

MODELS = {"SP": ("standard", ""), "NTK": ("ntk", ""), "muPC": ("mupc", ""), "muPC, control": ("mupc", "control_")}
SMALLEST_SHOWN = 1e-6
START = "#999999"
"""Colour of what is as it was drawn."""


def _lines(part: Records, axis: str, column: str, row: int) -> list[tuple[list[int], np.ndarray]]:
    """Sizes and values of a column in one row (-1: the last), a line a seed."""
    runs = [run for run in arm(part, axis) if run["outcome"] == "done"]
    lines = []
    for seed in sorted({run["seed"] for run in runs}):
        mine = [run for run in runs if run["seed"] == seed]
        values = np.array([part.lane(run["cell"], run["lane"])[column][row] for run in mine])
        # What is below is round-off of a layer that did not move, or zero.
        lines.append(([SIZES[axis](run) for run in mine], np.where(values < SMALLEST_SHOWN, np.nan, values)))
    return lines


def _grid(records: Records, axis: str, title: str, curves: Sequence[tuple[str, str, int, Any]]) -> plotting.Figure:
    """Rows are activations, columns models; curves are (learning, column, row, colour)."""
    what = "change" if curves[0][1].startswith("change") else "activity"
    labels = "width N" if axis == "width" else "depth L", f"mean absolute {what}"
    figure, panels = plotting.panels(len(ACTIVATIONS), len(MODELS), title, *labels)
    for panel, (activation, name) in zip(panels.flat, itertools.product(ACTIVATIONS, MODELS), strict=True):
        parameterisation, prefix = MODELS[name]
        part = records.select(activation=activation, parameterisation=parameterisation)
        for learning, column, row, colour in curves:
            for sizes, values in _lines(part.select(learning=learning), axis, prefix + column, row):
                panel.plot(sizes, values, ".-", color=colour, lw=0.8, ms=3, alpha=0.8)
        rules = {learning for learning, *_ in curves}
        drawn = [run for rule in rules for run in arm(part.select(learning=rule), axis)]
        lost = sorted({SIZES[axis](run) for run in drawn if run["outcome"] == "diverged"})
        panel.plot(lost, [0.97] * len(lost), "x", color="#555555", ms=5, transform=panel.get_xaxis_transform())
        _scale(panel, sorted({SIZES[axis](run) for run in drawn}))
        plotting.dress(panel, records.about, len(drawn), f"{plotting.written(activation)}, {name}", fontsize=8)
    return figure


def _scale(panel: Any, sizes: Sequence[int]) -> None:
    """Logarithmic axes where there is something on them; two decades at least, or what is flat would look like noise."""
    low, high = panel.dataLim.minposy, panel.dataLim.y1
    if not sizes:
        return
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.tick_params(axis="x", which="minor", bottom=False)
    if 0 < low <= high:
        panel.set_yscale("log")
        middle = math.sqrt(low * high)
        panel.set_ylim(min(0.7 * low, middle / 10), max(1.4 * high, middle * 10))


def _change(axis: str, learning: str) -> Callable[[Records], plotting.Figure]:
    def figure(records: Records) -> plotting.Figure:
        colours = plotting.shades(LAYERS)
        curves = [(learning, f"change_{k}", -1, colour) for k, colour in enumerate(colours.values(), start=1)]
        title = f"{plotting.written(learning)}: change of activities by the updates, against {axis}"
        marks = [plotting.mark(name, colour) for name, colour in colours.items()]
        marks += [plotting.diverged(), plotting.mark(f"(not drawn below {SMALLEST_SHOWN:g})", ls="")]
        return plotting.legend(_grid(records, axis, title, curves), marks)

    figure.__doc__ = f"Change of activities by the updates of {learning.upper()}, against {axis}: one line a seed."
    return figure


def _size(axis: str) -> Callable[[Records], plotting.Figure]:
    def figure(records: Records) -> plotting.Figure:
        column, of_rule = f"size_{LAST_HIDDEN + 1}", plotting.COLOURS
        curves = [("bp", column, 0, START), *((rule, column, -1, of_rule[rule]) for rule in ("bp", "pc"))]
        title = f"Size of the last hidden layer before and after the updates, against {axis}"
        marks = [plotting.mark("at initialisation", START)]
        marks += [plotting.mark(f"updated by {plotting.written(rule)}", of_rule[rule]) for rule in ("pc", "bp")]
        return plotting.legend(_grid(records, axis, title, curves), [*marks, plotting.diverged()])

    figure.__doc__ = f"Mean absolute activity of the last hidden layer against {axis}: one line a seed."
    return figure


FIGURES = {
    f"{axis}.{what}": make
    for axis in ("width", "depth")
    for what, make in (("pc", _change(axis, "pc")), ("bp", _change(axis, "bp")), ("size", _size(axis)))
}
