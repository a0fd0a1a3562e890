"""Cut off at any moment, the same command continues, and its numbers are those of a run that nobody stopped, to the bit."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import quick

from pcexp import checkpoint, lanes, sweep
from pcexp.cell import Cell, read_lines
from pcexp.configuration import Refused
from pcexp.lanes import evaluate, initial_network, trained_network
from pcexp.runner import Datasets, Session

Run = Callable[..., int]


@pytest.fixture
def stopping_after(
    short_calls: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Inside the block, a run is asked to stop once so many calls have been written, as a signal between calls does."""

    @contextlib.contextmanager
    def stopping_after(calls: int) -> Iterator[None]:
        written, append = [0], Cell.append

        def counted(cell: Cell, rows: Any) -> None:
            append(cell, rows)
            written[0] += 1

        with monkeypatch.context() as patch:
            patch.setattr(Cell, "append", counted)
            patch.setattr(Session, "stopping", property(lambda _: written[0] >= calls))
            yield

    return stopping_after


def recorded(outputs: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in outputs.glob("*/*/rows.jsonl"))


def array(path: Path, name: str) -> np.ndarray:
    with np.load(path) as archive:
        return archive[name]


def half_way(outputs: Path, process: Any) -> None:
    """Wait until a lane has rows beyond its first calls and a checkpoint to continue from."""
    for _ in range(1200):
        if recorded(outputs) > 30 and list(outputs.glob("*/*/checkpoints/*.npz")):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("no row in a minute")


def test_it_takes_rows_to_compare_them(undisturbed: Path) -> None:
    lanes = quick.numbers(undisturbed)
    assert len(lanes) == 3
    assert all(len(rows) == 60 for _, rows in lanes.values())
    assert len({str(rows) for _, rows in lanes.values()}) == 3  # seeds differ


def test_ctrl_c_stops_between_calls_and_the_same_command_continues_to_the_same_bits(
    undisturbed: Path, outputs: Path, run: Run, tmp_path: Path
) -> None:
    arguments = (*quick.QUICK, *quick.LONG, quick.OFTEN, f"execution.outputs={outputs}")
    process = quick.started(*arguments, cwd=tmp_path, pause=0.15)
    half_way(outputs, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after the calls in flight" in said and "lanes are not finished. The same command continues" in said
    assert "Traceback" not in said
    folder = quick.cell_folder(outputs)
    assert not (folder / "lock").exists() and not (folder / "DONE").exists()
    assert len(list(folder.glob("checkpoints/*.npz"))) == 3 - len(entries(outputs)) > 0
    before = recorded(outputs)
    assert 30 < before < 180

    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


def test_kill_9_leaves_what_the_same_command_continues_to_the_same_bits_and_another_process_stays_out(
    undisturbed: Path, outputs: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*quick.QUICK, *quick.LONG, quick.OFTEN, f"execution.outputs={outputs}")
    process = quick.started(*arguments, cwd=tmp_path, pause=0.15)
    half_way(outputs, process)
    # A second process, while the first one works.
    assert run(*quick.LONG) == 1
    said = capsys.readouterr().out
    assert "left out" in said and f"process {process.pid} on" in said and str(quick.cell_folder(outputs)) in said
    assert process.poll() is None
    process.kill()
    process.communicate()
    folder = quick.cell_folder(outputs)
    assert (folder / "lock").exists() and not (folder / "DONE").exists()

    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)
    assert not (folder / "lock").exists() and not list(folder.glob("checkpoints/*.npz"))


@pytest.mark.parametrize("calls", [1, 4, 25])
def test_a_stop_after_any_call_changes_no_number(
    undisturbed: Path, outputs: Path, run: Run, stopping_after: Any, calls: int
) -> None:
    with stopping_after(calls):
        assert run(*quick.LONG, quick.OFTEN) == 130
    before = recorded(outputs)
    assert 0 < before < recorded(undisturbed)
    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)
    assert (quick.cell_folder(outputs) / "DONE").exists()


