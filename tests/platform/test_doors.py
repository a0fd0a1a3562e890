"""Doors of `Job.train`: other starts, seconds, a run that lanes start from, each as a loop or a clock of our own says."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick

from pcexp.learning import BP
from pcexp.records.cell import read_lines
from pcexp.run import pack as pack_module
from pcexp.run.draw import Start, initial_network, lane_key
from pcexp.run.job import Job
from pcexp.run.pack import Pack, Programs
from pcexp.run.session import Datasets, Session
from pcexp.train import epoch_permutation

Run = Callable[..., int]


def losses_by_hand(rate: float) -> list[float]:
    """Losses before each of 40 updates by BP of W3 W2 W1 x from half the initial weights, in numpy."""
    spec = quick.cell("precision=float64")
    (lane,) = spec.lanes
    data = Datasets()(spec)
    x, y = np.asarray(data.train.x, float), np.asarray(data.train.y, float)
    weights = [0.5 * np.asarray(w, float) for s in initial_network(spec, lane, data).segments for w in s.weight]
    with jax.enable_x64(True):
        key, per_epoch, found = lane_key(spec, lane, 1), len(x) // 64, []
        for t in range(40):
            epoch, place = divmod(t, per_epoch)
            chosen = np.asarray(epoch_permutation(key, epoch, len(x)))[64 * place : 64 * (place + 1)]
            z = [x[chosen].T]
            for w in weights:
                z.append(w @ z[-1])
            e = y[chosen].T - z[-1]
            found.append(float(np.sum(e**2)) / (2 * 64))
            new = []
            for w, below in zip(reversed(weights), reversed(z[:-1]), strict=True):
                new.append(w + rate * e @ below.T)  # the gradient is summed over the batch
                e = w.T @ e
            weights = new[::-1]
    return found


def test_lanes_start_at_what_a_study_says_with_its_rule_its_optimiser_and_its_constants(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Job.train

    def from_half(job: Job, measure: Any, probe_size: int) -> None:
        def at(lane: Any, dataset: Any) -> Start:
            half = jax.tree.map(lambda w: 0.5 * w, initial_network(job.spec, lane, dataset))
            sgd = eqx.Partial(optax.sgd, learning_rate=jnp.asarray(0.002))
            return Start(half, BP("batch_sum"), sgd, given=jnp.asarray(7.0))

        train(job, lambda seen: measure(seen) | {"given": seen.given}, probe_size, at=at)

    monkeypatch.setattr(Job, "train", from_half)
    assert run("precision=float64") == 0
    expected, errors = losses_by_hand(0.002), quick.column(outputs, "train_error")
    assert [t for _, t in errors] == list(range(0, 40, 2))
    np.testing.assert_allclose(list(errors.values()), [expected[t] / 5 for _, t in errors], rtol=1e-6)
    assert set(quick.column(outputs, "given").values()) == {7.0}
    assert expected[-1] < 0.999 * expected[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for packs on which an iteration takes a second, and compiling (no iteration) a thousand."""
    now, advance = [0.0], pack_module.advance

    def timed(state: Any, *arguments: Any, **more: Any) -> Any:
        new, rows = advance(state, *arguments, **more)
        now[0] += int(new.iteration) - int(state.iteration) or 1000.0
        return new, rows

    monkeypatch.setattr(pack_module, "advance", timed)
    time = SimpleNamespace(perf_counter=lambda: now[0], monotonic=pack_module.time.monotonic)
    monkeypatch.setattr(pack_module, "time", time)


def test_seconds_of_a_row_are_those_that_its_lane_has_run_by_then_less_compilation_whatever_stops_it(
    outputs: Path, there: Path, run: Run, clock: None, stopping_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Job.train
    one_worker = ("execution.workers=1", "lanes.seed=[0,1]", quick.OFTEN)
    assert run(*one_worker, f"execution.outputs={there}") == 0
    monkeypatch.setattr(Job, "train", lambda job, measure, size: train(job, measure, size, timed=True))
    with stopping_after(7):
        assert run(*one_worker) == 130
    assert list(quick.cell_folder(outputs).glob("checkpoints/*.npz"))
    assert run(*one_worker) == 0
    seconds = quick.column(outputs, "seconds")
    assert len(seconds) == 2 * 20
    # A call ends where a row is due, after the update of its iteration: in that of row t, t + 1 have been made.
    assert seconds == {(lane, t): t + 1 for lane, t in seconds}
    assert {entry["provenance"]["seconds_run"] for entry in quick.entries(outputs).values()} == {40.0}
    # The rows are those of lanes that nobody timed or stopped.
    errors = quick.column(outputs, "train_error")
    assert errors == quick.column(there, "train_error") and not quick.column(there, "seconds")


FROM_A_SADDLE = (
    "+experiment=matrix_completion",
    "scale=smoke",
    "network.activation=linear",
    "learning=pc",
    "protocol=corrected",
    "optimiser.learning_rate=0.01",
    "study.start=1",
    "study.bp_learning_rate=0.0002",
)


def test_a_run_that_lanes_start_from_goes_on_where_a_stop_left_it_and_is_no_more_once_they_have_ended(
    outputs: Path, there: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Programs, "call_size", lambda *_: 10)
    assert run(f"execution.outputs={there}", base=FROM_A_SADDLE) == 0
    (first, *_) = read_lines(next(there.glob("*/*/rows.jsonl")))
    assert first["visited_at"] > 30, "the run ends before it can be stopped"

    call, calls = Pack.call, list[tuple[str, int, int]]()

    def seen(pack: Pack, *arguments: Any) -> Any:
        before, found = pack.iteration, call(pack, *arguments)
        calls.append((pack.lanes[0].name, before, pack.iteration))
        return found

    monkeypatch.setattr(Pack, "call", seen)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "stopping", property(lambda _: any(last >= 20 for *_, last in calls)))
        assert run(base=FROM_A_SADDLE) == 130
    (saved,) = quick.cell_folder(outputs).glob("checkpoints/*.npz")
    assert saved.stem == "saddle-1-0" and {name for name, *_ in calls} == {"saddle-1-0"}
    with np.load(saved) as archive:
        assert int(archive[".iteration"]) == 20
    calls.clear()
    assert run(base=FROM_A_SADDLE) == 0
    advanced = [one for one in calls if one[2] > one[1]]
    assert advanced[0][:2] == ("saddle-1-0", 20)
    assert max(last for name, _, last in advanced if name == "saddle-1-0") == first["visited_at"]
    assert quick.differences(quick.numbers(outputs), quick.numbers(there)) == []
    assert not saved.exists()
