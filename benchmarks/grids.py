"""Whole grids of runs through the platform, with compile: a toy chain, the grid of figure 5.5, and the memory of a deep step.

    python benchmarks/grids.py                 all parts
    python benchmarks/grids.py chain memory    some of: chain, transfer, alone, memory
    python benchmarks/grids.py transfer --whole    the epoch itself, not 40 iterations of it

Every part is a process of its own, so that nothing is compiled or drawn before it starts. `chain`: 100 seeds x 500 steps of
N=1, H=10, T=20, one lane a call and all lanes in one call. `transfer`: 11 beta x 4 eta x 3 seeds at N=128, H=8, MNIST. `alone`:
runs of that grid one after the other, each in a fresh process with its own compile, as a loop over a script would have
them. `memory`: the peak of a training step of 128 layers, N=512, batch 64. What is extrapolated is called so.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

# First, before JAX is imported.
from timing import about_here, observe, product_rate, remember  # isort: split

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from pcexp.command_line import CONF
from pcexp.config.composition import composed
from pcexp.config.spec import Spec
from pcexp.inference import GradientDescent
from pcexp.learning import PC
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import MuPC
from pcexp.records.cell import Cell
from pcexp.run.job import Job
from pcexp.run.progress import Progress
from pcexp.run.session import Datasets, Execution, Session
from pcexp.run.sweep import sweep
from pcexp.run.tracking import NoTracker
from pcexp.train import Training, TrainingSet, advance, initial_state, iterations

STRETCH = 40
PRECISIONS = ("float32", "bfloat16")
CHAIN = (
    "data=linear_regression",
    "network=chain",
    "network.n_hidden=10",
    "network.activation=tanh",
    "parameterisation=standard",
    "inference.max_steps=20",
    "inference.activity_lr=0.1",
    "optimiser=sgd",
    "optimiser.learning_rate=0.01",
    "training.epochs=5",
    "training.max_iterations=500",
    "training.record_every=10",
    f"lanes.seed={list(range(100))}".replace(" ", ""),
)
TRANSFER = (
    "data=mnist",
    "scale=thesis",
    "network.width=128",
    "network.n_hidden=8",
    "network.activation=tanh",
    "protocol=corrected",
)


def cell(*overrides: str) -> Spec:
    """The cell of `+experiment=mupc_transfer` with overrides, as the command composes it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        ((asked, settings),) = composed(hydra.config_loader, ["+experiment=mupc_transfer", *overrides])
    return sweep(asked, settings, Datasets()).specs[0]


def train(asked: Spec, **execution: Any) -> dict[str, Any]:
    """Run a cell as the command does, without its report, and what its lanes say of the time that they took."""
    datasets = Datasets()
    dataset = datasets(asked)  # read before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Execution(outputs=folder, **execution), NoTracker(), Progress({asked.cell: 1.0}), datasets)
        handle = Cell(Path(folder) / asked.cell, [lane.name for lane in asked.lanes])
        begun = time.perf_counter()
        session.progress.begin(asked, handle.missing)
        with handle.open({}):
            asked.study.run(Job(asked, handle, session))
        wall = time.perf_counter() - begun
        lanes = list(handle.finished.values())
    size = execution.get("pack_size") or (1 if jax.default_backend() == "cpu" else len(lanes))
    side_by_side = min(len(lanes), size * (len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 1))
    return {
        "lanes": len(lanes),
        "wall_s": wall,
        "compile_s": lanes[0]["provenance"]["seconds_compile"],
        # A lane's own seconds count those of the pack and of the core that it shares.
        "loop_s": sum(lane["provenance"]["seconds_run"] for lane in lanes) / side_by_side,
        "lane_iterations": sum(lane["summary"]["iterations"] for lane in lanes),
        "diverged": sum(lane["outcome"] == "diverged" for lane in lanes),
        "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        "epoch_iterations": len(dataset.train.x) // asked.training.batch_size,
        "asked_iterations": iterations(asked.training, len(dataset.train.x)),
    }


