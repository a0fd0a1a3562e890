"""One PC training step against other libraries' on the same network, data, steps and update, timed in turns.

    python benchmarks/peers.py [N H] [--network plain|residual] [--peers pcx fabricpc] [--variants scan ...]
        [--fabricpc-path DIR] [--pcx-python PYTHON]

Timed alone, and with two trainings at once (pcexp's lanes on two threads, a peer in two processes), which is what a sweep does.
One step: batch 64, forward start, T = H steps of gradient descent on activities, weight gradient, Adam. `plain`: mu = tanh(W z)
without skips and biases, which every library has layers for; `residual`: the muPC network of chapter 5. A peer runs in each
of its variants (benchmarks/peer_NAME.py), and its fastest is the one that counts. fabricpc runs in this process, pcx, which
asks for an older JAX, in an interpreter of its own; neither is a requirement of pcexp.
`make bench-peers` installs both. Before anything is timed, the weight gradient of one step and the loss after ten are compared:
a library that disagrees is not timed. A size is timed only where it compiles within ten minutes.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

# First, before JAX is imported.
from timing import about_here, observe, product_rate, remember  # isort: split

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from peer_process import OtherProcess, PeerFailed
from peer_worker import Layer, Peer, Problem, build, seconds

from pcexp.inference import GradientDescent
from pcexp.learning import PC
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC, Standard
from pcexp.model.segments import Precision
from pcexp.run.timing import alternating
from pcexp.train import Training, TrainingSet, advance, initial_state

SIZES = ((128, 8), (128, 32), (512, 8), (512, 32))
D_IN, D_OUT, BATCH, BATCHES = 784, 10, 64, 20
COMPILE_LIMIT = 600.0
NEW, OLD = "", "--xla_cpu_use_thunk_runtime=false"
"""XLA's runtimes for CPUs: an older JAX has both, and not always is the newer one faster."""
VARIANTS = {
    "fabricpc": [(v, NEW) for v in ("explicit", "autodiff", "looped-explicit", "looped-autodiff")],
    "pcx": [(v, flags) for v in ("scan", "unrolled") for flags in (NEW, OLD)],
}
DIFFERS = (
    "peers infer in activities; pcexp in deviations, which skips segments that no signal has reached: the same step in exact "
    "arithmetic. pcexp also draws its batches and records the loss of every tenth; fabricpc returns its state and energies."
)
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-3, 1e-2
"""Peers' gradients have the round-off of activities in float32: 4e-5 at N = 128, 2e-4 at 512, each of them. The loss is held to
less: where a gradient is no larger than round-off, Adam makes whole steps of both."""
AT_ONCE = 2
"""Trainings at the same time: a sweep uses all cores, and a step that spreads over them alone gains nothing there."""


class Ours:
    """pcexp's training step as the platform runs it: `advance`, in deviations, with the loss of every tenth batch."""

    def __init__(self, network: Network, problem: Problem, precision: Precision) -> None:
        self.network, self.problem = network, problem
        self.training = Training(BATCH, 10**6, 10)
        x, y = (jnp.asarray(a.reshape(-1, a.shape[-1])) for a in (problem.x, problem.y))
        self.data = TrainingSet(x, y, x[:BATCH].T, y[:BATCH].T)
        rule = PC(GradientDescent(problem.activity_lr, problem.steps), "batch_mean", precision)
        self.rule = eqx.tree_at(lambda r: r.inference.activity_lr, rule, jnp.float32(problem.activity_lr))
        self.start("adam", problem.learning_rate)

    def start(self, optimiser: str, learning_rate: float) -> None:
        self.optimiser = eqx.Partial(
            {"adam": optax.adam, "sgd": optax.sgd}[optimiser], learning_rate=jnp.float32(learning_rate)
        )
        self.state = initial_state(self.network, self.optimiser, key=jr.key(3))

    def run(self, n: int) -> None:
        count = jnp.asarray(n, jnp.int32)
        self.state, _ = jax.block_until_ready(
            advance(self.state, self.rule, self.optimiser, self.data, self.training, observe, 256, count)
        )

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(w) for segment in self.state.network.segments for w in segment.weight]


