"""Packs: the lanes that advance together in one compiled call, one on a CPU, several vmapped on a GPU; and the programs that do it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pcexp.config.identity import Lane
from pcexp.data import Split
from pcexp.model.segments import Precision
from pcexp.records import checkpoint
from pcexp.records.cell import Cell
from pcexp.run.draw import Drawn, Start, arithmetic, on_device
from pcexp.train import Measure, MeasureAfter, Rows, Training, TrainingSet, TrainState, advance, advance_pack

ROWS_A_CALL = 256
FIRST_CALL_ITERATIONS = 8


class Course(NamedTuple):
    """How the lanes of a cell are trained: from where, for how long, what is measured of them, and what is said at the end.

    `measure` sees a recorded iteration before its update, `after` the network after it too. `at_end` gives columns of the
    summary from the initial and the final model; with `tested` so does the test split. With `timed` every row has the
    `seconds` that its lane had run by then, less compilation: a call ends where a row is due.
    """

    training: Training
    precision: Precision
    at: Callable[[Lane], Start]
    measure: Measure
    probe_size: int
    after: MeasureAfter | None = None
    at_end: Callable[[Any, Any], Mapping[str, Any]] | None = None
    tested: bool = True
    timed: bool = False


class Pack:
    """Lanes at one iteration that advance together: one on a CPU, several vmapped on a GPU.

    What they hold of a device's memory is drawn when they begin and goes when the pack is dropped: of a grid that does not
    fit into memory at once, only the packs that are being advanced are there. Without a `device` they are on JAX's default one.
    `before` has the seconds that lanes ran in commands before this one.
    """

    def __init__(self, lanes: Sequence[Lane], draw: Callable[[Lane], Drawn], before: Mapping[str, float]) -> None:
        self.lanes, self.draw, self.before = lanes, draw, before
        self.single = len(lanes) == 1
        self.held: Drawn | None = None
        self.device: jax.Device | None = None
        self.advanced = False
        self.written: dict[str, bool] = {lane.name: False for lane in lanes}
        self.saved_at = time.monotonic()
        self.seconds_to_save = 0.0
        self.seconds_run = 0.0

    def begin(self) -> Drawn:
        """What the lanes hold, drawn if that has not been done."""
        if self.held is None:
            with jax.default_device(self.device):
                drawn = [self.draw(lane) for lane in self.lanes]
                self.held = on_device(self.device, drawn[0] if self.single else _stack(*drawn))
        return self.held

    def move(self, device: jax.Device) -> None:
        """Have the lanes advance on a device, with what they hold."""
        if self.held is not None and device != self.device:
            self.held = on_device(device, self.held)
        self.device = device

    @property
    def state(self) -> TrainState:
        return self.begin().state

    def call(self, data: TrainingSet, course: Course, n: int) -> tuple[Rows, float]:
        """Advance by n iterations (on a worker thread); the rows, and the seconds that one iteration took."""
        run = advance if self.single else advance_pack
        with arithmetic(course.precision):
            held = self.begin()
            start, before = time.perf_counter(), self.iteration
            parts, n_rows = (held.state, held.learning, held.optimiser), 1 if course.timed else ROWS_A_CALL
            how = (course.training, course.measure, n_rows, jnp.asarray(n, jnp.int32))
            state, rows = run(*parts, data, *how, given=held.given, after=course.after)
            jax.block_until_ready((state, rows))
        self.held, self.advanced = held._replace(state=state), self.advanced or n > 0
        seconds = time.perf_counter() - start
        self.seconds_run += seconds
        return rows, seconds / max(self.iteration - before, 1)

    def rows(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """Rows as they are written, with the lane that each belongs to."""
        count, due = int(rows.n_rows), np.asarray(rows.due)
        # Cut on the host: a slice of a device's array is a program for every count.
        columns = {name: np.asarray(values)[:count] for name, values in rows.values.items()}
        for i, lane in enumerate(self.lanes):
            for row in range(count):
                if due[row] if self.single else due[row, i]:
                    at = row if self.single else (row, i)
                    yield {"lane": lane.name} | {name: values[at].tolist() for name, values in columns.items()}

    def evaluate(self, test: Split) -> list[dict[str, float]]:
        """What the learning rule says of the test split, of each lane where it stands."""
        held = self.begin()
        found = held.learning.evaluate(held.state.network, test, stacked=not self.single)
        columns = {f"test_{name}": np.atleast_1d(np.asarray(value, float)).tolist() for name, value in found.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def iteration(self) -> int:
        """Iterations of the most advanced lane."""
        return int(np.max(np.asarray(self.state.iteration)))

    def flags(self, name: Literal["iteration", "stopped", "diverged"]) -> list[Any]:
        """One number of the state of each lane."""
        return np.atleast_1d(np.asarray(getattr(self.state, name))).tolist()

    def lane_state(self, i: int) -> TrainState:
        return self.state if self.single else _lane(self.state, i)

    def seconds(self, lane: str) -> float:
        """What a lane has run, in this command and in those before."""
        return self.before[lane] + self.seconds_run

    def save(self, cell: Cell) -> None:
        """Save what lanes that have not ended go on from."""
        start = time.monotonic()
        for i, lane in enumerate(self.lanes):
            if not self.written[lane.name]:
                cell.check()
                checkpoint.save(cell.checkpoint(lane.name), self.lane_state(i), seconds_run=self.seconds(lane.name))
        self.saved_at = time.monotonic()
        self.seconds_to_save = self.saved_at - start

    def halves(self) -> tuple["Pack", "Pack"]:
        """Two packs of half the lanes each, for a device whose memory does not hold them all."""
        middle = len(self.lanes) // 2
        return self.part(range(middle)), self.part(range(middle, len(self.lanes)))

    def part(self, indices: Sequence[int]) -> "Pack":
        pack = Pack([self.lanes[i] for i in indices], self.draw, self.before)
        if self.advanced:  # if not, they are drawn again, when their turn comes
            pack.device, pack.advanced = self.device, True
            pack.held = _lane(self.begin(), indices[0] if pack.single else np.asarray(indices))
        pack.written = {lane.name: self.written[lane.name] for lane in pack.lanes}
        pack.saved_at, pack.seconds_run = self.saved_at, self.seconds_run
        return pack


def _lane(tree: Any, i: int | np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, tree)


def _stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)


class Programs:
    """The compiled programs of a cell: one for packs of a size on a device, where the data are, and the time that it takes.

    Compiles when a pack is the first of its size on its device; `seconds_an_iteration` are by size of pack.
    """

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
