"""Collecting: what is committed is never lost, reads back as it was, and stays small."""

from pathlib import Path

import made_up
import polars as pl
import pytest
import quick
from made_up import diverging, failing, only
from matplotlib.figure import Figure

from pcexp import commands
from pcexp.config.spec import Spec
from pcexp.experiments import saddle_escape
from pcexp.records.tables import POINTS_A_LANE, collect, read_outputs, read_results, thinned
from pcexp.report import rendering as report


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_collected_reads_back_as_it_was(outputs: Path, results: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small[:-1], "small", diverging)
    made_up.written(outputs, small[-1:], "small")
    new = read_outputs(outputs, quick.STUDY, "small")
    collect(outputs, results, quick.STUDY, "small")
    again = read_results(results, quick.STUDY, "small")
    for ours, theirs in ((new.runs, again.runs), (new.asked, again.asked)):
        assert sorted(ours.columns) == sorted(theirs.columns)
        theirs = theirs.select(ours.columns)
        assert repr(ours.sort("cell", "lane").to_dicts()) == repr(theirs.sort("cell", "lane").to_dicts())
    key = ("cell", "lane", "iteration")
    wanted = new.rows.with_columns(pl.selectors.float().cast(pl.Float32)).sort(key)
    assert again.rows.select(wanted.columns).sort(key).equals(wanted)
    assert again.command == new.command
    assert again.apart() == new.apart()


def test_what_is_collected_gives_the_verdicts_that_the_outputs_give(
    outputs: Path, results: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small, "small", only([0, 1]))
    new = read_outputs(outputs, quick.STUDY, "small")
    collect(outputs, results, quick.STUDY, "small")
    again = read_results(results, quick.STUDY, "small")
    verdicts = [j.verdict for j in report.judge(saddle_escape, new)]
    assert verdicts == [j.verdict for j in report.judge(saddle_escape, again)]
    assert {v.status for v in verdicts} == {"insufficient"}  # a third of the runs is missing


def test_collecting_again_changes_no_byte(outputs: Path, results: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small, "small", only([0, 1], diverging), n_rows=200)
    collect(outputs, results, quick.STUDY, "small")
    once = files(results)
    collect(outputs, results, quick.STUDY, "small")
    assert files(results) == once
    assert {Path(name).name for name in once} == {
        "records.parquet",
        "runs.csv",
        "shared.json",
        "asked.csv",
        "cells.csv",
    }


def test_collecting_merges_and_never_deletes(outputs: Path, results: Path, small: list[Spec], tmp_path: Path) -> None:
    made_up.written(outputs, small[:4], "small", only([0]))
    collect(outputs, results, quick.STUDY, "small")
    first = read_results(results, quick.STUDY, "small")
    # Another machine, with other cells, and with another seed of one of the first.
    there = tmp_path / "there"
    made_up.written(there, small[3:], "small", only([1, 2]))
    collect(there, results, quick.STUDY, "small")
    both = read_results(results, quick.STUDY, "small")
    assert len(both.runs) == 4 + 2 * len(small[3:])
    key = ["cell", "lane"]
    kept = both.runs.join(first.runs.select(key), on=key, how="semi").select(first.runs.columns)
    assert repr(kept.sort(key).to_dicts()) == repr(first.runs.sort(key).to_dicts())
    assert both.rows.join(first.runs.select(key), on=key, how="semi").height == first.rows.height
    assert len(both.asked) == 3 * len(small)
    # In the other order, the same.
    other = tmp_path / "other"
    collect(there, other, quick.STUDY, "small")
    collect(outputs, other, quick.STUDY, "small")
    assert (
        read_results(other, quick.STUDY, "small").runs.sort(key).select(both.runs.columns).equals(both.runs.sort(key))
    )


def test_nothing_to_collect_leaves_the_results_alone(
    outputs: Path, results: Path, small: list[Spec], tmp_path: Path
) -> None:
    made_up.written(outputs, small, "small")
    collect(outputs, results, quick.STUDY, "small")
    before = files(results)
    with pytest.raises(SystemExit, match="no runs of saddle_escape"):
        commands.records(["collect", quick.STUDY, "--outputs", str(tmp_path / "empty"), "--results", str(results)])
    collect(made_up.written(tmp_path / "begun", small[:1], "small", lambda *_: None), results, quick.STUDY, "small")
    after = files(results)
    assert {name: after[name] for name in before if "asked" not in name} == {
        name: content for name, content in before.items() if "asked" not in name
    }


def test_a_run_that_failed_elsewhere_does_not_replace_a_finished_one(
    outputs: Path, results: Path, small: list[Spec], tmp_path: Path
) -> None:
    made_up.written(outputs, small, "small")
    collect(outputs, results, quick.STUDY, "small")
    before = read_results(results, quick.STUDY, "small")
    made_up.written(tmp_path / "there", small, "small", failing)
    collect(tmp_path / "there", results, quick.STUDY, "small")
    after = read_results(results, quick.STUDY, "small")
    assert set(after.runs["outcome"]) == {"done"}
    assert after.rows.equals(before.rows)


