"""Milliseconds of a gradient of the equilibrated energy beside backpropagation's: perfect inference, at what price.

    python benchmarks/equilibrated.py      measure, print, append to benchmarks/history.jsonl

A linear network of figure 4.1, H=10, N=300, K=10, a batch of 64, in float32, for inputs of MNIST's and of CIFAR-10's size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

# First, before JAX is imported.
from timing import about_here, product_rate, remember  # isort: split

import jax
import jax.random as jr

from pcexp.energy import Batch
from pcexp.inference import ClosedForm
from pcexp.learning import BP, PC, Equilibrated
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import Standard
from pcexp.run.timing import medians

WIDTH, N_HIDDEN, D_OUT, BATCH = 300, 10, 10, 64
RULES = {
    "equilibrated": Equilibrated("batch_mean"),
    "BP": BP("batch_mean"),
    "PC, closed_form": PC(ClosedForm(), "batch_mean"),
}


def milliseconds(d_in: int) -> dict[str, float]:
    """Median milliseconds of a gradient of each rule."""
    network = FullyConnected(WIDTH, N_HIDDEN, "linear").build(Standard(), (d_in,), D_OUT, key=jr.key(0))
    x, y = jr.normal(jr.key(1), (d_in, BATCH)), jr.normal(jr.key(2), (D_OUT, BATCH))
    compiled = {name: jax.jit(rule.gradient) for name, rule in RULES.items()}

    def run(call: Callable[..., Any]) -> None:
        jax.block_until_ready(call(network, Batch(x, y)))

    _, later = medians({name: partial(run, call) for name, call in compiled.items()}, 21)
    return {name: 1e3 * taken for name, taken in later.items()}


def main() -> None:
    """Measure, print, and append to the history."""
    about = about_here()
    found = {f"D={d_in}": milliseconds(d_in) for d_in in (784, 3072)}
    for size, taken in found.items():
        print(f"{size:8}" + "".join(f"{name} {ms:.1f} ms   " for name, ms in taken.items()))
    remember({"about": about, "gflops_2048": product_rate(), "equilibrated_gradient_ms": found})


if __name__ == "__main__":
    main()
