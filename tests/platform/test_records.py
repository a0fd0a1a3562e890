"""Records: every run that was asked for is counted, nothing else is drawn, and what is committed is never lost."""

import json
from pathlib import Path
from typing import Any

import made_up
import polars as pl
import pytest
import quick
from made_up import Fate, failing, only
from matplotlib.figure import Figure

from pcexp.config.identity import Lane
from pcexp.config.plain import flat
from pcexp.config.spec import Spec
from pcexp.experiments import saddle_escape
from pcexp.records.cell import Cell, OutputError
from pcexp.records.tables import Records, read_outputs
from pcexp.report import rendering as report
from pcexp.run.sweep import _about


def made(spec: Spec, lane: Lane) -> dict[str, Any]:
    """The record of a lane as `quick` makes it."""
    fate = made_up.fast_pc(spec, lane)
    return made_up.entry(spec, lane, fate, made_up.rows(lane, fate, 5))


# Outputs


def test_runs_are_counted_against_what_was_asked_for(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small, "small", only([0, 2]))
    records = read_outputs(outputs, quick.STUDY, "small")
    assert len(records.asked) == 3 * len(small) and len(records.runs) == 2 * len(small)
    assert sorted(records.runs["seed"].unique()) == [0, 2]
    assert len(records.rows) >= 5 * len(records.runs)
    assert set(records.rows["lane"]) == set(records.runs["lane"])
    assert not len(read_outputs(outputs, quick.STUDY, "thesis").asked)


def test_a_run_carries_its_labels_lane_values_outcome_summary_configuration_and_provenance(
    outputs: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:1], "small")
    (run, *_) = read_outputs(outputs, quick.STUDY, "small").runs.sort("seed").to_dicts()
    spec, lane = small[0], small[0].lanes[0]
    expected = made(spec, lane)
    assert run | expected["summary"] == run
    assert run | {f"config.{key}": value for key, value in flat(spec.science)} == run
    assert run | {f"run.{key}": value for key, value in expected["provenance"].items()} == run
    assert run | {"cell": spec.cell, "lane": lane.name, "seed": 0, "scale": "small", "outcome": "done"} == run
    assert run | {"data": "digits", "learning": "pc", "activation": "linear", "protocol": "published"} == run


def test_vectors_become_columns_counted_from_one(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small[:1], "small")
    rows = read_outputs(outputs, quick.STUDY, "small").rows
    assert [name for name in rows.columns if name.startswith("gradient_norm")] == [
        f"gradient_norm_{i}" for i in (1, 2, 3)
    ]


def test_cells_that_never_started_are_missing_from_the_runs_of_their_activation(outputs: Path) -> None:
    cells = quick.grid("scale=small", activations=("linear", "relu"))
    made_up.written(outputs, cells, "small", lambda s, lane: Fate(9) if _phi(s) == "linear" else None)
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
    made_up.written(outputs, asked, "small")
    before = read_outputs(outputs, quick.STUDY, "small")
    assert before.strays == ()
    with Cell(outputs / quick.STUDY / stray.cell, [lane.name for lane in stray.lanes]).open(_about(stray)) as cell:
        cell.append(made_up.rows(stray.lanes[0], Fate(9), 5))
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
    made_up.written(outputs, small, "thesis")
    fewer = quick.grid("scale=small", "lanes.seed=[0]", activations=("linear",))
    assert {spec.cell for spec in fewer} == {spec.cell for spec in small}
    made_up.written(outputs, fewer, "small", lambda *_: None)
    records = read_outputs(outputs, quick.STUDY, "small")
    assert records.runs["seed"].unique().to_list() == [0]
    assert set(records.rows["lane"]) == {spec.lanes[0].name for spec in fewer}
    assert len(read_outputs(outputs, quick.STUDY, "thesis").runs) == 3 * len(small)


def test_the_last_outcome_of_a_lane_counts(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small[:1], "small", failing)
    assert set(read_outputs(outputs, quick.STUDY, "small").runs["outcome"]) == {"failed: no memory"}
    made_up.written(outputs, small[:1], "small")
    assert read_outputs(outputs, quick.STUDY, "small").runs["outcome"].to_list() == ["done"] * 3


def test_a_line_that_is_being_written_is_not_read(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small[:1], "small", only([0, 1]))
    before = read_outputs(outputs, quick.STUDY, "small")
    for name in ("rows.jsonl", "lanes.jsonl"):
        with open(outputs / quick.STUDY / small[0].cell / name, "a") as file:
            file.write('{"lane": "')
    after = read_outputs(outputs, quick.STUDY, "small")
    assert after.runs.equals(before.runs) and after.rows.equals(before.rows)


def test_a_broken_file_is_named_and_not_read_as_data(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small[:1], "small")
    path = outputs / quick.STUDY / small[0].cell / "rows.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(OutputError, match=r"rows\.jsonl, line 1"):
        read_outputs(outputs, quick.STUDY, "small")


def test_the_command_of_the_records_makes_these_records(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small, "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    prefix = "python -m pcexp "
    assert records.command.startswith(prefix)
    base = tuple(records.command.removeprefix(prefix).split(" "))
    assert {spec.cell for spec in quick.swept(*base)} >= set(records.runs["cell"])


def test_selecting_by_a_label_that_nothing_has_gives_empty_records(outputs: Path, small: list[Spec]) -> None:
    made_up.written(outputs, small, "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    for labels in ({"learning": "none"}, {"no_such_label": 1}):
        part = records.select(**labels)
        assert not len(part.runs) and not len(part.rows) and not len(part.asked)
    part = records.select(learning="pc", seed=1)
    assert len(part.runs) == len(small) // 2
    assert set(part.rows["lane"]) == set(part.runs["lane"]) and set(part.rows["cell"]) == set(part.runs["cell"])


def test_empty_records_have_no_groups() -> None:
    empty = Records(quick.STUDY, "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    assert empty.apart() == [] and len(empty.select(data="digits").runs) == 0
    assert json.dumps(empty.command)