def test_a_run_goes_on_where_it_stood(
    outputs: Path, run: Run, stopping_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopping_after(25):
        assert run(*quick.LONG, "execution.checkpoint_s=1000.0") == 130  # a stop saves, whatever the interval
    folder = quick.cell_folder(outputs)
    stood = {path.stem: int(array(path, ".iteration")) for path in folder.glob("checkpoints/*.npz")}
    assert stood and all(iteration % 20 == 0 and 0 < iteration < 300 for iteration in stood.values())
    append, resumed = Cell.append, {}

    def first(cell: Cell, rows: Any) -> None:
        rows = list(rows)
        for row in rows:
            resumed.setdefault(row["lane"], row["iteration"])
        append(cell, rows)

    monkeypatch.setattr(Cell, "append", first)
    assert run(*quick.LONG) == 0
    assert resumed == stood


def test_lanes_in_one_pack_give_the_rows_that_single_lanes_give(outputs: Path, run: Run, undisturbed: Path) -> None:
    """Vmapped lanes are another program: equal to rounding, and cut off and continued they are equal to the bit."""
    assert run(*quick.LONG, "execution.pack_size=3") == 0
    for lane, (_, rows) in quick.numbers(undisturbed).items():
        _, packed = quick.numbers(outputs)[lane]
        assert len(packed) == len(rows)
        ours, theirs = json.loads(packed[-1].replace("'", '"')), json.loads(rows[-1].replace("'", '"'))
        assert ours["iteration"] == theirs["iteration"]
        assert ours["probe_loss"] == pytest.approx(theirs["probe_loss"], rel=1e-4)


def test_the_budget_of_minutes_stops_cleanly(outputs: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("execution.max_minutes=0.0") == 130
    assert "1 lanes are not finished. The same command continues" in capsys.readouterr().out
    assert run() == 0


def test_how_a_run_is_cut_into_calls_changes_no_number(outputs: Path, run: Run, undisturbed: Path) -> None:
    assert run(*quick.LONG, "execution.call_s=0.01", "execution.workers=1") == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


# Files that were being written


def interrupted(run: Run, stopping_after: Any, outputs: Path) -> Path:
    with stopping_after(5):
        assert run(*quick.LONG, quick.OFTEN) == 130
    return quick.cell_folder(outputs)


@pytest.mark.parametrize("checkpoints", [True, False], ids=["with checkpoints", "without"])
def test_rows_that_were_written_after_the_last_checkpoint_are_not_there_twice(
    undisturbed: Path, outputs: Path, run: Run, stopping_after: Any, checkpoints: bool
) -> None:
    folder = interrupted(run, stopping_after, outputs)
    (folder / "rows.jsonl").write_bytes((quick.cell_folder(undisturbed) / "rows.jsonl").read_bytes())
    for path in [] if checkpoints else folder.glob("checkpoints/*.npz"):
        path.unlink()
    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


@pytest.mark.parametrize("tail", [b'{"lane": "', b'{"lane": "x", "iteration": 5, "probe_loss": 0.1}', b"\0\0\0"])
@pytest.mark.parametrize("name", ["rows.jsonl", "lanes.jsonl"])
def test_a_line_that_was_cut_off_is_written_again(
    undisturbed: Path, outputs: Path, run: Run, stopping_after: Any, name: str, tail: bytes
) -> None:
    folder = interrupted(run, stopping_after, outputs)
    with open(folder / name, "ab") as file:
        file.write(tail)
    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


def test_a_finished_lane_whose_record_was_cut_off_is_run_again(undisturbed: Path, outputs: Path, run: Run) -> None:
    assert run(*quick.LONG) == 0
    folder = quick.cell_folder(outputs)
    content = (folder / "lanes.jsonl").read_bytes()
    (folder / "lanes.jsonl").write_bytes(content[:-20])
    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)
    assert (folder / "lanes.jsonl").read_bytes().startswith(content[: content.rstrip().rfind(b"\n") + 1])


@pytest.mark.parametrize("spoil", ["truncated", "empty", "foreign", "another network"])
def test_a_spoilt_checkpoint_is_named_and_set_aside_and_its_lane_starts_again(
    undisturbed: Path, outputs: Path, run: Run, stopping_after: Any, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    folder = interrupted(run, stopping_after, outputs)
    path = sorted(folder.glob("checkpoints/*.npz"))[0]
    content = path.read_bytes()
    if spoil == "another network":
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        np.savez(path, **{name: array[..., :1] if array.ndim > 1 else array for name, array in arrays.items()})
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "foreign": b"hello"}[spoil])
    assert run(*quick.LONG) == 0
    said = capsys.readouterr().out
    assert str(path) in said and "set aside" in said
    assert len(list(folder.glob("checkpoints/*.set-aside"))) == 1
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


