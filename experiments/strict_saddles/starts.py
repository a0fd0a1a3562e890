"""Data of a kind, and where the search starts: random weights, and critical points of the loss as of Achour et al. (2022).

Data have exactly the covariances of their kind: K = 3 targets, signal and noise by direction,
y = U (diag(s)^1/2 V^T e_x + diag(n)^1/2 e_n) with a rotation U, whitened inputs e_x, and noise e_n that is white and
uncorrelated with x *in the sample*. So Sigma_yx Sigma_xx^+ Sigma_xy = U diag(s) U^T and Sigma_yy = U diag(s + n) U^T;
where the noise is `turned`, its directions are those of another rotation.

With S a set of r eigenvectors U_S of Sigma_yx Sigma_xx^+ Sigma_xy, complements U_C, invertible D_l, and J_l = a_l W_l + tau_l I,

    J_1 = D_1 [U_S^T Sigma_yx Sigma_xx^+; Z_1],   J_l = D_l diag(I_r, Z_l) D_{l-1}^-1,   J_L = [U_S, U_C Z_L] D_H^-1.

The map is U_S U_S^T Sigma_yx Sigma_xx^+ and the weights are a critical point of the loss wherever two of the blocks Z are
zero: a saddle, unless the map is the best there is. Where three are, it is *tightened*: of a saddle whose S are the leading
eigenvectors, no curvature of the loss is negative. F* has other critical points.
"""

import itertools
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

KindName = Literal[
    "realisable", "noisy", "one_noisy", "inputs_deficient", "targets_deficient", "cross_deficient", "uncorrelated"
]
D_OUT = 3


class Kind(NamedTuple):
    """Second moments of the targets by direction, and how many directions the inputs lack."""

    signal: tuple[float, float, float]
    noise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turned: bool = False
    lacking: int = 0


KINDS: dict[KindName, Kind] = {
    "realisable": Kind((3.0, 2.0, 1.0)),
    "noisy": Kind((3.0, 2.0, 1.0), (1.5, 0.7, 0.3), turned=True),
    "one_noisy": Kind((3.0, 2.0, 1.0), (0.0, 0.0, 3.0)),
    "inputs_deficient": Kind((3.0, 2.0, 1.0), lacking=1),
    "targets_deficient": Kind((3.0, 2.0, 0.0)),
    "cross_deficient": Kind((3.0, 2.0, 0.0), (0.0, 0.0, 1.0)),
    "uncorrelated": Kind((0.0, 0.0, 0.0), (3.0, 2.0, 1.0)),
}
FULL_RANK: tuple[KindName, ...] = ("realisable", "noisy", "one_noisy")
"""Kinds whose Sigma_xx, Sigma_yy and Sigma_xy have full rank."""


class Batch(NamedTuple):
    """Inputs and targets, and the eigenvectors and eigenvalues of Sigma_yx Sigma_xx^+ Sigma_xy, the largest first."""

    x: Float[np.ndarray, "d_in batch"]
    y: Float[np.ndarray, "d_out batch"]
    directions: Float[np.ndarray, "d_out d_out"]
    signal: Float[np.ndarray, " d_out"]

    @property
    def regression(self) -> Float[np.ndarray, "d_out d_in"]:
        """Least squares Sigma_yx Sigma_xx^+."""
        return self.y @ np.linalg.pinv(self.x)

    @property
    def spectrum(self) -> Float[np.ndarray, " d_out"]:
        """Eigenvalues of Sigma_yy, the largest first."""
        return np.linalg.eigvalsh(self.y @ self.y.T / self.y.shape[1])[::-1]

    def infimum(self, width: int) -> float:
        """Infimum of F* over all weights: half the eigenvalues of Sigma_yy beyond the width of the last hidden layer.

        F* >= 1/2B sum_b min_z ||y_b - a_L W_L z||^2, and W_L that grows in the leading directions comes as near as one likes.
        """
        return float(np.sum(np.maximum(self.spectrum[width:], 0)) / 2)


