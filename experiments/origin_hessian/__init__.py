"""Origin Hessian: what curvature have the loss and the equilibrated energy F* at the origin, and at a saddle of rank
zero? (figures 4.3, 4.4, B.2, B.3, B.4; theorems 3.2 and 3.3)

Setting. Linear networks without biases, one batch of 64 training examples a seed (seed s takes examples 64 s to 64 s +
63), all in float64. Points: the origin; `saddle`, all matrices zero but the penultimate, which is drawn
U(+-1/sqrt(fan_in)). Nets: 4.3 toy Gaussian y = -x, (H, N) = (1, 10) and (2, 5) on 2-D, (3, 4) and (4, 4) on 3-D data;
B.2 chains H = 1, 2, 5, 10 on 1-D; 4.4 MNIST {H:N} {1:10, 2:10, 4:5} and MNIST-1D {1:100, 2:50, 4:5}; B.3 (H = 3) and
B.4 (H = 4) N = 4 toy, 5 MNIST, 10 and 5 MNIST-1D.

Text and code. The right panel of 4.3 (H = 4) has y_2 = x_2 in the text, y_2 independent of x in the code: both are run.
The published Hessian of the loss is Eq. 4.6 over K (a mean over outputs); here it is Eq. 4.6. The text's widths of 4.4
differ, and the 1e-3 that the code adds to some eigenvalues there is left out. Published with one batch, here with
several.

Routes. Closed form: Eqs 4.6 and 4.8, dense. Numeric: automatic differentiation of the loss, and of F* through its exact
solve. Unrolled: automatic differentiation of the energy after T = 50 and 60 steps of gradient descent (beta = 0.1) on
activities, as published. At the origin it has (1 - (1 - beta)^(2T)) times the block of W_L and all other entries of
F*'s. Eigenvalues are those of dense matrices. With more inputs than examples (MNIST) all depend on W_1 through its
action on the span of the batch: W_1 is taken in a basis of that span (64 of 784 columns), the other eigenvalues are
exactly zero, and products of the whole net's Hessian with directions outside are recorded (`outside`). Matrices up to
80 rows are kept for the figures.

Definitions. Null: every eigenvalue is within 1e-10 of zero; negative: lambda_min is below -1e-6. Order: slope of log
|change| against log distance, distances 1e-4 to 1e-3 along a direction with normal entries.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcexp.config.composition import Refused
from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.experiments.origin_hessian import measured
from pcexp.experiments.origin_hessian.claims import CLAIMS as CLAIMS
from pcexp.experiments.origin_hessian.claims import in_rows
from pcexp.experiments.origin_hessian.figures import FIGURES as FIGURES
from pcexp.experiments.origin_hessian.measured import Hessians
from pcexp.model.network import Network
from pcexp.run.cost import EIGENVALUES
from pcexp.run.draw import initial_network, lane_key, network_size
from pcexp.run.job import Job
from pcexp.theory.hessian import origin_spectra, vectorised, zero_rank_spectrum
from pcexp.theory.saddles import negative_curvature, saddle_order, zero_rank

KEPT_MATRIX = 80
"""Rows of the largest matrix that is kept for a heat map."""


class OriginHessian(AbstractStudy):
    """Hessians of the loss, of F* and of unrolled inference at the origin of a net, or at the `saddle` of B.3; one batch a seed.

    `horizons` are numbers of inference steps.
    """

    precisions = ("float64",)

    saddle: bool
    batch_size: int
    activity_lr: float
    horizons: Sequence[int]

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        # In a basis of the batch's inputs: as many columns of W_1 as examples, at most.
        size = float(network_size(spec, dataset, inputs=min(math.prod(dataset.input_shape), self.batch_size)))
        steps = 4 + 4 * sum(self.horizons)
        flops = size * steps * 4 * size * self.batch_size + 6 * EIGENVALUES * size**3
        # Hessians of several functions, most of them through an unrolled inference, are several times a training step.
        return Work(flops, 8 * 6 * size**2, programs=7)

    def run(self, job: Job) -> None:
        dataset, batch = job.session.datasets(job.spec), self.batch_size
        needed = batch * (1 + max(int(lane.values["seed"]) for lane in job.spec.lanes))
        if needed > len(dataset.train.x):
            raise Refused(f"lanes.seed: a seed is a batch of {batch} of the {len(dataset.train.x)} training examples")

        def rows(lane: Lane, dataset: Dataset) -> Iterator[dict[str, Any]]:
            network = initial_network(job.spec, lane, dataset)
            if not network.is_linear or any(segment.bias is not None for segment in network.segments):
                raise Refused("origin_hessian: choose network.activation=linear and network.biases=false")
            examples = slice(batch * int(lane.values["seed"]), batch * (1 + int(lane.values["seed"])))
            x, y = (jnp.asarray(part[examples], jnp.float64).T for part in (dataset.train.x, dataset.train.y))
            yield from in_rows(*self.measured(network, x, y, key=lane_key(job.spec, lane, 1)))

        job.record(rows)

    def measured(
        self, network: Network, x: jax.Array, y: jax.Array, *, key: jax.Array
    ) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Numbers, spectra and matrices at the point, of this draw and batch."""
        saddle = self.saddle
        point = zero_rank(network, [network.depth - 1] if saddle else [])
        size = vectorised(point)[0].size
        reduced, inputs = measured.seen(point, x)
        lr, horizons = self.activity_lr, tuple(self.horizons)
        h = jax.tree.map(np.asarray, measured.hessians(reduced, inputs, y, activity_lr=lr, horizons=horizons))
        theory = (jnp.zeros(size), zero_rank_spectrum(point, y)) if saddle else origin_spectra(point, x, y)
        spectra = {
            "theory_loss": np.asarray(theory[0]),
            "theory_equilibrated": np.asarray(theory[1]),
            "numeric_loss": measured.spectrum(h.loss, size),
            "numeric_equilibrated": measured.spectrum(h.equilibrated, size),
            "unrolled": measured.spectrum(h.unrolled[0], size),
        }
        of_loss, of_equilibrated = measured.ray(point, x, y, key=jax.random.fold_in(key, 0))
        distances = jnp.asarray(measured.DISTANCES)
        numbers: dict[str, Any] = {
            "size": size,
            **differences(self, h, spectra, y, network.segments[-1].weight.shape[-1]),
            "outside": measured.outside(point, x, y, key=jax.random.fold_in(key, 1)),
            "gradient": measured.largest_gradient(point, x, y),
            "loss_order": saddle_order(distances, of_loss),
            "equilibrated_order": saddle_order(distances, of_equilibrated),
            "loss_change": of_loss,
            "equilibrated_change": of_equilibrated,
        }
        if saddle:
            curved = negative_curvature(reduced, inputs, y)
            v = np.asarray(vectorised(curved.direction)[0])
            numbers |= {"form": curved.form, "form_numeric": v @ h.equilibrated @ v}
        matrices = {"loss": h.loss, "theory": h.closed_equilibrated, "numeric": h.equilibrated}
        return numbers, spectra, matrices if len(h.loss) == size <= KEPT_MATRIX else {}

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        ours = ("size", "outside", "gradient", "form", "form_numeric", "loss_order", "equilibrated_order")
        kept = [name for name in rows if name in ours or name.endswith(("_difference", "_relative"))]
        found = {name: float(rows[name][0]) for name in kept}
        for name in ("theory_loss", "theory_equilibrated", "numeric_loss", "numeric_equilibrated"):
            values = rows[name].ravel()[: int(rows["size"][0])]
            found |= {f"{name}_lowest": float(np.min(values)), f"{name}_highest": float(np.max(values))}
        return found


