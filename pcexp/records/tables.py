"""Records: what runs left, as two tables.

    runs   one row a lane: labels, lane values, outcome, summary, configuration leaves, provenance
    rows   one row a recorded iteration: cell, lane, iteration, measurements

Rows outside the manifest of a scale are named and left out. `collect` is the only writer of `results/`: finished runs are merged
into results/STUDY/SCALE/, their rows thinned. It never deletes a run: one of an older revision of its study stays in runs.csv,
neither drawn nor judged, and only its curve goes.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pcexp.config.plain import flat
from pcexp.files import replace_bytes
from pcexp.records import manifest, status
from pcexp.records.cell import WITHDRAWN, read_lines

POINTS_A_LANE = 60
"""Rows kept of a lane in results/: as many as a curve of a figure shows."""
LANE = ["cell", "lane"]


@dataclass(frozen=True)
class Records:
    """Runs and rows of one study at one scale, against what was asked for."""

    study: str
    scale: str
    runs: pl.DataFrame
    rows: pl.DataFrame
    asked: pl.DataFrame
    strays: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Module of the study: in `pcexp.experiments`, or one of the user's own."""
        if "config.study._target_" in self.runs.columns and len(self.runs):
            return str(self.runs["config.study._target_"][0]).rpartition(".")[0]
        return f"pcexp.experiments.{self.study}"

    @property
    def command(self) -> str:
        return status.command(self.study, self.scale, {name: self.asked[name] for name in self.asked.columns})

    def select(
        self, where: Mapping[str, Any] | None = None, /, *, block: str | Sequence[str] | None = None, **labels: Any
    ) -> "Records":
        """The records whose labels, and columns `where`, are these, and that a block of the grid (or one of several) asks for."""
        labels = labels | dict(where or {})

        def chosen(frame: pl.DataFrame) -> pl.DataFrame:
            if block is not None:
                names = [block] if isinstance(block, str) else list(block)
                of_block = pl.any_horizontal(pl.col("blocks").str.split(" ").list.contains(name) for name in names)
                frame = frame.filter(of_block) if "blocks" in frame.columns else frame.clear()
            for name, value in labels.items():
                frame = frame.filter(pl.col(name) == value) if name in frame.columns else frame.clear()
            return frame

        runs, rows = chosen(self.runs), self.rows.clear()
        if len(runs) and len(self.rows):  # lanes that failed before their first row have no columns to join
            rows = self.rows.join(runs.select(LANE), on=LANE, how="semi")
        return Records(self.study, self.scale, runs, rows, chosen(self.asked), self.strays)

    def apart(self) -> list[dict[str, str]]:
        """Labels of what is judged and drawn apart: each data set, and each variant (overrides that make another experiment).

        A study's own grid of which nothing was run is left out beside a variant of which something was.
        """
        if not len(self.asked):
            return []
        names = ["data", "variant"]
        found = self.asked.select(names).unique().sort(names).to_dicts()
        ran = self.runs.select(names).unique().to_dicts() if len(self.runs) else []
        beside = {labels["data"] for labels in ran if labels["variant"]}
        return [one for one in found if one in ran or one["variant"] or one["data"] not in beside]

    @property
    def about(self) -> str:
        """Data, scale and variant, for captions."""
        names = [g["data"] + (f" ({g['variant']})" if g["variant"] else "") for g in self.apart()]
        names = [name if len(name) <= 40 else f"{name[:37]}..." for name in names]
        return f"{', '.join(names)}, {self.scale}"

    def lane(self, cell: str, lane: str) -> pl.DataFrame:
        """Rows of one lane, sorted by iteration."""
        if not len(self.rows):
            return self.rows
        return self.rows.filter((pl.col("cell") == cell) & (pl.col("lane") == lane)).sort("iteration")


