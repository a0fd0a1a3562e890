"""Folders that cannot be written, and disks that fill up: said with what to do, and nothing is lost."""

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.records.cell import Cell, OutputError

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cell"


@pytest.mark.parametrize("place", ["", "saddle_escape"])
def test_a_file_where_the_folder_should_be_is_named_with_what_to_do(outputs: Path, run: Run, place: str) -> None:
    (outputs / place).parent.mkdir(parents=True, exist_ok=True)
    (outputs / place).write_text("mine")
    with pytest.raises(Refused, match=rf"cannot write to {outputs}.*execution.outputs="):
        run()
    assert (outputs / place).read_text() == "mine"


def test_a_file_where_a_cell_should_be_is_named_with_what_to_do(outputs: Path, run: Run) -> None:
    path = outputs / quick.STUDY / quick.cell().cell
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(Refused, match=rf"cannot write to {path}.*execution.outputs="):
        run()
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_made_ends_the_command_with_status_1_and_no_traceback(tmp_path: Path) -> None:
    done = quick.command(*quick.QUICK, "execution.outputs=/proc/nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot write to /proc/nowhere" in done.stderr and "execution.outputs=" in done.stderr
    assert "Traceback" not in done.stderr


class Disk:
    """A disk on which `room` more bytes fit; a write that does not fit is cut off where the disk ends, as a real one is."""

    def __init__(self, mounted: Path, room: int, number: int) -> None:
        self.mounted, self.room, self.number = str(mounted), room, number
        self._open = builtins.open

    def open(self, path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file = self._open(path, mode, *arguments, **keywords)
        if not set(mode) & {"w", "a", "x", "+"} or not str(path).startswith(self.mounted):
            return file
        write = file.write

        def limited(content: Any) -> int:
            if len(content) > self.room:
                write(content[: self.room])
                file.flush()
                self.room = 0
                file.write = write  # so that closing can flush
                raise OSError(self.number, os.strerror(self.number))
            self.room -= len(content)
            return write(content)

        return _File(file, limited)


class _File:
    """A file whose writes go through `write`."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@pytest.mark.parametrize(
    ("room", "number"),
    [(0, errno.EROFS), (0, errno.ENOSPC), (1500, errno.ENOSPC), (9000, errno.EDQUOT), (30000, errno.ENOSPC)],
)
def test_a_disk_that_fills_up_loses_nothing_and_the_same_command_continues(
    undisturbed: Path,
    short_calls: None,
    outputs: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    number: int,
) -> None:
    disk, config = Disk(outputs, room, number), quick.composed(*quick.LONG, quick.OFTEN, f"execution.outputs={outputs}")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", disk.open)
        patch.setattr(Path, "open", lambda path, *arguments, **keywords: disk.open(path, *arguments, **keywords))
        with pytest.raises(Refused) as refused:
            quick.run_all([config])
    assert f"cannot write to {outputs}" in str(refused.value) and os.strerror(number) in str(refused.value)
    assert "execution.outputs=" in str(refused.value)
    kept = {path: path.read_bytes() for path in outputs.glob("*/*/lanes.jsonl")}
    assert not list(outputs.glob("*/*/lock"))

    assert run(*quick.LONG) == 0
    assert all(path.read_bytes().startswith(content[: content.rfind(b"\n") + 1]) for path, content in kept.items())
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


def test_errors_that_are_not_about_writing_are_not_called_so(folder: Path) -> None:
    with pytest.raises(ConnectionResetError), Cell(folder, ["a"]).open({}):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(OutputError), Cell(folder, ["a"]).open({}):
        raise OSError(errno.ENOSPC, "full")
