"""Are all saddles of the equilibrated energy F* strict? Critical points of F* of small linear networks, 1,000 and more.

Question. The conjecture of chapter 4, proved there for maps of rank zero. Saddles of the loss are in general no
critical points of F*, so these are searched: damped Newton steps on the gradient of F* from random weights (also with
a small W_L), from critical points of the loss of any rank, tightened or not (`starts`), and from near those. D = 4, K
= 3, H = 1 to 3, N = 2 to 5, with and without skips, float64, on seven kinds of data (`starts`): three with
covariances of full rank, four without (H = 1 and 2).

Definitions. Found: gradient norm of F* (closed form) below 1e-10, also times the largest weight; anything else is no
evidence. Negative: lambda_min below -1e-5 of the Hessian's norm, what a gradient of 1e-10 says of curvatures where
they vanish. Global minimum: F* at its infimum, half the eigenvalues of Sigma_yy beyond the N largest, which may be
reached at infinity only. Of other points without negative curvature, descent from six points at a
distance of 1e-3 tells local minima from non-strict saddles. Edge: W_L c and W_1 / c leave a critical point critical;
where that turns a local minimum into a strict saddle, the c in between is searched by bisection.

What theory says. z_l and e_l are activities and errors at equilibrium, J_l = a_l W_l + tau_l I, r = y - yhat.
(1) At a critical point sum_b e_l z_{l-1}^T = 0 for all l. With e_{l-1} = J_l^T e_l and z_l = J_l z_{l-1} + e_l it
follows that sum_b e_l e_l^T = 0 for hidden l: inference moves nothing, W_L^T r_b = 0 for every example, F* is the loss
and the point is critical for the loss too. As F* <= loss everywhere, a strict saddle of the loss that is critical for
F* is one of F*.
(2) Noise in all directions of y leaves W_L = 0 alone: rank zero, and F* has no minimum, only an infimum at infinity.
(3) If zhat_H does not span all hidden units, W_L + t u n^T with n orthogonal to it has curvature -(u^T r)^2 n^T (Q^-1
+ a^2 W_L^T W_L)^-1 n a^2.
(4) If it does and W_L n = 0, then W_L along u n^T and J_1 along J_{H:2}^-1 n v^T together have negative curvature if
u^T Sigma_rx v is not zero for some u, v. It is zero for all only if the map is that of least squares; with W_L^T r = 0
and Sigma_xy of full rank r is then zero.
(5) Else W_L is injective: r = 0 for N >= K. For N < K the point is a strict saddle of the loss or its global minimum,
as in two layers.
So with N >= K and Sigma_xy of full rank every critical point of F* is a global minimum or a strict saddle. Left are N
< K with noise that W_L does not see, and Sigma_xy of lower rank: there F* has local minima, and critical points
between those and strict saddles, where lambda_min is zero and F* is lowered from arbitrarily near: non-strict saddles.
`tests/test_strict_saddles.py` has one in closed form.
"""

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.experiments.strict_saddles import search
from pcexp.experiments.strict_saddles.claims import CLAIMS as CLAIMS
from pcexp.experiments.strict_saddles.claims import FOUND, LOWEST, TOLERANCE
from pcexp.experiments.strict_saddles.figures import FIGURES as FIGURES
from pcexp.experiments.strict_saddles.search import with_maps, with_matrices
from pcexp.experiments.strict_saddles.starts import D_OUT, Batch, KindName, Start, batch, near, random_weights, saddle
from pcexp.model.network import Network
from pcexp.run.cost import EIGENVALUES
from pcexp.run.draw import in_floats, lane_key, network_size
from pcexp.run.job import Job

SOUGHT = tuple(sort for sort in Start if sort is not Start.EDGE)
TOGETHER = 4
"""Points that are probed in one call: a fixed number, or each would be compiled."""
EDGE = 1e-12
"""Curvature relative to the Hessian's norm at which the edge of local minima is put: ten times round-off or more."""

Begun = tuple[Start, int, Network]
"""A start: its sort, the rank of its map (-1: random weights), and its network."""


class StrictSaddles(AbstractStudy):
    """Critical points of F* of linear networks on one kind of data, from `n_starts` starts of each sort."""

    precisions = ("float64",)

    kind: KindName
    n_inputs: int
    n_starts: int
    max_steps: int
    data_seed: int = 0

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        size, n_points = float(network_size(spec, dataset, outputs=D_OUT)), len(SOUGHT) * self.n_starts
        step = EIGENVALUES * size**3 + 40 * size**2 * self.n_inputs
        # Cells that differ in their kind of data share their programs, which are large.
        return Work(n_points * self.max_steps * step, 8 * 4 * size**2 * n_points)

    def run(self, job: Job) -> None:
        def rows(lane: Lane, dataset: Dataset) -> Iterator[dict[str, Any]]:
            at = batch(self.kind, dataset.train.x[: self.n_inputs], self.data_seed)
            key = lane_key(job.spec, lane, 0)
            like = in_floats(job.spec.network.build(job.spec.parameterisation, (len(at.x),), D_OUT, key=key))
            generator = np.random.default_rng([job.spec.root_seed, int(lane.values["seed"])])
            found = searched(self.starts(like, at, generator), at, self.max_steps, key)
            return ({"iteration": number} | row for number, row in enumerate(found))

        job.record(rows)

    def starts(self, like: Network, at: Batch, generator: np.random.Generator) -> list[Begun]:
        """`n_starts` of every sort."""
        layers = [segment for segment in like.segments for _ in range(segment.depth)]
        width = layers[-1].weight.shape[-1]
        sizes, begun = [len(at.x), *[width] * (len(layers) - 1), D_OUT], list[Begun]()
        for sort in SOUGHT:
            for _ in range(self.n_starts):
                if sort in (Start.RANDOM, Start.SMALL_OUTPUT):
                    weights = random_weights(sizes, generator, small_output=sort is Start.SMALL_OUTPUT)
                    begun.append((sort, -1, with_matrices(like, weights)))
                else:
                    n_zero = 2 if sort in (Start.SADDLE, Start.NEAR_SADDLE) else 3
                    maps, rank = saddle(at, width, len(layers) - 1, n_zero, generator)
                    maps = near(maps, generator) if sort in (Start.NEAR_SADDLE, Start.NEAR_TIGHTENED) else maps
                    begun.append((sort, rank, with_maps(like, maps)))
        return begun


