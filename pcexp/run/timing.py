"""Seconds of alternatives, measured in turns: a busy moment of the machine falls on all alike."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter

REPEATS = 7


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call, which waits for its own results."""
    start = perf_counter()
    call()
    return perf_counter() - start


def alternating(measures: Mapping[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """What each measures, `repeats` times, all of them in turns."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def medians(
    candidates: Mapping[str, Callable[[], object]], repeats: int = REPEATS
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the first call (compile and run) and of the median later call, candidates alternating."""
    first = {name: seconds(call) for name, call in candidates.items()}
    later = alternating({name: partial(seconds, call) for name, call in candidates.items()}, repeats)
    return first, {name: statistics.median(times) for name, times in later.items()}
