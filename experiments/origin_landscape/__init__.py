"""Origin landscape: how do the loss and the equilibrated energy F* look around the origin, and how many iterations do
BP and PC take to leave it? (figures 4.2 and B.1)

Setting. Linear networks without biases, y = -x with x ~ N(1, 0.1^2) in each dimension, batch 64, SGD, inference by
gradient descent on activities (beta = 0.1 per sample). Chains on 1-D data: H = 1, 2 as published and H = 3 (ours), w ~
N(0, 0.05^2), eta = 0.4, T = 20. Wide: H = 3, N = 4 on 3-D data, eta = 1e-3, T = 50, w ~ N(0, sigma^2), sigma = 0.1
(text, `wide`) or 5e-3 (code, `wide_code`): both are run.

Protocols differ in `learning.gradient_scale`, in the wide net alone. `published`: PC's gradient is summed over the
batch, BP's a mean over batch and outputs, 96 times smaller at one learning rate; beta is halved once when the energy
rises, and a second rise ends inference. `corrected`: both are summed, and beta is fixed. Chains are run at one scale,
the mean over the batch.

Landscapes. Loss and F* (theorem 3.1, exact) of the first 64 training examples on a 30x30 grid, [-2, 2]^2 for the chains
with H > 1 and [-1, 1]^2 else. The chain with H = 1 has two weights. Others are cut along two eigenvectors of F*'s
Hessian at the origin, of the lowest and of the highest eigenvalue; where an eigenvalue has many, the one nearest to the
axis of the last and of the first weight. For H > 1 the highest eigenvalue is zero and all lower layers are its
eigenspace: the choice decides what is seen, so the range of both is recorded in the plane of a generic one too
(`generic`).

Definitions. Escape: the first recorded iteration at which the loss of those 64 examples is below 0.9 of its start.
Flat: the loss varies over the grid by less than 0.01 of its value at the origin. Gradient norm: of the batch-mean
gradient of F, all weights together, its scale taken out.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.energy import loss
from pcexp.experiments.origin_landscape.claims import CLAIMS as CLAIMS
from pcexp.experiments.origin_landscape.claims import ESCAPE_FRACTION
from pcexp.experiments.origin_landscape.figures import FIGURES as FIGURES
from pcexp.model.network import Network
from pcexp.run.cost import training
from pcexp.run.draw import initial_network, network_size
from pcexp.run.job import Job
from pcexp.theory.equilibrated import equilibrated_energy
from pcexp.theory.hessian import vectorised, zero_output_equilibrated_hessian
from pcexp.theory.saddles import zero_rank
from pcexp.train import Observation, weight_norms


class OriginLandscape(AbstractStudy):
    """Landscapes around the origin (`arm: landscape`), or training from near it; `grid` points a side on [-extent, extent]^2."""

    precisions = ("float32", "float64")

    arm: Literal["training", "landscape"]
    probe_size: int
    grid: int
    extent: float

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        if self.arm == "training":
            probe = (self.probe_size + len(dataset.test.x)) / spec.training.batch_size
            return training(spec, dataset, probe=probe, programs=2)
        points = 2.0 * self.grid**2
        return Work(points * 1000 * network_size(spec, dataset), 8.0 * points, programs=2)

    def run(self, job: Job) -> None:
        dataset = job.session.datasets(job.spec)
        x, y = (part[: self.probe_size].T for part in (dataset.train.x, dataset.train.y))
        network = initial_network(job.spec, job.spec.lanes[0], dataset)
        axes = plane(network, x, y)
        if self.arm == "training":
            seen = (jnp.asarray(axes, jnp.float32), jnp.asarray(dataset.test.x).T, jnp.asarray(dataset.test.y).T)
            job.train(eqx.Partial(measure, *seen), probe_size=self.probe_size)
            return

        def rows(lane: Lane, dataset: Dataset) -> Iterator[dict[str, Any]]:
            drawn = plane(network, x, y, drawn=int(lane.values["seed"]))
            at, generic = (landscape(network, p, x, y, grid=self.grid, extent=self.extent) for p in (axes, drawn))
            for row in range(self.grid):
                yield {
                    "iteration": row,
                    **{name: values[row] for name, values in at.items()},
                    **{f"generic_{name}": values[row] for name, values in generic.items()},
                }

        job.record(rows)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if self.arm == "landscape":
            names = ("loss", "equilibrated", "generic_loss", "generic_equilibrated")
            start = float(rows["at_origin"][0])
            return {"at_origin": start} | {f"{name}_range": float(np.ptp(rows[name])) / start for name in names}
        below = np.flatnonzero(rows["probe_loss"] < ESCAPE_FRACTION * rows["probe_loss"][0])
        end = int(below[0]) if below.size else len(rows["probe_loss"]) - 1
        return {
            "escaped": below.size > 0,
            "escape_iteration": int(rows["iteration"][end]),
            "plateau_gradient_norm": float(np.min(rows["gradient_norm"][: end + 1])),
            "final_probe_loss": float(rows["probe_loss"][-1]),
            "final_test_loss": float(rows["test_loss"][-1]),
        }


def measure(
    axes: Float[Array, "2 n"], test_x: Float[Array, "d_in test"], test_y: Float[Array, "d_out test"], seen: Observation
) -> dict[str, Array]:
    """Losses of the batch, the probe and the test set, F* of the probe, gradient norm, and the path in the plane."""
    x, y = seen.data.probe_x, seen.data.probe_y
    factor = seen.diagnostics["gradient_factor"]
    vector, _ = vectorised(seen.network)
    return {
        "train_loss": seen.loss,
        "probe_loss": loss(seen.network, x, y),
        "probe_equilibrated": equilibrated_energy(seen.network, x, y),
        "test_loss": loss(seen.network, test_x.astype(x.dtype), test_y.astype(y.dtype)),
        "gradient_norm": jnp.sqrt(jnp.sum(jnp.square(weight_norms(seen.gradient)))) / factor,
        "path": axes.astype(vector.dtype) @ vector,
        "gradient_factor": jax.lax.convert_element_type(factor, vector.dtype),
    }


# Planes through the origin of weight space, and the loss and F* on them; in float64

Plane = Float[np.ndarray, "2 n"]

SAME = 1e-9
"""Eigenvalues closer than this, of the largest, are one."""


def plane(network: Network, x: np.ndarray, y: np.ndarray, *, drawn: int | None = None) -> Plane:
    """Unit vectors of the plane: both weights where there are two, else eigenvectors of F*'s Hessian at the origin.

    Of the lowest eigenvalue the one nearest to the axis of the last weight, of the highest that nearest to the first's, or
    to a random direction `drawn` from that seed.
    """
    with jax.enable_x64(True):
        network, inputs, targets = _in_float64(network, x, y)
        h = np.asarray(zero_output_equilibrated_hessian(zero_rank(network), inputs, targets))
    axes = np.eye(len(h))
    if len(h) == 2:
        return axes
    first = axes[0] if drawn is None else np.random.default_rng(drawn).standard_normal(len(h))
    values, vectors = np.linalg.eigh(h)

    def nearest(value: float, direction: np.ndarray) -> np.ndarray:
        """The unit vector of an eigenspace that is nearest to a direction: independent of the basis that it came with."""
        space = vectors[:, np.abs(values - value) <= SAME * np.max(np.abs(values))]
        projected = space @ (space.T @ direction)
        return projected / np.linalg.norm(projected)

    return np.stack([nearest(values[0], axes[-1]), nearest(values[-1], first)])


def landscape(
    network: Network, axes: Plane, x: np.ndarray, y: np.ndarray, *, grid: int, extent: float
) -> dict[str, np.ndarray]:
    """Loss and F* at a p_1 + b p_2, rows by b and columns by a, both from -extent to extent; and their value at the origin."""
    with jax.enable_x64(True):
        network, inputs, targets = _in_float64(network, x, y)
        steps = jnp.linspace(-extent, extent, grid)
        losses, energies = map(np.asarray, _on_grid(network, jnp.asarray(axes), steps, inputs, targets))
        start = float(np.sum(np.square(np.asarray(targets))) / (2 * y.shape[1]))
    return {"loss": losses, "equilibrated": energies, "at_origin": np.full(grid, start)}


@eqx.filter_jit
def _on_grid(
    network: Network, axes: Array, steps: Array, x: Array, y: Array
) -> tuple[Float[Array, "grid grid"], Float[Array, "grid grid"]]:
    _, unravel = vectorised(network)

    def at(b: Array, a: Array) -> tuple[Array, Array]:
        there = unravel(a * axes[0] + b * axes[1])
        return loss(there, x, y), equilibrated_energy(there, x, y)

    return jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(steps, steps)


def _in_float64(network: Network, x: np.ndarray, y: np.ndarray) -> tuple[Network, Array, Array]:
    return jax.tree.map(lambda w: w.astype(jnp.float64), network), jnp.asarray(x, float), jnp.asarray(y, float)
