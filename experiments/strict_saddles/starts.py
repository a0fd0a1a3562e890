"""Where the search starts: random weights, and critical points of the loss in the form of Achour et al. (2022).

With S a set of r eigenvectors U_S of Sigma_yx Sigma_xx^+ Sigma_xy, complements U_C, invertible D_l, and J_l = a_l W_l + tau_l I,

    J_1 = D_1 [U_S^T Sigma_yx Sigma_xx^+; Z_1],   J_l = D_l diag(I_r, Z_l) D_{l-1}^-1,   J_L = [U_S, U_C Z_L] D_H^-1.

The map is U_S U_S^T Sigma_yx Sigma_xx^+ and the weights are a critical point of the loss wherever two of the blocks Z are
zero: a saddle, unless the map is the best there is. Where three are, it is *tightened*: of a saddle whose S are the leading
eigenvectors, no curvature of the loss is negative. F* has other critical points.
"""

import itertools
from enum import IntEnum

import numpy as np
from jaxtyping import Float

from experiments.strict_saddles.batches import Batch

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