def searched(begun: Sequence[Begun], at: Batch, max_steps: int, key: jax.Array) -> list[dict[str, Any]]:
    """A row for each start, with what holds where the polish came to, and one for each edge of local minima found."""
    x, y = jnp.asarray(at.x), jnp.asarray(at.y)
    sorts, ranks, networks = zip(*begun, strict=True)
    first = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    gradients = search.points(first, x, y).gradient
    ended, steps = search.polished(first, x, y, max_steps)
    ended_at = described(ended, at)
    ended_at["descent"] = _descents(ended, ended_at, at, key)
    begun_at = {"start": sorts, "start_rank": ranks, "start_gradient": gradients, "steps": steps}
    columns = {name: np.asarray(values) for name, values in (begun_at | ended_at).items()}
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(begun))]
    minima = np.flatnonzero(_candidates(ended_at) & (ended_at["descent"] <= LOWEST))
    return rows + (edges(ended, minima, rows, at, key) if len(minima) else [])


def described(networks: Network, at: Batch) -> dict[str, np.ndarray]:
    """Columns of what holds at (stacked) networks."""
    found = jax.tree.map(np.asarray, search.points(networks, jnp.asarray(at.x), jnp.asarray(at.y)))
    excess = found.energy - at.infimum(networks.segments[-1].weight.shape[-1])
    columns = found._asdict()
    columns["gap"] = columns.pop("loss") - found.energy
    return columns | {"excess": excess, "level_error": level_errors(found.energy, at)}


def edges(
    networks: Network, minima: np.ndarray, rows: Sequence[Mapping[str, Any]], at: Batch, key: jax.Array
) -> list[dict[str, Any]]:
    """Rows of points on the edge of local minima: W_L scaled by c and J_1 by 1/c, c where negative curvature begins.

    The map, the residuals and the columns of W_L's space stay, so all points on the way are critical too. At most
    `TOGETHER` of the minima; none of those along which no scale from 1/64 to 64 has negative curvature.
    """
    some = np.resize(minima, TOGETHER)  # repeats fill up the call
    start = jax.tree.map(operator.itemgetter(some), networks)

    def curved(logs: np.ndarray) -> np.ndarray:
        return negative(described(search.rescaled(start, jnp.exp(logs)), at), EDGE)

    inside, outside = np.zeros(TOGETHER), np.full(TOGETHER, np.nan)
    sound = ~curved(inside)
    for log in [sign * step * np.log(2.0) for step in range(1, 7) for sign in (1, -1)]:
        outside = np.where(np.isnan(outside) & curved(np.full(TOGETHER, log)), log, outside)
    crossed = np.isfinite(outside) & sound
    outside = np.where(crossed, outside, 0.0)
    for _ in range(40):
        middle = (inside + outside) / 2
        beyond = curved(middle)
        inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
    ended = search.rescaled(start, jnp.exp(inside))
    ended_at = described(ended, at)
    ended_at["descent"] = _descents(ended, ended_at, at, key)
    kept = [i for i in range(min(TOGETHER, len(minima))) if crossed[i]]
    same = {"start": Start.EDGE, "start_gradient": 0.0, "steps": 0.0}
    return [
        same | {"start_rank": rows[some[i]]["start_rank"]} | {name: v[i] for name, v in ended_at.items()} for i in kept
    ]


def negative(point: Mapping[str, np.ndarray], tolerance: float = TOLERANCE) -> np.ndarray:
    """Whether the lowest curvature is below minus this share of the Hessian's norm."""
    return point["lambda_min"] < -tolerance * point["lambda_max"]


def _candidates(point: Mapping[str, np.ndarray]) -> np.ndarray:
    """Points found above the infimum without negative curvature."""
    return (point["gradient"] < FOUND) & ~negative(point) & (point["excess"] >= LOWEST)


def _descents(networks: Network, point: Mapping[str, np.ndarray], at: Batch, key: jax.Array) -> np.ndarray:
    """How far descent lowers F* from near each candidate; 0 of all others, which are not probed."""
    x, y, chosen = jnp.asarray(at.x), jnp.asarray(at.y), np.flatnonzero(_candidates(point))
    lower = np.zeros(len(point["gradient"]))
    for i in range(0, len(chosen), TOGETHER):
        some = np.resize(chosen[i : i + TOGETHER], TOGETHER)
        taken = jax.tree.map(operator.itemgetter(some), networks)
        lower[some] = search.descents(taken, x, y, jr.split(jr.fold_in(key, i), TOGETHER))
    return lower


def level_errors(energies: np.ndarray, at: Batch) -> np.ndarray:
    """Distance of F* from the nearest of the values (tr Sigma_yy - sum of some eigenvalues of Sigma_yy) / 2."""
    sums = [sum(some) for r in range(len(at.spectrum) + 1) for some in itertools.combinations(at.spectrum, r)]
    levels = (np.sum(at.spectrum) - np.array(sums)) / 2
    return np.min(np.abs(energies[:, None] - levels), axis=1)
