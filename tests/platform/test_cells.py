"""One process a cell, and folders that cannot be written: what is there is kept, and the message says what to do."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.records import lock as module
from pcexp.records.cell import Cell, read_lines
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