def batch(kind: KindName, inputs: Float[np.ndarray, "batch d_in"], seed: int) -> Batch:
    """Inputs and targets of a kind from drawn inputs. Raises ValueError where there are too few of them."""
    signal, noise, turned, lacking = KINDS[kind]
    n, d_in = inputs.shape
    if d_in - lacking < D_OUT or n < d_in + D_OUT:
        raise ValueError(
            f"kind={kind} with {n} inputs of dimension {d_in}: choose data.d_in of {D_OUT + lacking} or more, "
            f"and study.n_inputs of data.d_in + {D_OUT} or more"
        )
    generator = np.random.default_rng(seed)
    left, values, right = np.linalg.svd(inputs.T.astype(np.float64), full_matrices=False)
    kept = d_in - lacking
    x = left[:, :kept] * values[:kept] @ right[:kept]
    white = np.sqrt(n) * np.linalg.qr(np.vstack([right, generator.standard_normal((D_OUT, n))]).T)[0].T
    u, v, other = (np.linalg.qr(generator.standard_normal((m, m)))[0] for m in (D_OUT, kept, D_OUT))
    y = u * np.sqrt(signal) @ v[:D_OUT] @ white[:kept]
    y = y + (other if turned else u) * np.sqrt(noise) @ white[d_in:]
    return Batch(x, y, u, np.asarray(signal))


Weights = list[Float[np.ndarray, "_ _"]]
"""Matrices W_1..W_L, or maps J_1..J_L."""
DEVIATIONS = 0.05, 1.0
LOWER_DEVIATIONS = 0.1, 4.0
BLOCKS = 0.3, 3.0
OUTPUTS = 0.3, 3.0
"""Ranges, log-uniform: standard deviations of random weights, of those below an output of 0.05, of the blocks Z; a factor of D_H."""
SMALL = 0.05
MIXING = 0.3
NEARBY = 0.1
"""Standard deviation of what is added to the weights of starts near a critical point of the loss."""


class Start(IntEnum):
    """Sorts of start, as they are recorded. EDGE is none of the search: a point between two of those that it found."""

    RANDOM = 0
    SADDLE = 1
    TIGHTENED = 2
    NEAR_SADDLE = 3
    NEAR_TIGHTENED = 4
    SMALL_OUTPUT = 5
    EDGE = 6


def random_weights(sizes: list[int], generator: np.random.Generator, *, small_output: bool = False) -> Weights:
    """Normal matrices of one standard deviation; with a small output, those below it are larger and W_L is of 0.05."""
    scale = _log_uniform(LOWER_DEVIATIONS if small_output else DEVIATIONS, generator)
    *lower, last = [generator.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]
    return [*(scale * w for w in lower), (SMALL if small_output else scale) * last]


def saddle(batch: Batch, width: int, n_hidden: int, n_zero: int, generator: np.random.Generator) -> tuple[Weights, int]:
    """Maps J_l of a random critical point of the loss with `n_zero` zero blocks (at most all L of them), and its rank."""
    d_in, d_out, depth = len(batch.x), len(batch.y), n_hidden + 1
    signal = int(np.sum(batch.signal > 0))
    rank = int(generator.integers(0, min(width, signal) + 1))
    chosen = np.sort(generator.choice(signal, rank, replace=False)) if rank else np.zeros(0, int)
    others = np.setdiff1d(np.arange(d_out), chosen)
    rest = width - rank
    shapes = [(rest, d_in), *[(rest, rest)] * (n_hidden - 1), (d_out - rank, rest)]
    scale, zero = _log_uniform(BLOCKS, generator), generator.choice(depth, min(n_zero, depth), replace=False)
    z = [scale * generator.standard_normal(shape) for shape in shapes]
    z = [np.zeros(shape) if i in zero else block for i, (shape, block) in enumerate(zip(shapes, z, strict=True))]
    middle = [np.block([[np.eye(rank), np.zeros((rank, rest))], [np.zeros((rest, rank)), block]]) for block in z[1:-1]]
    u = batch.directions
    first = np.vstack([u[:, chosen].T @ batch.regression, z[0]])
    last = np.hstack([u[:, chosen], u[:, others] @ z[-1]])
    mixing = [np.eye(width) + MIXING * generator.standard_normal((width, width)) for _ in range(n_hidden)]
    mixing[-1] *= _log_uniform(OUTPUTS, generator)
    above, below = [*mixing, np.eye(d_out)], [np.eye(d_in), *(np.linalg.inv(d) for d in mixing)]
    return [d @ j @ inverse for d, j, inverse in zip(above, [first, *middle, last], below, strict=True)], rank


def near(maps: Weights, generator: np.random.Generator) -> Weights:
    return [j + NEARBY * generator.standard_normal(j.shape) for j in maps]


def _log_uniform(bounds: tuple[float, float], generator: np.random.Generator) -> float:
    return float(np.exp(generator.uniform(*np.log(bounds))))
