"""Training lanes: packs of lanes on worker threads, rows and checkpoints between compiled calls.

On a CPU each worker thread advances one lane at a time inside a synchronous XLA call: products of this size use one core, so
threads over lanes use all cores, share one compilation, and an uneven number of lanes still fills them. On a GPU the lanes of
a cell are vmapped in packs.
"""

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from pcexp import checkpoint
from pcexp.architecture import AbstractArchitecture
from pcexp.cell import read_lines
from pcexp.data import Dataset
from pcexp.energy import outputs
from pcexp.network import Network
from pcexp.pack import ROWS_A_CALL, Pack, components, initial_network, lane_key
from pcexp.runner import Job, Stopped
from pcexp.spec import Lane, insert
from pcexp.targets import ALLOWED_TARGETS, build
from pcexp.train import (
    Measure,
    Rows,
    TrainingSet,
    TrainState,
    batch_layout,
    initial_state,
    iterations,
)

FIRST_CALL_ITERATIONS = 8


def trained_network(folder: Path, lane: str) -> Network:
    """The network that a lane of the cell in `folder` ended with (kept with execution.save_networks=true).

    Raises CheckpointError where it is missing, damaged, or of another shape than the cell's configuration says.
    """
    path = folder / "networks" / f"{lane}.npz"
    about = checkpoint.about(path)
    science = json.loads((folder / "config.json").read_text())["science"]
    for entry in read_lines(folder / "lanes.jsonl"):
        if entry["lane"] == lane:
            for key, value in entry["values"].items():
                if key != "seed":
                    insert(science, key, value)
    architecture: AbstractArchitecture = build(science["network"], "network", ALLOWED_TARGETS)
    parameterisation = build(science["parameterisation"], "parameterisation", ALLOWED_TARGETS)
    shape = tuple(about["input_shape"])
    network, _ = checkpoint.load(path, architecture.build(parameterisation, shape, about["d_out"], key=jr.key(0)))
    return network