def test_a_failed_run_is_replaced_by_a_finished_one(outputs: Path, results: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small[:2], "small", failing)
    collect(outputs, results, quick.STUDY, "small")
    made_up.written(outputs, small[:2], "small")
    collect(outputs, results, quick.STUDY, "small")
    after = read_results(results, quick.STUDY, "small")
    assert after.runs["outcome"].to_list() == ["done"] * 6 and after.runs["escape_iteration"].null_count() == 0


def test_runs_of_an_older_revision_keep_their_numbers_and_are_neither_drawn_nor_judged(
    outputs: Path, results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cells() -> list[Spec]:
        return quick.grid("scale=small", "lanes.seed=[0,1,2]", activations=("linear",))

    old = cells()
    made_up.written(outputs, old, "small")
    before = collect(outputs, results, quick.STUDY, "small")
    monkeypatch.setattr(saddle_escape.SaddleEscape, "revision", old[0].study.revision + 1)
    new = cells()
    assert {spec.cell for spec in new}.isdisjoint(spec.cell for spec in old)
    made_up.written(outputs, new[:2], "small", failing)  # beside the old ones, on the same machine
    there = read_outputs(outputs, quick.STUDY, "small")
    assert set(there.asked["cell"]) == {spec.cell for spec in new[:2]}
    assert set(there.strays) == {spec.cell for spec in old}
    for source in (outputs, made_up.written(tmp_path / "there", new, "small", only([0]))):
        collected = collect(source, results, quick.STUDY, "small")
        again = read_results(results, quick.STUDY, "small")
        assert set(collected.strays) == set(again.strays) == {spec.cell for spec in old}
        for name in ("runs", "rows", "asked"):
            assert set(getattr(again, name)["cell"]).isdisjoint(spec.cell for spec in old), name
    assert len(again.asked) == 3 * len(new) and set(again.asked["revision"]) == {2 + 1}
    # Their numbers are there still; an older machine that reports again does not bring them back into the figures.
    committed = pl.read_csv(results / quick.STUDY / "small" / "runs.csv", schema_overrides={"lane": pl.String})
    assert committed.filter(pl.col("cell").is_in(sorted(again.strays))).height == before.runs.height
    monkeypatch.undo()
    collect(made_up.written(tmp_path / "older", old, "small"), results, quick.STUDY, "small")
    assert set(read_results(results, quick.STUDY, "small").asked["cell"]) == {spec.cell for spec in new}


@pytest.mark.parametrize("n", [1, 59, 60, 61, 1000])
def test_a_thinned_lane_keeps_its_ends_and_its_order(n: int) -> None:
    rows = pl.DataFrame({"cell": ["c"] * n, "lane": ["l"] * n, "iteration": [5 * i for i in range(n)]})
    kept = thinned(rows)["iteration"].to_list()
    assert len(kept) == n if n <= POINTS_A_LANE else POINTS_A_LANE // 2 <= len(kept) <= POINTS_A_LANE
    assert (kept[0], kept[-1]) == (0, 5 * (n - 1))
    assert kept == sorted(set(kept)) and set(kept) <= set(rows["iteration"])


def test_a_thinned_lane_shows_its_beginning_on_a_logarithmic_axis() -> None:
    rows = pl.DataFrame({"cell": ["c"] * 5000, "lane": ["l"] * 5000, "iteration": list(range(5000))})
    kept = thinned(rows)["iteration"].to_list()
    assert sum(i < 100 for i in kept) >= 10 and sum(i >= 2500 for i in kept) >= 10


def test_results_of_the_largest_grid_stay_below_a_megabyte(outputs: Path, results: Path) -> None:
    cells = quick.grid("scale=thesis")
    assert sum(len(spec.lanes) for spec in cells) == 240
    made_up.written(outputs, cells, "thesis", n_rows=150)
    collect(outputs, results, quick.STUDY, "thesis")
    assert sum(len(content) for content in files(results).values()) < 1_000_000
    assert (
        read_results(results, quick.STUDY, "thesis").rows.group_by("cell", "lane").len()["len"].max() <= POINTS_A_LANE
    )


def test_the_collecting_command_leaves_smoke_out_and_renders_the_rest(
    outputs: Path, results: Path, small: list[Spec], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": lambda records: Figure()})
    made_up.written(outputs, small, "small")
    made_up.written(outputs, small[:1], "smoke", lambda *_: None)
    commands.records(["collect", quick.STUDY, "--outputs", str(outputs), "--results", str(results)])
    there = set(files(results))
    folder = f"{quick.STUDY}/small"
    assert there >= {
        "index.html",
        "INDEX.md",
        *(f"{folder}/{n}" for n in ("runs.csv", "records.parquet", "claims.csv")),
    }
    assert not any("smoke" in name for name in there)
    assert {Path(name).suffix for name in there if "fig_" in name} == {".png", ".pdf"}
    assert "24 runs" in capsys.readouterr().out
