"""Archives: nothing truncated, edited or foreign is let in, and nothing is left half-written."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import made_up
import pytest
import quick
from made_up import only

from pcexp import commands
from pcexp.config.spec import Spec
from pcexp.records import archive, manifest
from pcexp.records.archive import ArchiveError, merge, read, write
from pcexp.records.cell import Cell


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


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


@pytest.mark.parametrize("keep", [0, 100, 512, 5_000, 0.5, 0.99])
def test_a_truncated_archive_is_named_and_changes_nothing(
    outputs: Path, there: Path, archives: Path, small: list[Spec], keep: float, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.written(outputs, small[:2], "small")
    (path,) = write(outputs, quick.STUDY, archives).paths
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(SystemExit) as status:
        commands.records(["unpack", str(path), "--outputs", str(there)])
    assert status.value.code == 1
    assert f"refused: {path} is no archive of records, or is truncated" in capsys.readouterr().out
    assert not there.exists()


def test_a_damaged_archive_is_refused_beside_a_whole_one(
    outputs: Path, there: Path, archives: Path, small: list[Spec], tmp_path: Path
) -> None:
    made_up.written(outputs, small[:1], "small")
    (path,) = write(outputs, quick.STUDY, archives).paths
    content = bytearray(path.read_bytes())
    position = content.rindex(gzip.compress(b"", mtime=0)[:4]) + 60
    content[position] ^= 1
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(content)
    with pytest.raises(SystemExit):
        commands.records(["unpack", str(damaged), str(path), str(tmp_path / "absent.tar"), "--outputs", str(there)])
    assert quick.numbers(there) == quick.numbers(outputs)
    with pytest.raises(ArchiveError, match=r"json\.gz is damaged"):
        read(damaged)


def test_a_refused_archive_is_named_though_the_next_one_ends_the_command(
    outputs: Path, there: Path, archives: Path, small: list[Spec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.written(outputs, small[:1], "small")
    (path,) = write(outputs, quick.STUDY, archives).paths
    (tmp_path / "foreign.tar").write_text("no archive")
    folder = there / quick.STUDY
    folder.mkdir(parents=True)
    (folder / "manifest-small.json").write_text("{")
    with pytest.raises(SystemExit, match=r"manifest-small\.json is no manifest"):
        commands.records(["unpack", str(tmp_path / "foreign.tar"), str(path), "--outputs", str(there)])
    assert f"refused: {tmp_path / 'foreign.tar'}" in capsys.readouterr().out


def test_unpacking_keeps_what_a_cell_here_says_of_itself(
    outputs: Path, there: Path, archives: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small[:1], "small")
    (path,) = write(outputs, quick.STUDY, archives).paths
    config = there / quick.STUDY / small[0].cell / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"mine": True}))
    commands.records(["unpack", str(path), "--outputs", str(there)])
    assert json.loads(config.read_text()) == {"mine": True}
    for lanes in ("lanes.jsonl", "DONE"):
        (config.parent / lanes).unlink()
    config.write_text("{")
    with pytest.raises(SystemExit, match=r"config\.json is not JSON.*unpack again"):
        commands.records(["unpack", str(path), "--outputs", str(there)])


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
    content = members(*write(outputs, quick.STUDY, archives).paths)
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
    (path,) = write(outputs, quick.STUDY, archives).paths
    steps = iter(range(100))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if next(steps) == step:
                raise Killed
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((manifest, "write_json"), (archive, "_adopt"), (Path, "unlink")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        for module in ("cell", "lock"):
            patch.setattr(f"pcexp.records.{module}.replace_bytes", counted(archive.replace_bytes))
        patch.setattr(Cell, "_append", counted(Cell._append))
        with pytest.raises(Killed):
            merge(read(path), there)
    for cell in there.glob("*/*/lanes.jsonl"):  # a lane that is there is there whole
        for lane in Cell(cell.parent, ()).finished:
            assert len(Cell(cell.parent, ()).rows(lane)["iteration"]) == 6
    for lock in there.rglob("lock"):
        lock.unlink()  # a killed process holds none: its lock is stale
    merge(read(path), there)
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
            write(outputs, quick.STUDY, archives)
    assert list(archives.glob("*.tar")) == []
    assert len(write(outputs, quick.STUDY, archives).paths) == 1
