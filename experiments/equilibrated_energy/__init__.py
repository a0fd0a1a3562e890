"""Equilibrated energy: does inference end at the energy F* of theorem 3.1, step by step of training? (figures 4.1, 6.1, D.5)

Setting. Linear networks without biases, W ~ U(+-1/sqrt(fan_in)), squared error on one-hot targets, batch 64, 100 iterations;
at each of them, on its batch and at the weights before the update, the energy F where inference stopped and F* =
1/(2B) sum_b r_b^T S^-1 r_b in closed form. `published`: the gradient flow of the activities from the forward pass, by Heun's
method under a PID controller (rtol = atol = 1e-3), to a fixed horizon, in float32. `corrected`: float64, and conjugate gradients in
the errors until the residual is below 1e-11, which use neither S nor F*. Arms: `energy` trains by either inference, at H = 10
to several horizons; `beside` trains the same network twice on the same batches, by inference and on F* (learning=equilibrated).

Text and code. The code trained with Adam at 1e-3, the text has SGD at 1e-3: both run, under the code's units. Its energy was
averaged over the batch and had no 1/2: its horizon t is 2t/B per sample (300 is 9.375), its SGD rate 2e-3 here; Adam
sees no scale. Published runs were meant to stop at a steady state, but the event was shown the activities, not their
rate: the horizon is what they had, and what is run here.

Definitions. Gap: F / F* - 1. Residual: root mean square of dF_b/dz over hidden units and samples. Movement: ||W - W_0|| over all
weights; difference of two trainings: ||W - W'|| over the movement of the one on F*, after each update. Accuracies
are of all test examples, in per cent; points are hundredths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.equilibrated_energy.claims import CLAIMS
from experiments.equilibrated_energy.figures import FIGURES
from experiments.equilibrated_energy.rules import PCBesideTheory, distance, length
from pcexp.config.identity import Lane
from pcexp.config.study import AbstractStudy
from pcexp.data import Dataset
from pcexp.learning import Equilibrated
from pcexp.run.draw import components, initial_network, lane_key
from pcexp.run.job import Job
from pcexp.train import Observation, TrainingSet, advance, batch_layout, initial_state, iterations

__all__ = ["CLAIMS", "FIGURES", "EquilibratedEnergy", "PCBesideTheory"]


class EquilibratedEnergy(AbstractStudy):
    """Training by inference, with F and F* at every recorded iteration, or beside a training on F* itself."""

    precisions = ("float32", "float64")

    arm: Literal["energy", "beside"]

    def run(self, job: Job) -> None:
        if self.arm == "energy":
            job.train(measure, probe_size=job.spec.training.batch_size)
        else:
            job.record(lambda lane, dataset: side_by_side(job, lane, dataset))

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if self.arm == "beside":
            drift = np.abs(rows["equilibrated_energy"] / rows["equilibrated_energy_beside"] - 1)
            return {
                "largest_difference": float(np.max(rows["difference"])),
                "last_difference": float(rows["difference"][-1]),
                "largest_drift": float(np.max(drift)),
            }
        gap = rows["energy"] / rows["equilibrated_energy"] - 1
        return {
            "largest_gap": float(np.max(np.abs(gap))),
            "first_gap": float(gap[0]),
            "mean_gap": float(np.mean(gap)),
            "last_gap": float(gap[-1]),
            "largest_residual": float(np.max(rows["residual"])),
            "largest_gradient_error": float(np.max(rows["gradient_error"])),
            "mean_inference_steps": float(np.mean(rows["inference_steps"])),
        }


def measure(seen: Observation) -> dict[str, Array]:
    """Loss of the batch, and what the rule says of its inference and of theory."""
    return {"loss": seen.loss} | {
        name: seen.diagnostics[name] for name in seen.diagnostics if name != "gradient_factor"
    }


def side_by_side(job: Job, lane: Lane, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Rows of two trainings on the same batches from the same weights: by the lane's rule, and on F* itself.

    F* is that of either's weights before an update, the difference of their weights is taken after it.
    """
    spec = job.spec
    _, rule, optimiser = components(spec, lane)
    initial = initial_network(spec, lane, dataset)
    rule.check(initial)
    x, y = (jnp.asarray(values, jnp.result_type(float)) for values in (dataset.train.x, dataset.train.y))
    size = spec.training.batch_size
    data = TrainingSet(x, y, batch_layout(initial, x[:size]), y[:size].T, dataset.augment)
    rules = rule, Equilibrated(rule.gradient_scale)
    states = [initial_state(initial, optimiser, key=lane_key(spec, lane, 1))] * 2
    every = spec.training.record_every
    for t in range(0, iterations(spec.training, len(x)), every):
        seen = []
        for i, learning in enumerate(rules):
            # Room for one more row than is recorded: a full buffer would end the call.
            states[i], rows = advance(
                states[i], learning, optimiser, data, spec.training, _energies, 2, jnp.asarray(every, jnp.int32)
            )
            seen.append({name: values[0] for name, values in rows.values.items()})
        mine, theirs = (state.network for state in states)
        movement, difference = _movement(initial, mine, theirs)
        yield {
            "iteration": t,
            "loss": seen[0]["loss"],
            "equilibrated_energy": seen[0]["equilibrated_energy"],
            "loss_beside": seen[1]["loss"],
            "equilibrated_energy_beside": seen[1]["equilibrated_energy"],
            "movement": movement,
            "difference": difference,
        }


def _energies(seen: Observation) -> dict[str, Array]:
    return {"loss": seen.loss, "equilibrated_energy": seen.diagnostics["equilibrated_energy"]}


@eqx.filter_jit
def _movement(initial: Any, mine: Any, theirs: Any) -> tuple[Array, Array]:
    """||W' - W_0|| / ||W_0|| of the training on F*, and ||W - W'|| / ||W' - W_0||."""
    moved = distance(theirs, initial)
    return moved / length(initial), distance(mine, theirs) / moved
