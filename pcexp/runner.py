"""What a study is given to run a cell: its spec, its folder, and what all cells of a command share."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import numpy as np

from pcexp.cell import Cell
from pcexp.data import Dataset
from pcexp.network import Network
from pcexp.progress import Progress
from pcexp.provenance import peak_memory_bytes, provenance
from pcexp.spec import Lane, Spec
from pcexp.tracking import AbstractTracker, LaneLog
from pcexp.train import Measure

AtEnd = Callable[[Network, Network], Mapping[str, Any]]
"""Columns of a lane's summary, from its initial and its final network."""


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


class Datasets:
    """Data sets of a command, each loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[str, Dataset] = {}
        self._loading = threading.Lock()

    def __call__(self, spec: Spec) -> Dataset:
        """The data of a cell, flattened where its network wants vectors. Raises DataError."""
        name = f"{spec.science['data']} {spec.network.flat_inputs}"
        with self._loading:
            if name not in self._loaded:
                dataset = spec.data.load()
                self._loaded[name] = dataset.flattened() if spec.network.flat_inputs else dataset
            return self._loaded[name]


class Session:
    """What the cells of one command share: settings, tracker, progress, data, places for lanes, and the wish to stop.

    A pack that advances holds one of `places`, whatever its cell. Cells whose lanes do not train take turns at `alone`:
    memory may hold what one of them computes, and not two.
    """

    def __init__(
        self, execution: Execution, tracker: AbstractTracker, progress: Progress, datasets: "Datasets"
    ) -> None:
        self.execution, self.tracker, self.progress, self.datasets = execution, tracker, progress, datasets
        self.on_cpu = jax.default_backend() == "cpu"
        own = len(os.sched_getaffinity(0)) if self.on_cpu else len(jax.local_devices())
        self.workers = execution.workers or own
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
        """Ask to stop between two calls."""
        self._stop.set()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to stop between calls; a second Ctrl-C stops at once (rows and checkpoints stay)."""

        def ask(number: int, _: Any) -> None:
            if self._stop.is_set():
                os._exit(128 + number)
            self._stop.set()
            self.progress.say("stopping after the calls in flight; once more to stop at once")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Job:
    """One cell being run: what a study's `run` is given."""

    def __init__(self, spec: Spec, cell: Cell, session: Session) -> None:
        self.spec, self.cell, self.session = spec, cell, session

    def lanes(self) -> tuple[Lane, ...]:
        """Lanes that are not finished."""
        missing = set(self.cell.missing)
        return tuple(lane for lane in self.spec.lanes if lane.name in missing)

    def finish(self, lane: Lane, outcome: str, summary: Mapping[str, Any], **about: str | float) -> None:
        """Record a lane's outcome, its numbers and where they come from; mirror it to the tracker."""
        origin = provenance() | {"peak_memory_bytes": peak_memory_bytes()} | about
        self.cell.finish(lane.name, outcome, values=lane.values, summary=dict(summary), provenance=origin)
        rows = [
            {name: float(value) for name, value in row.items() if isinstance(value, (int, float))}
            for row in self.cell.lines(lane.name)
        ]
        log = LaneLog(
            study=self.spec.name,
            cell=self.spec.cell,
            lane=lane.name,
            config=self.spec.science | {"lane": lane.values},
            labels=self.spec.labels,
            outcome=outcome,
            summary=dict(summary),
            rows=rows,
        )
        with self.session.mirroring:
            self.session.tracker.log(log)

    def record(self, rows: Callable[[Lane, Dataset], Iterable[Mapping[str, Any]]]) -> None:
        """Write the rows (each with its iteration) that a study computes for every unfinished lane. Raises Stopped.

        For studies that do not train for long: lanes follow one another, and one that was cut off starts again.
        """
        dataset = self.session.datasets(self.spec)
        self.cell.rewind({})
        with self.session.alone:
            self._record(rows, dataset)

    def _record(self, rows: Callable[[Lane, Dataset], Iterable[Mapping[str, Any]]], dataset: Dataset) -> None:
        from pcexp.pack import arithmetic

        for lane in self.lanes():
            if self.session.stopping:
                raise Stopped
            start = time.perf_counter()
            try:
                with arithmetic(self.spec.training.precision):
                    found = [{name: np.asarray(value) for name, value in row.items()} for row in rows(lane, dataset)]
            except jax.errors.JaxRuntimeError as error:  # out of memory, above all: other lanes and cells go on
                reason = str(error).splitlines()[0][:300]
                self.finish(lane, f"failed: {reason}", {})
                self.session.progress.say(f"lane {lane.name} of {self.spec.cell} failed: {reason}")
                continue
            self.cell.append({"lane": lane.name} | {name: v.tolist() for name, v in row.items()} for row in found)
            self.session.progress.advance(self.spec, {lane.name: 1}, 1)
            finite = all(np.isfinite(value).all() for row in found for value in row.values())
            self.finish(
                lane,
                "done" if finite else "diverged",
                self.spec.study.summary(self.cell.rows(lane.name)),
                seconds_run=time.perf_counter() - start,
                data_checksum=dataset.checksum,
                data_caveat=dataset.caveat,
            )

    def train(self, measure: Measure, probe_size: int, at_end: AtEnd | None = None) -> None:
        """Train every unfinished lane to its end, recording what `measure` sees. Raises Stopped.

        What `at_end` says of the initial and the final network joins the lane's summary.
        """
        from pcexp.lanes import LaneTraining  # it is built on this module
        from pcexp.pack import arithmetic

        lanes = self.lanes()
        if lanes:
            with arithmetic(self.spec.training.precision):
                LaneTraining(self, lanes, measure, probe_size, at_end).run()
