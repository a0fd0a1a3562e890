"""Records: every run that was asked for is counted, nothing else is drawn, and what is committed is never lost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import quick
from matplotlib.figure import Figure
from quick import Fate

from experiments import saddle_escape
from pcexp import records as module
from pcexp import report
from pcexp.cell import Cell, OutputError
from pcexp.records import POINTS_A_LANE, Records, collect, read_outputs, read_results, thinned
from pcexp.spec import Lane, Spec, flat
from pcexp.sweep import _about


@pytest.fixture(scope="module")
def small() -> list[Spec]:
    """Cells at scale small, three seeds each: linear networks only."""
    return quick.grid("scale=small", "lanes.seed=[0,1,2]", activations=("linear",))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def failing(spec: Spec, lane: Lane) -> Fate:
    return Fate(None, "failed: no memory")


def diverging(spec: Spec, lane: Lane) -> Fate:
    return Fate(None, "diverged")


def only(keep: Sequence[int], fates: Any = quick.fast_pc) -> Any:
    """Fates of these seeds; the others were asked for and have not finished."""
    return lambda spec, lane: fates(spec, lane) if lane.values["seed"] in keep else None


def made(spec: Spec, lane: Lane) -> dict[str, Any]:
    """The record of a lane as `quick` makes it."""
    fate = quick.fast_pc(spec, lane)
    return quick.entry(spec, lane, fate, quick.rows(lane, fate, 5))


# Outputs


def test_runs_are_counted_against_what_was_asked_for(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small, "small", only([0, 2]))
    records = read_outputs(outputs, quick.STUDY, "small")
    assert len(records.asked) == 3 * len(small) and len(records.runs) == 2 * len(small)
    assert sorted(records.runs["seed"].unique()) == [0, 2]
    assert len(records.rows) >= 5 * len(records.runs)
    assert set(records.rows["lane"]) == set(records.runs["lane"])
    assert not len(read_outputs(outputs, quick.STUDY, "thesis").asked)


def test_a_run_carries_its_labels_lane_values_outcome_summary_configuration_and_provenance(
    outputs: Path, small: list[Spec]
) -> None:
    quick.written(outputs, small[:1], "small")
    (run, *_) = read_outputs(outputs, quick.STUDY, "small").runs.sort("seed").to_dicts()
    spec, lane = small[0], small[0].lanes[0]
    expected = made(spec, lane)
    assert run | expected["summary"] == run
    assert run | {f"config.{key}": value for key, value in flat(spec.science)} == run
    assert run | {f"run.{key}": value for key, value in expected["provenance"].items()} == run
    assert run | {"cell": spec.cell, "lane": lane.name, "seed": 0, "scale": "small", "outcome": "done"} == run
    assert run | {"data": "digits", "learning": "pc", "activation": "linear", "protocol": "published"} == run


def test_vectors_become_columns_counted_from_one(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small[:1], "small")
    rows = read_outputs(outputs, quick.STUDY, "small").rows
    assert [name for name in rows.columns if name.startswith("gradient_norm")] == [
        f"gradient_norm_{i}" for i in (1, 2, 3)
    ]


def test_cells_that_never_started_are_missing_from_the_runs_of_their_activation(outputs: Path) -> None:
    cells = quick.grid("scale=small", activations=("linear", "relu"))
    quick.written(outputs, cells, "small", lambda s, lane: Fate(9) if _phi(s) == "linear" else None)
    records = read_outputs(outputs, quick.STUDY, "small")
    for phi, finished in (("linear", True), ("relu", False)):
        part = records.select(activation=phi)
        assert len(part.asked) == len(records.asked) // 2
        assert (len(part.runs) > 0) is finished


def _phi(spec: Spec) -> str:
    return str(spec.science["network"]["activation"])


def test_a_stray_cell_is_named_and_never_drawn(
    outputs: Path, small: list[Spec], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": lambda records: Figure()})
    asked, stray = small[:-1], small[-1]
    quick.written(outputs, asked, "small")
    before = read_outputs(outputs, quick.STUDY, "small")
    assert before.strays == ()
    with Cell(outputs / quick.STUDY / stray.cell, [lane.name for lane in stray.lanes]).open(_about(stray)) as cell:
        cell.append(quick.rows(stray.lanes[0], Fate(9), 5))
        cell.finish(stray.lanes[0].name, **made(stray, stray.lanes[0]))
    records = read_outputs(outputs, quick.STUDY, "small")
    assert records.strays == (stray.cell,)
    for name in ("runs", "rows", "asked"):
        assert getattr(records, name).equals(getattr(before, name))
    report.main([quick.STUDY, "--outputs", str(outputs)])
    said = capsys.readouterr().out
    assert "left out, not in the manifest" in said and str(outputs / quick.STUDY / stray.cell) in said
    assert stray.cell in (outputs / "report" / "index.html").read_text()


def test_a_lane_that_this_scale_did_not_ask_for_is_left_out(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small, "thesis")
    fewer = quick.grid("scale=small", "lanes.seed=[0]", activations=("linear",))
    assert {spec.cell for spec in fewer} == {spec.cell for spec in small}
    quick.written(outputs, fewer, "small", lambda *_: None)
    records = read_outputs(outputs, quick.STUDY, "small")
    assert records.runs["seed"].unique().to_list() == [0]
    assert set(records.rows["lane"]) == {spec.lanes[0].name for spec in fewer}
    assert len(read_outputs(outputs, quick.STUDY, "thesis").runs) == 3 * len(small)


def test_the_last_outcome_of_a_lane_counts(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small[:1], "small", failing)
    assert set(read_outputs(outputs, quick.STUDY, "small").runs["outcome"]) == {"failed: no memory"}
    quick.written(outputs, small[:1], "small")
    assert read_outputs(outputs, quick.STUDY, "small").runs["outcome"].to_list() == ["done"] * 3


def test_a_line_that_is_being_written_is_not_read(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small[:1], "small", only([0, 1]))
    before = read_outputs(outputs, quick.STUDY, "small")
    for name in ("rows.jsonl", "lanes.jsonl"):
        with open(outputs / quick.STUDY / small[0].cell / name, "a") as file:
            file.write('{"lane": "')
    after = read_outputs(outputs, quick.STUDY, "small")
    assert after.runs.equals(before.runs) and after.rows.equals(before.rows)


def test_a_broken_file_is_named_and_not_read_as_data(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small[:1], "small")
    path = outputs / quick.STUDY / small[0].cell / "rows.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(OutputError, match=r"rows\.jsonl, line 1"):
        read_outputs(outputs, quick.STUDY, "small")


# Results


def test_what_is_collected_reads_back_as_it_was(outputs: Path, results: Path, small: list[Spec]) -> None:
    quick.written(outputs, small[:-1], "small", diverging)
    quick.written(outputs, small[-1:], "small")
    new = read_outputs(outputs, quick.STUDY, "small")
    collect(outputs, results, quick.STUDY, "small")
    again = read_results(results, quick.STUDY, "small")
    for ours, theirs in ((new.runs, again.runs), (new.asked, again.asked)):
        assert ours.columns == theirs.columns
        assert repr(ours.sort("cell", "lane").to_dicts()) == repr(theirs.sort("cell", "lane").to_dicts())
    key = ("cell", "lane", "iteration")
    wanted = new.rows.with_columns(pl.selectors.float().cast(pl.Float32)).sort(key)
    assert again.rows.select(wanted.columns).sort(key).equals(wanted)
    assert again.command == new.command
    assert again.groups() == new.groups()


def test_what_is_collected_gives_the_verdicts_that_the_outputs_give(
    outputs: Path, results: Path, small: list[Spec]
) -> None:
    quick.written(outputs, small, "small", only([0, 1]))
    new = read_outputs(outputs, quick.STUDY, "small")
    collect(outputs, results, quick.STUDY, "small")
    again = read_results(results, quick.STUDY, "small")
    verdicts = [j.verdict for j in report.judge(saddle_escape, new)]
    assert verdicts == [j.verdict for j in report.judge(saddle_escape, again)]
    assert {v.status for v in verdicts} == {"insufficient"}  # a third of the runs is missing


def test_collecting_again_changes_no_byte(outputs: Path, results: Path, small: list[Spec]) -> None:
    quick.written(outputs, small, "small", only([0, 1], diverging), n_rows=200)
    collect(outputs, results, quick.STUDY, "small")
    once = files(results)
    collect(outputs, results, quick.STUDY, "small")
    assert files(results) == once
    assert {Path(name).name for name in once} == {"records.parquet", "runs.csv", "asked.csv"}


def test_collecting_merges_and_never_deletes(outputs: Path, results: Path, small: list[Spec], tmp_path: Path) -> None:
    quick.written(outputs, small[:4], "small", only([0]))
    collect(outputs, results, quick.STUDY, "small")
    first = read_results(results, quick.STUDY, "small")
    # Another machine, with other cells, and with another seed of one of the first.
    there = tmp_path / "there"
    quick.written(there, small[3:], "small", only([1, 2]))
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
    quick.written(outputs, small, "small")
    collect(outputs, results, quick.STUDY, "small")
    before = files(results)
    with pytest.raises(SystemExit, match="no runs of saddle_escape"):
        module.main(["collect", quick.STUDY, "--outputs", str(tmp_path / "empty"), "--results", str(results)])
    collect(quick.written(tmp_path / "begun", small[:1], "small", lambda *_: None), results, quick.STUDY, "small")
    after = files(results)
    assert {name: after[name] for name in before if "asked" not in name} == {
        name: content for name, content in before.items() if "asked" not in name
    }


def test_a_run_that_failed_elsewhere_does_not_replace_a_finished_one(
    outputs: Path, results: Path, small: list[Spec], tmp_path: Path
) -> None:
    quick.written(outputs, small, "small")
    collect(outputs, results, quick.STUDY, "small")
    before = read_results(results, quick.STUDY, "small")
    quick.written(tmp_path / "there", small, "small", failing)
    collect(tmp_path / "there", results, quick.STUDY, "small")
    after = read_results(results, quick.STUDY, "small")
    assert set(after.runs["outcome"]) == {"done"}
    assert after.rows.equals(before.rows)


def test_a_failed_run_is_replaced_by_a_finished_one(outputs: Path, results: Path, small: list[Spec]) -> None:
    quick.written(outputs, small[:2], "small", failing)
    collect(outputs, results, quick.STUDY, "small")
    quick.written(outputs, small[:2], "small")
    collect(outputs, results, quick.STUDY, "small")
    after = read_results(results, quick.STUDY, "small")
    assert after.runs["outcome"].to_list() == ["done"] * 6 and after.runs["escape_iteration"].null_count() == 0


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
    quick.written(outputs, cells, "thesis", n_rows=150)
    collect(outputs, results, quick.STUDY, "thesis")
    assert sum(len(content) for content in files(results).values()) < 1_000_000
    assert (
        read_results(results, quick.STUDY, "thesis").rows.group_by("cell", "lane").len()["len"].max() <= POINTS_A_LANE
    )


def test_the_collecting_command_leaves_smoke_out_and_renders_the_rest(
    outputs: Path, results: Path, small: list[Spec], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": lambda records: Figure()})
    quick.written(outputs, small, "small")
    quick.written(outputs, small[:1], "smoke", lambda *_: None)
    module.main(["collect", quick.STUDY, "--outputs", str(outputs), "--results", str(results)])
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


def test_the_command_of_the_records_makes_these_records(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small, "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    prefix = "python -m pcexp "
    assert records.command.startswith(prefix)
    base = tuple(records.command.removeprefix(prefix).split(" "))
    first = [f"{axis}={options[0]}" for axis, options in quick.axes(*base).items()]
    assert quick.cell(*first, base=base).cell in set(records.runs["cell"])


def test_selecting_by_a_label_that_nothing_has_gives_empty_records(outputs: Path, small: list[Spec]) -> None:
    quick.written(outputs, small, "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    for labels in ({"learning": "none"}, {"no_such_label": 1}):
        part = records.select(**labels)
        assert not len(part.runs) and not len(part.rows) and not len(part.asked)
    part = records.select(learning="pc", seed=1)
    assert len(part.runs) == len(small) // 2
    assert set(part.rows["lane"]) == set(part.runs["lane"]) and set(part.rows["cell"]) == set(part.runs["cell"])


def test_empty_records_have_no_groups() -> None:
    empty = Records(quick.STUDY, "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    assert empty.groups() == [] and len(empty.select(data="digits").runs) == 0
    assert json.dumps(empty.command)
