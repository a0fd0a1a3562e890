"""A sweep as a whole: its cells run side by side to the same numbers."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.run import lanes, sweep
from pcexp.run.job import Job
from pcexp.run.session import Session

# Cells side by side

PROTOCOLS = ("protocol=published", "protocol=corrected")


@pytest.fixture
def both(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run two cells of three lanes each in one command."""
    monkeypatch.setattr(sweep, "_report", lambda *_: None)

    def both(*overrides: str, folder: Path = outputs) -> int:
        asked = (*quick.LONG, f"execution.outputs={folder}", *overrides)
        return quick.run_all([quick.composed(*asked, protocol) for protocol in PROTOCOLS])

    return both


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Numbers of the two cells, one lane after the other."""
    outputs = tmp_path_factory.mktemp("one_by_one") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_report", lambda *_: None)
        asked = (*quick.LONG, f"execution.outputs={outputs}", "execution.workers=1")
        assert quick.run_all([quick.composed(*asked, protocol) for protocol in PROTOCOLS]) == 0
    numbers = quick.numbers(outputs)
    assert len(numbers) == 6
    return numbers


def test_the_next_cell_compiles_while_lanes_run_and_no_more_lanes_run_than_there_are_workers(
    outputs: Path, both: Callable[..., int], one_by_one: Mapping[str, Any], short_calls: None, monkeypatch: Any
) -> None:
    call, lock, second = lanes.Pack.call, threading.Lock(), threading.Event()
    running, most, compiled, waited = set[Any](), [0], dict[int, Any](), []

    def watched(pack: Any, data: Any, course: Any, n: int) -> Any:
        if n == 0:
            compiled[id(course)] = course  # each cell has its own
            if len(compiled) == 2:
                second.set()
            return call(pack, data, course, n)
        if pack.iteration > 0:
            waited.append(
                all(waited) and second.wait(20)
            )  # a cell does not go on before the other one is being compiled
        with lock:
            running.add(pack)
            most[0] = max(most[0], len(running))
        try:
            time.sleep(0.01)
            return call(pack, data, course, n)
        finally:
            with lock:
                running.discard(pack)

    monkeypatch.setattr(lanes.Pack, "call", watched)
    assert both("execution.workers=2") == 0
    assert waited and all(waited)
    assert most == [2]
    assert quick.differences(quick.numbers(outputs), one_by_one) == []


@pytest.mark.parametrize("calls", [1, 3, 5, 8, 20])
def test_a_stop_with_two_cells_under_way_changes_no_number(
    outputs: Path, both: Callable[..., int], one_by_one: Mapping[str, Any], stopping_after: Any, calls: int
) -> None:
    with stopping_after(calls):
        assert both("execution.workers=2") == 130
    assert len(quick.numbers(outputs)) < 6
    assert both("execution.workers=2") == 0
    assert quick.differences(quick.numbers(outputs), one_by_one) == []


def test_an_error_in_one_cell_ends_the_command_with_it_and_what_the_other_has_is_kept(
    outputs: Path, both: Callable[..., int], one_by_one: Mapping[str, Any], short_calls: None, monkeypatch: Any
) -> None:
    call, stop, stopped, courses = lanes.Pack.call, Session.stop, threading.Event(), list[Any]()

    def broken(pack: Any, data: Any, course: Any, n: int) -> Any:
        courses.append(course)  # each cell has its own
        if course is courses[0] and pack.iteration >= 40:
            raise ZeroDivisionError("a mistake in a study")
        if pack.iteration == 100:  # of 300: it has something to lose
            stopped.wait(20)
        return call(pack, data, course, n)

    with monkeypatch.context() as patch:
        patch.setattr(lanes.Pack, "call", broken)
        patch.setattr(Session, "stop", lambda session: (stop(session), stopped.set()))
        with pytest.raises(ZeroDivisionError, match="a mistake in a study"):
            both("execution.workers=4")  # three lanes of the one wait in their places for the other
    assert not list(outputs.glob("*/*/lock"))
    assert len(quick.numbers(outputs)) < 3  # it was stopped, not run to its end
    assert both("execution.workers=2") == 0
    assert quick.differences(quick.numbers(outputs), one_by_one) == []


def test_cells_that_do_not_train_follow_one_another(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, running, seen = Job._record, [0], []

    def watched(job: Job, *rest: Any) -> None:
        running[0] += 1
        seen.append(running[0])
        time.sleep(0.1)
        record(job, *rest)
        running[0] -= 1

    monkeypatch.setattr(sweep, "_report", lambda *_: None)
    monkeypatch.setattr(Job, "_record", watched)
    base = ("+experiment=forward_pass", "scale=smoke", "network.activation=tanh", f"execution.outputs={outputs}")
    jobs = [quick.composed(f"network.n_hidden={h}", "execution.workers=2", base=base) for h in (4, 6, 8)]
    assert quick.run_all(jobs) == 0
    assert seen == [1, 1, 1]
