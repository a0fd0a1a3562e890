"""What the cells of one command share: settings, data, tracker, progress, places for lanes, and the wish to stop."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from pcexp.config.spec import Spec
from pcexp.data import DataError, Dataset
from pcexp.files import place
from pcexp.run.progress import Progress
from pcexp.run.provenance import cores
from pcexp.run.tracking import AbstractTracker

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to stop: a terminal that closes sends the third, and a cluster is often told to warn with the others."""


class Stopped(Exception):
    """The run was asked to stop, and did so between two calls; the same command continues."""


class Execution(eqx.Module):
    """How to run: nothing here changes a number. `workers` and `pack_size` default to what suits the device.

    A compiled call is sized to `call_s`; a lane's state is saved every `checkpoint_s`; `max_minutes` stops cleanly.
    """

    outputs: str = "outputs"
    workers: int | None = None
    pack_size: int | None = None
    call_s: float = 4.0
    checkpoint_s: float = 20.0
    max_minutes: float | None = None
    save_networks: bool = False
    targets: Sequence[str] = ()

    def __check_init__(self) -> None:
        for name in ("workers", "pack_size"):
            if (n := getattr(self, name)) is not None and n < 1:
                raise ValueError(f"{name}={n}: one at least, or null for what suits the device")
        for name, least in (("call_s", 1e-3), ("checkpoint_s", 0.0), ("max_minutes", 0.0)):
            if (value := getattr(self, name)) is not None and not least <= value < math.inf:
                raise ValueError(f"{name}={value:g}: a number from {least:g} is needed")
        if not self.outputs:
            raise ValueError("outputs is empty: name a folder; outputs=. is the current one")

    @property
    def folder(self) -> Path:
        """Where runs write. Raises OSError."""
        return place(self.outputs)


def units() -> int:
    """Cores that this process may use, or GPUs."""
    return cores() if jax.default_backend() == "cpu" else len(jax.local_devices())


class Datasets:
    """Data sets of a command, each loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[str, Dataset] = {}
        self._loading = threading.Lock()

    def content(self, spec: Spec) -> str:
        """What the configuration of a cell does not say of its data; empty too where they cannot be had: a run says why."""
        try:
            return self(spec).content if spec.data.of_files else ""
        except (DataError, ValueError):
            return ""

    def __call__(self, spec: Spec) -> Dataset:
        """The data of a cell, arranged as its network takes them. Raises DataError, or ValueError where it takes none such."""
        name = f"{spec.science['data']} {spec.network.arrangement}"
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = spec.data.load().arranged(spec.network.arrangement)
            return self._loaded[name]


class Session:
    """What the cells of one command share: settings, tracker, progress, data, places for lanes, and the wish to stop.

    A pack that advances holds one of `places`, whatever its cell. Cells whose lanes do not train take turns at `alone`:
    memory may hold what one of them computes, and not two.
    """

    def __init__(self, execution: Execution, tracker: AbstractTracker, progress: Progress, datasets: Datasets) -> None:
        self.execution, self.tracker, self.progress, self.datasets = execution, tracker, progress, datasets
        self.on_cpu = jax.default_backend() == "cpu"
        self.workers = execution.workers or units()
        # The next cell is built and compiled while lanes of the one before run. Not on a GPU: its memory holds one cell.
        self.cells_at_once = 2 if self.on_cpu and self.workers > 1 else 1
        self.places = threading.Semaphore(self.workers)
        self.alone, self.mirroring = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._deadline = None if execution.max_minutes is None else time.monotonic() + 60 * execution.max_minutes

    @property
    def stopping(self) -> bool:
        """Whether a signal or the budget asks to stop at the next opportunity."""
        return self._stop.is_set() or (self._deadline is not None and time.monotonic() > self._deadline)

    def stop(self) -> None:
        self._stop.set()

    def take_place(self) -> None:
        """Wait until fewer packs than workers advance, of all cells, and be one of them. Raises Stopped."""
        while True:
            if self.stopping:
                raise Stopped
            if self.places.acquire(timeout=0.2):
                return

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and what else clusters and terminals send ask to stop between calls; a later Ctrl-C stops at once.

        Rows and checkpoints stay. What is ignored (SIGHUP after nohup) stays ignored.
        """

        def ask(number: int, _: Any) -> None:
            if self._stop.is_set():
                if number == signal.SIGINT:  # a person; a cluster sends two in a row, and then waits
                    os._exit(128 + number)
                return
            self._stop.set()
            self.progress.say("stopping after the calls in flight; Ctrl-C stops at once")

        heard = (number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN)
        before = {number: signal.signal(number, ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
