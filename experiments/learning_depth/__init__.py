"""Learning depth: which layers of a deep PC network learn, how far, and what else would explain the accuracy (beyond the sources).

Setting. Pre-activation ResNets in muPC without biases, MNIST with one-hot targets, batch 64, Adam on weights, about an epoch.
With T = n_hidden steps of beta from the forward pass the error k layers below the output is of order C(T, k) beta^k, beta =
0.5/64 per sample as published (0.5 on the batch mean). Rules, each an option of `learning`:

    pc_activities    as published: the steps in the activities z, whose float32 round-off may be larger than their change
    pc               the same steps in deviations d = z - zhat, free of round-off; Adam's eps down to 1e-30
    pc_far           pc with T = 4 n_hidden steps of beta = 0.25, Adam's eps at 1e-8
    pc_float64       pc in float64, eps down to 1e-100: squares of gradients below 1e-19 underflow in float32
    pc_equilibrium   inference by error descent until a step lowers the energy by less than a thousandth, 25 steps at most
    bp               all layers; bp_last_layers: the last k alone, k as many as get a gradient above round-off as published

Definitions, all on one probe batch and the weights at hand. Above round-off: the gradient in activities is within a tenth, in
Frobenius norm, of that in deviations (which a test holds to float64). Cosine: of a layer's gradient with BP's; NaN where one
is exactly zero. Closed fraction: (F(zhat) - F(z_T)) / (F(zhat) - F0), F0 the lowest energy that error descent found,
with its residual beside it. Movement: ||W - W0|| / ||W0|| of a layer at the end; it has moved where that is above 0.05.
Best rate: the highest mean accuracy over seeds on the validation split. Accuracies are of the test split, differences of
means over seeds, in points (hundredths).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.config.composition import Refused
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.energy import Batch, energy, energy_gradient, loss, weighted
from pcexp.evaluation import batch_layout, evaluate
from pcexp.experiments.learning_depth.claims import CLAIMS as CLAIMS
from pcexp.experiments.learning_depth.claims import ROUND_OFF
from pcexp.experiments.learning_depth.figures import FIGURES as FIGURES
from pcexp.inference import AbstractInference, GradientDescent
from pcexp.inference.base import InferenceProblem
from pcexp.learning.layerwise import cosines, norms, relative_errors
from pcexp.model.network import Network
from pcexp.run.cost import training
from pcexp.run.job import Job
from pcexp.train import Observation, iterations


class LearningDepth(AbstractStudy):
    """Training, with the gradients that each inference would give on a probe batch, and how far each layer came.

    `activity_lr` and `max_steps` are those of the published inference, `equilibrium` the solver of F0. `horizons` (as
    multiples of max_steps) times `activity_lrs` is the grid of T and beta that is looked at on the initial weights.
    """

    outputs = ("squared",)

    probe_size: int
    activity_lr: float
    max_steps: int
    equilibrium: AbstractInference
    horizons: Sequence[float] = ()
    activity_lrs: Sequence[float] = ()

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        # A row looks at the gradients of BP and of three inferences; the grid of T and beta is two inferences a point.
        probe = 4 * (self.max_steps + 1) + self.equilibrium.forward_passes() + 12
        points = sum(4 * self.max_steps * multiple for multiple in self.horizons) * len(self.activity_lrs)
        rows = iterations(spec.training, len(dataset.train.x)) / spec.training.record_every
        grids = 3 + len(self.horizons)
        return training(spec, dataset, probe=probe + points / max(rows, 1), programs=grids)

    def run(self, job: Job) -> None:
        dataset = job.session.datasets(job.spec)
        if not len(dataset.validation.x):
            raise Refused("data.validation_fraction=0: rates are chosen on the validation split; set it above 0")
        job.train(
            eqx.Partial(measure, self), probe_size=self.probe_size, at_end=eqx.Partial(outcome, self, dataset=dataset)
        )

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, i in (("start", 0), ("end", -1)):
            seen |= {
                f"{name}_above": int(np.sum(rows["activities_error"][i] < ROUND_OFF)),
                f"{name}_closed": float(rows["closed_fraction"][i]),
                f"{name}_equilibrium_cosine": float(np.mean(rows["equilibrium_cosine"][i])),
            }
        return seen


# Gradients on the probe batch


class Seen(NamedTuple):
    """What an inference leads to on one batch: the gradient of F on the weights, F, and the residual."""

    gradient: Network
    energy: Float[Array, ""]
    residual: Float[Array, ""]


def seen_by(solver: AbstractInference, network: Network, x: Float[Array, "..."], y: Float[Array, "d batch"]) -> Seen:
    """Gradient, energy and residual where a solver stops."""
    found = solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))
    gradient = energy_gradient(network, x, found.activities, weighted(network, found.errors))
    return Seen(gradient, energy(network, found.errors), found.residual)


def closed_fraction(start: Array, reached: Array, lowest: Array) -> Array:
    """Part of the energy between the forward pass and the lowest energy found that inference has used up."""
    return (start - reached) / (start - jnp.minimum(lowest, reached))


def measure(study: LearningDepth, observed: Observation) -> dict[str, Array]:
    """Loss of the batch; norms, cosines and errors of the probe batch's gradients, by form of inference."""
    network, x, y = observed.network, observed.data.probe_x, observed.data.probe_y
    start, bp = eqx.filter_value_and_grad(loss)(network, x, y)
    activities, deviations = (
        seen_by(GradientDescent(study.activity_lr, study.max_steps, form), network, x, y)
        for form in ("activities", "deviations")
    )
    equilibrium = seen_by(study.equilibrium, network, x, y)
    forms = {"activities": activities, "deviations": deviations, "equilibrium": equilibrium}
    return {
        "loss": observed.loss,
        "closed_fraction": closed_fraction(start, deviations.energy, equilibrium.energy),
        "equilibrium_residual": equilibrium.residual,
        "activities_error": relative_errors(activities.gradient, deviations.gradient),
        "bp_norm": norms(bp),
        **{f"{form}_norm": norms(seen.gradient) for form, seen in forms.items()},
        **{f"{form}_cosine": cosines(seen.gradient, bp) for form, seen in forms.items()},
        **{name: value for name, value in observed.diagnostics.items() if name == "inference_residual"},
    }


