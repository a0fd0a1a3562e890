"""Records: what runs left, as two tables, and the only writer of `results/`.

    runs   one row a lane: labels, lane values, outcome, summary, configuration leaves, provenance
    rows   one row a recorded iteration: cell, lane, iteration, measurements

Rows outside the manifest of a scale are named and left out. `python -m pcexp.records collect NAME` merges finished runs into
results/NAME/SCALE/, thins rows to what a figure shows, and renders. It never deletes a run: one of an older revision of its
study stays in runs.csv, neither drawn nor judged, and only its curve goes.
"""

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pcexp.cell import read_lines
from pcexp.files import replace_bytes
from pcexp.spec import flat

POINTS_A_LANE = 60
"""Rows kept of a lane in results/: as many as a curve of a figure shows."""


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
        """Module of the study: in `experiments`, or one of the user's own."""
        if "config.study._target_" in self.runs.columns and len(self.runs):
            return str(self.runs["config.study._target_"][0]).rpartition(".")[0]
        return f"experiments.{self.study}"

    @property
    def command(self) -> str:
        """The command that makes these records."""
        parts = [f"python -m pcexp +experiment={self.study}"]
        for label in ("data", "network", "variant"):
            values = self.asked[label].unique().to_list() if label in self.asked.columns else []
            if len(values) == 1 and values[0]:
                parts.append(values[0] if label == "variant" else f"{label}={values[0]}")
        return " ".join([*parts, f"scale={self.scale}"])

    def select(self, **labels: Any) -> "Records":
        """The part of the records whose labels are these."""

        def chosen(frame: pl.DataFrame) -> pl.DataFrame:
            for name, value in labels.items():
                frame = frame.filter(pl.col(name) == value) if name in frame.columns else frame.clear()
            return frame

        runs = chosen(self.runs)
        rows = (
            self.rows.join(runs.select("cell", "lane"), on=["cell", "lane"], how="semi")
            if len(runs) and len(self.rows)  # lanes that failed before their first row have no columns to join
            else self.rows.clear()
        )
        return Records(self.study, self.scale, runs, rows, chosen(self.asked), self.strays)

    def groups(self) -> list[dict[str, str]]:
        """What is judged and drawn apart: each data set, and each variant (overrides that make another experiment)."""
        return (
            self.asked.select("data", "variant").unique().sort("data", "variant").to_dicts() if len(self.asked) else []
        )

    @property
    def about(self) -> str:
        """Data, scale and variant, for captions."""
        names = [g["data"] + (f" ({g['variant']})" if g["variant"] else "") for g in self.groups()]
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
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list):
            flat |= {f"{name}_{i}": float(v) for i, v in enumerate(value, start=1)}
        else:
            flat[name] = value if name in ("lane", "cell") else int(value) if name == "iteration" else float(value)
    return flat


def read_outputs(outputs: Path, study: str, scale: str) -> Records:
    """Records of a study from the folders that its runs wrote."""
    folder = outputs / study
    manifest_path = folder / f"manifest-{scale}.json"
    manifest = json.loads(manifest_path.read_text())["cells"] if manifest_path.exists() else {}
    runs, rows, asked = [], [], []
    for cell, entry in manifest.items():
        config_path = folder / cell / "config.json"
        for lane, values in entry["lanes"].items():
            asked.append({"cell": cell, "lane": lane, "revision": entry["revision"], **entry["labels"], **values})
        if not config_path.exists():
            continue
        science = json.loads(config_path.read_text())["science"]
        finished = {e["lane"]: e for e in read_lines(folder / cell / "lanes.jsonl") if e["lane"] in entry["lanes"]}
        for lane, done in finished.items():
            runs.append(
                {"study": study, "scale": scale, "cell": cell, "lane": lane, "revision": entry["revision"]}
                | entry["labels"]
                | done["values"]
                | {"outcome": done["outcome"], **done["summary"]}
                | {f"config.{key}": value for key, value in flat(science)}
                | {f"run.{key}": value for key, value in done["provenance"].items()}
            )
        rows += [
            {"cell": cell, **_wide(row)} for row in read_lines(folder / cell / "rows.jsonl") if row["lane"] in finished
        ]
    cells_there = {path.parent.name for path in folder.glob("*/config.json")}
    return Records(
        study, scale, _frame(runs), _frame(rows), _frame(asked), tuple(sorted(cells_there - manifest.keys()))
    )