class LaneTraining:
    """Trains the lanes of one cell on worker threads; only this object's thread writes."""

    def __init__(self, job: Job, lanes: Sequence[Lane], measure: Measure, probe_size: int) -> None:
        self.job, self.spec, self.cell, self.session = job, job.spec, job.cell, job.session
        self.measure = measure
        self.dataset = self.session.datasets(self.spec)
        train = self.dataset.train
        n = len(train.x)
        if self.spec.training.batch_size > n:
            raise ValueError(f"training.batch_size={self.spec.training.batch_size}: the training set has {n} examples")
        self.total = iterations(self.spec.training, n)
        networks = [initial_network(self.spec, lane, self.dataset) for lane in lanes]
        self.spec.learning.check(networks[0])
        probe = np.asarray(train.x[:probe_size])
        self.data = TrainingSet(
            x=jnp.asarray(train.x),
            y=jnp.asarray(train.y),
            probe_x=batch_layout(networks[0], jnp.asarray(probe)),
            probe_y=jnp.asarray(train.y[:probe_size]).T,
        )
        states, parts, self.seconds_before = [], [], {}
        for lane, network in zip(lanes, networks, strict=True):
            _, learning, optimiser = components(self.spec, lane)
            fresh = initial_state(network, optimiser, key=lane_key(self.spec, lane, 1))
            state, self.seconds_before[lane.name] = self._resume(lane, fresh)
            states.append(state)
            parts.append((learning, optimiser))
        self.cell.rewind({lane.name: int(s.iteration) for lane, s in zip(lanes, states, strict=True)})
        cpu = jax.default_backend() == "cpu"
        size = self.session.execution.pack_size or (1 if cpu else len(lanes))
        self.workers = self.session.execution.workers or (len(os.sched_getaffinity(0)) if cpu else 1)
        self.packs = [
            Pack(lanes[i : i + size], states[i : i + size], parts[i : i + size]) for i in range(0, len(lanes), size)
        ]
        self.seconds_an_iteration: float | None = None
        self.seconds_compile = 0.0

    def _resume(self, lane: Lane, fresh: TrainState) -> tuple[TrainState, float]:
        """Where a lane goes on, and the seconds that it has run."""
        path = self.cell.checkpoint(lane.name)
        if not path.exists():
            return fresh, 0.0
        try:
            state, about = checkpoint.load(path, fresh)
        except checkpoint.CheckpointError as error:
            aside = path.with_suffix(".set-aside")
            os.replace(path, aside)
            self.session.progress.say(f"{error}; set aside as {aside}, the lane starts again")
            return fresh, 0.0
        return state, float(about["seconds_run"])

    def run(self) -> None:
        """Advance packs, the least advanced first, until all lanes are finished or the session stops."""
        start = time.perf_counter()
        try:
            self.packs[0].call(self.data, self.spec, self.measure, 0)  # no iteration: this compiles, for all packs
        except jax.errors.JaxRuntimeError as error:
            for pack in self.packs:
                self._fail(pack, error)
            return
        self.seconds_compile = time.perf_counter() - start
        self.packs[0].seconds_run = 0.0
        waiting = deque(self.packs)
        flying: dict[Future[tuple[Rows, float]], Pack] = {}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="lane") as pool:
            while waiting or flying:
                while waiting and len(flying) < self.workers and not self.session.stopping:
                    pack = waiting.popleft()
                    n = self._call_size()
                    flying[pool.submit(pack.call, self.data, self.spec, self.measure, n)] = pack
                if not flying:
                    break
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    pack = flying.pop(future)
                    if self._absorb(pack, future):
                        waiting.append(pack)
        if waiting:
            for pack in waiting:
                self._save(pack)
            raise Stopped

    def _call_size(self) -> int:
        if self.seconds_an_iteration is None:
            return FIRST_CALL_ITERATIONS
        wanted = int(self.session.execution.call_s / self.seconds_an_iteration)
        return max(1, min(wanted, ROWS_A_CALL * self.spec.training.record_every))

    def _absorb(self, pack: Pack, future: Future[tuple[Rows, float]]) -> bool:
        """Write what a call gave; whether the pack goes on."""
        try:
            rows, self.seconds_an_iteration = future.result()
        except jax.errors.JaxRuntimeError as error:
            self._fail(pack, error)
            return False
        self._write(pack, rows)
        states = pack.states()
        self.session.progress.advance(
            self.spec,
            {lane.name: int(state.iteration) for lane, state in zip(pack.lanes, states, strict=True)},
            self.total,
        )
        unfinished = False
        for lane, state in zip(pack.lanes, states, strict=True):
            over = bool(state.diverged) or bool(state.stopped) or int(state.iteration) >= self.total
            if over and not pack.written[lane.name]:
                self._finish(pack, lane, state)
                pack.written[lane.name] = True
            unfinished = unfinished or not over
        if unfinished and time.monotonic() - pack.saved_at > self.session.execution.checkpoint_s:
            self._save(pack)
        return unfinished

    def _fail(self, pack: Pack, error: Exception) -> None:
        reason = str(error).splitlines()[0][:300]
        for lane in pack.lanes:
            if not pack.written[lane.name]:
                self.job.finish(lane, f"failed: {reason}", {})
                self.session.progress.say(f"lane {lane.name} of {self.spec.cell} failed: {reason}")

    def _write(self, pack: Pack, rows: Rows) -> None:
        counts = np.atleast_1d(np.asarray(rows.n_rows))
        for i, lane in enumerate(pack.lanes):
            columns = {k: np.asarray(v) if pack.single else np.asarray(v)[i] for k, v in rows.values.items()}
            self.cell.append(
                {"lane": lane.name} | {k: v[row].tolist() for k, v in columns.items()} for row in range(counts[i])
            )

    def _save(self, pack: Pack) -> None:
        for lane, state in zip(pack.lanes, pack.states(), strict=True):
            if not pack.written[lane.name]:
                seconds = self.seconds_before[lane.name] + pack.seconds_run
                checkpoint.save(self.cell.checkpoint(lane.name), state, seconds_run=seconds)
        pack.saved_at = time.monotonic()

    def _finish(self, pack: Pack, lane: Lane, state: TrainState) -> None:
        summary: dict[str, Any] = {"iterations": int(state.iteration), "iterations_allowed": self.total}
        summary |= evaluate(state.network, self.dataset)
        summary |= self.spec.study.summary(self.cell.rows(lane.name))
        if self.session.execution.save_networks:
            folder = self.cell.folder / "networks"
            folder.mkdir(exist_ok=True)
            sizes = {"input_shape": self.dataset.input_shape, "d_out": self.dataset.d_out}
            checkpoint.save(folder / f"{lane.name}.npz", state.network, iteration=int(state.iteration), **sizes)
        # The last update has no iteration after it that would notice.
        outcome = "diverged" if bool(state.diverged) or not np.isfinite(summary["test_loss"]) else "done"
        seconds_run = self.seconds_before[lane.name] + pack.seconds_run
        self.job.finish(
            lane,
            outcome,
            summary,
            seconds_compile=self.seconds_compile,
            seconds_run=seconds_run,
            data_checksum=self.dataset.checksum,
            data_caveat=self.dataset.caveat,
        )


_outputs = eqx.filter_jit(outputs)


def evaluate(network: Network, dataset: Dataset, batch: int = 1000) -> dict[str, float]:
    """Test loss 1/(2n) sum ||y - f(x)||^2 and test accuracy over all test examples."""
    x, y = dataset.test.x, dataset.test.y
    columns = [
        np.asarray(_outputs(network, batch_layout(network, jnp.asarray(x[i : i + batch]))))
        for i in range(0, len(x), batch)
    ]
    f = np.concatenate(columns, axis=1).T
    with np.errstate(over="ignore", invalid="ignore"):  # of a lane that diverged
        loss = float(np.sum((y - f) ** 2) / (2 * len(x)))
    return {
        "test_loss": loss,
        "test_accuracy": float(np.mean(np.argmax(f, axis=1) == np.argmax(y, axis=1))),
    }
