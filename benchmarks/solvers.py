"""Steps, forward passes and seconds of every inference solver to relative residuals 1e-2, 1e-4, 1e-6, at initialisation.

    python benchmarks/solvers.py                      what benchmarks/history.jsonl does not hold yet, cheapest first
    python benchmarks/solvers.py --depths 8 32 --cap 3000 --minutes 20
    python benchmarks/solvers.py --table              benchmarks/solvers.md again, from what is there

The residual is the root mean square of dF_b/dz over hidden units and samples, relative to its value at the forward pass.
Digits (64 pixels), one-hot targets, pre-activation nets, deviations, float64: 1e-6 is above round-off. A solver that was
capped is measured again where more steps are asked for. Each measured net is one line of the history.
"""

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array
from run import about_here, product_rate
from solvers_table import written

from pcexp.data import Digits
from pcexp.energy import Batch
from pcexp.inference import (
    AbstractInference,
    AdamInference,
    ClosedForm,
    ErrorDescent,
    GradientDescent,
    InferenceProblem,
    Momentum,
    Sequential,
)
from pcexp.inference.base import root_mean_square
from pcexp.model import parameterisation
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.theory.activity_hessian import extreme_eigenvalues

HISTORY, TABLE = (Path(__file__).with_name(name) for name in ("history.jsonl", "solvers.md"))
TARGETS = ("1e-2", "1e-4", "1e-6")
NETS = (("MuPC", True), ("Standard", False), ("Standard", True))
ACTIVATIONS = ("linear", "tanh", "relu")
ENERGY_TOL = 1e-6
"""At the kinks of relu no residual gets small: there a solve ends where its energy stands still too."""
TRIAL = 500
"""Steps that each value of a grid gets; the one that is first at the first target, or nearest to it, is kept."""


class Candidate(NamedTuple):
    """A solver and the grid that its step size is taken from; `of_curvature`: in units of 1 / Lmax (Lanczos, worst sample)."""

    solver: AbstractInference
    grid: tuple[float, ...] = ()
    of_curvature: bool = False
    slow: bool = False


CANDIDATES = {
    "closed_form": Candidate(ClosedForm()),
    "error_descent, conjugate gradients": Candidate(ErrorDescent(1, tol=1.0)),
    "error_descent, descent": Candidate(ErrorDescent(1, "descent", tol=1.0)),
    "momentum": Candidate(Momentum(1, tol=1.0)),
    "sequential": Candidate(Sequential(1.0, 1, tol=1.0), (1.0, 1.9, 3.0), of_curvature=True, slow=True),
    "adam, eps=0.01": Candidate(AdamInference(1.0, 1, tol=1.0, eps=0.01), (0.01, 0.03, 0.1), slow=True),
    "gradient_descent": Candidate(GradientDescent(1.0, 1, tol=1.0), (1.0, 1.9), of_curvature=True, slow=True),
}


def cell(net: tuple[str, bool], activation: str, width: int, n_hidden: int, batch: int, precision: str) -> dict:
    """What a line of the table is about."""
    names = ("parameterisation", "skips", "activation", "width", "n_hidden", "batch", "precision")
    return dict(zip(names, (*net, activation, width, n_hidden, batch, precision), strict=True))


class Problem(NamedTuple):
    """One net and batch, with its residual and the largest curvature at the forward pass."""

    network: Network
    x: Array
    y: Array
    residual: float
    largest: float


def problem_of(about: dict[str, Any]) -> Problem:
    """The first examples of the digits' training split, before a freshly drawn net."""
    shape = about["width"], about["n_hidden"], about["activation"]
    architecture = FullyConnected(*shape, form="pre", skips=about["skips"])
    drawn = getattr(parameterisation, about["parameterisation"])()
    network = architecture.build(drawn, (64,), 10, key=jr.key(0))
    train = Digits(test_fraction=0.2, validation_fraction=0.1, split_seed=0, limit=about["batch"]).load().train
    x, y = train.x.reshape(len(train.x), -1).T, train.y.T
    network, x, y = jax.tree.map(lambda leaf: jnp.asarray(leaf, about["precision"]), (network, x, y))

    @eqx.filter_jit
    def start(network: Network, x: Array, y: Array) -> tuple[Array, Array]:
        problem = InferenceProblem.from_batch(network, Batch(x, y))
        _, gradient = problem.errors_and_gradient("deviations", problem.start("deviations"))
        return root_mean_square(gradient), jnp.max(extreme_eigenvalues(problem, 16)[1])

    return Problem(network, x, y, *map(float, start(network, x, y)))


@eqx.filter_jit
def _solved(solver: AbstractInference, network: Network, x: Array, y: Array) -> tuple[Array, ...]:
    found = solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))
    return found.n_steps, found.residual, found.converged, found.energy


def with_fields(solver: AbstractInference, **values: Any) -> AbstractInference:
    """The solver with other values of the fields that it has."""
    return eqx.tree_at(
        lambda s: [getattr(s, name) for name in values],
        solver,
        list(values.values()),
        is_leaf=lambda leaf: leaf is None,
    )


