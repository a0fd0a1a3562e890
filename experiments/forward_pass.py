"""Forward pass: how large are the activities of deep networks at initialisation, layer by layer? (figure C.30)

Setting. Pre-activation networks of L = n_hidden + 1 weight matrices without biases, 64 training inputs, no training:
the forward pass alone. Standard parameterisation (SP) with and without skips, Depth-muP (muPC with skips), orthogonal
without skips; the sweep is a full product, so muPC without skips and orthogonal with skips are run and drawn too, and
claim nothing.

Text and code. The caption has SP with skips, the code also without. The text draws SP from N(0, 1/fan_in) (Table 5.1),
the code from U(+-1/sqrt(fan_in)), a third of that variance: `standard` and `standard_uniform`, both run. C.30 is drawn
with the code's. Published with one seed, here with several. The source names no inputs: the `data` group gives them.

Definitions. size: mean |zhat_l| over units and inputs, recorded as its log10 at layers 1, L/4, L/2, 3L/4, L-1 and L. It
is computed in float64, because without skips it leaves float32's range by L = 256. growth: size of the last hidden
layer over that of the first. The output layer is kept apart: Depth-muP scales it by 1/N, so it is smaller by N^-1/2 at
every depth.

What theory says, for wide networks. The mean square grows a layer by the factor 1 + c (skips) or c (none), c = v for
linear, v/2 for relu, v = N a^2 Var(W): 1 for SP, 1/3 for its uniform draw, 1/L for Depth-muP with skips. So Depth-muP's
growth is below sqrt(e) = 1.65 at any depth, and SP from Table 5.1 is neutral for linear networks without skips. tanh is
bounded: it grows with skips like sqrt(l), and decays without like 1/sqrt(l) where v = 1.

Memory. One network at a time: 2 GB of weights at L = 512, N = 1024.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.energy import forward_pass
from pcexp.evaluation import batch_layout
from pcexp.model.network import Network
from pcexp.model.segments import AbstractSegment
from pcexp.report import plotting
from pcexp.report.claims import Case, Claim, Records, Run, Verdict, done, n_hidden_of, verdict, with_rows
from pcexp.run.draw import initial_network, network_size
from pcexp.run.job import Job

AWAY_FACTOR = 10
"""Exploding, vanishing: the growth of the deepest network is beyond this factor."""
FLAT_FACTOR = 2
"""Flat: every hidden layer is within this factor of the first. Depth-muP's limit is sqrt(e)."""


class ForwardPass(AbstractStudy):
    """The forward pass of freshly drawn networks on the first `n_inputs` training inputs."""

    precisions = ("float32", "float64")

    n_inputs: int

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        weights = float(network_size(spec, dataset))
        # Drawing is what takes the time. Networks of all depths share their programs.
        return Work(2 * self.n_inputs * weights, 8 * weights, 10 * weights, programs=0.05)

    def run(self, job: Job) -> None:
        def rows(lane: Lane, dataset: Dataset) -> Iterator[dict[str, Any]]:
            network = initial_network(job.spec, lane, dataset)
            found = sizes(network, batch_layout(network, jnp.asarray(dataset.train.x[: self.n_inputs])))
            shown = layers(network.depth)
            with np.errstate(divide="ignore"):  # a size of zero is recorded as such, and the lane has no numbers then
                yield {"iteration": 0, "layer": shown, "log10_size": np.log10(found[np.array(shown) - 1])}

        job.record(rows)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        *hidden, output = rows["log10_size"][0]
        return {
            "log10_growth": float(hidden[-1] - hidden[0]),
            "log10_highest": float(np.max(hidden) - hidden[0]),
            "log10_lowest": float(np.min(hidden) - hidden[0]),
            "log10_output": float(output),
        }


