"""Collecting: the only writer of `results/`. Finished runs are merged into results/STUDY/SCALE/, their rows thinned.

It never deletes a run: one of an older revision of its study stays in runs.csv, neither drawn nor judged, and only its curve
goes.
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pcexp.files import replace_bytes
from pcexp.records.tables import Records, asked_for, read_outputs, tables

POINTS_A_LANE = 60
"""Rows kept of a lane in results/: as many as a curve of a figure shows."""


def thinned(rows: pl.DataFrame, points: int = POINTS_A_LANE) -> pl.DataFrame:
    """At most `points` rows a lane: first and last, and between them evenly in log iteration and in iteration by halves.

    Rows of the test set are few and of another kind: they are thinned by themselves.
    """

    def thin(lane: pl.DataFrame) -> pl.DataFrame:
        if "test_accuracy" in lane.columns:
            tested = pl.col("test_accuracy").is_not_null()
            kinds = one_kind(lane.filter(~tested)), one_kind(lane.filter(tested))
            return pl.concat(kinds).sort("iteration", maintain_order=True)
        return one_kind(lane)

    def one_kind(lane: pl.DataFrame) -> pl.DataFrame:
        lane = lane.sort("iteration")
        if len(lane) <= points:
            return lane
        even = np.linspace(0, len(lane) - 1, points // 2)
        logarithmic = np.geomspace(1, len(lane), points - points // 2) - 1
        return lane[np.unique(np.round(np.concatenate([even, logarithmic])).astype(int)).tolist()]

    parts = [thin(lane) for _, lane in rows.sort("cell", "lane").group_by("cell", "lane", maintain_order=True)]
    return pl.concat(parts) if parts else rows


def _merge(old: pl.DataFrame, new: pl.DataFrame, keys: Sequence[str], order: Sequence[str] = ()) -> pl.DataFrame:
    """Both tables, sorted; where both have a key, the new rows. Nothing that only the old one has is lost."""
    tables = [frame for frame in (old, new) if len(frame)]
    if not tables:
        return new
    if len(tables) == 2:
        tables[0] = old.join(new.select(keys).unique(), on=list(keys), how="anti")
    return pl.concat(tables, how="diagonal_relaxed").sort(list(order or keys))


def _shared(runs: pl.DataFrame) -> dict[str, Any]:
    """Columns that are the same for all runs, with their value: of thousands of runs they would be most of a table."""
    same = [name for name in runs.columns if name not in ("cell", "lane") and runs[name].n_unique() == 1]
    return {"columns": runs.columns, "values": {name: runs[name][0] for name in same}}


def collect(outputs: Path, results: Path, study: str, scale: str) -> Records:
    """Merge the finished runs of a study into results/STUDY/SCALE/; the committed records after that."""
    folder = results / study / scale
    new, old = read_outputs(outputs, study, scale), tables(folder, study, scale)
    if len(new.runs) and len(old.runs):
        # A run that failed here does not replace one that ended elsewhere.
        failed = new.runs.filter(pl.col("outcome").str.starts_with("failed")).select("cell", "lane")
        beaten = failed.join(
            old.runs.filter(~pl.col("outcome").str.starts_with("failed")), on=["cell", "lane"], how="semi"
        )
        new = dataclasses.replace(
            new,
            runs=new.runs.join(beaten, on=["cell", "lane"], how="anti"),
            rows=new.rows.join(beaten, on=["cell", "lane"], how="anti") if len(new.rows) else new.rows,
        )
    fresh = thinned(new.rows).with_columns(pl.selectors.float().cast(pl.Float32)) if len(new.rows) else new.rows
    merged = Records(
        study,
        scale,
        runs=_merge(old.runs, new.runs, ("cell", "lane")),
        rows=_merge(old.rows, fresh, ("cell", "lane"), order=("cell", "lane", "iteration")),
        asked=_merge(old.asked, new.asked, ("cell", "lane")),
        strays=new.strays,
    )
    committed = asked_for(merged)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    committed.rows.write_parquet(buffer, compression="zstd", compression_level=19, statistics=False)
    replace_bytes(folder / "records.parquet", buffer.getvalue())
    shared = _shared(merged.runs)
    replace_bytes(folder / "runs.csv", merged.runs.drop(shared["values"]).write_csv(float_precision=None).encode())
    replace_bytes(folder / "shared.json", (json.dumps(shared, indent=1) + "\n").encode())
    replace_bytes(folder / "asked.csv", committed.asked.write_csv().encode())
    return committed