def read_results(results: Path, study: str, scale: str) -> Records:
    """Records of a study from the tables that are committed: the runs that are asked for at its newest revision."""
    return _asked_for(_tables(results / study / scale, study, scale))


def _asked_for(all_records: Records) -> Records:
    """The newest revision; cells with none of its runs are named as strays."""
    asked, runs, rows = all_records.asked, all_records.runs, all_records.rows
    if not len(asked):
        return all_records
    asked = asked.filter(pl.col("revision") == asked["revision"].max())
    key = ["cell", "lane"]
    strays = set(runs["cell"]) - set(asked["cell"]) if len(runs) else set()
    runs, rows = (frame.join(asked, on=key, how="semi") if len(frame) else frame for frame in (runs, rows))
    return dataclasses.replace(
        all_records, asked=asked, runs=runs, rows=rows, strays=tuple(sorted({*all_records.strays, *strays}))
    )


def _tables(folder: Path, study: str, scale: str) -> Records:
    """All that the tables of a folder hold."""
    if not (folder / "runs.csv").exists():
        empty = pl.DataFrame()
        return Records(study, scale, empty, empty, empty)
    # Hashes can look like numbers, and an empty string is a variant's name, not a missing one.
    texts = {"lane": pl.String, "cell": pl.String, "variant": pl.String}
    runs, asked = (
        pl.read_csv(folder / name, infer_schema_length=None, schema_overrides=texts)
        for name in ("runs.csv", "asked.csv")
    )
    shared = json.loads((folder / "shared.json").read_text())
    runs = runs.with_columns(**{name: pl.lit(value) for name, value in shared["values"].items()}).select(
        shared["columns"]
    )
    runs, asked = (frame.with_columns(pl.col("variant").fill_null("")) for frame in (runs, asked))
    return Records(study, scale, runs, pl.read_parquet(folder / "records.parquet"), asked)


def thinned(rows: pl.DataFrame, points: int = POINTS_A_LANE) -> pl.DataFrame:
    """At most `points` rows a lane: first and last, and between them evenly in log iteration and in iteration by halves."""

    def thin(lane: pl.DataFrame) -> pl.DataFrame:
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
    new, old = read_outputs(outputs, study, scale), _tables(folder, study, scale)
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
    committed = _asked_for(merged)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    committed.rows.write_parquet(buffer, compression="zstd", compression_level=19)
    replace_bytes(folder / "records.parquet", buffer.getvalue())
    shared = _shared(merged.runs)
    replace_bytes(folder / "runs.csv", merged.runs.drop(shared["values"]).write_csv(float_precision=None).encode())
    replace_bytes(folder / "shared.json", (json.dumps(shared, indent=1) + "\n").encode())
    replace_bytes(folder / "asked.csv", committed.asked.write_csv().encode())
    return committed


def main(arguments: Iterable[str] | None = None) -> None:
    """`python -m pcexp.records collect NAME`: merge finished runs into results/ and render them."""
    parser = argparse.ArgumentParser(prog="python -m pcexp.records", description=main.__doc__)
    parser.add_argument("verb", choices=["collect"])
    parser.add_argument("study", help="name of a study, as in experiments/NAME.py")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args(None if arguments is None else list(arguments))
    manifests = sorted((options.outputs / options.study).glob("manifest-*.json"))
    if not manifests:
        sys.exit(
            f"no runs of {options.study} under {options.outputs}: run python -m pcexp +experiment={options.study} first"
        )
    from pcexp import report

    for manifest in manifests:
        scale = manifest.stem.removeprefix("manifest-")
        if scale == "smoke":
            continue  # seconds of a test: not a result
        records = collect(options.outputs, options.results, options.study, scale)
        print(f"{options.results / options.study / scale}: {len(records.runs)} runs, {len(records.rows)} rows")
        if records.strays:
            print(f"kept, of an older revision or not asked for: {len(records.strays)} cells")
    report.main([options.study, "--results", str(options.results)])


if __name__ == "__main__":
    main()
