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

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.energy import Batch, energy, energy_gradient, weighted
from pcexp.experiments.equilibrated_energy.claims import CLAIMS as CLAIMS
from pcexp.experiments.equilibrated_energy.figures import FIGURES as FIGURES
from pcexp.inference import ErrorDescent
from pcexp.learning import PC, Beside, Equilibrated, Networks, WeightGradient
from pcexp.model.network import Network
from pcexp.run.cost import training
from pcexp.run.draw import Start, initial_start
from pcexp.run.job import Job
from pcexp.theory.equilibrated import activities, equilibrium
from pcexp.train import Observation


class EquilibratedEnergy(AbstractStudy):
    """Training by inference, with F and F* at every recorded iteration, or beside a training on F* itself."""

    precisions = ("float32", "float64")

    arm: Literal["energy", "beside"]

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        rule = spec.learning
        if isinstance(rule, PCBesideTheory) and isinstance(rule.inference, ErrorDescent):
            # Conjugate gradients end after as many steps as the Hessian in the errors, I + G^T G, has eigenvalues: K + 1 at most.
            n = min(rule.inference.max_steps, dataset.d_out + 1)
            learner = eqx.tree_at(lambda s: s.learning.inference.max_steps, spec.learner, n)
            spec = dataclasses.replace(spec, learner=learner)
        return training(spec, dataset, networks=1 if self.arm == "energy" else 2, programs=2)

    def run(self, job: Job) -> None:
        batch_size = job.spec.training.batch_size
        if self.arm == "energy":
            job.train(measure, batch_size)
        else:
            at = functools.partial(side_by_side, job)
            job.train(energies, batch_size, at=at, after=movement, tested=False)

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


class PCBesideTheory(PC):
    """Predictive coding; beside its gradient F where inference stopped, F*, and how far the gradient is from that of F*.

    Inference knows nothing of F*: no number of the closed form enters the gradient.
    """

    def gradient(self, network: Network, batch: Batch, *, key: PRNGKeyArray | None = None) -> WeightGradient:
        x, y, problem = batch.x, batch.y, self.problem(network, batch, key=key)
        found = self.inference.solve(problem, key=key)
        gradient = energy_gradient(network, x, found.activities, weighted(network, found.errors))
        theory = equilibrium(network, problem.at, y, mask=batch.mask)
        exact = energy_gradient(network, x, activities(problem.at, theory, y), weighted(network, theory.errors))
        diagnostics = {
            "energy": energy(network, found.errors),
            "equilibrated_energy": theory.energy,
            "residual": found.residual,
            "inference_steps": found.n_steps,
            "gradient_error": distance(gradient, exact) / length(exact),
        }
        return self.learned(network, batch, problem, found)._replace(diagnostics=diagnostics)

    def forward_passes(self) -> float:
        return 6.0 + self.inference.forward_passes()

    def check(self, model: Any) -> None:
        super().check(model)
        if not model.is_linear:
            raise ValueError("F* has a closed form for linear networks only: choose network.activation=linear")


def length(tree: Network) -> Float[Array, ""]:
    """Norm over all parameters."""
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)])))


def distance(a: Network, b: Network) -> Float[Array, ""]:
    """Norm of the difference over all parameters."""
    return length(jax.tree.map(jnp.subtract, a, b))


def measure(seen: Observation) -> dict[str, Array]:
    """Loss of the batch, and what the rule says of its inference and of theory."""
    return {"loss": seen.loss} | seen.diagnostics


def side_by_side(job: Job, lane: Lane, dataset: Dataset) -> Start:
    """Two trainings on the same batches from the same weights: by the lane's rule, and on F* itself."""
    network, rule, optimiser, *_ = initial_start(job.spec, lane, dataset)
    assert isinstance(rule, PCBesideTheory)
    rules = Beside((rule, Equilibrated(rule.gradient_scale)))
    return Start(Networks((network, network)), rules, optimiser, given=network)


def energies(seen: Observation) -> dict[str, Array]:
    """Loss of both trainings, and F* of both, of the batch at the weights before the update."""
    return {
        f"{name}{beside}": seen.diagnostics[f"{name}_{i}"]
        for i, beside in enumerate(("", "_beside"))
        for name in ("loss", "equilibrated_energy")
    }


def movement(seen: Observation, after: Networks) -> dict[str, Array]:
    """||W' - W_0|| / ||W_0|| of the training on F*, and ||W - W'|| / ||W' - W_0||, after the update."""
    mine, theirs = after.members
    moved = distance(theirs, seen.given)
    return {"movement": moved / length(seen.given), "difference": distance(mine, theirs) / moved}
