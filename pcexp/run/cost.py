"""What a command will cost, from shapes alone, before anything is compiled."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.random as jr

from pcexp.config.identity import flat
from pcexp.config.spec import Spec
from pcexp.model.network import AbstractModel
from pcexp.run.progress import duration
from pcexp.run.session import Datasets
from pcexp.train import iterations

ASSUMED_FLOPS_A_SECOND = {"cpu": 8e10, "gpu": 5e12}
"""Useful rate of a CPU core or a GPU that the estimate assumes; the progress bar measures the real one."""


class Cost(NamedTuple):
    """Floating point operations and bytes of the unfinished lanes of a cell."""

    flops: float
    bytes: float
    lanes: int


def forward_flops(network: AbstractModel, input_shape: tuple[int, ...]) -> float:
    """Floating point operations of one forward pass of one example: two a weight and position it is applied at."""
    x = jax.ShapeDtypeStruct(input_shape, "float32")
    _, references = jax.eval_shape(lambda n, x: n.forward(x), network, x)
    total = 0.0
    for segment, reference in zip(network.stacks, references, strict=True):
        positions = reference.linear.size / (segment.depth * reference.linear.shape[-1])
        total += 2.0 * segment.weight.size * positions
    return total


def estimate(spec: Spec, datasets: Datasets, lanes: int) -> Cost:
    """Cost of so many lanes of a cell: what its study says, or of training. Raises DataError where the data are missing."""
    dataset = datasets(spec)
    held = 4.0 * (dataset.train.x.size + dataset.test.x.size)
    own = spec.study.cost(spec, dataset)
    if own is not None:
        return Cost(own[0] * lanes, held + own[1], lanes)
    if spec.training.batch_size > len(dataset.train.x):
        raise ValueError(
            f"training.batch_size={spec.training.batch_size}: the training set has {len(dataset.train.x)} examples"
        )
    network = jax.eval_shape(
        lambda: spec.network.build(spec.parameterisation, dataset.input_shape, dataset.d_out, key=jr.key(0))
    )
    example = forward_flops(network, dataset.input_shape)
    steps = iterations(spec.training, len(dataset.train.x))
    flops = example * spec.training.batch_size * spec.learning.forward_passes() * steps * lanes
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network))
    return Cost(flops, held + 4.0 * 4 * parameters * min(lanes, 64), lanes)


def describe(specs: Sequence[Spec], costs: Mapping[str, Cost], folder: Path, scale: str, listed: bool) -> str:
    """What there is to do, as text; with `listed`, a line a cell."""
    total_lanes = sum(len(spec.lanes) for spec in specs)
    todo = sum(cost.lanes for cost in costs.values())
    backend = jax.default_backend()
    units = len(os.sched_getaffinity(0)) if backend == "cpu" else len(jax.devices())
    seconds = sum(cost.flops for cost in costs.values()) / ASSUMED_FLOPS_A_SECOND[backend] / units
    memory = max((cost.bytes for cost in costs.values()), default=0.0) / 1e9
    work = (
        f"about {duration(seconds)} and {memory:.1f} GB on {units} {backend} unit(s)" if todo else "nothing left to run"
    )
    lines = [f"{folder} at scale {scale}: {len(specs)} cells, {total_lanes} lanes, {todo} to run; {work}"]
    leaves = [dict(flat(spec.science)) for spec in specs]
    varying = [key for key in sorted(set().union(*leaves)) if len({str(cell.get(key)) for cell in leaves}) > 1]
    groups = [group for group in specs[0].labels if len({spec.labels.get(group) for spec in specs}) > 1]

    def told(key: str) -> bool:
        """Whether the option of its group says what a leaf is."""
        group = key.partition(".")[0]
        seen: dict[str | None, set[str]] = {}
        for spec, cell in zip(specs, leaves, strict=True):
            seen.setdefault(spec.labels.get(group), set()).add(str(cell.get(key)))
        return group in groups and all(len(values) == 1 for values in seen.values())

    shown = [key for key in varying if not told(key)]
    for spec, cell in zip(specs, leaves, strict=True) if listed else ():
        names = {g: spec.labels[g] for g in groups if g in spec.labels and g != "activation"}
        rest = {key: cell[key] for key in shown if key in cell}
        labels = " ".join(f"{key}={value}" for key, value in (names | rest).items())
        cost = costs.get(spec.cell)
        part = f"{cost.lanes} lanes, {cost.flops / 1e12:.2f} TFLOP" if cost else "done"
        lines.append(f"  {spec.cell}  {labels}  {part}")
    return "\n".join(lines)
