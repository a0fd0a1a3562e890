"""Packs: the lanes that advance together in one compiled call, one on a CPU, several vmapped on a GPU."""

import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from pcexp.data import Dataset
from pcexp.network import Network
from pcexp.spec import Lane, Spec
from pcexp.train import Measure, Rows, TrainingSet, TrainState, advance, advance_pack

ROWS_A_CALL = 256


def components(spec: Spec, lane: Lane) -> tuple[Any, Any, Any]:
    """Parameterisation, learning and optimiser of one lane, every float traced: a new value compiles nothing."""
    parts = {"parameterisation": spec.parameterisation, "learning": spec.learning, "optimiser": spec.optimiser}
    for key, value in lane.values.items():
        if key != "seed":
            parts |= {key.partition(".")[0]: _replace(parts[key.partition(".")[0]], key.split(".")[1:], value)}
    traced = {
        name: jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.result_type(float)) if isinstance(leaf, float) else leaf, part
        )
        for name, part in parts.items()
    }
    return traced["parameterisation"], traced["learning"], traced["optimiser"]


def _replace(part: Any, path: Sequence[str], value: float) -> Any:
    def where(tree: Any) -> Any:
        for name in path:
            tree = tree.keywords[name] if isinstance(tree, eqx.Partial) else getattr(tree, name)
        return tree

    return eqx.tree_at(where, part, value, is_leaf=lambda leaf: leaf is None)


def lane_key(spec: Spec, lane: Lane, purpose: int) -> jax.Array:
    """Random key of a lane; purposes are 0 (initial weights) and 1 (order of the batches)."""
    return jr.fold_in(jr.fold_in(jr.key(spec.root_seed), int(lane.values["seed"])), purpose)


def initial_network(spec: Spec, lane: Lane, dataset: Dataset) -> Network:
    """The network that a lane starts from."""
    parameterisation, _, _ = components(spec, lane)
    return spec.network.build(parameterisation, dataset.input_shape, dataset.d_out, key=lane_key(spec, lane, 0))


class Pack:
    """Lanes that advance together: one on a CPU, several vmapped on a GPU."""

    def __init__(self, lanes: Sequence[Lane], states: Sequence[TrainState], parts: Sequence[tuple[Any, Any]]) -> None:
        self.lanes = lanes
        self.single = len(lanes) == 1
        stack = (lambda *trees: trees[0]) if self.single else _stack
        self.state: TrainState = stack(*states)
        self.learning, self.optimiser = stack(*[p[0] for p in parts]), stack(*[p[1] for p in parts])
        self.written: dict[str, bool] = {lane.name: False for lane in lanes}
        self.saved_at = time.monotonic()
        self.seconds_run = 0.0

    def call(self, data: TrainingSet, spec: Spec, measure: Measure, n: int) -> tuple[Rows, float]:
        """Advance by n iterations (on a worker thread); the rows, and the seconds that one iteration took."""
        start, before = time.perf_counter(), self.iteration
        run = advance if self.single else advance_pack
        state, rows = run(
            self.state,
            self.learning,
            self.optimiser,
            data,
            spec.training,
            measure,
            ROWS_A_CALL,
            jnp.asarray(n, jnp.int32),
        )
        jax.block_until_ready((state, rows))
        self.state = state
        seconds = time.perf_counter() - start
        self.seconds_run += seconds
        return rows, seconds / max(self.iteration - before, 1)

    @property
    def iteration(self) -> int:
        """Iterations of the most advanced lane."""
        return int(np.max(np.asarray(self.state.iteration)))

    def states(self) -> list[TrainState]:
        """One state a lane."""
        if self.single:
            return [self.state]
        return [
            jax.tree.map(lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, self.state)
            for i in range(len(self.lanes))
        ]


def _stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)