@pytest.mark.parametrize("name", ["rows.jsonl", "lanes.jsonl"])
def test_a_line_that_is_broken_in_the_middle_is_named_and_nothing_is_overwritten(
    outputs: Path, run: Run, stopping_after: Any, name: str
) -> None:
    assert run("lanes.seed=[0]", *quick.LONG[:2]) == 0
    path = quick.cell_folder(outputs) / name
    path.write_bytes(b"{broken\n" + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(Refused, match=rf"{name}, line 1"):
        run(*quick.LONG)
    assert path.read_bytes() == before


def test_leftovers_of_a_killed_process_are_no_data(
    outputs: Path, run: Run, stopping_after: Any, undisturbed: Path
) -> None:
    folder = interrupted(run, stopping_after, outputs)
    for name in ("rows.jsonl.99.tmp", "config.json.99.tmp", "DONE.99.tmp", "checkpoints/aaaa.npz.99.tmp"):
        (folder / name).write_text("half")
    assert run(*quick.LONG) == 0
    assert quick.numbers(outputs) == quick.numbers(undisturbed)


# Lanes


def entries(outputs: Path) -> dict[str, dict[str, Any]]:
    return {entry["lane"]: entry for entry in read_lines(quick.cell_folder(outputs) / "lanes.jsonl")}


def test_more_seeds_asked_for_later_are_the_only_ones_that_are_computed(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def draw(spec: Any, lane: Any, dataset: Any) -> Any:
        drawn.append(lane.values["seed"])
        return initial_network(spec, lane, dataset)

    monkeypatch.setattr(lanes, "initial_network", draw)
    assert run("lanes.seed=[0,1]") == 0
    folder = quick.cell_folder(outputs)
    finished, rows = ((folder / name).read_bytes() for name in ("lanes.jsonl", "rows.jsonl"))
    assert run("lanes.seed=[3]") == 0  # not a longer list: another one
    assert run("lanes.seed=[0,1,2]") == 0
    assert drawn == [0, 1, 3, 2]
    assert (folder / "lanes.jsonl").read_bytes().startswith(finished)
    assert (folder / "rows.jsonl").read_bytes().startswith(rows)
    asked = quick.manifest(outputs)[folder.name]["lanes"]
    assert sorted(values["seed"] for values in asked.values()) == [0, 1, 2, 3]
    assert asked.keys() == entries(outputs).keys()


def test_a_command_with_nothing_left_to_do_says_so_and_computes_nothing(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = {path: path.read_bytes() for path in quick.cell_folder(outputs).rglob("*") if path.is_file()}
    monkeypatch.setattr(lanes, "initial_network", lambda *_: pytest.fail("a finished lane was begun"))
    assert run() == 0
    assert "nothing left to run" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in quick.cell_folder(outputs).rglob("*") if path.is_file()}


@pytest.mark.parametrize("extra", [[], ["execution.pack_size=3"]], ids=["single lanes", "one pack"])
def test_a_lane_that_diverges_is_recorded_and_the_others_go_on(outputs: Path, run: Run, extra: list[str]) -> None:
    rates = "+lanes.optimiser.learning_rate=[0.008,1000000.0,0.004]"
    assert run("training.epochs=15", "training.record_every=5", rates, *extra) == 0
    by_rate = {entry["values"]["optimiser.learning_rate"]: entry for entry in entries(outputs).values()}
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
    (entry,) = entries(outputs).values()
    assert not np.isfinite(entry["summary"]["test_loss"])
    assert entry["outcome"] == "diverged"


def test_a_lane_that_runs_out_of_memory_is_recorded_as_failed_and_tried_again_by_the_next_command(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = lanes._Pack.call

    def failing(pack: Any, data: Any, spec: Any, measure: Any, n: int) -> Any:
        if n and pack.lanes[0].values["seed"] == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nat address 0")
        return call(pack, data, spec, measure, n)

    with monkeypatch.context() as patch:
        patch.setattr(lanes._Pack, "call", failing)
        assert run("lanes.seed=[0,1,2]") == 1
    outcomes = {entry["values"]["seed"]: entry["outcome"] for entry in entries(outputs).values()}
    assert outcomes == {0: "done", 1: "failed: RESOURCE_EXHAUSTED: out of memory", 2: "done"}
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().out
    assert not (quick.cell_folder(outputs) / "DONE").exists()
    assert run("lanes.seed=[0,1,2]") == 0
    assert {entry["outcome"] for entry in entries(outputs).values()} == {"done"}


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
        summary = entries(outputs)[lane.name]["summary"]
        fresh = initial_network(spec, lane, dataset)
        trained, said = checkpoint.load(folder / "networks" / f"{lane.name}.npz", fresh)
        assert said["iteration"] == 40
        again = evaluate(trained, dataset)
        assert again == {name: summary[name] for name in again}
        assert evaluate(fresh, dataset) != again
        assert evaluate(trained_network(folder, lane.name), dataset) == again


def test_a_pack_that_fails_leaves_the_lanes_alone_that_had_ended(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = lanes._Pack.call

    def failing(pack: Any, data: Any, spec: Any, measure: Any, n: int) -> Any:
        if pack.iteration >= 100:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return call(pack, data, spec, measure, n)

    asked = (*quick.LONG[:2], "execution.pack_size=2", "+lanes.optimiser.learning_rate=[0.008,1000000.0]")
    with monkeypatch.context() as patch:
        patch.setattr(lanes._Pack, "call", failing)
        assert run(*asked) == 1
    outcomes = {entry["values"]["optimiser.learning_rate"]: entry["outcome"] for entry in entries(outputs).values()}
    assert outcomes == {1e6: "diverged", 0.008: "failed: RESOURCE_EXHAUSTED: out of memory"}


def test_a_cell_that_cannot_even_start_is_recorded_as_failed_and_the_next_one_runs(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = lanes._Pack.call

    def failing(pack: Any, data: Any, spec: Any, measure: Any, n: int) -> Any:
        if spec.network.width == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return call(pack, data, spec, measure, n)

    monkeypatch.setattr(lanes._Pack, "call", failing)
    wide, narrow = (quick.composed(f"network.width={n}", f"execution.outputs={outputs}") for n in (16, 8))
    assert sweep.run_all([wide, narrow]) == 1
    found = [entry["outcome"] for path in outputs.glob("*/*/lanes.jsonl") for entry in read_lines(path)]
    assert sorted(found) == ["done", "failed: RESOURCE_EXHAUSTED: out of memory"]


def test_networks_are_not_kept_unless_asked_for(outputs: Path, run: Run) -> None:
    assert run() == 0
    assert not (quick.cell_folder(outputs) / "networks").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_those_of_the_caller_again_after_a_run(run: Run, number: int) -> None:
    before = signal.getsignal(number)
    assert run() == 0
    assert signal.getsignal(number) is before
