"""A muPC training step at depth against its bare matrix products, timed in turns on this machine.

    python benchmarks/depth.py             (N, H) = (128, 8), (128, 32), (128, 128), (512, 8), (512, 32)
    python benchmarks/depth.py 128 8       one of them

One step: batch 64, T = H inference steps in deviations, Adam. The ceiling is the same products in one jitted loop, in the same
order, shapes, layout and precision and with the same segments skipped: forward pass, inference (whose transposed weights are there
already), errors at its end, weight gradients. Nothing else of the step is in it. Beside it the same step of a linear net, which has no tanh (what is left to the
ceiling there is memory traffic and additions), and the step in bfloat16. One line a size goes to benchmarks/history.jsonl.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array
from run import about_here, observe, product_rate

from pcexp.inference import GradientDescent
from pcexp.learning import PC
from pcexp.model.activation import Activation
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC
from pcexp.model.segments import Precision
from pcexp.run.timing import medians
from pcexp.train import Training, TrainingSet, advance, initial_state

SIZES = ((128, 8), (128, 32), (128, 128), (512, 8), (512, 32))
D_IN, D_OUT, BATCH = 784, 10, 64


def network(width: int, n_hidden: int, activation: Activation = "tanh") -> Network:
    """The residual net of chapter 5."""
    architecture = FullyConnected(width, n_hidden, activation, form="pre", skips=True)
    return architecture.build(MuPC(), (D_IN,), D_OUT, key=jr.key(0))


def bare_products(net: Network, steps: int, iterations: int) -> Callable[[], None]:
    """The products of `iterations` training steps, with next to nothing between them."""
    first, *hidden, last = [segment.weight for segment in net.segments]
    # In the layout that inference has them in. Of the first weights, and not of the updated: a copy is no product.
    transposed = [jnp.array(jnp.swapaxes(w, 1, 2)) for w in (*hidden, last)]
    depths = [w.shape[0] for w in hidden]
    x = jr.normal(jr.key(1), (D_IN, BATCH))
    small = 1e-9

    @jax.jit
    def run(
        first: Array, hidden: tuple[Array, ...], last: Array, transposed: list[Array]
    ) -> tuple[Array, tuple[Array, ...], Array]:
        def iteration(_: Array, weights: tuple[Array, tuple[Array, ...], Array]) -> tuple:
            first, hidden, last = weights
            z, stacks = first[0] @ x, []
            for w in hidden:
                z, stack = lax.scan(lambda z, w: (w @ z, z), z, w)
                stacks.append(stack)
            top = last[0] @ z

            def infer(t: Array, state: tuple[tuple[Array, ...], Array]) -> tuple[tuple[Array, ...], Array]:
                stacks, z = state
                above = transposed[-1][0] @ (last[0] @ z)
                moved, reached = [], 1
                for w, wt, stack in zip(reversed(hidden), reversed(transposed[:-1]), reversed(stacks), strict=True):

                    def work(stack: Array, above: Array, w: Array = w, wt: Array = wt) -> tuple[Array, Array]:
                        pull = jnp.einsum("lio,lob->lib", wt, jnp.einsum("loi,lib->lob", w, stack))
                        return pull, above

                    def rest(stack: Array, above: Array) -> tuple[Array, Array]:
                        return stack, above

                    stack, above = lax.cond(t >= reached, work, rest, stack, above)
                    moved.append(stack)
                    reached += w.shape[0]
                return tuple(reversed(moved)), above

            stacks, z = lax.fori_loop(0, steps, infer, (tuple(stacks), z))
            errors = [jnp.einsum("loi,lib->lob", w, stack) for w, stack in zip(hidden, stacks, strict=True)]
            grads = [jnp.einsum("lob,lib->loi", e, stack) for e, stack in zip(errors, stacks, strict=True)]
            hidden = tuple(w + small * g for w, g in zip(hidden, grads, strict=True))
            return first + small * (z @ x.T)[None], hidden, last + small * (top @ z.T)[None]

        return lax.fori_loop(0, iterations, iteration, (first, hidden, last))

    assert sum(depths) == net.depth - 2
    return lambda: jax.block_until_ready(run(first, tuple(hidden), last, transposed))


def training_step(net: Network, steps: int, iterations: int, precision: Precision = "float32") -> Callable[[], None]:
    """The platform's training loop, with the loss recorded every tenth iteration."""
    x, y = jr.normal(jr.key(1), (1280, D_IN)), jr.normal(jr.key(2), (1280, D_OUT))
    data = TrainingSet(x, y, x[:BATCH].T, y[:BATCH].T)
    learning = PC(GradientDescent(0.5 / BATCH, steps), "batch_mean", precision)
    learning = eqx.tree_at(lambda rule: rule.inference.activity_lr, learning, jnp.float32(0.5 / BATCH))
    optimiser = eqx.Partial(optax.adam, learning_rate=jnp.float32(1e-6))
    state = initial_state(net, optimiser, key=jr.key(3))
    training = Training(BATCH, 10**6, 10)
    count = jnp.asarray(iterations, jnp.int32)
    return lambda: jax.block_until_ready(advance(state, learning, optimiser, data, training, observe, 256, count))


