"""Speed as ratios, measured in one run: the training step against its bare matrix products, compile time, start-up time.

    python benchmarks/run.py            measure, print a table, append to benchmarks/history.jsonl

The ceiling: the matrix products of the same training step, in the same order, shapes, layout and precision, in one jitted
loop. Medians of alternating runs; the machine's rate for a 2048^3 product and every version are kept with the numbers.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

# First, before JAX is imported.
from timing import about_here, observe, product_rate, remember  # isort: split

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array

from pcexp.inference import GradientDescent
from pcexp.learning import BP, PC, AbstractLearning
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NearOrigin
from pcexp.run.timing import medians, seconds
from pcexp.train import Training, TrainingSet, advance, initial_state

WIDTH, N_HIDDEN, D_IN, D_OUT, BATCH, STEPS = 100, 4, 64, 10, 64, 20  # the digits job
ITERATIONS = 100


def bare_products(inference: bool) -> Callable[[], None]:
    """The products of one training iteration, nothing between them: forward pass, T + 1 inference gradients, weights."""
    first = jr.normal(jr.key(0), (WIDTH, D_IN)) / D_IN
    hidden = jr.normal(jr.key(1), (N_HIDDEN - 1, WIDTH, WIDTH)) / WIDTH
    last = jr.normal(jr.key(2), (D_OUT, WIDTH)) / WIDTH
    x = jr.normal(jr.key(3), (D_IN, BATCH))

    @jax.jit
    def run(first: Array, hidden: Array, last: Array) -> tuple[Array, Array, Array]:
        def iteration(_: Array, weights: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            first, hidden, last = weights
            z = first @ x
            z, stack = lax.scan(lambda z, w: (w @ z, z), z, hidden)
            out = last @ z

            def gradient(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
                top, below = state
                forward = jnp.einsum("lij,ljb->lib", hidden, below)
                out = last @ forward[-1]
                return last.T @ out + 0 * top, jnp.einsum("lij,lib->ljb", hidden, forward)

            if inference:
                z, stack = lax.fori_loop(0, STEPS + 1, gradient, (z, stack))
            else:
                z = last.T @ out
                z, stack = lax.scan(lambda e, w: (w.T @ e, e), z, hidden, reverse=True)
            small = 1e-9
            step = jnp.einsum("lib,ljb->lij", stack, stack)
            return first + small * z @ x.T, hidden + small * step, last + small * out @ z.T

        return lax.fori_loop(0, ITERATIONS, iteration, (first, hidden, last))

    return lambda: jax.block_until_ready(run(first, hidden, last))


def training_loop(learning: AbstractLearning, activation: Literal["linear", "tanh", "relu"]) -> Callable[[], None]:
    """The platform's own training loop on data of the digits job's shape: batches drawn, loss recorded, weights updated."""
    network = FullyConnected(WIDTH, N_HIDDEN, activation).build(NearOrigin(0.011), (D_IN,), D_OUT, key=jr.key(0))
    x, y = jr.normal(jr.key(1), (1293, D_IN)), jr.normal(jr.key(2), (1293, D_OUT))
    data = TrainingSet(x, y, x[:BATCH].T, y[:BATCH].T)
    optimiser = eqx.Partial(optax.sgd, learning_rate=jnp.float32(1e-6))
    state = initial_state(network, optimiser, key=jr.key(3))
    training, count = Training(BATCH, 1000, 10), jnp.asarray(ITERATIONS, jnp.int32)
    return lambda: jax.block_until_ready(advance(state, learning, optimiser, data, training, observe, 256, count))


def help_seconds() -> float:
    """Seconds of `python -m pcexp --help`, the median of three."""
    command = [sys.executable, "-m", "pcexp", "--help"]
    return statistics.median(
        seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(3)
    )


def main() -> None:
    """Measure, print, and append to the history."""
    lr = jnp.float32(0.1)
    candidates = {"bare products, PC": bare_products(True), "bare products, BP": bare_products(False)}
    for activation in ("linear", "tanh", "relu"):
        for form in ("deviations", "activities"):
            candidates[f"PC {activation} {form}"] = training_loop(
                PC(GradientDescent(lr, STEPS, form), "batch_sum"), activation
            )
        candidates[f"BP {activation}"] = training_loop(BP("batch_sum"), activation)
    first, later = medians(candidates)
    about = about_here()
    record: dict[str, Any] = {
        "about": about,
        "gflops_2048": product_rate(),
        "help_seconds": help_seconds(),
        "iteration_us": {name: 1e6 * s / ITERATIONS for name, s in later.items()},
        "ratio_to_products": {
            name: s / later[f"bare products, {name[:2]}"] for name, s in later.items() if name[:2] in ("PC", "BP")
        },
        "compile_seconds": {name: first[name] - later[name] for name in later},
    }
    print(f"{about['cpu_model']}, {about['cpu_count']} cores, jax {about['jax_version']}, {about['date']}")
    print(f"2048^3 product {record['gflops_2048']:.0f} GFLOP/s; --help {record['help_seconds']:.2f} s")
    print(f"{'':24}{'us/iteration':>14}{'x products':>12}{'compile s':>11}")
    for name in later:
        ratio = record["ratio_to_products"].get(name)
        shown = "" if ratio is None else f"{ratio:.2f}"
        print(f"{name:24}{record['iteration_us'][name]:14.0f}{shown:>12}{record['compile_seconds'][name]:11.2f}")
    remember(record)


if __name__ == "__main__":
    main()
