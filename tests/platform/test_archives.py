"""Archives: finished lanes arrive elsewhere as they were, twice is once, and what was finished there stays."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import made_up
import pytest
import quick
from made_up import failing, only

from pcexp import commands
from pcexp.config.spec import Spec
from pcexp.records import archive, manifest
from pcexp.records.archive import merge, read, write
from pcexp.records.cell import Cell
from pcexp.records.lock import Lock
from pcexp.records.tables import collect, read_outputs


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_travels_is_what_ran_to_the_bit_and_the_command_finds_it_there(
    run: Callable[..., int], outputs: Path, there: Path, archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("lanes.seed=[0,1]") == 0
    commands.records(["pack", quick.STUDY, "--outputs", str(outputs), "--to", str(archives)])
    paths = sorted(map(str, archives.iterdir()))
    commands.records(["unpack", *paths, "--outputs", str(there)])
    assert quick.numbers(there) == quick.numbers(outputs) and len(quick.numbers(there)) == 2
    ours, theirs = quick.cell_folder(outputs), quick.cell_folder(there)
    assert (theirs / "DONE").exists() and not (theirs / "lock").exists()
    assert files(ours)["config.json"] == files(theirs)["config.json"]
    new, again = (read_outputs(folder, quick.STUDY, "smoke") for folder in (outputs, there))
    assert repr(new.runs.sort("lane").to_dicts()) == repr(again.runs.sort("lane").to_dicts())
    capsys.readouterr()
    assert run("lanes.seed=[0,1,2]", f"execution.outputs={there}") == 0
    assert "3 lanes, 1 to run" in capsys.readouterr().out
    assert run("lanes.seed=[0,1,2]") == 0
    assert quick.numbers(there) == quick.numbers(outputs)


def test_the_same_lanes_give_the_same_bytes_wherever_they_are(
    outputs: Path, there: Path, archives: Path, tmp_path: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small, "small", only([0, 2]))
    (path,) = write(outputs, quick.STUDY, archives).paths
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in path.name
    assert write(outputs, quick.STUDY, archives).paths == [path]
    merge(read(path), there)
    (again,) = write(there, quick.STUDY, tmp_path / "again").paths
    assert again.name == path.name and again.read_bytes() == path.read_bytes()
    assert files(archives).keys() == {path.name}  # no temporary file is left


def test_unpacking_a_second_time_changes_no_byte_and_no_date(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small, "small", only([0, 1]))
    (path,) = write(outputs, quick.STUDY, archives).paths
    assert merge(read(path), there) == (2 * len(small), 0, [])
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in there.rglob("*") if file.is_file()}
    assert merge(read(path), there) == (0, 2 * len(small), [])
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in there.rglob("*") if file.is_file()} == before


def test_lanes_of_two_machines_are_united_and_what_was_finished_stays_as_it_was(
    outputs: Path, there: Path, archives: Path, tmp_path: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:5], "small", only([0, 1]))
    # There: seed 1 with another end, seed 2, and cells that were not asked for here.
    made_up.written(there, small[3:], "small", only([1, 2], made_up.diverging))
    before = quick.numbers(there)
    (path,) = write(outputs, quick.STUDY, archives).paths
    merge(read(path), there)
    after = quick.numbers(there)
    assert {lane: after[lane] for lane in before} == before
    here = quick.numbers(outputs)
    assert {lane: after[lane] for lane in after.keys() - before.keys()} == {
        lane: here[lane] for lane in here.keys() - before.keys()
    }
    assert after.keys() == here.keys() | before.keys()
    for cell in small[3:5]:
        assert (there / quick.STUDY / cell.cell / "DONE").exists()
    assert quick.manifest(there, "small").keys() == {cell.cell for cell in small}
    assert all(len(entry["lanes"]) == 3 for entry in quick.manifest(there, "small").values())
    collected = collect(there, tmp_path / "results", quick.STUDY, "small")
    assert len(collected.runs) == len(after) and len(collected.asked) == 3 * len(small)
    assert collected.runs.select("cell", "lane").is_unique().all()
    assert collected.rows.select("cell", "lane", "iteration").is_unique().all()


def test_failed_lanes_stay_and_a_failed_or_begun_one_there_gives_way(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(
        outputs,
        small[:2],
        "small",
        lambda spec, lane: (failing if lane.values["seed"] else made_up.fast_pc)(spec, lane),
    )
    (path,) = (packed := write(outputs, quick.STUDY, archives)).paths
    assert (packed.lanes, packed.asked) == (2, 6)
    made_up.written(there, small[:1], "small", failing)
    folder = there / quick.STUDY / small[0].cell
    lane = small[0].lanes[0].name
    (folder / "checkpoints" / f"{lane}.npz").write_bytes(b"half way")
    assert merge(read(path), there).added == 2
    cell = Cell(folder, [lane.name for lane in small[0].lanes])
    assert cell.finished.keys() == {lane} and len(cell.missing) == 2
    assert not (folder / "checkpoints" / f"{lane}.npz").exists() and not (folder / "DONE").exists()
    ours = Cell(outputs / quick.STUDY / small[0].cell, ()).rows(lane)
    assert {name: column.tolist() for name, column in cell.rows(lane).items()} == {
        name: column.tolist() for name, column in ours.items()
    }


def test_archives_stay_below_the_limit_and_hold_all_lanes_between_them(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small, "small", n_rows=1000)
    limit = 150_000  # less than a cell of three lanes needs
    packed = write(outputs, quick.STUDY, archives, limit)
    assert len(packed.paths) > len(small) and packed.too_large == [] and packed.lanes == packed.asked == 3 * len(small)
    assert all(path.stat().st_size <= limit for path in packed.paths)
    for path in packed.paths[::-1]:
        merge(read(path), there)
    assert quick.numbers(there) == quick.numbers(outputs)
    assert {path.parent.name for path in there.glob("*/*/DONE")} == {cell.cell for cell in small}


def test_a_lane_that_fits_into_no_archive_is_named_and_the_others_are_packed(
    outputs: Path,
    archives: Path,
    small: list[Spec],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up.written(outputs, small[:1], "small", n_rows=5)
    made_up.written(outputs, small[1:2], "small", only([0]), n_rows=2000)
    monkeypatch.setattr(archive, "write", functools.partial(write, limit=70_000))
    with pytest.raises(SystemExit) as status:
        commands.records(["pack", quick.STUDY, "--outputs", str(outputs), "--to", str(archives)])
    said = capsys.readouterr().out
    assert status.value.code == 1 and "3 of 6 lanes" in said
    assert f"{small[1].cell}, lane {small[1].lanes[0].name}" in said and "MB by itself" in said


def test_a_cell_that_runs_there_is_refused_and_the_others_are_merged(
    outputs: Path, there: Path, archives: Path, small: list[Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.written(outputs, small[:2], "small")
    made_up.written(there, small[:1], "small", only([0]))
    (path,) = write(outputs, quick.STUDY, archives).paths
    busy = there / quick.STUDY / small[0].cell
    (busy / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 17, "job": ""}))
    before = files(busy)
    taken = Lock(busy / "lock").identity
    with pytest.raises(SystemExit) as status:
        commands.records(["unpack", str(path), "--outputs", str(there)])
    said = capsys.readouterr().out
    assert status.value.code == 1 and "refused" in said
    assert "process 17 on elsewhere" in said and str(busy) in said and "unpack its lanes again" in said
    assert files(busy) == before
    assert (there / quick.STUDY / small[1].cell / "DONE").exists()
    (busy / "lock").write_text(json.dumps({**taken, "pid": 2**22 + 1}))  # it has died
    commands.records(["unpack", str(path), "--outputs", str(there)])
    assert (busy / "DONE").exists() and not (busy / "lock").exists()


def test_what_is_older_than_the_manifest_is_kept_and_not_asked_for(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:1], "small")
    made_up.written(there, small[1:2], "small")
    (path,) = write(outputs, quick.STUDY, archives).paths
    folder = there / quick.STUDY
    newer = {cell: entry | {"revision": 99} for cell, entry in manifest.asked(folder, "small").items()}
    manifest.add(folder, "small", newer, {})
    merge(read(path), there)
    assert manifest.asked(folder, "small") == newer
    assert read_outputs(there, quick.STUDY, "small").strays == (small[0].cell,)
    # The other way round, the newer manifest replaces the older one.
    (path,) = write(there, quick.STUDY, archives).paths
    merge(read(path), outputs)
    assert manifest.asked(outputs / quick.STUDY, "small") == newer


def test_a_study_without_runs_has_nothing_to_pack(outputs: Path, small: list[Spec], archives: Path) -> None:
    with pytest.raises(SystemExit, match="no runs of saddle_escape"):
        commands.records(["pack", quick.STUDY, "--outputs", str(outputs)])
    made_up.written(outputs, small, "small", lambda *_: None)
    shutil.rmtree(archives, ignore_errors=True)
    assert write(outputs, quick.STUDY, archives) == ([], 0, 3 * len(small), [])


def test_a_manifest_that_is_none_is_named_and_nothing_is_merged(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:1], "small")
    (path,) = write(outputs, quick.STUDY, archives).paths
    broken = there / quick.STUDY / "manifest-small.json"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"scale": "small", "cel')
    with pytest.raises(SystemExit, match=r"manifest-small\.json is no manifest.*set it aside"):
        commands.records(["unpack", str(path), "--outputs", str(there)])
    assert files(there).keys() == {f"{quick.STUDY}/manifest-small.json"}


def test_other_seeds_of_one_cell_are_asked_for_together_and_what_none_has_run_is_missing(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    spec = quick.grid("scale=small", "lanes.seed=[1,8,9]", activations=("linear",))[0]
    assert spec.cell == small[0].cell
    made_up.written(outputs, [spec], "small", only([8]))
    made_up.written(there, small[:1], "small", only([0, 2]))
    (path,) = write(outputs, quick.STUDY, archives).paths
    merge(read(path), there)
    (entry,) = quick.manifest(there, "small").values()
    assert sorted(lane["values"]["seed"] for lane in entry["lanes"].values()) == [0, 1, 2, 8, 9]
    assert [
        entry["lanes"][name]["values"]["seed"] for name in Cell(there / quick.STUDY / spec.cell, entry["lanes"]).missing
    ] == [
        1,
        9,
    ]
