"""The compiled programs of a cell: one for packs of a size on a device, where the data are, and the time that it takes."""

import threading
import time
from collections.abc import Sequence

import jax

from pcexp.run.draw import arithmetic, on_device
from pcexp.run.pack import ROWS_A_CALL, Course, Pack
from pcexp.train import TrainingSet

FIRST_CALL_ITERATIONS = 8


class Programs:
    """Compiles when a pack is the first of its size on its device; `seconds_an_iteration` are by size of pack."""

    def __init__(self, course: Course, data: TrainingSet, devices: Sequence[jax.Device]) -> None:
        self.course, self.data = course, data
        self.seconds_an_iteration: dict[int, float] = {}
        self.seconds_compile = 0.0
        self._compiled: set[tuple[int, jax.Device | None]] = set()
        self._data_on: dict[jax.Device | None, TrainingSet] = {}
        self._compiling = {device: threading.Lock() for device in (None, *devices)}

    def ready(self, pack: Pack) -> TrainingSet:
        """The data on the pack's device, once the program for packs of its size is compiled for it."""
        size, device = len(pack.lanes), pack.device
        with self._compiling[device], arithmetic(self.course.precision):
            if device not in self._data_on:
                self._data_on[device] = on_device(device, self.data)
            if (size, device) not in self._compiled:
                start, before = time.perf_counter(), pack.seconds_run
                pack.call(self._data_on[device], self.course, 0)  # no iteration: this compiles
                self._compiled.add((size, device))
                self.seconds_compile += time.perf_counter() - start
                pack.seconds_run = before
        return self._data_on[device]

    def call_size(self, pack: Pack, seconds: float) -> int:
        """Iterations that take so many seconds, and no more than give a call's rows."""
        known = self.seconds_an_iteration.get(len(pack.lanes))
        if known is None:
            return FIRST_CALL_ITERATIONS
        n = max(1, int(seconds / known))
        return n if pack.state.events is not None else min(n, ROWS_A_CALL * self.course.training.record_every)
