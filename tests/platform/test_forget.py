"""Runs can be withdrawn: those of variants are asked for no more, the study's own are missing until they have run again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import made_up
import pytest
import quick

from pcexp import commands
from pcexp.config.identity import under
from pcexp.config.spec import Spec
from pcexp.records import archive, manifest
from pcexp.records.cell import Cell, read_lines
from pcexp.records.tables import collect, read_outputs, read_results

Run = Callable[..., int]
RATE = "optimiser.learning_rate=0.004"
OWN = ("lanes.seed=[0,1]",)


def forget(outputs: Path, *words: str) -> None:
    commands.records(["forget", quick.STUDY, "--outputs", str(outputs), *words])


@pytest.fixture
def both(outputs: Path, small: list[Spec]) -> tuple[str, str]:
    """The study's own cell and one of a variant, run: their names."""
    own, other = small[:2]
    lanes = tuple(lane._replace(variant=RATE) for lane in other.lanes)
    made_up.written(outputs, [own, replace(other, lanes=lanes)], "small")
    return own.cell, other.cell


def test_a_variant_that_is_withdrawn_is_asked_for_no_more_and_its_runs_stay(
    outputs: Path, both: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = both
    results = tmp_path / "results"
    collect(outputs, results, quick.STUDY, "small")
    forget(outputs, "--variant", RATE, "--results", str(results))
    assert capsys.readouterr().out.count("3 lanes withdrawn") == 1
    records = read_outputs(outputs, quick.STUDY, "small")
    assert set(records.asked["cell"]) == {own} and records.strays == (other,)
    assert len(list(read_lines(outputs / quick.STUDY / other / "lanes.jsonl"))) == 3
    committed = read_results(results, quick.STUDY, "small")
    assert set(committed.asked["cell"]) == set(committed.runs["cell"]) == {own}
    assert committed.strays == (other,)


def test_runs_of_the_studys_own_that_are_withdrawn_are_missing(
    outputs: Path, both: tuple[str, str], tmp_path: Path
) -> None:
    own, _ = both
    results = tmp_path / "results"
    before = collect(outputs, results, quick.STUDY, "small")
    lane = before.runs.filter(cell=own)["lane"][0]
    forget(outputs, "--cell", own, "--lane", lane, "--results", str(results))
    for records in (read_outputs(outputs, quick.STUDY, "small"), read_results(results, quick.STUDY, "small")):
        assert len(records.asked) == len(before.asked)
        failed = records.runs.filter(outcome="failed: withdrawn")
        assert failed.select("cell", "lane").rows() == [(own, lane)]
    assert not (outputs / quick.STUDY / own / "DONE").exists()
    # Collecting again leaves them withdrawn: what ended before does not come back.
    again = collect(outputs, results, quick.STUDY, "small")
    assert len(again.runs.filter(outcome="failed: withdrawn")) == 1


def test_a_withdrawn_run_runs_again_with_the_same_command_and_gives_the_same_numbers(outputs: Path, run: Run) -> None:
    assert run(*OWN) == 0
    before, folder = quick.numbers(outputs), quick.cell_folder(outputs)
    forget(outputs, "--cell", folder.name)
    assert not (folder / "DONE").exists()
    assert run(*OWN) == 0
    assert quick.differences(quick.numbers(outputs), before) == []


def test_an_archive_does_not_undo_it(outputs: Path, both: tuple[str, str], tmp_path: Path) -> None:
    own, _ = both
    (path,) = archive.write(outputs, quick.STUDY, tmp_path / "archives").paths
    before = manifest.words(outputs / quick.STUDY, "small")
    forget(outputs, "--cell", own)
    merged = archive.merge(archive.read(path), outputs)
    assert merged.added == 0 and len(Cell(outputs / quick.STUDY / own, ()).withdrawn) == 3
    assert manifest.words(outputs / quick.STUDY, "small") == before


def test_an_archive_of_other_content_is_refused(outputs: Path, there: Path, tmp_path: Path, small: list[Spec]) -> None:
    for folder, content in ((outputs, "1" * 64), (there, "2" * 64)):
        made_up.written(folder, [under(small[0], content, "")], "small")
    (path,) = archive.write(outputs, quick.STUDY, tmp_path / "archives").paths
    asked = quick.manifest(there, "small")
    with pytest.raises(archive.ArchiveError, match="on data of another content"):
        archive.merge(archive.read(path), there)
    assert quick.manifest(there, "small") == asked


def test_runs_that_go_on_are_not_withdrawn(outputs: Path, both: tuple[str, str]) -> None:
    for cell, words in zip(both, (["--cell", both[0]], ["--variant", RATE]), strict=True):
        asked = quick.manifest(outputs, "small")
        with Cell(outputs / quick.STUDY / cell, ()).open({}), pytest.raises(SystemExit, match="stop it first"):
            forget(outputs, *words)
        assert quick.manifest(outputs, "small") == asked


def test_a_withdrawn_run_that_had_not_ended_starts_again(outputs: Path, both: tuple[str, str]) -> None:
    folder = outputs / quick.STUDY / both[0]
    (folder / "checkpoints" / "begun.npz").write_text("where it stands")
    entry = quick.manifest(outputs, "small")
    lanes = entry[both[0]]["lanes"]
    name = next(iter(lanes))
    Cell(folder, ()).checkpoint(name).write_text("where it stands")
    forget(outputs, "--cell", both[0], "--lane", name)
    assert not Cell(folder, ()).checkpoint(name).exists() and (folder / "checkpoints" / "begun.npz").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variant", "x=1"], f"no such runs; variants there are {RATE}"),
        (["--cell", "0123456789ab"], "no such runs"),
        (["--variant", RATE, "--scale", "thesis"], "no such runs; variants there are none"),
    ],
)
def test_runs_that_are_not_there_are_said_so(words: list[str], said: str, outputs: Path, both: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match=said):
        forget(outputs, *words)


def test_withdrawing_needs_a_word_of_what(
    outputs: Path, both: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        forget(outputs)
    assert "--cell CELL or --variant TEXT" in capsys.readouterr().err