def solved(solver: AbstractInference, problem: Problem) -> dict[str, Any]:
    """One solve from the forward pass, which is in its seconds; compiled before."""
    traced = jax.tree.map(lambda v: jnp.asarray(v, problem.x.dtype) if isinstance(v, float) else v, solver)
    if hasattr(solver, "max_steps"):  # traced too: one program for all caps
        timed = [with_fields(traced, max_steps=jnp.asarray(steps)) for steps in (1, solver.max_steps)]
    else:
        timed = [traced, traced]
    jax.block_until_ready(_solved(timed[0], *problem[:3]))
    start = time.perf_counter()
    n_steps, residual, converged, energy = jax.block_until_ready(_solved(timed[1], *problem[:3]))
    seconds = time.perf_counter() - start
    cost = solver if not hasattr(solver, "max_steps") else with_fields(solver, max_steps=int(n_steps))
    return {
        "steps": int(n_steps),
        "forward_passes": cost.forward_passes(),
        "seconds": seconds,
        "residual": float(residual) / problem.residual,
        "energy": float(energy),
        "converged": bool(converged),
    }


def measured(candidate: Candidate, problem: Problem, activation: str, cap: int) -> dict[str, Any]:
    """What a solver needs to each target, and where and why its last solve ended."""
    solver, reached, found = candidate.solver, dict[str, Any](), dict[str, Any]()
    if isinstance(solver, ClosedForm):
        found = solved(solver, problem)
        reached = {target: found for target in TARGETS if found["residual"] <= float(target)}
        return _entry({}, cap, reached, found, "converged" if len(reached) == len(TARGETS) else "round-off")
    if activation == "relu":
        solver = with_fields(solver, energy_tol=ENERGY_TOL)
    setting, tols = {}, {target: float(target) * problem.residual for target in TARGETS}
    if candidate.grid:
        scale = 1 / problem.largest if candidate.of_curvature else 1.0
        trials = {}
        for value in candidate.grid:
            tried = with_fields(solver, activity_lr=value * scale, max_steps=min(TRIAL, cap), tol=tols[TARGETS[0]])
            trials[value] = solved(tried, problem)
        best = min(trials, key=lambda value: _rank(trials[value]))
        solver = with_fields(solver, activity_lr=best * scale)
        setting = {"activity_lr": best * scale, "of_grid": best}
        if not math.isfinite(trials[best]["residual"]):
            return _entry(setting, cap, {}, trials[best], "diverged")
    for target, tol in tols.items():
        found = solved(with_fields(solver, max_steps=cap, tol=tol), problem)
        if not found["converged"]:
            why = "cap" if found["steps"] >= cap else "energy" if math.isfinite(found["residual"]) else "diverged"
            return _entry(setting, cap, reached, found, why)
        reached[target] = found
    return _entry(setting, cap, reached, found, "converged")


def _rank(trial: dict[str, Any]) -> tuple[bool, float]:
    value = trial["steps"] if trial["converged"] else trial["residual"]
    return not trial["converged"], value if math.isfinite(value) else math.inf


def _entry(setting: dict, cap: int, reached: dict, last: dict, why: str) -> dict[str, Any]:
    kept = ("steps", "forward_passes", "seconds")
    targets = {target: {key: found[key] for key in kept} for target, found in reached.items()}
    last = {key: value if math.isfinite(value) else None for key, value in last.items()}
    return {"setting": setting, "cap": cap, "targets": targets, "end": last | {"why": why}}


def records() -> list[dict[str, Any]]:
    """This benchmark's lines of the history."""
    lines = map(json.loads, HISTORY.read_text().splitlines())
    return [line for line in lines if line.get("benchmark") == "solvers"]


def asked(arguments: argparse.Namespace) -> Iterator[tuple[float, dict[str, Any], list[str]]]:
    """Cells and solvers that are not measured yet, with about what they cost."""
    known = {(json.dumps(r["cell"], sort_keys=True), name): e for r in records() for name, e in r["solvers"].items()}
    cells = [
        cell(net, activation, width, n_hidden, arguments.batch, "float64")
        for width, n_hidden, net, activation in itertools.product(arguments.widths, arguments.depths, NETS, ACTIVATIONS)
    ]
    # One net in float32, whose round-off ends what float64 goes on with.
    cells.append(cell(NETS[0], "tanh", 64, 8, arguments.batch, "float32"))
    for about in cells:
        for slow in (False, True):
            missing = []
            for name, candidate in CANDIDATES.items():
                entry = known.get((json.dumps(about, sort_keys=True), name))
                done = entry and (entry["end"]["why"] != "cap" or entry["cap"] >= arguments.cap)
                linear = about["activation"] == "linear"
                fits = linear or name != "closed_form"
                if candidate.slow == slow and name in arguments.solvers and fits and not done:
                    missing.append(name)
            if missing:
                steps = 2 * arguments.cap if slow else 300
                yield about["n_hidden"] * about["width"] ** 2 * steps, about, missing


def main() -> None:
    """Measure what is missing, append it to the history, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--widths", type=int, nargs="+", default=[64])
    parser.add_argument("--solvers", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cap", type=int, default=30_000, help="steps after which a solve is given up")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no other net after so long")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        begin, rate = time.monotonic(), product_rate()  # a float32 product: before x64
        jax.config.update("jax_enable_x64", True)
        for _, about, names in sorted(asked(arguments), key=lambda work: work[0]):
            if time.monotonic() - begin > 60 * arguments.minutes:
                print("out of minutes: the rest is left for another run")
                break
            problem = problem_of(about)
            found = {}
            for name in names:
                found[name] = measured(CANDIDATES[name], problem, about["activation"], arguments.cap)
                last = found[name]["end"]
                print(*about.values(), name, last["why"], last["steps"], f"{last['seconds']:.2f} s", flush=True)
            record = {"benchmark": "solvers", "about": about_here(), "gflops_2048": rate, "load": os.getloadavg()[0]}
            with open(HISTORY, "a") as file:
                file.write(json.dumps(record | {"cell": about, "solvers": found}) + "\n")
    TABLE.write_text(written(records(), TARGETS))


if __name__ == "__main__":
    main()
