"""What all benchmarks share: medians of alternating runs, the machine's rate, what a number was measured with, the history.

Imported first: it keeps JAX's CPU calls synchronous, which has to be said before JAX is imported.
"""

import os

os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")

import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
from jaxtyping import Array

from pcexp.run.provenance import provenance
from pcexp.train import Observation

REPEATS = 7


def observe(seen: Observation) -> dict[str, Array]:
    """The batch's loss: what every run records at the least."""
    return {"loss": seen.loss}


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternating(measures: Mapping[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """What each measures, `repeats` times, all of them in turns: a busy moment of the machine falls on all alike."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def medians(
    candidates: Mapping[str, Callable[[], None]], repeats: int = REPEATS
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the first call (compile and run) and of the median later call, candidates alternating."""
    first = {name: seconds(call) for name, call in candidates.items()}
    later = alternating({name: partial(seconds, call) for name, call in candidates.items()}, repeats)
    return first, {name: statistics.median(times) for name, times in later.items()}


def product_rate() -> float:
    """GFLOP/s of a 2048^3 float32 product."""
    a = jr.normal(jr.key(0), (2048, 2048))
    product = jax.jit(lambda a: a @ a)
    _, taken = medians({"product": lambda: jax.block_until_ready(product(a))})
    return 2 * 2048**3 / taken["product"] / 1e9


def about_here() -> dict[str, Any]:
    """What a number was measured with: versions, machine, date, commit."""
    about = provenance()
    kept = ("date", "commit", "dirty", "cpu_model", "cpu_count", "device_kind")
    return {key: value for key, value in about.items() if key.endswith("version") or key in kept}


def remember(record: Mapping[str, Any]) -> None:
    """Append a line to benchmarks/history.jsonl."""
    with open(Path(__file__).with_name("history.jsonl"), "a") as file:
        file.write(json.dumps(record) + "\n")
