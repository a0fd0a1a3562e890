"""Archives: finished lanes arrive elsewhere as they were, twice is once, and nothing half-written or foreign is let in."""

import functools
import gzip
import hashlib
import io
import json
import shutil
import socket
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import made_up
import pytest
import quick
from made_up import failing, only

from pcexp import archive, manifest, records
from pcexp.archive import ArchiveError, pack, read, unpack
from pcexp.cell import Cell
from pcexp.collecting import collect
from pcexp.records import read_outputs
from pcexp.spec import Spec


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The outputs of another machine."""
    return tmp_path / "there"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return tmp_path / "archives"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def tarred(path: Path, content: Mapping[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    """A tar of these files, its index made to fit."""
    index = json.loads(content.get("index.json", b'{"format": "pcexp records 1", "study": "saddle_escape"}'))
    index["files"] = {name: hashlib.sha256(c).hexdigest() for name, c in content.items() if name != "index.json"}
    with tarfile.open(path, "w") as tar:
        for name, data in {**content, "index.json": json.dumps(index).encode()}.items():
            about = tarfile.TarInfo(name)
            about.size, about.type = len(data), tarfile.REGTYPE if name == "index.json" else kind
            tar.addfile(about, io.BytesIO(data))
    return path


def test_what_travels_is_what_ran_to_the_bit_and_the_command_finds_it_there(
    run: Callable[..., int], outputs: Path, there: Path, archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("lanes.seed=[0,1]") == 0
    records.main(["pack", quick.STUDY, "--outputs", str(outputs), "--to", str(archives)])
    paths = sorted(map(str, archives.iterdir()))
    records.main(["unpack", *paths, "--outputs", str(there)])
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
    (path,) = pack(outputs, quick.STUDY, archives).paths
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in path.name
    assert pack(outputs, quick.STUDY, archives).paths == [path]
    unpack(read(path), there)
    (again,) = pack(there, quick.STUDY, tmp_path / "again").paths
    assert again.name == path.name and again.read_bytes() == path.read_bytes()
    assert files(archives).keys() == {path.name}  # no temporary file is left


def test_unpacking_a_second_time_changes_no_byte_and_no_date(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small, "small", only([0, 1]))
    (path,) = pack(outputs, quick.STUDY, archives).paths
    assert unpack(read(path), there) == (2 * len(small), 0, [])
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in there.rglob("*") if file.is_file()}
    assert unpack(read(path), there) == (0, 2 * len(small), [])
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in there.rglob("*") if file.is_file()} == before


def test_lanes_of_two_machines_are_united_and_what_was_finished_stays_as_it_was(
    outputs: Path, there: Path, archives: Path, tmp_path: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:5], "small", only([0, 1]))
    # There: seed 1 with another end, seed 2, and cells that were not asked for here.
    made_up.written(there, small[3:], "small", only([1, 2], made_up.diverging))
    before = quick.numbers(there)
    (path,) = pack(outputs, quick.STUDY, archives).paths
    unpack(read(path), there)
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
    (path,) = (packed := pack(outputs, quick.STUDY, archives)).paths
    assert (packed.lanes, packed.asked) == (2, 6)
    made_up.written(there, small[:1], "small", failing)
    folder = there / quick.STUDY / small[0].cell
    lane = small[0].lanes[0].name
    (folder / "checkpoints" / f"{lane}.npz").write_bytes(b"half way")
    assert unpack(read(path), there).added == 2
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
    packed = pack(outputs, quick.STUDY, archives, limit)
    assert len(packed.paths) > len(small) and packed.too_large == [] and packed.lanes == packed.asked == 3 * len(small)
    assert all(path.stat().st_size <= limit for path in packed.paths)
    for path in packed.paths[::-1]:
        unpack(read(path), there)
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
    monkeypatch.setattr(archive, "pack", functools.partial(pack, limit=70_000))
    with pytest.raises(SystemExit) as status:
        records.main(["pack", quick.STUDY, "--outputs", str(outputs), "--to", str(archives)])
    said = capsys.readouterr().out
    assert status.value.code == 1 and "3 of 6 lanes" in said
    assert f"{small[1].cell}, lane {small[1].lanes[0].name}" in said and "MB by itself" in said


def test_a_cell_that_runs_there_is_refused_and_the_others_are_merged(
    outputs: Path, there: Path, archives: Path, small: list[Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.written(outputs, small[:2], "small")
    made_up.written(there, small[:1], "small", only([0]))
    (path,) = pack(outputs, quick.STUDY, archives).paths
    busy = there / quick.STUDY / small[0].cell
    (busy / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 17, "job": ""}))
    before = files(busy)
    with pytest.raises(SystemExit) as status:
        records.main(["unpack", str(path), "--outputs", str(there)])
    said = capsys.readouterr().out
    assert status.value.code == 1 and "refused" in said
    assert "process 17 on elsewhere" in said and str(busy) in said and "unpack its lanes again" in said
    assert files(busy) == before
    assert (there / quick.STUDY / small[1].cell / "DONE").exists()
    (busy / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "job": ""}))  # it has died
    records.main(["unpack", str(path), "--outputs", str(there)])
    assert (busy / "DONE").exists() and not (busy / "lock").exists()


def test_what_is_older_than_the_manifest_is_kept_and_not_asked_for(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:1], "small")
    made_up.written(there, small[1:2], "small")
    (path,) = pack(outputs, quick.STUDY, archives).paths
    folder = there / quick.STUDY
    newer = {cell: entry | {"revision": 99} for cell, entry in manifest.asked(folder, "small").items()}
    manifest.write(folder, "small", newer)
    unpack(read(path), there)
    assert manifest.asked(folder, "small") == newer
    assert read_outputs(there, quick.STUDY, "small").strays == (small[0].cell,)
    # The other way round, the newer manifest replaces the older one.
    (path,) = pack(there, quick.STUDY, archives).paths
    unpack(read(path), outputs)
    assert manifest.asked(outputs / quick.STUDY, "small") == newer


@pytest.mark.parametrize("keep", [0, 100, 512, 5_000, 0.5, 0.99])
def test_a_truncated_archive_is_named_and_changes_nothing(
    outputs: Path, there: Path, archives: Path, small: list[Spec], keep: float, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.written(outputs, small[:2], "small")
    (path,) = pack(outputs, quick.STUDY, archives).paths
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(SystemExit) as status:
        records.main(["unpack", str(path), "--outputs", str(there)])
    assert status.value.code == 1
    assert f"refused: {path} is no archive of records, or is truncated" in capsys.readouterr().out
    assert not there.exists()


def test_a_damaged_archive_is_refused_beside_a_whole_one(
    outputs: Path, there: Path, archives: Path, small: list[Spec], tmp_path: Path
) -> None:
    made_up.written(outputs, small[:1], "small")
    (path,) = pack(outputs, quick.STUDY, archives).paths
    content = bytearray(path.read_bytes())
    position = content.rindex(gzip.compress(b"", mtime=0)[:4]) + 60
    content[position] ^= 1
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(content)
    with pytest.raises(SystemExit):
        records.main(["unpack", str(damaged), str(path), str(tmp_path / "absent.tar"), "--outputs", str(there)])
    assert quick.numbers(there) == quick.numbers(outputs)
    with pytest.raises(ArchiveError, match=r"json\.gz is damaged"):
        read(damaged)


def squeezed(*entries: Any) -> bytes:
    return gzip.compress("".join(json.dumps(entry) + "\n" for entry in entries).encode())


def edited(content: bytes, **changes: Any) -> bytes:
    first, *rest = (json.loads(line) for line in gzip.decompress(content).splitlines())
    return squeezed(first | changes, *rest)


@pytest.mark.parametrize(
    "name",
    ["../evil.json.gz", "/tmp/evil.json.gz", "0123456789ab/../../config.json.gz", "0123456789ab/lock", "DONE",
     "../../0123456789ab/config.json.gz", "manifest-../x.json.gz", "0123456789AB/rows.jsonl.gz"],
)  # fmt: skip
def test_no_name_in_an_archive_leads_anywhere(there: Path, tmp_path: Path, name: str) -> None:
    path = tarred(tmp_path / "evil.tar", {name: squeezed({"cells": {}})})
    with pytest.raises(ArchiveError, match="no name of a file in it"):
        read(path)
    assert not there.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_holds_plain_files_only(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="no plain file"):
        read(tarred(tmp_path / "links.tar", {"manifest-small.json.gz": b""}, kind))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config", {"cell": "0123456789ab"}),
        ("config", {"study": "another"}),
        ("lanes", {"lane": "../../up"}),
        ("lanes", {"values": {"seed": 77}}),
        ("lanes", {"outcome": "failed: no memory"}),
        ("lanes", {"summary": None}),
        ("rows", {"lane": "00000000"}),
        ("rows", {"iteration": "0"}),
        ("manifest", {"cells": {"../../up": {"revision": 1, "labels": {"variant": ""}, "lanes": {}}}}),
        ("manifest", {"cells": {"0123456789ab": {"revision": 1, "labels": {"variant": ""}, "lanes": {"../up": {}}}}}),
    ],
)
def test_an_archive_that_was_edited_is_refused(
    outputs: Path, archives: Path, small: list[Spec], tmp_path: Path, file: str, changes: dict[str, Any]
) -> None:
    made_up.written(outputs, small[:1], "small")
    content = members(*pack(outputs, quick.STUDY, archives).paths)
    assert read(tarred(tmp_path / "same.tar", content)).cells.keys() == {small[0].cell}
    (name,) = (name for name in content if file in name)
    with pytest.raises(ArchiveError):
        read(tarred(tmp_path / "edited.tar", content | {name: edited(content[name], **changes)}))


@pytest.mark.parametrize("study", ["../up", "a/b", "", 7, "a b"])
def test_an_archive_of_a_study_that_is_no_name_is_refused(tmp_path: Path, study: Any) -> None:
    index = json.dumps({"format": archive.FORMAT, "study": study}).encode()
    with pytest.raises(ArchiveError):
        read(tarred(tmp_path / "study.tar", {"index.json": index}))


def test_a_foreign_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "foreign.tar"
    path.write_text("hello " * 1000)
    with pytest.raises(ArchiveError, match=r"foreign\.tar"):
        read(path)
    monkeypatch.setattr(archive, "LIMIT", 1000)
    with pytest.raises(ArchiveError, match="archives are under"):
        read(path)
    with pytest.raises(ArchiveError, match=r"there is no file .*absent\.tar"):
        read(tmp_path / "absent.tar")


class Killed(BaseException):
    """The end of a process, wherever it stands."""


@pytest.mark.parametrize("step", range(30))
def test_killed_anywhere_unpacking_leaves_what_the_same_command_completes(
    outputs: Path, there: Path, archives: Path, small: list[Spec], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.written(outputs, small[:2], "small")
    made_up.written(there, small[:1], "small", only([0]))
    (path,) = pack(outputs, quick.STUDY, archives).paths
    steps = iter(range(100))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if next(steps) == step:
                raise Killed
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((manifest, "write"), (archive, "_adopt"), (Path, "unlink")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        patch.setattr("pcexp.cell.replace_bytes", counted(archive.replace_bytes))
        patch.setattr(Cell, "_append", staticmethod(counted(Cell._append)))
        with pytest.raises(Killed):
            unpack(read(path), there)
    for cell in there.glob("*/*/lanes.jsonl"):  # a lane that is there is there whole
        for lane in Cell(cell.parent, ()).finished:
            assert len(Cell(cell.parent, ()).rows(lane)["iteration"]) == 6
    for lock in there.rglob("lock"):
        lock.unlink()  # a killed process holds none: its lock is stale
    unpack(read(path), there)
    assert quick.numbers(there) == quick.numbers(outputs)


def test_killed_while_packing_leaves_no_half_archive(
    outputs: Path, archives: Path, small: list[Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.written(outputs, small[:2], "small")

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(Killed):
            pack(outputs, quick.STUDY, archives)
    assert list(archives.glob("*.tar")) == []
    assert len(pack(outputs, quick.STUDY, archives).paths) == 1


def test_a_study_without_runs_has_nothing_to_pack(outputs: Path, small: list[Spec], archives: Path) -> None:
    with pytest.raises(SystemExit, match="no runs of saddle_escape"):
        records.main(["pack", quick.STUDY, "--outputs", str(outputs)])
    made_up.written(outputs, small, "small", lambda *_: None)
    shutil.rmtree(archives, ignore_errors=True)
    assert pack(outputs, quick.STUDY, archives) == ([], 0, 3 * len(small), [])


def test_a_manifest_that_is_none_is_named_and_nothing_is_merged(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:1], "small")
    (path,) = pack(outputs, quick.STUDY, archives).paths
    broken = there / quick.STUDY / "manifest-small.json"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"scale": "small", "cel')
    with pytest.raises(SystemExit, match=r"manifest-small\.json is no manifest.*set it aside"):
        records.main(["unpack", str(path), "--outputs", str(there)])
    assert files(there).keys() == {f"{quick.STUDY}/manifest-small.json"}


def test_other_seeds_of_one_cell_are_asked_for_together_and_what_none_has_run_is_missing(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    spec = quick.grid("scale=small", "lanes.seed=[1,8,9]", activations=("linear",))[0]
    assert spec.cell == small[0].cell
    made_up.written(outputs, [spec], "small", only([8]))
    made_up.written(there, small[:1], "small", only([0, 2]))
    (path,) = pack(outputs, quick.STUDY, archives).paths
    unpack(read(path), there)
    (entry,) = quick.manifest(there, "small").values()
    assert sorted(values["seed"] for values in entry["lanes"].values()) == [0, 1, 2, 8, 9]
    assert [entry["lanes"][name]["seed"] for name in Cell(there / quick.STUDY / spec.cell, entry["lanes"]).missing] == [
        1,
        9,
    ]
