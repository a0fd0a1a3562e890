"""Cut off at any moment, the same command continues, and its numbers are those of a run that nobody stopped, to the bit."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick

from pcexp.__main__ import main
from pcexp.config.composition import Refused
from pcexp.records.cell import Cell
from pcexp.run.pack import Pack
from pcexp.run.progress import Progress
from pcexp.run.session import Datasets, Execution, Session
from pcexp.run.tracking import NoTracker

Run = Callable[..., int]


def recorded(outputs: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in outputs.glob("*/*/rows.jsonl"))


def array(path: Path, name: str) -> np.ndarray:
    with np.load(path) as archive:
        return archive[name]


def half_way(outputs: Path, process: Any, rows: int = 30) -> None:
    """Wait until a lane has rows beyond its first calls and a checkpoint to continue from."""
    for _ in range(1200):
        if recorded(outputs) > rows and list(outputs.glob("*/*/checkpoints/*.npz")):
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
    assert 0 < len(list(folder.glob("checkpoints/*.npz"))) <= 3 - len(quick.entries(outputs))
    before = recorded(outputs)
    assert 30 < before < 180

    assert run(*quick.LONG) == 0
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_what_clusters_and_terminals_send_asks_to_stop_once_and_afterwards_means_what_it_did(
    number: int, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    session = Session(Execution(), NoTracker(), Progress({}), Datasets())
    with session.signals():
        asked = [session.stopping]
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # two in a row are one wish
        asked.append(session.stopping)
    assert asked == [False, True]
    assert signal.getsignal(number) == before
    assert capsys.readouterr().out.count("stopping after the calls in flight") == 1


def test_what_nohup_ignores_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    session = Session(Execution(), NoTracker(), Progress({}), Datasets())
    with session.signals():
        signal.raise_signal(signal.SIGHUP)
        assert not session.stopping
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_kill_9_leaves_what_the_same_command_continues_to_the_same_bits_and_another_process_stays_out(
    undisturbed: Path, outputs: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*quick.QUICK, *quick.LONG, quick.OFTEN, f"execution.outputs={outputs}")
    process = quick.started(*arguments, cwd=tmp_path, pause=0.15)
    half_way(outputs, process)
    # A second process, while the first one works: held meanwhile, or on a busy machine it is done before the second asks.
    process.send_signal(signal.SIGSTOP)
    assert run(*quick.LONG) == 1
    said = capsys.readouterr().out
    assert "left out" in said and f"process {process.pid} on" in said and str(quick.cell_folder(outputs)) in said
    assert process.poll() is None
    process.kill()
    process.communicate()
    folder = quick.cell_folder(outputs)
    assert (folder / "lock").exists() and not (folder / "DONE").exists()

    assert run(*quick.LONG) == 0
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []
    assert not (folder / "lock").exists() and not list(folder.glob("checkpoints/*.npz"))


DESCENT = (
    "+experiment=matrix_completion",
    "scale=smoke",
    "network.activation=linear",
    "learning=bp",
    "protocol=published",
    "optimiser.learning_rate=0.01",
    "training.epochs=8000",
    "training.stop_error=1e-6",  # not reached: the lane runs to its last epoch
)
"""One lane of many thousand iterations, with rows where something happens only."""


def test_a_long_lane_killed_half_way_continues_from_its_checkpoint_to_the_same_bits(
    outputs: Path, there: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*DESCENT, quick.OFTEN, f"execution.outputs={outputs}")
    process = quick.started(*arguments, cwd=tmp_path, pause=1.0, iterations=500)
    half_way(outputs, process, rows=40)
    process.kill()
    process.communicate()
    folder = quick.cell_folder(outputs)
    (saved,) = folder.glob("checkpoints/*.npz")
    stood, left = int(array(saved, ".iteration")), recorded(outputs)
    assert 0 < stood < 8000 and stood % 500 == 0
    assert not (folder / "DONE").exists() and not quick.entries(outputs)

    call, calls = Pack.call, list[tuple[int, int]]()

    def seen(pack: Pack, *arguments: Any) -> Any:
        before, found = pack.iteration, call(pack, *arguments)
        calls.append((before, pack.iteration))
        return found

    monkeypatch.setattr(Pack, "call", seen)
    assert run(base=DESCENT) == 0
    advanced = [(first, last) for first, last in calls if last > first]
    assert advanced[0][0] == stood and sum(last - first for first, last in advanced) == 8000 - stood
    assert recorded(outputs) > left
    assert run(f"execution.outputs={there}", base=DESCENT) == 0
    assert quick.differences(quick.numbers(outputs), quick.numbers(there)) == []


@pytest.mark.parametrize("calls", [1, 4, 25])
def test_a_stop_after_any_call_changes_no_number(
    undisturbed: Path, outputs: Path, run: Run, stopping_after: Any, calls: int
) -> None:
    with stopping_after(calls):
        assert run(*quick.LONG, quick.OFTEN) == 130
    before = recorded(outputs)
    assert 0 < before < recorded(undisturbed)
    assert run(*quick.LONG) == 0
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []
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
    assert resumed == dict.fromkeys(resumed, 0) | stood  # lanes that had not begun have no checkpoint


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
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []


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
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []


@pytest.mark.parametrize("tail", [b'{"lane": "', b'{"lane": "x", "iteration": 5, "probe_loss": 0.1}', b"\0\0\0"])
@pytest.mark.parametrize("name", ["rows.jsonl", "lanes.jsonl"])
def test_a_line_that_was_cut_off_is_written_again(
    undisturbed: Path, outputs: Path, run: Run, stopping_after: Any, name: str, tail: bytes
) -> None:
    folder = interrupted(run, stopping_after, outputs)
    with open(folder / name, "ab") as file:
        file.write(tail)
    assert run(*quick.LONG) == 0
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []


def test_a_finished_lane_whose_record_was_cut_off_is_run_again(undisturbed: Path, outputs: Path, run: Run) -> None:
    assert run(*quick.LONG) == 0
    folder = quick.cell_folder(outputs)
    content = (folder / "lanes.jsonl").read_bytes()
    (folder / "lanes.jsonl").write_bytes(content[:-20])
    assert run(*quick.LONG) == 0
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []
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
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []


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
    assert quick.differences(quick.numbers(outputs), quick.numbers(undisturbed)) == []


def test_ctrl_c_before_the_first_cell_or_after_the_last_is_answered_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pcexp.__main__._run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    said = "pcexp: interrupted; nothing that was computed is lost, the same command continues\n"
    assert capsys.readouterr().err == said