def products_flops(width: int, n_hidden: int) -> float:
    """Floating point operations of all products of a step where nothing is skipped."""
    hidden, ends = 2.0 * (n_hidden - 1) * width**2, 2.0 * (D_IN + D_OUT) * width
    return BATCH * (2 * (hidden + ends) + hidden + 2 * n_hidden * (hidden + 2.0 * D_OUT * width))


def main() -> None:
    """Measure, print, and append to the history."""
    asked = [int(a) for a in sys.argv[1:]]
    sizes = [(asked[0], asked[1])] if asked else SIZES
    record: dict[str, Any] = {"benchmark": "depth", "about": about_here(), "gflops_2048": product_rate(), "sizes": {}}
    print(f"2048^3 product {record['gflops_2048']:.0f} GFLOP/s")
    print(
        f"{'N':>5}{'H':>5}{'ms/step':>10}{'products':>10}{'fraction':>10}{'linear':>8}{'bf16 ms':>9}{'GFLOP/s':>9}{'compile s':>11}"
    )
    for width, n_hidden in sizes:
        net = network(width, n_hidden)
        # Enough iterations for a second or so.
        n = max(2, min(100, int(5e10 / products_flops(width, n_hidden))))
        step, bare, linear, low = "training step", "bare products", "linear", "bfloat16"
        first, seconds = medians(
            {
                step: training_step(net, n_hidden, n),
                bare: bare_products(net, n_hidden, n),
                linear: training_step(network(width, n_hidden, "linear"), n_hidden, n),
                low: training_step(net, n_hidden, n, "bfloat16"),
            },
            repeats=5,
        )
        found = {
            "step_ms": 1e3 * seconds[step] / n,
            "products_ms": 1e3 * seconds[bare] / n,
            "fraction_of_ceiling": seconds[bare] / seconds[step],
            "linear_fraction": seconds[bare] / seconds[linear],
            "bfloat16_ms": 1e3 * seconds[low] / n,
            # As if nothing were skipped: work that is not done counts as done.
            "gflops_unskipped": products_flops(width, n_hidden) / (seconds[step] / n) / 1e9,
            "compile_s": first[step] - seconds[step],
        }
        record["sizes"][f"{width},{n_hidden}"] = found
        print(
            f"{width:5}{n_hidden:5}{found['step_ms']:10.2f}{found['products_ms']:10.2f}{found['fraction_of_ceiling']:10.2f}"
            f"{found['linear_fraction']:8.2f}{found['bfloat16_ms']:9.2f}{found['gflops_unskipped']:9.0f}{found['compile_s']:11.2f}"
        )
    with open(Path(__file__).with_name("history.jsonl"), "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