def network(kind: str, width: int, n_hidden: int) -> Network:
    """The network that all of them train."""
    if kind == "plain":
        return FullyConnected(width, n_hidden, "tanh").build(Standard(), (D_IN,), D_OUT, key=jr.key(0))
    architecture = FullyConnected(width, n_hidden, "tanh", form="pre", skips=True)
    return architecture.build(MuPC(), (D_IN,), D_OUT, key=jr.key(0))


def problem(net: Network, steps: int, batches: int) -> Problem:
    """The network's weights and layers, random data, and the step sizes of the benchmark."""
    layers = [Layer(s.premultiplier, s.before, s.after, s.skip) for s in net.segments for _ in range(s.depth)]
    weights = [np.asarray(w) for s in net.segments for w in s.weight]
    x, y = jr.normal(jr.key(1), (batches, BATCH, D_IN)), jr.normal(jr.key(2), (batches, BATCH, D_OUT))
    return Problem(weights, layers, np.asarray(x), np.asarray(y), steps, 0.5 / BATCH, 1e-6)


def disagreement(ours: Peer, other: Peer, at: Problem) -> dict[str, float]:
    """How far apart two libraries are: the gradient of one step, relative to its norm, and the loss after ten of Adam."""
    found = {}
    after = {}
    for name, peer in (("ours", ours), ("other", other)):
        peer.start("sgd", 1.0)
        peer.run(1)
        after[name] = np.concatenate([(w - v).ravel() for w, v in zip(peer.weights(), at.weights, strict=True)])
    found["gradient"] = float(np.linalg.norm(after["other"] - after["ours"]) / np.linalg.norm(after["ours"]))
    losses = []
    for peer in (ours, other):
        peer.start("adam", 1e-3)
        peer.run(10)
        losses.append(loss(peer.weights(), at))
    found["loss"] = abs(losses[1] - losses[0]) / abs(losses[0] - loss(at.weights, at))
    return found


def loss(weights: list[np.ndarray], at: Problem) -> float:
    """Loss 1/(2B) sum ||y - f(x)||^2 of the first batch, in float64, with no library's code."""
    phi: dict[str, Callable[[np.ndarray], np.ndarray]] = {"tanh": np.tanh, "linear": lambda z: z}
    z = at.x[0].astype(float)
    for w, layer in zip(weights, at.layers, strict=True):
        mu = phi[layer.after](layer.premultiplier * phi[layer.before](z) @ w.T.astype(float))
        z = mu + z if layer.skip else mu
    return float(np.sum((at.y[0] - z) ** 2) / (2 * len(z)))


