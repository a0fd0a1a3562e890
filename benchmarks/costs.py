"""The estimate of time that a command prints, set against the seconds of committed runs.

    python benchmarks/costs.py          a line a study, scale and data set of results/

Recorded are the seconds of all lanes of a cell, and of its compilation, over the two cores that they shared; of lanes that were
computed one after the other, their sum. Image sets are needed for their sizes alone, and no copy is.
"""

import argparse
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from pcexp.config.spec import Spec, identity, spec
from pcexp.config.targets import ALLOWED_TARGETS, located
from pcexp.data import Dataset, Split, Tfds
from pcexp.records.tables import read_results
from pcexp.run.cost import estimate
from pcexp.run.session import Datasets

RESULTS = Path(__file__).parents[1] / "results"
IMAGES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
WORKERS = 2
DISTURBED = 15.0
"""A training step compiles in 1 to 10 s. Where it took longer the machine had other work, which a run's seconds count too."""


class Sized(Dataset):
    """A data set of which the sizes are true, and the numbers are not there."""

    def __post_init__(self) -> None:
        """Nothing is read or copied."""


class Sizes(Datasets):
    """Data sets of which the sizes are needed alone."""

    def __call__(self, spec: Spec) -> Dataset:
        if not isinstance(spec.data, Tfds):
            return super().__call__(spec)
        shape = IMAGES[spec.data.name]
        shape = (math.prod(shape),) if spec.network.arrangement.flat else shape
        n = spec.data.published.n_train
        held_out = round(spec.data.validation_fraction * n)
        train, validation, test = (
            Split(np.broadcast_to(np.float32(0), (m, *shape)), np.broadcast_to(np.float32(0), (m, 10)))
            for m in (n - held_out, held_out, 10_000)
        )
        return Sized(spec.data.name, train, validation, test, "", "")


class Compared(NamedTuple):
    """Seconds of a study's runs at one scale on one data set, as estimated and as recorded."""

    cells: int
    lanes: int
    estimated: float
    recorded: float


def spec_of(run: Mapping[str, Any]) -> Spec:
    """The cell of a run, from the columns that its configuration left in the table."""
    config: dict[str, Any] = {"lanes": {}}
    for column, value in run.items():
        if value is None or column.startswith("run.") or "." not in column:
            continue
        *parents, leaf = column.removeprefix("config.").split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        try:  # a list, or a number in a column that has lists too
            node[leaf] = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError:
            node[leaf] = value
    _fill(config)
    return spec(identity(config))


def _fill(node: dict[str, Any]) -> None:
    """A table has no column for what is null throughout: such arguments are the ones that are needed and not there."""
    for value in node.values():
        if isinstance(value, dict):
            _fill(value)
    if "_target_" in node:
        needed = inspect.signature(located(node["_target_"], "_target_", ALLOWED_TARGETS)).parameters.values()
        node |= {one.name: None for one in needed if one.default is one.empty and one.name not in node}


def compared(runs: pl.DataFrame) -> Compared:
    """What cells of committed runs are estimated at, and what they took."""
    sizes, estimated, recorded, n_cells = Sizes(), 0.0, 0.0, 0
    for _, lanes in runs.group_by("cell", maintain_order=True):
        estimated += estimate(spec_of(lanes.row(0, named=True)), sizes, len(lanes), WORKERS).seconds
        compiling = lanes["run.seconds_compile"].max() if "run.seconds_compile" in lanes.columns else None
        seconds = float(lanes["run.seconds_run"].sum())
        recorded += seconds if compiling is None else (seconds + float(str(compiling))) / WORKERS
        n_cells += 1
    return Compared(n_cells, len(runs), estimated, recorded)


def undisturbed(runs: pl.DataFrame) -> pl.DataFrame:
    """Runs of cells that compiled in no more than DISTURBED seconds; all, of a study that did not record that."""
    if "run.seconds_compile" not in runs.columns:
        return runs
    return runs.filter(pl.col("run.seconds_compile") < DISTURBED)


def committed(scales: tuple[str, ...] = ("small", "thesis")) -> Iterator[tuple[str, str, str, pl.DataFrame]]:
    """Study, scale, data set and runs of all committed records."""
    for path in sorted(RESULTS.glob("*/*/runs.csv")):
        study, scale = path.parts[-3:-1]
        runs = read_results(RESULTS, study, scale).runs
        for data in runs["data"].unique().sort() if scale in scales else ():
            yield study, scale, data, runs.filter(pl.col("data") == data)


def main() -> None:
    """Print the table: of all runs, and of the undisturbed ones."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| study | scale | data | cells | lanes | estimated s | recorded s | ratio |")
    print("| --- " * 8 + "|")
    for study, scale, data, runs in committed():
        parts = {data: runs, f"{data}, undisturbed": undisturbed(runs)}
        for name, part in parts.items() if 0 < len(parts[f"{data}, undisturbed"]) < len(runs) else ((data, runs),):
            c = compared(part)
            ratio = c.estimated / c.recorded
            print(
                f"| {study} | {scale} | {name} | {c.cells} | {c.lanes} | {c.estimated:.0f} | {c.recorded:.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