def layers(depth: int) -> list[int]:
    """Layers that are recorded: 1, L/4, L/2, 3L/4, L-1 and L."""
    return [*(min(max(1, depth * k // 4), depth - 1) for k in range(4)), depth - 1, depth]


def sizes(network: Network, x: Float[Array, "d_in batch"]) -> Float[np.ndarray, " depth"]:
    """Mean |zhat_l| over units and inputs for l = 1..L, in float64, with one segment at a time held in it."""
    found = []
    with jax.enable_x64(True):
        z = x.astype(jnp.float64)
        for segment in network.segments:
            z, means = _through(jax.tree.map(lambda w: w.astype(jnp.float64), segment), z)
            found.append(np.asarray(means))
    return np.concatenate(found)


@eqx.filter_jit
def _through(segment: AbstractSegment, z: Float[Array, "d_in batch"]) -> tuple[Array, Float[Array, " layers"]]:
    # A segment at a time: networks of all depths share their compilations.
    (out,) = forward_pass(Network((segment,)), z).activities
    return out[-1], jnp.mean(jnp.abs(out), axis=(1, 2))


# Claims

ACTIVATIONS = ("linear", "tanh", "relu")
Cases = Callable[[Sequence[Run]], Case]
"""The case of the runs of a seed and activation at all depths, from the shallowest."""


def _away(sign: int) -> Cases:
    def case(runs: Sequence[Run]) -> Case:
        growth = np.array([run["log10_growth"] for run in runs])
        holds = len(runs) > 1 and sign * growth[-1] > np.log10(AWAY_FACTOR) and bool(np.all(np.diff(sign * growth) > 0))
        return Case(holds, 10 ** growth[-1])

    return case


def _flat(runs: Sequence[Run]) -> Case:
    worst = 10 ** max(max(run["log10_highest"], -run["log10_lowest"]) for run in runs)
    return Case(worst <= FLAT_FACTOR, worst)


def _output(runs: Sequence[Run]) -> Case:
    found = [run["log10_output"] for run in runs]
    factor = 10 ** (max(found) - min(found))
    return Case(len(runs) > 1 and factor <= FLAT_FACTOR, factor)


EXPLODES = f"growth > {AWAY_FACTOR} at the greatest depth, and larger at each greater depth"
VANISHES = f"growth < 1/{AWAY_FACTOR} at the greatest depth, and smaller at each greater depth"
FLAT = f"every hidden layer within a factor {FLAT_FACTOR} of the first, at every depth"
SAME = f"outputs of all depths within a factor {FLAT_FACTOR}"


def _model(parameterisation: str, skips: bool) -> dict[str, str]:
    return {"parameterisation": parameterisation, "network": "residual" if skips else "pre_activation"}


def _claim(
    statement: str,
    expected: str,
    case: Cases,
    parameterisation: str,
    skips: bool,
    activations: Sequence[str] = ACTIVATIONS,
) -> Claim:
    """One case a seed and activation: its runs at all depths that were asked for."""

    def judge(records: Records) -> Verdict:
        records = records.select(_model(parameterisation, skips))
        runs = defaultdict(list)
        for run in sorted(done(records), key=n_hidden_of):
            runs[run["activation"], run["seed"]].append(run)
        asked = Counter((a["activation"], a["seed"]) for a in records.asked.iter_rows(named=True))
        wanted = [key for activation in activations for key in sorted(asked) if key[0] == activation]
        whole = [key for key in wanted if len(runs[key]) == asked[key]]
        n = sum(asked[key] for key in whole)
        cases = [(key[0], case(runs[key])) for key in whole]
        return verdict(records, expected, cases, n=n, missing=sum(asked[key] for key in wanted) - n)

    return Claim("C.30", statement, judge)


CLAIMS = (
    _claim("SP with skips explodes (U, as the code drew it)", EXPLODES, _away(1), "standard_uniform", True),
    _claim("SP without skips vanishes (U, as the code drew it)", VANISHES, _away(-1), "standard_uniform", False),
    _claim("SP with skips explodes (N(0, 1/fan_in), Table 5.1)", EXPLODES, _away(1), "standard", True),
    _claim("SP without skips vanishes (N(0, 1/fan_in), Table 5.1)", VANISHES, _away(-1), "standard", False),
    _claim("Depth-muP is flat over layers, at every depth", FLAT, _flat, "mupc", True),
    _claim("Depth-muP: the size of the output does not depend on depth", SAME, _output, "mupc", True),
    _claim("orthogonal is flat for linear and tanh networks", FLAT, _flat, "orthogonal", False, ("linear", "tanh")),
    _claim("orthogonal vanishes for ReLU networks", VANISHES, _away(-1), "orthogonal", False, ("relu",)),
)


# Figures


def _sizes(records: Records, title: str, models: Mapping[str, tuple[str, bool]]) -> plotting.Figure:
    """Rows are activations, columns models; one thin line a seed, a colour a depth, a ring for the output layer."""
    depths = sorted({n_hidden_of(run) + 1 for run in records.runs.iter_rows(named=True)})
    colours = plotting.shades(depths)
    labels = "layer / depth L", "mean absolute activity"
    figure, axes = plotting.panels(len(ACTIVATIONS), len(models), title, *labels)
    for axis, (activation, name) in zip(axes.flat, itertools.product(ACTIVATIONS, models), strict=True):
        runs = with_rows(records.select(_model(*models[name]), activation=activation))
        for run, rows in runs:
            depth = n_hidden_of(run) + 1
            shown = np.array([rows[f"layer_{k}"][0] for k in range(1, 7)]) / depth
            size = 10.0 ** np.array([rows[f"log10_size_{k}"][0] for k in range(1, 7)])
            axis.plot(shown[:-1], size[:-1], color=colours[depth], lw=0.8, alpha=0.8)
            axis.plot(shown[-1], size[-1], "o", ms=3, mfc="none", mew=0.8, color=colours[depth])
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 1e-3), max(high, 1e3))  # or what is flat would fill the panel with its noise
        axis.set_xlim(0, 1.05)
        plotting.dress(axis, records.about, len(runs), f"{plotting.written(activation)}, {name}")
    marks = [plotting.mark(f"L = {depth}", colours[depth]) for depth in depths]
    return plotting.legend(figure, [*marks, plotting.mark("output", marker="o", mfc="none", ls="")])


def figure_c_30(records: Records) -> plotting.Figure:
    """Size of the activities at initialisation over layers: SP as the code drew it, Depth-muP, orthogonal."""
    models = {
        "SP, skips": ("standard_uniform", True),
        "SP": ("standard_uniform", False),
        "Depth-muP": ("mupc", True),
        "orthogonal": ("orthogonal", False),
    }
    return _sizes(records, "Figure C.30: activities at initialisation (SP: W uniform, as the code drew it)", models)


def figure_c_30_others(records: Records) -> plotting.Figure:
    """The same where SP is drawn as in Table 5.1, and of muPC without and orthogonal with skips, beyond the source."""
    models = {
        "SP, skips": ("standard", True),
        "SP": ("standard", False),
        "muPC, no skips": ("mupc", False),
        "orthogonal, skips": ("orthogonal", True),
    }
    return _sizes(records, "Figure C.30, other models (SP: W normal, Table 5.1)", models)


FIGURES = {"C.30": figure_c_30, "C.30.others": figure_c_30_others}
