"""Collecting: the only writer of `results/`. Finished runs are merged into results/STUDY/SCALE/, their rows thinned.

It never deletes a run: one of an older revision of its study stays in runs.csv, neither drawn nor judged, and only its curve
goes.
"""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import polars as pl

from pcexp.files import replace_bytes
from pcexp.records.tables import Records, asked_for, read_outputs, shared, tables

POINTS_A_LANE = 60
"""Rows kept of a lane in results/: as many as a curve of a figure shows."""
LANE = ["cell", "lane"]


def thinned(rows: pl.DataFrame, points: int = POINTS_A_LANE) -> pl.DataFrame:
    """At most `points` rows a lane: first and last, and between them evenly in log iteration and in iteration by halves.

    Rows of the test set are few and of another kind: they are thinned by themselves.
    """

    def thin(lane: pl.DataFrame) -> pl.DataFrame:
        measured = [n for n in lane.columns if n not in ("cell", "lane", "iteration") and not n.startswith("test_")]
        if measured and any(name.startswith("test_") for name in lane.columns):
            tested = pl.all_horizontal(pl.col(measured).is_null())
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

    parts = [thin(lane) for _, lane in rows.sort(LANE).group_by(LANE, maintain_order=True)]
    return pl.concat(parts) if parts else rows


def _merge(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Both tables; of a lane that is in both, the new rows. Nothing that only the old one has is lost or moves."""
    there = [frame for frame in (old, new.sort(LANE, maintain_order=True) if len(new) else new) if len(frame)]
    if len(there) == 2:
        there[0] = old.join(new.select(LANE).unique(), on=LANE, how="anti", maintain_order="left")
    return pl.concat(there, how="diagonal_relaxed") if there else new


def collect(outputs: Path, results: Path, study: str, scale: str) -> Records:
    """Merge the finished runs of a study into results/STUDY/SCALE/; the committed records after that."""
    folder = results / study / scale
    new, old = read_outputs(outputs, study, scale), tables(folder, study, scale)
    if len(new.runs) and len(old.runs):
        # A run that failed here does not replace one that ended elsewhere.
        failed = pl.col("outcome").str.starts_with("failed")
        beaten = new.runs.filter(failed).join(old.runs.filter(~failed), on=LANE, how="semi").select(LANE)
        rows = new.rows.join(beaten, on=LANE, how="anti") if len(new.rows) else new.rows
        new = dataclasses.replace(new, runs=new.runs.join(beaten, on=LANE, how="anti"), rows=rows)
    fresh = thinned(new.rows).with_columns(pl.selectors.float().cast(pl.Float32)) if len(new.rows) else new.rows
    runs, rows, asked = _merge(old.runs, new.runs), _merge(old.rows, fresh), _merge(old.asked, new.asked)
    merged = Records(study, scale, runs, rows, asked, new.strays)
    committed = asked_for(merged)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    committed.rows.write_parquet(buffer, compression="zstd", compression_level=19, statistics=False)
    replace_bytes(folder / "records.parquet", buffer.getvalue())
    write_tables(folder, merged.runs, merged.asked)
    return committed


def write_tables(folder: Path, runs: pl.DataFrame, asked: pl.DataFrame) -> None:
    """Write runs.csv, asked.csv (lanes), cells.csv (their labels and configurations), and what is the same in all rows of each."""
    # Lane values are the seed, and dotted keys that are no leaves of the configuration.
    keys = [name for name in asked.columns if name == "seed" or ("." in name and not name.startswith("config."))]
    lanes = asked.select(*LANE, "variant", "blocks", *(name for name in keys if asked[name].dtype.is_numeric()))
    cells = asked.select(name for name in asked.columns if name == "cell" or name not in lanes.columns)
    frames = {"runs": runs, "asked": lanes, "cells": cells.unique("cell", maintain_order=True)}
    same = {name: shared(frame) for name, frame in frames.items()}
    for name, frame in frames.items():
        text = frame.drop(same[name]["values"]).write_csv(float_precision=None)
        replace_bytes(folder / f"{name}.csv", text.encode())
    replace_bytes(folder / "shared.json", (json.dumps(same, indent=1) + "\n").encode())
