"""One process a cell, and folders that cannot be written: what is there is kept, and the message says what to do."""

import builtins
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.records import lock as module
from pcexp.records.cell import Cell, OutputError, read_lines
from pcexp.records.lock import CellBusy, processes

Run = Callable[..., int]

RACE = """
import multiprocessing, sys
from pathlib import Path
from pcexp.records.cell import Cell
from pcexp.records.lock import CellBusy

def take(barrier, folder, results):
    barrier.wait()
    try:
        with Cell(folder, ["a"]).open({}):
            results.put("won")
            barrier.wait()
    except CellBusy:
        results.put("busy")
        barrier.wait()
    except BaseException as error:
        results.put(repr(error))
        barrier.wait()

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for folder in map(Path, sys.argv[2:]):
        barrier, results = context.Barrier(int(sys.argv[1])), context.Queue()
        takers = [context.Process(target=take, args=(barrier, folder, results)) for _ in range(int(sys.argv[1]))]
        for taker in takers: taker.start()
        for taker in takers: taker.join()
        print(*sorted(results.get() for _ in takers))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cell"


def locked(folder: Path, content: str, age: float = 0.0) -> Path:
    """A cell with a lock that somebody left, last touched `age` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    lock.write_text(content)
    then = lock.stat().st_mtime - age
    os.utime(lock, (then, then))
    return lock


def owner(host: str | None = None, pid: int | None = None, processes: str = processes()) -> str:
    here = {"host": host or socket.gethostname(), "pid": pid or os.getpid()}
    return json.dumps(here | {"job": "", "processes": processes, "token": "another's"})


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def take(folder: Path) -> dict[str, Any]:
    """Open and leave a cell; who its lock named meanwhile."""
    with Cell(folder, ["a"]).open({}):
        return json.loads((folder / "lock").read_text())


# Locks


def test_a_held_cell_names_its_process_and_is_free_afterwards(folder: Path) -> None:
    with Cell(folder, ["a"]).open({}):
        held = json.loads((folder / "lock").read_text())
        assert (held["host"], held["pid"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(CellBusy, match=rf"{folder} .*process {os.getpid()} on {socket.gethostname()}"):
            take(folder)
        assert json.loads((folder / "lock").read_text()) == held
    assert not (folder / "lock").exists()
    take(folder)


def test_a_cell_is_free_again_after_an_error_inside(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), Cell(folder, ["a"]).open({}):
        raise ZeroDivisionError
    assert not (folder / "lock").exists()


@pytest.mark.parametrize(
    ("content", "age"),
    [
        (owner(), 0),
        (owner(pid=1), 0),
        (owner(host="elsewhere", pid=2**22 + 1), 0),
        (owner(host="elsewhere", pid=2**22 + 1), 100),
        (owner(pid=2**22 + 1, processes="of a container"), 0),
        ("", 0),
        ('{"host": "elsewh', 0),
    ],
    ids=[
        "alive",
        "another user's",
        "another host's",
        "another host's, quiet",
        "a container's",
        "being written",
        "half written",
    ],
)
def test_a_fresh_lock_is_respected(folder: Path, content: str, age: float) -> None:
    lock = locked(folder, content, age)
    with pytest.raises(CellBusy):
        take(folder)
    assert lock.read_text() == content


@pytest.mark.parametrize(
    ("content", "age"),
    [
        (owner(pid=dead_pid()), 0),
        (owner(host="elsewhere"), 121),
        (owner(pid=1), 121),
        ("", 121),
        ('{"host": "elsewh', 121),
        ("not json", 121),
    ],
    ids=["dead", "another host's, silent", "pid reused", "never written", "half written", "foreign"],
)
def test_a_stale_lock_is_taken_over(folder: Path, content: str, age: float) -> None:
    locked(folder, content, age)
    assert take(folder)["pid"] == os.getpid()
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoints", "config.json"]


def test_of_several_takers_of_one_stale_lock_one_wins_and_the_others_hear_so(tmp_path: Path) -> None:
    folders = [tmp_path / f"cell{i}" for i in range(40)]
    for i, folder in enumerate(folders):
        locked(folder, owner(pid=dead_pid()) if i == 0 else owner(host="elsewhere"), age=300)
    done = subprocess.run(
        [sys.executable, "-c", RACE, "3", *map(str, folders)],
        env=quick.environment(tmp_path), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["busy busy won"] * len(folders)


def test_the_heart_beats_while_a_cell_is_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    with Cell(folder, ["a"]).open({}):
        os.utime(folder / "lock", (0, 0))
        for _ in range(100):
            if (folder / "lock").stat().st_mtime > 0:
                break
            time.sleep(0.02)
        assert (folder / "lock").stat().st_mtime > 0


def test_a_process_that_was_overtaken_leaves_the_lock_of_its_successor(folder: Path) -> None:
    """Frozen for longer than two minutes, it finds on waking that its cell is somebody else's."""
    successor = owner(host="elsewhere")
    with Cell(folder, ["a"]).open({}):
        (folder / "lock").unlink()
        (folder / "lock").write_text(successor)
    assert (folder / "lock").read_text() == successor


LINE = {"lane": "a", "iteration": 0}
WRITES: dict[str, Callable[[Cell], object]] = {
    "rows": lambda cell: cell.append([LINE]),
    "an outcome": lambda cell: cell.finish("a", "done", summary={}),
    "lanes from elsewhere": lambda cell: cell.adopt([{"lane": "a", "outcome": "done"}], [LINE]),
    "fewer rows": lambda cell: cell.rewind({}),
}


@pytest.mark.parametrize("successor", [owner(host="elsewhere"), owner(), None], ids=["there", "here", "done by now"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_process_that_was_overtaken_writes_nothing_more(
    write: Callable[[Cell], object], successor: str | None, folder: Path
) -> None:
    with Cell(folder, ["a"]).open({}) as cell:
        cell.append([LINE])
        cell.checkpoint("a").write_text("where it stands")
        (folder / "lock").unlink()
        if successor:
            (folder / "lock").write_text(successor)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(CellBusy, match=r"was taken over by .* while this one was suspended"):
            write(cell)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_training_that_was_overtaken_stops_and_leaves_what_its_successor_writes(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = Cell.append

    def suspended(cell: Cell, rows: Any) -> None:
        append(cell, rows)
        (cell.folder / "lock").write_text(owner(host="elsewhere"))

    monkeypatch.setattr(Cell, "append", suspended)
    assert run(*quick.LONG) == 1
    assert "was taken over by process" in capsys.readouterr().out
    folder = quick.cell_folder(outputs)
    assert (folder / "lock").read_text() == owner(host="elsewhere")
    assert {row["iteration"] for row in read_lines(folder / "rows.jsonl")} == set(range(0, 20, 5))
    assert not (folder / "lanes.jsonl").exists() and not (folder / "DONE").exists()


# Folders that cannot be written


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