def chain(pack_size: int) -> dict[str, Any]:
    """100 lanes x 500 training steps of the toy chain."""
    return train(cell(*CHAIN), pack_size=pack_size)


def transfer(precision: str, whole: bool) -> dict[str, Any]:
    """The 44 x 3 grid of figure 5.5 at one size: an epoch, or a stretch of it and the epoch extrapolated."""
    more = [] if precision == "float32" else [f"precision={precision}"]
    more += [] if whole else [f"training.max_iterations={STRETCH}"]
    found = train(cell(*TRANSFER, *more))
    if not whole:
        # Compiled calls are counted on; networks, compile, test set and the rows' way to the disk as once, here as measured.
        more_of_it = found["epoch_iterations"] / found["asked_iterations"] - 1
        found["extrapolated_epoch_s"] = found["wall_s"] + found["loop_s"] * more_of_it
    return found


def alone(lane: int) -> dict[str, Any]:
    """One run of that grid, in this process alone."""
    (beta, eta, seed) = [(b, e, s) for s in (0, 1, 2) for e in (0.1, 0.01) for b in (0.15625, 0.015625)][lane]
    values = (f"inference.activity_lr={beta}", f"optimiser.learning_rate={eta}", f"lanes.seed=[{seed}]")
    return train(cell(*TRANSFER, *values, f"training.max_iterations={STRETCH}"))


def memory() -> dict[str, Any]:
    """Peak memory of training steps of 128 layers, N=512, batch 64, in float32."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    architecture = FullyConnected(512, 128, "tanh", form="pre", skips=True)
    network = architecture.build(MuPC(), (784,), 10, key=jr.key(0))
    x, y = jr.normal(jr.key(1), (1280, 784)), jr.normal(jr.key(2), (1280, 10))
    data = TrainingSet(x, y, x[:64].T, y[:64].T)
    learning = PC(GradientDescent(0.5 / 64, 128), "batch_mean")
    optimiser = eqx.Partial(optax.adam, learning_rate=jnp.float32(1e-3))
    state = initial_state(network, optimiser, key=jr.key(3))
    arguments = (state, learning, optimiser, data, Training(64, 1000, 10), observe, 256, jnp.asarray(2, jnp.int32))
    compiled = cast(Any, advance).lower(*arguments).compile()
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(compiled(*arguments))
    plan = compiled.compiled.memory_analysis()
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
    return {
        "imports_gb": before / 2**20,
        "compiled_gb": built / 2**20,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "weights_gb": parameters / 2**30,
        "xla_arguments_gb": plan.argument_size_in_bytes / 2**30,
        "xla_results_gb": plan.output_size_in_bytes / 2**30,
        "xla_temporaries_gb": plan.temp_size_in_bytes / 2**30,
    }


class Failed(Exception):
    """A part could not run; the text says why."""


def fresh(*command: str) -> dict[str, Any]:
    """What a part gives in a process of its own, and the seconds from its start to its end."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--part", *command], capture_output=True, text=True)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return json.loads(done.stdout.splitlines()[-1]) | {"process_s": time.perf_counter() - begun}


def part(command: list[str]) -> dict[str, Any]:
    """A part by name, with its arguments."""
    name, *rest = command
    if name == "chain":
        return chain(int(rest[0]))
    if name == "transfer":
        return transfer(rest[0], rest[1:] == ["whole"])
    return alone(int(rest[0])) if name == "alone" else memory()


def measured_chain(record: dict[str, Any]) -> None:
    """The chain, one lane a call and all lanes in one."""
    record["chain"] = {}
    for size in (1, 100):
        found = record["chain"][f"pack_size={size}"] = fresh("chain", str(size))
        print(f"chain, 100 lanes x 500 steps, pack_size={size}: {found['wall_s']:.2f} s", end=" ")
        print(f"(compile {found['compile_s']:.2f}, training {found['loop_s']:.2f} s),", end=" ")
        print(f"with start-up {found['process_s']:.2f} s", flush=True)


