"""Training lanes: packs of lanes on worker threads, rows and checkpoints between compiled calls.

On a CPU each worker thread advances one lane at a time inside a synchronous XLA call: products of this size use one core, so
threads over lanes use all cores, share one compilation, and an uneven number of lanes still fills them; while the last ones
end, the next cell compiles and takes their places. On a GPU the lanes of a cell are vmapped in packs, and each of several
GPUs has a thread and a pack of its own.
"""

import itertools
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec, with_values
from pcexp.config.targets import ALLOWED_TARGETS, build
from pcexp.records import checkpoint
from pcexp.records.cell import Cell
from pcexp.run.draw import Drawn, arithmetic, drawn, in_floats, training_set
from pcexp.run.pack import Course, Pack, Programs
from pcexp.run.progress import Progress, duration
from pcexp.run.session import Session, Stopped
from pcexp.train import Rows, TrainState, iterations

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"

Progressed = tuple[list[dict[str, float]], int, Rows, float]
"""What a call gives: the test set's verdicts on the lanes and where they stood, rows, and seconds an iteration."""


def resumed(path: Path, like: TrainState, progress: Progress) -> tuple[TrainState, float]:
    """The state saved at `path`, which must be `like` this one, and the seconds that led there; without one, this one."""
    if path.exists():
        try:
            state, about = checkpoint.load(path, like)
            return state, float(about["seconds_run"])
        except checkpoint.CheckpointError as error:
            aside = path.with_suffix(".set-aside")
            os.replace(path, aside)
            progress.say(f"{error}; set aside as {aside}, the lane starts again")
    return like, 0.0


def failure(error: Exception) -> str:
    """The outcome of a lane that fails with an error."""
    return f"failed: {str(error).splitlines()[0][:300]}"


