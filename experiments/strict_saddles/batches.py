"""Inputs and targets whose covariances are exactly those of a kind of data: K = 3 targets, signal and noise by
direction.

y = U (diag(s)^1/2 V^T e_x + diag(n)^1/2 e_n) with a rotation U, whitened inputs e_x, and noise e_n that is white and
uncorrelated with x *in the sample*. So Sigma_yx Sigma_xx^+ Sigma_xy = U diag(s) U^T and Sigma_yy = U diag(s + n) U^T;
where the noise is `turned`, its directions are those of another rotation.
"""

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