def interpreter(peer: str, args: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """Interpreter and environment of a peer's own process. Raises PeerFailed where the peer is not installed."""
    python, extra = sys.executable, {}
    if peer == "pcx":
        python = args.pcx_python or python
    elif args.fabricpc_path:
        extra["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), args.fabricpc_path)))
    probe = [python, "-c", f"import {peer}, importlib.metadata as m; print(m.version('{peer}'), m.version('jax'))"]
    try:
        tried = subprocess.run(probe, env=os.environ | extra, capture_output=True, text=True)
    except OSError as error:
        raise PeerFailed(f"{python}: {error.strerror}") from None
    if tried.returncode:
        option = {"pcx": "--pcx-python PYTHON", "fabricpc": "--fabricpc-path DIR"}[peer]
        last = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerFailed(f"not installed here ({last}); see {option} in benchmarks/peers.py")
    return python, extra | dict(zip(("version", "jax_version"), tried.stdout.split(), strict=True))


def fastest(peer: str, path: Path, n: int, args: argparse.Namespace) -> dict[str, Any]:
    """The peer's fastest variant at a problem, with the numbers of all of them."""
    python, extra = interpreter(peer, args)
    versions = {key: extra.pop(key) for key in ("version", "jax_version")}
    tried: dict[str, Any] = {}
    for variant, flags in VARIANTS[peer]:
        name = f"{variant} {flags}".strip()
        if args.variants and variant not in args.variants:
            continue
        try:
            with OtherProcess(python, peer, path, variant, extra | {"XLA_FLAGS": flags}) as process:
                compile_s = process.seconds(1, COMPILE_LIMIT)
                process.seconds(1, COMPILE_LIMIT)
                # The least, not the median: only which variant is fastest is asked here, and the machine may be busy.
                times = [process.seconds(n, COMPILE_LIMIT) / n for _ in range(5)]
            tried[name] = {"first_s": compile_s, "least_step_ms": 1e3 * min(times)}
        except PeerFailed as error:
            tried[name] = {"failed": str(error)}
    ran = {name: found["least_step_ms"] for name, found in tried.items() if "least_step_ms" in found}
    if not ran:
        raise PeerFailed("; ".join(f"{name}: {found['failed']}" for name, found in tried.items()))
    best = min(ran, key=lambda name: ran[name])
    variant, _, flags = best.partition(" ")
    return {**versions, "best": best, "variants": tried, "start": (python, peer, variant, extra | {"XLA_FLAGS": flags})}


def compared(kind: str, width: int, n_hidden: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One size: agreement, then all libraries in turns."""
    net = network(kind, width, n_hidden)
    whole, small = problem(net, n_hidden, BATCHES), problem(net, n_hidden, 1)
    # Larger steps than are timed, or the upper layers alone would be compared.
    small = small._replace(activity_lr=0.2)
    whole.save(folder / "whole.npz")
    small.save(folder / "small.npz")
    flops = 2.0 * BATCH * (2 * n_hidden + 3) * ((n_hidden - 1) * width**2 + (D_IN + D_OUT) * width)
    n = max(2, min(100, int(5e10 / flops)))
    precisions: dict[str, Precision] = {"pcexp float32": "float32", "pcexp bfloat16": "bfloat16"}
    ours = {name: Ours(net, whole, precision) for name, precision in precisions.items()}
    found: dict[str, Any] = {"pcexp": {name: {"first_s": seconds(one, 1)} for name, one in ours.items()}, "peers": {}}
    timed: dict[str, Callable[[], float]] = {name: partial(here, one, n) for name, one in ours.items()}
    open_processes: list[OtherProcess] = []
    starts: dict[str, tuple[str, str, dict[str, str]]] = {}
    try:
        for peer in args.peers:
            about: dict[str, Any] = {}
            found["peers"][peer] = about
            try:
                about |= fastest(peer, folder / "whole.npz", n, args)
                python, _, variant, extra = about.pop("start")
                with OtherProcess(python, peer, folder / "small.npz", variant, extra) as process:
                    about["disagreement"] = disagreement(Ours(net, small, "float32"), process, small)
                apart = about["disagreement"]
                if apart["gradient"] > GRADIENT_TOLERANCE or apart["loss"] > LOSS_TOLERANCE:
                    raise PeerFailed(f"computes something else: {apart}")
                starts[peer] = (python, variant, extra)
                if importlib.util.find_spec(peer) is None:
                    about["process"] = "its own"
                    other = OtherProcess(python, peer, folder / "whole.npz", variant, extra)
                    open_processes.append(other)
                    other.seconds(1, COMPILE_LIMIT)
                    timed[peer] = partial(elsewhere, other, n)
                else:
                    about["process"] = "the same"
                    local = build(peer, whole, variant)
                    seconds(local, n)
                    timed[peer] = partial(here, local, n)
            except PeerFailed as error:
                about["failed"] = str(error)
        for one in ours.values():
            seconds(one, n)
        times = alternating(timed)
        for process in open_processes:
            process.close()
        together: dict[str, list[Callable[[], float]]] = {
            name: [partial(here, one, n) for one in (first, Ours(net, whole, precisions[name]))]
            for name, first in ours.items()
        }
        for ours_too in together.values():
            ours_too[1]()
        for peer, start in starts.items():
            python, variant, extra = start
            pair = [OtherProcess(python, peer, folder / "whole.npz", variant, extra) for _ in range(AT_ONCE)]
            open_processes += pair
            for process in pair:
                process.seconds(1, COMPILE_LIMIT)
            together[peer] = [partial(elsewhere, one, n) for one in pair]
        both = alternating({name: partial(at_once, calls) for name, calls in together.items()})
    finally:
        for process in open_processes:
            process.close()
    found["step_ms"] = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    found["two_at_once_step_ms"] = {name: 1e3 * statistics.median(t) for name, t in both.items()}
    for ratio, ms in (("ratio", found["step_ms"]), ("ratio_at_once", found["two_at_once_step_ms"])):
        found[ratio] = {f"{peer} / {name}": ms[peer] / ms[name] for peer in args.peers if peer in ms for name in ours}
    return found


def here(peer: Any, n: int) -> float:
    """Seconds a training step, in this process."""
    return seconds(peer, n) / n


def elsewhere(process: OtherProcess, n: int) -> float:
    """Seconds a training step, in a process of the peer's own."""
    return process.seconds(n, COMPILE_LIMIT) / n


def at_once(calls: Sequence[Callable[[], float]]) -> float:
    """Seconds a step and training of calls that run at the same time, each of which gives its seconds a step."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return max(pool.map(lambda call: call(), calls)) / len(calls)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="pcexp's training step against other libraries'")
    parser.add_argument("size", type=int, nargs="*", metavar="N H", help="one size; without it, all four")
    parser.add_argument("--network", choices=("plain", "residual"), default="plain")
    parser.add_argument("--peers", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--variants", nargs="+", help="these variants of a peer only")
    parser.add_argument("--fabricpc-path", help="folder that fabricpc was installed into")
    parser.add_argument("--pcx-python", help="interpreter of an environment with pcx")
    args = parser.parse_args()
    if len(args.size) not in (0, 2):
        parser.error("a size is two numbers, N and H")
    args.sizes = [tuple(args.size)] if args.size else SIZES
    if args.fabricpc_path:
        sys.path.append(args.fabricpc_path)
    return args


def main() -> None:
    """Compare, print, and append to the history."""
    args = arguments()
    record: dict[str, Any] = {"benchmark": "peers", "about": about_here(), "gflops_2048": product_rate()}
    record |= {"network": args.network, "differs": DIFFERS, "sizes": {}}
    print(
        f"2048^3 product {record['gflops_2048']:.0f} GFLOP/s; {args.network} network; ms a step alone (and of each of two at once), medians in turns"
    )
    with tempfile.TemporaryDirectory() as folder:
        for width, n_hidden in args.sizes:
            found = compared(args.network, width, n_hidden, Path(folder), args)
            record["sizes"][f"{width},{n_hidden}"] = found
            print(f"N={width} H={n_hidden}")
            for name, ms in found["step_ms"].items():
                about = found["peers"].get(name, {})
                both = found["two_at_once_step_ms"][name]
                ratios = [
                    f"{r:5.2f} ({found['ratio_at_once'][k]:5.2f}) x {k.split(' / ')[1]}"
                    for k, r in found["ratio"].items()
                    if k.startswith(name)
                ]
                print(f"    {name:16}{ms:10.2f} ({both:.2f}) ms  {'  '.join(ratios)}  {about.get('best', '')}".rstrip())
            for peer, about in found["peers"].items():
                if "failed" in about:
                    print(f"    {peer:16}{about['failed']}")
    remember(record)


if __name__ == "__main__":
    main()