def outcome(study: LearningDepth, initial: Network, final: Network, *, dataset: Dataset) -> dict[str, Any]:
    """Movement of every layer, accuracy on the validation split, and the grid of T and beta on the initial weights."""
    found: dict[str, Any] = {"validation_accuracy": evaluate(final, dataset.validation)["accuracy"]}
    found |= _numbered("movement", np.asarray(relative_errors(final, initial)))
    if study.horizons and study.activity_lrs:
        x, y = dataset.train.x[: study.probe_size], dataset.train.y[: study.probe_size]
        for name, values in grid(study, initial, batch_layout(initial, jnp.asarray(x)), jnp.asarray(y).T).items():
            found |= _numbered(name, values)
    return found


def _numbered(name: str, values: np.ndarray | Iterable[float]) -> dict[str, float]:
    """Columns name_1, name_2, ..."""
    return {f"{name}_{i}": float(value) for i, value in enumerate(values, start=1)}


def grid(
    study: LearningDepth, network: Network, x: Float[Array, "..."], y: Float[Array, "d batch"]
) -> dict[str, list[float]]:
    """By T and beta (T outside): layers above round-off and with any gradient, mean cosine, closed fraction."""
    start, bp = eqx.filter_value_and_grad(loss)(network, x, y)
    lowest = eqx.filter_jit(seen_by)(study.equilibrium, network, x, y).energy

    @eqx.filter_jit
    def at(beta: Array, steps: int) -> dict[str, Array]:
        activities, deviations = (
            seen_by(eqx.tree_at(lambda s: s.activity_lr, GradientDescent(1.0, steps, form), beta), network, x, y)
            for form in ("activities", "deviations")
        )
        finite = jnp.isfinite(deviations.energy)
        return {
            "grid_above": jnp.sum(relative_errors(activities.gradient, deviations.gradient) < ROUND_OFF),
            "grid_alive": jnp.where(finite, jnp.sum(norms(deviations.gradient) > 0), 0),
            "grid_cosine": jnp.where(finite, jnp.nanmean(cosines(deviations.gradient, bp)), jnp.nan),
            "grid_closed": jnp.where(finite, closed_fraction(start, deviations.energy, lowest), jnp.nan),
        }

    steps = [max(1, round(multiple * study.max_steps)) for multiple in study.horizons]
    points = [at(jnp.asarray(beta), n) for n in steps for beta in study.activity_lrs]
    return {name: [float(point[name]) for point in points] for name in points[0]}