def _frame(entries: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(list(entries), infer_schema_length=None, strict=False) if entries else pl.DataFrame()


def _wide(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with one column an entry of each vector, counted from 1 (layers are)."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list):
            found |= {f"{name}_{i}": float(v) for i, v in enumerate(value, start=1)}
        else:
            found[name] = value if name in ("lane", "cell") else int(value) if name == "iteration" else float(value)
    return found


def read_outputs(outputs: Path, study: str, scale: str) -> Records:
    """Records of a study from the folders that its runs wrote."""
    folder = outputs / study
    cells = manifest.asked(folder, scale)
    runs, rows, asked = [], [], []
    for cell, entry in cells.items():
        leaves = {f"config.{key}": value for key, value in flat(entry["science"])}
        lanes = {
            name: {"cell": cell, "lane": name, "revision": entry["revision"]}
            | entry["labels"]
            | {"variant": lane["variant"], "blocks": " ".join(lane["blocks"])}
            | lane["values"]
            for name, lane in entry["lanes"].items()
        }
        asked += [lane | leaves for lane in lanes.values()]
        finished = {e["lane"]: e for e in read_lines(folder / cell / "lanes.jsonl") if e["lane"] in lanes}
        for name, done in finished.items():
            ended = {"outcome": done["outcome"], **done["summary"]}
            origin = {f"run.{key}": value for key, value in done["provenance"].items()}
            runs.append({"study": study, "scale": scale} | lanes[name] | ended | leaves | origin)
        of_finished = (row for row in read_lines(folder / cell / "rows.jsonl") if row["lane"] in finished)
        rows += [{"cell": cell, **_wide(row)} for row in of_finished]
    cells_there = {path.parent.name for path in folder.glob("*/config.json")}
    return Records(study, scale, _frame(runs), _frame(rows), _frame(asked), tuple(sorted(cells_there - cells.keys())))


def read_results(results: Path, study: str, scale: str) -> Records:
    """Records of a study from the tables that are committed: the runs that are asked for at its newest revision."""
    return asked_for(tables(results / study / scale, study, scale))


def asked_for(all_records: Records) -> Records:
    """The newest revision; cells with none of its runs are named as strays."""
    asked, runs, rows = all_records.asked, all_records.runs, all_records.rows
    if not len(asked):
        return all_records
    asked = asked.filter(pl.col("revision") == asked["revision"].max())
    strays = set(runs["cell"]) - set(asked["cell"]) if len(runs) else set()
    runs, rows = (frame.join(asked, on=LANE, how="semi") if len(frame) else frame for frame in (runs, rows))
    if len(runs):  # what a run belongs to is said by the grid, which may have changed since it was made
        columns = dict.fromkeys((*runs.columns, "variant", "blocks"))
        belongs = asked.select(*LANE, "variant", "blocks")
        runs = runs.drop("variant", "blocks", strict=False).join(belongs, on=LANE, how="left", maintain_order="left")
        runs = runs.select(*columns)
    named = tuple(sorted({*all_records.strays, *strays}))
    return dataclasses.replace(all_records, asked=asked, runs=runs, rows=rows, strays=named)


def tables(folder: Path, study: str, scale: str) -> Records:
    """All that the tables of a folder hold."""
    if not (folder / "runs.csv").exists():
        empty = pl.DataFrame()
        return Records(study, scale, empty, empty, empty)
    runs, lanes, cells = (_read(folder, name) for name in ("runs", "asked", "cells"))
    asked = lanes.join(cells, on="cell", how="left", maintain_order="left")
    return Records(study, scale, runs, pl.read_parquet(folder / "records.parquet"), asked)


def _read(folder: Path, name: str) -> pl.DataFrame:
    """A table as `write_tables` wrote it."""
    # Hashes can look like numbers, and an empty string is a variant's name, not a missing one.
    texts = {"lane": pl.String, "cell": pl.String, "variant": pl.String, "blocks": pl.String, "content": pl.String}
    frame = pl.read_csv(folder / f"{name}.csv", infer_schema_length=None, schema_overrides=texts)
    shared = json.loads((folder / "shared.json").read_text())[name]
    frame = frame.with_columns(**{column: pl.lit(value) for column, value in shared["values"].items()})
    frame = frame.select(shared["columns"])
    return frame.with_columns(pl.col(c).fill_null("") for c in ("variant", "blocks", "content") if c in frame.columns)


def shared(frame: pl.DataFrame) -> dict[str, Any]:
    """Columns that are the same in all rows, with their value: of thousands of runs they would be most of a table."""
    same = [name for name in frame.columns if name not in LANE and frame[name].n_unique() == 1]
    return {"columns": frame.columns, "values": {name: frame[name][0] for name in same}}


def thinned(rows: pl.DataFrame, points: int = POINTS_A_LANE) -> pl.DataFrame:
    """At most `points` rows a lane: first and last, and between them evenly in log iteration and in iteration by halves.

    Rows of the test set are few and of another kind: they are thinned by themselves.
    """
    measured = [name for name in rows.columns if name not in (*LANE, "iteration") and not name.startswith("test_")]
    kind = pl.all_horizontal(pl.col(measured).is_null()) if measured else pl.lit(False)
    order = [*LANE, "iteration", "kind of row"]
    parts = []
    for _, part in rows.with_columns(kind.alias(order[-1])).sort(order).group_by(*LANE, order[-1], maintain_order=True):
        even = np.linspace(0, len(part) - 1, points // 2)
        logarithmic = np.geomspace(1, len(part), points - points // 2) - 1
        kept = np.unique(np.round(np.concatenate([even, logarithmic])).astype(int)).tolist()
        parts.append(part[kept] if len(part) > points else part)
    return pl.concat(parts).sort(order).drop(order[-1]) if parts else rows


def _merge(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Both tables; of a lane that is in both, the new rows. Nothing that only the old one has is lost or moves."""
    there = [frame for frame in (old, new.sort(LANE, maintain_order=True) if len(new) else new) if len(frame)]
    if len(there) == 2:
        there[0] = old.join(new.select(LANE).unique(), on=LANE, how="anti", maintain_order="left")
    return pl.concat(there, how="diagonal_relaxed") if there else new


def _of_same_content(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """What was asked for, less the cells on data that are called as those of `new`, and have changed."""
    if not (len(old) and len(new)):
        return old

    def contents(frame: pl.DataFrame) -> pl.DataFrame:
        content = pl.col("content").fill_null("") if "content" in frame.columns else pl.lit("").alias("content")
        return frame.select("cell", "data", content)

    now = contents(new).select("data", pl.col("content").alias("now")).unique()
    changed = contents(old).join(now, on="data").filter(pl.col("content") != pl.col("now"))
    return old.join(changed, on="cell", how="anti", maintain_order="left")


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
    asked = _merge(_of_same_content(old.asked, new.asked), new.asked)
    runs, rows = _merge(old.runs, new.runs), _merge(old.rows, fresh)
    merged = Records(study, scale, runs, rows, asked, new.strays)
    committed = asked_for(merged)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    committed.rows.write_parquet(buffer, compression="zstd", compression_level=19, statistics=False)
    replace_bytes(folder / "records.parquet", buffer.getvalue())
    write_tables(folder, merged.runs, merged.asked)
    return committed


def forget(folder: Path, study: str, scale: str, withdrawn: Callable[[str, str, str], bool]) -> int:
    """Withdraw committed runs, by cell, lane and variant: how many. They stay in runs.csv, and no verdict counts on them.

    Those of variants are asked for no more; the study's own are, and are missing.
    """
    there = tables(folder, study, scale)
    keys = [*LANE, "variant"]
    found = [row for row in there.asked.select(keys).iter_rows() if withdrawn(*row)] if len(there.asked) else []
    if not found:
        return 0
    named = pl.DataFrame(found, schema=keys, orient="row")
    gone = named.filter(pl.col("variant") != "")
    of_named = pl.struct(LANE).is_in(named.select(pl.struct(LANE)).to_series().implode())
    runs = there.runs.with_columns(outcome=pl.when(of_named).then(pl.lit(WITHDRAWN)).otherwise("outcome"))
    write_tables(folder, runs, there.asked.join(gone, on=LANE, how="anti", maintain_order="left"))
    return len(found)


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
