"""Lanes: what is computed, what is recorded of one that fails, and what is kept."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import quick

from pcexp.evaluation import evaluate
from pcexp.records import checkpoint
from pcexp.records.cell import read_lines
from pcexp.run import draw as draw_module
from pcexp.run import lanes
from pcexp.run.draw import initial_network
from pcexp.run.lanes import trained_network
from pcexp.run.session import Datasets

Run = Callable[..., int]


def judged(network: Any, dataset: Any) -> dict[str, float]:
    return {f"test_{name}": value for name, value in evaluate(network, dataset.test).items()}


def test_more_seeds_asked_for_later_are_the_only_ones_that_are_computed(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def draw(spec: Any, lane: Any, dataset: Any) -> Any:
        drawn.append(lane.values["seed"])
        return initial_network(spec, lane, dataset)

    monkeypatch.setattr(draw_module, "initial_network", draw)
    assert run("lanes.seed=[0,1]") == 0
    folder = quick.cell_folder(outputs)
    finished, rows = ((folder / name).read_bytes() for name in ("lanes.jsonl", "rows.jsonl"))
    assert run("lanes.seed=[3]") == 0  # not a longer list: another one
    assert run("lanes.seed=[0,1,2]") == 0
    assert drawn == [0, 1, 3, 2]
    assert (folder / "lanes.jsonl").read_bytes().startswith(finished)
    assert (folder / "rows.jsonl").read_bytes().startswith(rows)
    asked = quick.manifest(outputs)[folder.name]["lanes"]
    assert sorted(lane["values"]["seed"] for lane in asked.values()) == [0, 1, 2, 3]
    assert asked.keys() == quick.entries(outputs).keys()


def test_a_command_with_nothing_left_to_do_says_so_and_computes_nothing(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = {path: path.read_bytes() for path in quick.cell_folder(outputs).rglob("*") if path.is_file()}
    monkeypatch.setattr(draw_module, "initial_network", lambda *_: pytest.fail("a finished lane was begun"))
    assert run() == 0
    assert "nothing left to run" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in quick.cell_folder(outputs).rglob("*") if path.is_file()}


@pytest.mark.parametrize("extra", [[], ["execution.pack_size=3"]], ids=["single lanes", "one pack"])
def test_a_lane_that_diverges_is_recorded_and_the_others_go_on(outputs: Path, run: Run, extra: list[str]) -> None:
    rates = "+lanes.optimiser.learning_rate=[0.008,1000000.0,0.004]"
    assert run("training.epochs=15", "training.record_every=5", rates, *extra) == 0
    by_rate = {entry["values"]["optimiser.learning_rate"]: entry for entry in quick.entries(outputs).values()}
    assert {rate: entry["outcome"] for rate, entry in by_rate.items()} == {
        0.008: "done", 0.004: "done", 1e6: "diverged",
    }  # fmt: skip
    assert by_rate[1e6]["summary"]["iterations"] < 300 == by_rate[0.008]["summary"]["iterations"]
    rows = [r for r in read_lines(quick.cell_folder(outputs) / "rows.jsonl") if r["lane"] == by_rate[1e6]["lane"]]
    last = [rows[-1]["train_error"], *rows[-1]["gradient_norm"]]
    assert not np.isfinite(last).all()  # the iteration that diverged is recorded
    assert (quick.cell_folder(outputs) / "DONE").exists()
    # A diverged lane is finished: it is not tried again.
    before = (quick.cell_folder(outputs) / "lanes.jsonl").read_bytes()
    assert run("training.epochs=15", "training.record_every=5", rates, *extra) == 0
    assert (quick.cell_folder(outputs) / "lanes.jsonl").read_bytes() == before


def test_a_lane_whose_last_update_destroys_the_network_has_diverged(outputs: Path, run: Run) -> None:
    assert run("training.max_iterations=1", "optimiser.learning_rate=1e30") == 0
    (entry,) = quick.entries(outputs).values()
    assert not np.isfinite(entry["summary"]["test_loss"])
    assert entry["outcome"] == "diverged"


def test_a_lane_that_runs_out_of_memory_is_recorded_as_failed_and_tried_again_by_the_next_command(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = lanes.Pack.call

    def failing(pack: Any, data: Any, course: Any, n: int) -> Any:
        if n and pack.lanes[0].values["seed"] == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nat address 0")
        return call(pack, data, course, n)

    with monkeypatch.context() as patch:
        patch.setattr(lanes.Pack, "call", failing)
        assert run("lanes.seed=[0,1,2]") == 1
    outcomes = {entry["values"]["seed"]: entry["outcome"] for entry in quick.entries(outputs).values()}
    assert outcomes == {0: "done", 1: "failed: RESOURCE_EXHAUSTED: out of memory", 2: "done"}
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().out
    assert not (quick.cell_folder(outputs) / "DONE").exists()
    assert run("lanes.seed=[0,1,2]") == 0
    assert {entry["outcome"] for entry in quick.entries(outputs).values()} == {"done"}


@pytest.mark.parametrize(
    "varied", [(), ("+lanes.parameterisation.sigma=[0.05,0.02]",)], ids=["seeds", "initial scales"]
)
def test_a_trained_network_that_was_kept_loads_again_with_the_same_outputs(
    outputs: Path, run: Run, varied: tuple[str, ...]
) -> None:
    asked = ("lanes.seed=[0,1]", *varied)
    assert run(*asked, "execution.save_networks=true") == 0
    spec, folder = quick.cell(*asked), quick.cell_folder(outputs)
    dataset = Datasets()(spec)
    for lane in spec.lanes:
        summary = quick.entries(outputs)[lane.name]["summary"]
        fresh = initial_network(spec, lane, dataset)
        trained, said = checkpoint.load(folder / "networks" / f"{lane.name}.npz", fresh)
        assert said["iteration"] == 40
        again = judged(trained, dataset)
        assert again == {name: summary[name] for name in again}
        assert judged(fresh, dataset) != again
        assert judged(trained_network(folder, lane.name), dataset) == again
    (folder / "lanes.jsonl").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=f"no lane {lane.name} has ended there"):
        trained_network(folder, lane.name)


def test_a_pack_that_fails_leaves_the_lanes_alone_that_had_ended(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = lanes.Pack.call

    def failing(pack: Any, data: Any, course: Any, n: int) -> Any:
        if pack.iteration >= 100:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return call(pack, data, course, n)

    asked = (*quick.LONG[:2], "execution.pack_size=2", "+lanes.optimiser.learning_rate=[0.008,1000000.0]")
    with monkeypatch.context() as patch:
        patch.setattr(lanes.Pack, "call", failing)
        assert run(*asked) == 1
    outcomes = {
        entry["values"]["optimiser.learning_rate"]: entry["outcome"] for entry in quick.entries(outputs).values()
    }
    assert outcomes == {1e6: "diverged", 0.008: "failed: RESOURCE_EXHAUSTED: out of memory"}


def test_a_cell_that_cannot_even_start_is_recorded_as_failed_and_the_next_one_runs(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = lanes.Pack.call

    def failing(pack: Any, data: Any, course: Any, n: int) -> Any:
        if pack.state.network.segments[0].weight.shape[1] == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return call(pack, data, course, n)

    monkeypatch.setattr(lanes.Pack, "call", failing)
    wide, narrow = (quick.composed(f"network.width={n}", f"execution.outputs={outputs}") for n in (16, 8))
    assert quick.run_all([wide, narrow]) == 1
    found = [entry["outcome"] for path in outputs.glob("*/*/lanes.jsonl") for entry in read_lines(path)]
    assert sorted(found) == ["done", "failed: RESOURCE_EXHAUSTED: out of memory"]


def test_networks_are_not_kept_unless_asked_for(outputs: Path, run: Run) -> None:
    assert run() == 0
    assert not (quick.cell_folder(outputs) / "networks").exists()


def test_signals_are_those_of_the_caller_again_after_a_run(run: Run) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = list(map(signal.getsignal, numbers))
    assert run() == 0
    assert list(map(signal.getsignal, numbers)) == before
