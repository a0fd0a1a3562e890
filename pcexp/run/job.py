"""What a study is given to run a cell: its spec, its folder, and what all cells of a command share."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.data import Dataset
from pcexp.records.cell import Cell
from pcexp.run.draw import Start, arithmetic, drawn, initial_start, training_set
from pcexp.run.lanes import LaneTraining, failure, resumed
from pcexp.run.pack import Course, Pack, Programs
from pcexp.run.provenance import peak_memory_bytes, provenance
from pcexp.run.session import Session, Stopped
from pcexp.train import Measure, MeasureAfter, Training, TrainState


class Job:
    """One cell being run: what a study's `run` is given."""

    def __init__(self, spec: Spec, cell: Cell, session: Session) -> None:
        self.spec, self.cell, self.session = spec, cell, session
        self._brought: set[str] = set()

    def lanes(self) -> list[Lane]:
        """Lanes that are not finished."""
        missing = set(self.cell.missing)
        return [lane for lane in self.spec.lanes if lane.name in missing]

    def finish(self, lane: Lane, outcome: str, summary: Mapping[str, Any], **about: str | float) -> None:
        """Record a lane's outcome, its numbers and where they come from; mirror it to the tracker."""
        dataset = self.session.datasets(self.spec)
        data = {"data_checksum": dataset.checksum, "data_caveat": dataset.caveat}
        origin = provenance() | {"peak_memory_bytes": peak_memory_bytes()} | about | data
        entry = {"values": lane.values, "summary": dict(summary), "provenance": origin}
        self.cell.finish(lane.name, outcome, **entry)
        if outcome.startswith("failed"):
            self.session.progress.say(f"lane {lane.name} of {self.spec.cell} {outcome}")
        with self.session.mirroring:
            shown = {"lane": lane.name, "outcome": outcome} | entry
            self.session.tracker.log(self.spec, shown, lambda: self.cell.lines(lane.name))

    def record(self, rows: Callable[[Lane, Dataset], Iterable[Mapping[str, Any]]]) -> None:
        """Write the rows (each with its iteration) that a study computes for every unfinished lane. Raises Stopped.

        For studies that do not train for long: lanes follow one another, and one that was cut off starts again.
        """
        dataset = self.session.datasets(self.spec)
        self.cell.rewind({})
        with self.session.alone:
            self._record(rows, dataset)

    def _record(self, rows: Callable[[Lane, Dataset], Iterable[Mapping[str, Any]]], dataset: Dataset) -> None:
        for lane in self.lanes():
            if self.session.stopping:
                raise Stopped
            start = time.perf_counter()
            try:
                with arithmetic(self.spec.precision):
                    found = [{name: np.asarray(value) for name, value in row.items()} for row in rows(lane, dataset)]
            except jax.errors.JaxRuntimeError as error:  # out of memory, above all: other lanes and cells go on
                self.finish(lane, failure(error), {})
                continue
            except np.linalg.LinAlgError as error:  # of an overflown matrix: an outcome, before the lane's first row
                self.session.progress.say(f"lane {lane.name} of {self.spec.cell} diverged: {error}")
                self.finish(lane, "diverged", {})
                continue
            self.cell.append({"lane": lane.name} | {name: v.tolist() for name, v in row.items()} for row in found)
            self.session.progress.advance(self.spec, {lane.name: 1}, 1)
            finite = all(np.isfinite(value).all() for row in found for value in row.values())
            summary = self.spec.study.summary(self.cell.rows(lane.name))
            self.finish(lane, "done" if finite else "diverged", summary, seconds_run=time.perf_counter() - start)

    def train(
        self,
        measure: Measure,
        probe_size: int,
        *,
        at: Callable[[Lane, Dataset], Start] | None = None,
        after: MeasureAfter | None = None,
        at_end: Callable[[Any, Any], Mapping[str, Any]] | None = None,
        tested: bool = True,
        timed: bool = False,
    ) -> None:
        """Train every unfinished lane to its end, recording what `measure` sees. Raises Stopped.

        `at` says what a lane starts from, if not from what the configuration says: other weights, several networks side by
        side, another update, rows on events. `Course` says what the others are.
        """
        lanes, dataset = self.lanes(), self.session.datasets(self.spec)

        def start(lane: Lane) -> Start:
            return initial_start(self.spec, lane, dataset) if at is None else at(lane, dataset)

        spec = self.spec
        course = Course(spec.training, spec.precision, start, measure, probe_size, after, at_end, tested, timed)
        if lanes:
            with arithmetic(spec.precision):
                LaneTraining(spec, self.cell, self.session, self.finish, lanes, course).run()
        if not self.cell.missing:
            for name in self._brought:
                self.cell.checkpoint(name).unlink(missing_ok=True)

    def brought(self, name: str, lane: Lane, start: Start, training: Training) -> TrainState:
        """Where a run without rows ends that lanes start from: at an event, from `start`. Raises Stopped.

        It has the random key of `lane`. It goes through the training loop too, and after a stop goes on where it was:
        it is saved under its name until all lanes are finished.
        """
        self._brought.add(name)
        session, cell = self.session, self.cell
        course = Course(training, self.spec.precision, lambda _: start, lambda seen: {}, training.batch_size)
        with arithmetic(self.spec.precision):
            begin = drawn(start, self.spec, lane)
            state, before = resumed(cell.checkpoint(name), begin.state, session.progress)
            pack = Pack([lane._replace(name=name)], lambda _: begin._replace(state=state), {name: before})
            data = training_set(session.datasets(self.spec), state.network, course.probe_size)
            programs = Programs(course, data, ())
            session.take_place()
            try:
                while not bool(pack.state.stopped):
                    if session.stopping:
                        raise Stopped
                    data, n = programs.ready(pack), programs.call_size(pack, session.execution.call_s)
                    _, programs.seconds_an_iteration[1] = pack.call(data, course, n)
                    if time.monotonic() - pack.saved_at > session.execution.checkpoint_s:
                        pack.save(cell)
            finally:
                session.places.release()
                if pack.advanced:
                    pack.save(cell)
            return pack.state
