"""The lock of a cell: a file with the token of the one process that may write there."""

import fcntl
import functools
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pcexp.files import replace_bytes

STALE_AFTER_S = 120.0
HEARTBEAT_S = 20.0


class CellBusy(Exception):
    """Another process works on this cell, or has taken it over."""


class Lock:
    """A file with the token of one process; stale when that is dead where its number can be looked up, or after two minutes
    without a beat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._released = threading.Event()
        self.identity = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
        self.identity |= {"processes": processes(), "token": uuid4().hex}
        self._held = False

    def acquire(self) -> None:
        with self._guard():
            owner = self.owner()
            if self.path.exists() and not self.stale(owner):
                raise CellBusy(f"{self.path.parent} is being run by process {owner.get('pid')} on {owner.get('host')}")
            replace_bytes(self.path, json.dumps(self.identity).encode())
        self._held = True
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        # Looking at a lock and taking it over are two steps; two processes that see one stale lock must not both take them.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def release(self) -> None:
        self._released.set()
        self._held = False
        # Frozen for longer than the lock is fresh, this process may have been overtaken: the lock is another's then.
        with self._guard():
            if self.owner() == self.identity:
                self.path.unlink(missing_ok=True)

    def owner(self) -> dict[str, Any]:
        try:
            owner = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}  # cut off, or foreign: nobody's
        return owner if isinstance(owner, dict) else {}

    def check(self) -> None:
        """Raise CellBusy where the lock that was held is another's by now."""
        if not self._held or (owner := self.owner()) == self.identity:
            return
        if owner or not self.path.exists():  # a file system that hiccups is no other process
            by = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
            raise CellBusy(f"{self.path.parent} was taken over by {by} while this one was suspended")

    def stale(self, owner: Mapping[str, Any]) -> bool:
        # Containers have processes of their own, and may be called as their host is: numbers mean nothing between them.
        there, here = ((who.get("host"), who.get("processes")) for who in (owner, self.identity))
        if there == here and "pid" in owner and not _alive(int(owner["pid"])):
            return True
        # The file system's clock, not ours: hosts of a cluster disagree.
        probe = self.path.with_name(f"clock.{self.identity['token']}.tmp")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime > STALE_AFTER_S
        except FileNotFoundError:
            return True
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with suppress(OSError):  # a file system that hiccups is tried again at the next beat
                if self.owner() == self.identity:
                    os.utime(self.path)


@functools.cache
def processes() -> str:
    """Which processes are numbered together here: those of one start of one machine, less those of a container."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