def measured_transfer(record: dict[str, Any], whole: bool) -> None:
    """The grid of figure 5.5 in each precision."""
    record["transfer"] = {}
    for precision in PRECISIONS:
        found = record["transfer"][precision] = fresh("transfer", precision, *(["whole"] if whole else []))
        print(
            f"figure 5.5, 132 lanes of N=128, H=8, {precision}: {found['lane_iterations']} lane iterations in", end=" "
        )
        print(f"{found['wall_s']:.1f} s, {found['diverged']} lanes diverged", end="")
        if "extrapolated_epoch_s" in found:
            print(
                f"; an epoch of {found['epoch_iterations']}, extrapolated: {found['extrapolated_epoch_s']:.0f} s",
                end="",
            )
        print(flush=True)


def measured_alone(record: dict[str, Any]) -> None:
    """The same grid, one run after the other, and how much longer that takes."""
    runs = [fresh("alone", str(i)) for i in range(3)]
    found: dict[str, Any] = {"runs": runs}
    record["alone"] = found
    middle = sorted(runs, key=lambda run: run["process_s"])[1]
    step = middle["loop_s"] / middle["asked_iterations"]
    once = middle["process_s"] - step * middle["asked_iterations"]
    epoch = middle["epoch_iterations"]
    found |= {"once_s": once, "step_s": step, "extrapolated_grid_s": 132 * (once + step * epoch)}
    print(f"alone, in a fresh process: {once:.1f} s once and {1e3 * step:.2f} ms a step;", end=" ")
    print(f"132 runs of an epoch, extrapolated: {found['extrapolated_grid_s']:.0f} s")
    for precision, grid in record.get("transfer", {}).items():
        together = grid.get("extrapolated_epoch_s", grid["wall_s"])
        found[f"ratio to {precision}"] = found["extrapolated_grid_s"] / together
        print(f"    over the grid at once in {precision}: {found[f'ratio to {precision}']:.1f} for an epoch", end="")
        if grid["asked_iterations"] == middle["asked_iterations"]:
            stretch = found[f"ratio to {precision} at {STRETCH}"] = 132 * middle["process_s"] / grid["process_s"]
            print(f"; {stretch:.1f} for {STRETCH} iterations", end="")
        print(flush=True)


def measured_memory(record: dict[str, Any]) -> None:
    """The peak of a deep step."""
    found = record["memory"] = fresh("memory")
    print(f"memory, 128 layers, N=512, batch 64: peak {found['peak_gb']:.2f} GB resident, of it imports", end=" ")
    print(f"{found['imports_gb']:.2f}; XLA: arguments {found['xla_arguments_gb']:.2f}, results", end=" ")
    print(f"{found['xla_results_gb']:.2f}, temporaries {found['xla_temporaries_gb']:.2f}", flush=True)


PARTS = ("chain", "transfer", "alone", "memory")


def main() -> None:
    """Measure, print, and append to the history."""
    parser = argparse.ArgumentParser(description="whole grids of runs through the platform, with compile")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; without it, all")
    parser.add_argument("--whole", action="store_true", help="an epoch of the grid of figure 5.5, not a stretch of it")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(part(args.part)))
        return
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}: valid are {', '.join(PARTS)}")
    record: dict[str, Any] = {"benchmark": "grids", "about": about_here(), "gflops_2048": product_rate()}
    print(f"2048^3 product {record['gflops_2048']:.0f} GFLOP/s")
    measured: dict[str, Callable[[dict[str, Any]], None]] = {
        "chain": measured_chain,
        "transfer": functools.partial(measured_transfer, whole=args.whole),
        "alone": measured_alone,
        "memory": measured_memory,
    }
    for name in args.parts or PARTS:
        try:
            measured[name](record)
        except Failed as failed:
            record[name] = {"failed": str(failed)}
            print(f"{name}: {failed}")
    remember(record)


if __name__ == "__main__":
    main()
