"""One cell on disk: its lock, its rows, its finished lanes. Nothing computed is lost, nothing half-written is read as data.

outputs/STUDY/CELL/config.json     the science half and the labels
                   lock            who works here; its modification time is the heartbeat
                   rows.jsonl      rows of all lanes, appended while running
                   lanes.jsonl     one line a finished lane: outcome, summary, provenance
                   checkpoints/    where unfinished lanes stand
                   DONE            all lanes asked for are finished
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EEXIST, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import Any

import numpy as np

from pcexp.files import replace_bytes
from pcexp.records.lock import Lock

WITHDRAWN = "failed: withdrawn"
"""Outcome of a lane that was taken back by hand."""
CANNOT_WRITE = (EACCES, EDQUOT, EEXIST, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS)
"""Errors that say that a folder is full, read-only or no folder: the user's to mend, not the program's."""


ENTRY = {
    "rows.jsonl": (("lane", str), ("iteration", (int, float))),
    "lanes.jsonl": (("lane", str), ("outcome", str), ("values", dict), ("summary", dict), ("provenance", dict)),
}
"""What every line of these files has."""


class OutputError(Exception):
    """The output folder cannot be written."""


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    replace_bytes(path, json.dumps(content, indent=1).encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; a last line that was cut off is left out, a broken one elsewhere raises."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # a write was cut off here: the row is computed again
            try:
                entry = json.loads(line)
                whole = isinstance(entry, dict) and all(
                    isinstance(entry.get(k), t) for k, t in ENTRY.get(path.name, ())
                )
                if not whole:
                    raise ValueError("it is no record of a lane")
            except ValueError as error:
                at = f"{path}, line {number}"
                raise OutputError(
                    f"{at}, is not JSON, or not ours: {error}; set the file aside and run again"
                ) from error
            yield entry


class Cell:
    """The folder of one cell, owned by this process while its lock is held."""

    def __init__(self, folder: Path, lanes: Iterable[str]) -> None:
        self.folder = folder
        self.asked = tuple(lanes)
        self._rows_path, self._lanes_path = folder / "rows.jsonl", folder / "lanes.jsonl"
        self._lock = Lock(folder / "lock")
        self._forget_places()

    @property
    def finished(self) -> dict[str, dict[str, Any]]:
        """What is recorded of each finished lane; one that failed (not: diverged) is not finished and runs again."""
        entries = {entry["lane"]: entry for entry in read_lines(self._lanes_path)}
        return {name: entry for name, entry in entries.items() if not _failed(entry["outcome"])}

    @property
    def withdrawn(self) -> set[str]:
        """Lanes that were taken back by hand, and have not run since."""
        last = {entry["lane"]: entry["outcome"] for entry in read_lines(self._lanes_path)}
        return {name for name, outcome in last.items() if outcome == WITHDRAWN}

    @property
    def missing(self) -> tuple[str, ...]:
        """Lanes asked for that are not finished."""
        finished = self.finished
        return tuple(name for name in self.asked if name not in finished)

    @property
    def worker(self) -> dict[str, Any] | None:
        """Who holds the cell now: host, pid and job of a lock that is fresh."""
        owner = self._lock.owner()
        return owner if owner and not self._lock.stale(owner) else None

    def check(self) -> None:
        """Raise CellBusy where this process, suspended for longer than its lock is fresh, no longer holds the cell."""
        self._lock.check()

    def checkpoint(self, lane: str) -> Path:
        """Where an unfinished lane keeps its state."""
        return self.folder / "checkpoints" / f"{lane}.npz"

    @contextmanager
    def open(self, config: Mapping[str, Any]) -> Iterator["Cell"]:
        """Hold the cell: make its folder, take its lock, beat until the end. Raises CellBusy or OutputError."""
        with writing(self.folder):
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                write_json(self.folder / "config.json", config)
                self._mend(self._rows_path)
                self._mend(self._lanes_path)
                self._forget_places()
                yield self
            finally:
                self._lock.release()

    @staticmethod
    def _mend(path: Path) -> None:
        # After a kill the last line may be cut off; the next append would glue itself to it.
        if path.exists():
            with open(path, "rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and flush them to disk. NaN and infinities are written as JSON extensions that Python reads back.

        Raises CellBusy, as whatever writes.
        """
        self._append(self._rows_path, rows)

    def finish(self, lane: str, outcome: str, **entry: Any) -> None:
        """Record the outcome of a lane; its checkpoint goes unless it failed."""
        self._append(self._lanes_path, [{"lane": lane, "outcome": outcome, **entry}])
        if not _failed(outcome):  # one that failed goes on from its checkpoint
            self.checkpoint(lane).unlink(missing_ok=True)
        self._mark()

    def withdraw(self, lane: str) -> None:
        """Take back what a lane has done: the next run of it starts again, and until then it is missing."""
        if entry := self.finished.get(lane):
            self._append(self._lanes_path, [{**entry, "outcome": WITHDRAWN, "summary": {}}])
        self.checkpoint(lane).unlink(missing_ok=True)
        (self.folder / "DONE").unlink(missing_ok=True)

    def adopt(self, entries: Sequence[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> None:
        """Take lanes that were finished elsewhere; cut off at any moment, a lane is here whole or starts again."""
        self.check()
        names = {entry["lane"] for entry in entries}
        for name in names:
            self.checkpoint(name).unlink(missing_ok=True)  # first: with these rows it would go on from another's
        kept = [row for row in read_lines(self._rows_path) if row["lane"] not in names]
        self._replace([*kept, *rows])
        self._append(self._lanes_path, entries)
        self._mark()

    def _mark(self) -> None:
        if not self.missing:
            write_json(self.folder / "DONE", {"lanes": sorted(self.finished)})

    def _append(self, path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        self.check()
        with open(path, "a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, resume_at: Mapping[str, int]) -> None:
        """Drop rows of unfinished lanes that a resumed run will write again: those at or after where the lane resumes."""
        finished = self.finished
        self._replace(
            row
            for row in read_lines(self._rows_path)
            if row["lane"] in finished or row["iteration"] < resume_at.get(row["lane"], 0)
        )

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.check()
        replace_bytes(self._rows_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._forget_places()

    def lines(self, lane: str) -> list[dict[str, Any]]:
        """Rows of one lane as they were written, sorted by iteration."""
        if not self._rows_path.exists():
            return []
        with open(self._rows_path, "rb") as file:
            # Where each lane's rows stand is remembered: looking for them in the whole file, once a lane that ends, took
            # longer than training when there were a hundred.
            file.seek(self._known_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._places.setdefault(json.loads(line)["lane"], []).append(self._known_to)
                except json.JSONDecodeError:
                    list(read_lines(self._rows_path))  # raises, and says where
                self._known_to += len(line)
            rows = []
            for place in self._places.get(lane, ()):
                file.seek(place)
                rows.append(json.loads(file.readline()))
        return sorted(rows, key=lambda row: row["iteration"])

    def _forget_places(self) -> None:
        self._places: dict[str, list[int]] = {}
        self._known_to = 0

    def rows(self, lane: str, *, measured: bool = False) -> dict[str, np.ndarray]:
        """Rows of one lane, one array a column, sorted by iteration; if `measured`, those of the test split are left out."""
        lines = self.lines(lane)
        if measured:  # those have nothing but test_ columns; a study may measure one of such a name among others
            kept = ("lane", "iteration")
            lines = [row for row in lines if any(n not in kept and not n.startswith("test_") for n in row)]
        return {name: np.array([row[name] for row in lines]) for name in (lines[0] if lines else {}) if name != "lane"}


def _failed(outcome: str) -> bool:
    return outcome.startswith("failed")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside, a folder that cannot be written raises OutputError, which tells the user what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}. Free or choose another place with execution.outputs=FOLDER; "
            "what is already there is kept, and the same command continues"
        ) from error