class LaneTraining:
    """Trains the lanes of one cell on worker threads; only this object's thread writes."""

    def __init__(
        self, spec: Spec, cell: Cell, session: Session, finish: Callable[..., None], lanes: list[Lane], course: Course
    ) -> None:
        self.spec, self.cell, self.session, self.finish, self.course = spec, cell, session, finish, course
        self.dataset = session.datasets(spec)
        n = len(self.dataset.train.x)
        if course.training.batch_size > n:
            raise ValueError(f"training.batch_size={course.training.batch_size}: the training set has {n} examples")
        self.total = iterations(course.training, n)
        self.test_every = course.training.test_every if course.tested else None
        begin = course.at(lanes[0])
        begin.learning.check(begin.model)
        self.first = {lanes[0].name: drawn(begin, spec, lanes[0])}
        first = self.first[lanes[0].name].state
        self.on_events = first.events is not None
        self.data = training_set(self.dataset, first.network, course.probe_size)
        reached, seconds = {}, {}
        for lane in lanes:
            state, seconds[lane.name] = resumed(cell.checkpoint(lane.name), first, session.progress)
            reached[lane.name] = int(state.iteration)
        self.cell.rewind(reached)
        cpu, self.devices = self.session.on_cpu, jax.local_devices()
        # On GPUs as many lanes as fit, but no device without a share.
        share = -(-len(lanes) // len(self.devices))
        size = self.session.execution.pack_size or (1 if cpu else min(self._lanes_in_memory(first), share))
        self.packs = []
        # Lanes that were cut off at different iterations cannot share a counter. The most advanced first: they end soonest.
        for iteration in sorted(set(reached.values()), reverse=True):
            members = [lane for lane in lanes if reached[lane.name] == iteration]
            n_packs = -(-len(members) // size)
            bounds = [len(members) * k // n_packs for k in range(n_packs + 1)]
            self.packs += [Pack(members[i:j], self._drawn, seconds) for i, j in itertools.pairwise(bounds)]
        if not cpu and len(self.packs) > 1:
            self.session.progress.say(f"{len(lanes)} lanes of {self.spec.cell} run in {len(self.packs)} packs")
        self.programs = Programs(course, self.data, self.devices)
        self.advancing: set[Pack] = set()

    def _lanes_in_memory(self, state: TrainState) -> int:
        """Lanes that the device's memory holds at once, by an estimate; where it is wrong, packs are halved."""
        stats = jax.devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", 8 << 30) - stats.get("bytes_in_use", 0)
        network = state.network
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array)))
        _, references = jax.eval_shape(lambda n, x: n.forward(x), network, self.data.x[0])
        activities = sum(leaf.size for leaf in jax.tree.leaves(references)) * self.course.training.batch_size
        # The state before and after, the gradient and its update; of activities, references, deviations, errors, pulls.
        lane = 3 * parameters + 4 * activities * self.data.x.dtype.itemsize + 8 * len(self.data.x)
        return max(1, int(0.8 * free / lane))

    def _drawn(self, lane: Lane) -> Drawn:
        """A lane where it goes on."""
        fresh = self.first.pop(lane.name, None) or drawn(self.course.at(lane), self.spec, lane)
        return fresh._replace(state=resumed(self.cell.checkpoint(lane.name), fresh.state, self.session.progress)[0])

    def run(self) -> None:
        """Advance packs, each to its end before another begins, until all lanes are finished or the session stops."""
        waiting = deque(self.packs)
        self.packs = []  # held by those that advance them only: a pack that has ended frees its memory
        flying: dict[Future[Progressed], Pack] = {}
        workers = self.session.workers
        with ThreadPoolExecutor(workers, thread_name_prefix="lane") as pool:
            try:
                while waiting or flying:
                    while waiting and len(flying) < workers and not self.session.stopping:
                        pack = waiting.popleft()
                        if len(self.devices) > 1:  # one that is not busy: its own, if that is one
                            busy = [other.device for other in flying.values()]
                            pack.move(min(self.devices, key=lambda d: (busy.count(d), d != pack.device)))
                        flying[pool.submit(self._call, pack)] = pack
                    if not flying:
                        break
                    done, _ = wait(flying, return_when=FIRST_COMPLETED)
                    for future in done:
                        pack = flying.pop(future)
                        parts = self._absorb(pack, future)
                        if pack not in parts:
                            self._leave(pack)
                        waiting.extendleft(reversed(parts))
            except BaseException:
                self.session.stop()  # an error ends the command; packs that wait for a place hear of it so
                raise
            finally:
                wait(flying)
                for pack in list(self.advancing):
                    self._leave(pack)
        if waiting:
            for pack in waiting:
                if pack.advanced:
                    pack.save(self.cell)
            raise Stopped

    def _halves(self, pack: Pack, error: Exception) -> tuple[Pack, ...]:
        """What can still be tried of a pack that a call failed on: its halves where it was too large."""
        if len(pack.lanes) > 1 and OUT_OF_MEMORY in str(error):
            self.session.progress.say(f"{len(pack.lanes)} lanes of {self.spec.cell} do not fit in memory: in halves")
            return pack.halves()
        for lane in pack.lanes:
            if not pack.written[lane.name]:
                self.finish(lane, failure(error), {})
        return ()

    def _leave(self, pack: Pack) -> None:
        if pack in self.advancing:
            self.advancing.remove(pack)
            self.session.places.release()

    def _call(self, pack: Pack) -> Progressed:
        """On a worker thread: what the test set says where the pack stands, if that is due, and some iterations. Raises Stopped."""
        data, n = self.programs.ready(pack), self.programs.call_size(pack, self.session.execution.call_s)
        if pack not in self.advancing:
            self.session.take_place()
            self.advancing.add(pack)
        every, tests = self.test_every, []
        with arithmetic(self.course.precision):
            t = pack.iteration
            if every is not None:
                n = min(n, every - t % every)
                if t % every == 0:
                    tests = pack.evaluate(self.dataset.test)
        return tests, t, *pack.call(data, self.course, n)

    def _absorb(self, pack: Pack, future: Future[Progressed]) -> Sequence[Pack]:
        """Write what a call gave; what goes on of the pack."""
        try:
            tests, tested_at, rows, seconds = future.result()
        except Stopped:
            return (pack,)
        except jax.errors.JaxRuntimeError as error:
            return self._halves(pack, error)
        twice = self.programs.seconds_an_iteration.get(2 * len(pack.lanes), math.inf)
        self.programs.seconds_an_iteration[len(pack.lanes)] = seconds
        tested = (
            {"lane": lane.name, "iteration": tested_at, **found}
            for lane, found in zip(pack.lanes, tests, strict=False)
            if not pack.written[lane.name]
        )
        timed = self.course.timed
        found = (row | ({"seconds": pack.seconds(row["lane"])} if timed else {}) for row in pack.rows(rows))
        self.cell.append(itertools.chain(tested, found))
        reached, stopped, diverged = pack.flags("iteration"), pack.flags("stopped"), pack.flags("diverged")
        names = [lane.name for lane in pack.lanes]
        failed = list(itertools.compress(names, diverged))
        self.session.progress.advance(self.spec, dict(zip(names, reached, strict=True)), self.total, failed)
        last = math.inf if self.on_events else self.total
        over = [i for i, n in enumerate(reached) if diverged[i] or stopped[i] or n >= last]
        new = [i for i in over if not pack.written[pack.lanes[i].name]]
        if new:
            judged = pack.evaluate(self.dataset.test) if self.course.tested else [None] * len(reached)
            for i in new:
                self._finish(pack, i, judged[i])
                pack.written[pack.lanes[i].name] = True
        if len(over) == len(pack.lanes):
            return ()
        if time.monotonic() - pack.saved_at > max(self.session.execution.checkpoint_s, 20 * pack.seconds_to_save):
            pack.save(self.cell)
        left = (self.total - max(reached)) * seconds
        minutes = self.session.execution.max_minutes
        # What was not finished in the budget does not travel. Halves help where lanes share the device's time.
        if minutes is not None and left > 30 * minutes and len(pack.lanes) > 1 and seconds < 0.75 * twice:
            self.session.progress.say(
                f"{len(pack.lanes)} lanes would take {duration(left)} of {minutes:g} min: in halves"
            )
            return pack.halves()
        if 2 * len(over) >= len(pack.lanes) and left / 2 > self.programs.seconds_compile:
            return (pack.part([i for i in range(len(pack.lanes)) if i not in over]),)
        return (pack,)

    def _finish(self, pack: Pack, i: int, found: Mapping[str, float] | None) -> None:
        """Record a lane that has ended, with what the test split says of it where that is asked."""
        lane, state = pack.lanes[i], pack.lane_state(i)
        iteration = int(state.iteration)
        self.cell.check()
        if self.test_every is not None:
            self.cell.append([{"lane": lane.name, "iteration": iteration, **(found or {})}])
        rows = self.cell.rows(lane.name, measured=True)
        summary: dict[str, Any] = {}
        if found is not None:
            summary |= {"iterations": iteration, "iterations_allowed": self.total, **found}
        if self.course.at_end is not None:
            columns = self.course.at_end(self.course.at(lane).model, state.network)
            summary |= {name: np.asarray(value).tolist() for name, value in columns.items()}
        summary |= self.spec.study.summary(rows)
        if self.session.execution.save_networks:
            folder = self.cell.folder / "networks"
            folder.mkdir(exist_ok=True)
            sizes = {"input_shape": self.dataset.input_shape, "d_out": self.dataset.d_out}
            checkpoint.save(folder / f"{lane.name}.npz", state.network, iteration=iteration, **sizes)
        # The last update has no iteration after it that would notice.
        # A regime without a value says nothing of the run.
        kept = [values for name, values in rows.items() if not name.startswith("regime_")]
        seen = kept if found is None else [np.asarray(found["test_loss"])]
        finite = not bool(state.diverged) and all(np.isfinite(values).all() for values in seen)
        seconds = {"seconds_compile": self.programs.seconds_compile, "seconds_run": pack.seconds(lane.name)}
        self.finish(lane, "done" if finite else "diverged", summary, **seconds)


def trained_network(folder: Path, lane: str) -> Any:
    """The network that a lane of the cell in `folder` ended with (kept with execution.save_networks=true).

    Raises CheckpointError where it is missing, damaged, or of another shape than the cell's configuration says.
    """
    path = folder / "networks" / f"{lane}.npz"
    about = checkpoint.about(path)
    ended = Cell(folder, ()).finished.get(lane)
    if ended is None:
        raise checkpoint.CheckpointError(f"{folder}: no lane {lane} has ended there")
    science = with_values(json.loads((folder / "config.json").read_text())["science"], ended["values"])
    architecture, parameterisation = (build(science[k], k, ALLOWED_TARGETS) for k in ("network", "parameterisation"))
    network = architecture.build(parameterisation, tuple(about["input_shape"]), about["d_out"], key=jr.key(0))
    with arithmetic(science["precision"]):
        return checkpoint.load(path, in_floats(network))[0]