def differences(
    study: OriginHessian, h: Hessians, spectra: Mapping[str, np.ndarray], y: jax.Array, width: int
) -> dict[str, float]:
    """Largest absolute differences, entry by entry, of what should be equal."""
    block = width * len(y)  # W_L comes last
    size = len(spectra["theory_loss"])
    found = {
        "closed_loss_difference": _apart(h.closed_loss, h.loss),
        "closed_equilibrated_difference": _apart(h.closed_equilibrated, h.equilibrated),
        "spectrum_loss_difference": _apart(spectra["theory_loss"], spectra["numeric_loss"]),
        "spectrum_equilibrated_difference": _apart(spectra["theory_equilibrated"], spectra["numeric_equilibrated"]),
        "theorem_difference": _apart(measured.theorem_3_2(np.asarray(y), width, size), spectra["numeric_equilibrated"]),
    }
    scale = float(np.max(np.abs(h.closed_equilibrated)))
    for steps, unrolled in zip(study.horizons, h.unrolled, strict=True):
        factor = 1 - (1 - study.activity_lr) ** (2 * steps)
        expected = h.closed_equilibrated.copy()
        expected[-block:, -block:] *= factor
        found |= {
            f"unrolled_{steps}_relative": _apart(unrolled, h.closed_equilibrated) / scale,
            f"unrolled_{steps}_block_difference": _apart(unrolled, expected),
        }
    return found


def _apart(mine: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(mine - theirs)))
