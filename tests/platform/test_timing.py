"""Alternatives are timed in turns."""

from collections.abc import Callable

import pytest

from pcexp.run import timing


def test_candidates_are_timed_in_turns_and_the_first_call_apart_by_a_clock_that_they_advance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, called = [0.0], list[str]()
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def taking(name: str, *durations: float) -> Callable[[], None]:
        left = list(durations)

        def call() -> None:
            called.append(name)
            now[0] += left.pop(0)

        return call

    first, later = timing.medians({"a": taking("a", 8, 1, 5, 2), "b": taking("b", 16, 4, 3, 4)}, repeats=3)
    assert called == ["a", "b"] * 4
    assert first == {"a": 8, "b": 16} and later == {"a": 2, "b": 4}
    assert timing.alternating({"a": iter([1.0, 2.0]).__next__}, repeats=2) == {"a": [1.0, 2.0]}
