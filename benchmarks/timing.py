"""What all benchmarks share: the machine's rate, what a number was measured with, the history.

Imported first: it keeps JAX's CPU calls synchronous, which has to be said before JAX is imported.
"""

import os

os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
from jaxtyping import Array

from pcexp.run.provenance import provenance
from pcexp.run.timing import medians
from pcexp.train import Observation


def observe(seen: Observation) -> dict[str, Array]:
    """The batch's loss: what every run records at the least."""
    return {"loss": seen.loss}


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
