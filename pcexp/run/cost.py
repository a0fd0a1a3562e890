"""What a command will cost, from shapes alone, before anything is compiled; what exceeds the memory is refused.

Seconds are a sum: products by their operations, what else is read and written by its entries, small arrays by the number of
operations that wait for one another, and programs that are compiled. benchmarks/costs.py sets them against committed runs.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.random as jr

from pcexp.config.plain import flat
from pcexp.config.spec import Spec
from pcexp.config.study import Work
from pcexp.data import Dataset
from pcexp.inference import ErrorDescent
from pcexp.learning import regime
from pcexp.model.architecture import AbstractArchitecture
from pcexp.model.network import AbstractModel
from pcexp.model.parameterisation import Standard
from pcexp.run.progress import duration
from pcexp.run.session import Datasets, units
from pcexp.train import iterations


class Rates(NamedTuple):
    """Seconds that a core or a GPU takes: for a float32 operation of a product, an entry, an operation that is waited for, a program, a lane."""

    flop: float
    entry: float
    operation: float
    program: float
    lane: float


RATES = {"cpu": Rates(1e-11, 8e-10, 1.5e-6, 3.0, 0.2), "gpu": Rates(2e-13, 1e-11, 1e-5, 10.0, 0.2)}
"""Of a CPU by committed runs (benchmarks/costs.py), of a GPU assumed. A lane that trains is drawn, tested and saved."""
CONVOLUTION, EIGENVALUES = 4.0, 60.0
"""An operation of a convolution takes so many times as long as one of a product; all eigenpairs of n x n as long as so many n^3."""
OPERATIONS_AN_ITERATION = 60
"""Drawing the batch, measuring and updating."""
OPERATIONS_A_LAYER = 4
"""Of a pass that goes from layer to layer; the others take a segment at once."""
COPIES = 6
"""Of the weights: before and after an update, gradient, update, two moments; of activities about as many."""


class Cost(NamedTuple):
    """Floating point operations of the unfinished lanes of a cell, bytes that are held at once, and seconds on this machine."""

    flops: float
    bytes: float
    lanes: int
    seconds: float


class Sizes(NamedTuple):
    """Of one example: operations of a forward pass, in the first layer and above it, and entries of its activities. Of its network: the rest."""

    first_flops: float
    flops: float
    activities: int
    parameters: int
    segments: int
    depth: int


def sizes(architecture: AbstractArchitecture, input_shape: tuple[int, ...], d_out: int) -> Sizes:
    """Sizes of a network, whatever its parameterisation: two operations a weight and position it is applied at."""

    def passed(x: jax.Array) -> tuple[AbstractModel, tuple[jax.Array, ...]]:
        network = architecture.build(Standard(), input_shape, d_out, key=jr.key(0))
        return network, tuple(at.linear for at in network.forward(x)[1])

    network, linear = jax.eval_shape(passed, jax.ShapeDtypeStruct(input_shape, "float32"))
    flops = []
    for segment, u in zip(network.stacks, linear, strict=True):
        rate = 2.0 if segment.weight.ndim == 3 else 2.0 * CONVOLUTION
        flops.append(rate * segment.weight.size * u.size / (segment.depth * u.shape[-1]))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network))
    activities = sum(u.size for u in linear)
    depth = sum(segment.depth for segment in network.stacks)
    return Sizes(flops[0], sum(flops[1:]), activities, parameters, len(network.stacks), depth)


def training(
    spec: Spec,
    dataset: Dataset,
    *,
    n_iterations: float | None = None,
    networks: int = 1,
    probe: float = 0.0,
    programs: float = 1.0,
) -> Work:
    """Work of training: of `networks` side by side, where each recorded row takes `probe` forward passes of a batch more."""
    t, n = spec.training, len(dataset.train.x)
    if t.batch_size > n:
        raise ValueError(f"training.batch_size={t.batch_size}: the training set has {n} examples")
    size = sizes(spec.network, dataset.input_shape, dataset.d_out)
    steps = iterations(t, n) if n_iterations is None else n_iterations
    rule, rows = spec.learning.forward_passes() * networks, steps / t.record_every
    probe += networks * regime.FORWARD_PASSES if t.regime and hasattr(spec.learning, "inference") else 0.0
    passes = steps * rule + rows * probe
    tests = 1 + (0 if t.test_every is None else steps / t.test_every)
    tested = len(dataset.test.x) * tests * spec.learning.evaluation.forward_passes()
    # Inputs do not move: their products are those of a forward pass and of the weights' gradient alone.
    flops = t.batch_size * (2 * networks * steps * size.first_flops + passes * size.flops)
    flops += tested * (size.first_flops + size.flops)
    entries = passes * t.batch_size * size.activities + networks * steps * size.parameters + tested * size.activities
    chained = isinstance(getattr(spec.learning, "inference", None), ErrorDescent)
    layers = (passes if chained else 3 * networks * steps) * size.depth * OPERATIONS_A_LAYER
    operations = steps * OPERATIONS_AN_ITERATION + passes * size.segments + layers
    held = COPIES * networks * (size.parameters + t.batch_size * size.activities)
    return Work(flops, float_bytes(spec) * held, entries, operations, programs)


def float_bytes(spec: Spec) -> int:
    """Bytes of a float of the precision that a cell is computed in."""
    return 8 if spec.precision == "float64" else 4


def estimate(spec: Spec, datasets: Datasets, lanes: int, workers: int | None = None) -> Cost:
    """Cost of so many lanes of a cell, on all cores or GPUs, or so many workers. Raises DataError where the data are missing."""
    dataset, backend = datasets(spec), jax.default_backend()
    work, rates, workers = spec.study.cost(spec, dataset) or training(spec, dataset), RATES[backend], workers or units()
    on_cpu, side_by_side = backend == "cpu", workers if spec.learns else 1  # what does not train follows one another
    lane = (work.flops * rates.flop + work.entries * rates.entry) * float_bytes(spec) / 4
    lane += rates.lane if spec.learns else 0.0
    # A GPU advances the lanes of a pack in the same operations; its packs are as large as its memory allows.
    in_turn = lanes if on_cpu else 1
    seconds = lanes * lane + in_turn * work.operations * rates.operation + work.programs * rates.program
    data = float_bytes(spec) * float(sum(part.x.size + part.y.size for part in (dataset.train, dataset.test)))
    held = data + work.bytes * (min(lanes, side_by_side) if on_cpu else 1)
    return Cost(work.flops * lanes, held, lanes, seconds / side_by_side)


def memory() -> float:
    """Bytes of the GPU; on a CPU those of the machine, or what the control group of this process may use of them."""
    if jax.default_backend() != "cpu":
        return float((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf))
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.exists() and (text := file.read_text().strip()).isdigit():
            limits.append(float(text))
    return min(limits)


def too_large(specs: Sequence[Spec], costs: Mapping[str, Cost]) -> str:
    """Why the largest cell does not fit into the memory, and what would help; empty where all do."""
    limit, backend = memory(), jax.default_backend()
    spec = max((s for s in specs if s.cell in costs), key=lambda s: costs[s.cell].bytes, default=None)
    if spec is None or costs[spec.cell].bytes <= limit:
        return ""
    at_once = "one lane at a time (execution.workers=1), " if backend == "cpu" and spec.learns else ""
    return (
        f"cell {spec.cell} ({said(spec)}) would hold about {costs[spec.cell].bytes / 1e9:,.1f} GB, and this machine's "
        f"{backend} memory is {limit / 1e9:,.1f} GB: choose {at_once}a smaller network.width or network.n_hidden, or a machine with more"
    )


def said(spec: Spec) -> str:
    """What a cell is, for people: its options, and the sizes of its network."""
    sizes = {key: value for key, value in spec.science["network"].items() if key in ("width", "n_hidden", "widths")}
    options = [spec.labels[key] for key in ("data", "network", "learning") if key in spec.labels]
    return " ".join([*options, *(f"network.{key}={value}" for key, value in sizes.items())])


def describe(specs: Sequence[Spec], costs: Mapping[str, Cost], folder: Path, scale: str) -> str:
    """What there is to do, in a line."""
    lanes, todo = sum(len(spec.lanes) for spec in specs), sum(cost.lanes for cost in costs.values())
    seconds = sum(cost.seconds for cost in costs.values())
    held = max((cost.bytes for cost in costs.values()), default=0.0) / 1e9
    work = f"about {duration(seconds)} and {held:.1f} GB on {machine()}" if todo else "nothing left to run"
    return f"{folder} at scale {scale}: {len(specs)} cells, {lanes} lanes, {todo} to run; {work}"


def listed(specs: Sequence[Spec], costs: Mapping[str, Cost]) -> list[str]:
    """A line a cell: the options and the leaves in which cells differ, and what there is to do of it."""
    leaves = [dict(flat(spec.science)) for spec in specs]
    groups = [group for group in specs[0].labels if len({spec.labels.get(group) for spec in specs}) > 1]

    def differs(key: str) -> bool:
        """Whether cells differ in a leaf, and the option of its group does not say how."""
        group = key.partition(".")[0]
        options = [spec.labels.get(group) if group in groups else None for spec in specs]
        seen = {(option, str(cell.get(key))) for option, cell in zip(options, leaves, strict=True)}
        return len(seen) > len(set(options))

    shown = [key for key in sorted(set().union(*leaves)) if differs(key)]
    lines = []
    for spec, cell in zip(specs, leaves, strict=True):
        names = {g: spec.labels[g] for g in groups if g in spec.labels and g != "activation"}
        rest = {key: cell[key] for key in shown if key in cell}
        labels = " ".join(f"{key}={value}" for key, value in (names | rest).items())
        cost = costs.get(spec.cell)
        part = f"{cost.lanes} lanes, {cost.flops / 1e12:.2f} TFLOP" if cost else "done"
        lines.append(f"  {spec.cell}  {labels}  {part}")
    return lines


def machine() -> str:
    """What estimates are for."""
    return f"{units()} {jax.default_backend()} unit(s)"
