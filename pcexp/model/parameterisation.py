"""Parameterisations: initial weights and premultipliers a_l.

| parameterisation | a_1     | a_l (1 < l < L)                       | a_L     | weights                |
| Standard         | 1       | 1                                     | 1       | N(0, 1/fan_in) or U    |
| NTK              | D^-1/2  | (N L)^-1/2 with skips, N^-1/2 without | N^-1/2  | N(0, 1)                |
| MuPC             | D^-1/2  | (N L)^-1/2 with skips, N^-1/2 without | 1/N     | N(0, 1)                |
| Orthogonal       | 1       | 1                                     | 1       | QR with sign fix, gain |

(thesis Table 5.1), and two starts near saddles of chapter 4, with premultipliers 1.
"""

import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.model.activation import Activation
from pcexp.model.checks import check_choices


class LayerPosition(NamedTuple):
    """Where a layer stands: its number l = 1..L, the depth L, its fan-in, whether the net has skips, its phi."""

    layer: int
    depth: int
    fan_in: int
    skips: bool
    activation: Activation


def uniform(shape: tuple[int, ...], fan_in: int, key: PRNGKeyArray) -> Array:
    """Numbers U(-1/sqrt(fan_in), 1/sqrt(fan_in)): weights and biases by the default of equinox and PyTorch."""
    bound = 1 / math.sqrt(fan_in)
    return jr.uniform(key, shape, minval=-bound, maxval=bound)


class AbstractParameterisation(eqx.Module):
    """Initial weights and premultipliers of each layer: N(0, 1) and 1, unless a parameterisation says otherwise."""

    def __check_init__(self) -> None:
        check_choices(self)

    def premultiplier(self, at: LayerPosition) -> float:
        """Premultiplier a_l."""
        return 1.0

    def weight(self, at: LayerPosition, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """Initial weight matrix W_l (or kernel) of the given shape."""
        return jr.normal(key, shape)


class Standard(AbstractParameterisation):
    """Standard parameterisation: W ~ N(0, 1/fan_in) (Table 5.1), or U(+-1/sqrt(fan_in)) as the published code drew it."""

    distribution: Literal["gaussian", "uniform"] = "gaussian"

    def weight(self, at: LayerPosition, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        if self.distribution == "uniform":
            return uniform(shape, at.fan_in, key)
        return jr.normal(key, shape) / math.sqrt(at.fan_in)


class NTK(AbstractParameterisation):
    """Neural tangent parameterisation: W ~ N(0, 1), every layer scaled by fan_in^-1/2 (and L^-1/2 on residual branches)."""

    def premultiplier(self, at: LayerPosition) -> float:
        residual = at.skips and 1 < at.layer < at.depth
        return 1 / math.sqrt(at.fan_in * (at.depth if residual else 1))


class MuPC(AbstractParameterisation):
    """muPC: the neural tangent scaling with the output layer scaled by 1/N (Depth-muP)."""

    def premultiplier(self, at: LayerPosition) -> float:
        return 1 / at.fan_in if at.layer == at.depth else NTK().premultiplier(at)


class Orthogonal(AbstractParameterisation):
    """Orthogonal weights (QR with sign fix), gain 1.05 for tanh and 1 otherwise."""

    def weight(self, at: LayerPosition, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        rows, columns = shape[-2:] if len(shape) == 2 else (math.prod(shape[:-1]), shape[-1])
        tall = jr.normal(key, (max(rows, columns), min(rows, columns)))
        q, r = jnp.linalg.qr(tall)
        # Without the signs of R's diagonal, Q is not uniform over orthogonal matrices.
        q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None, :]
        gain = 1.05 if at.activation == "tanh" else 1.0
        return gain * (q if rows >= columns else q.T).reshape(shape)


class NearOrigin(AbstractParameterisation):
    """Gaussian weights N(0, sigma^2) near the saddle at the origin (chapter 4)."""

    sigma: float

    def weight(self, at: LayerPosition, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        return self.sigma * jr.normal(key, shape)


class NearZeroRank(AbstractParameterisation):
    """Weights near the zero-rank saddle: N(0, sigma^2), but the penultimate matrix W_{L-1} drawn U(+-1/sqrt(fan_in)).

    With every matrix but W_{L-1} at zero the map is zero, and theorem 3.3's critical point of rank zero is met.
    """

    sigma: float

    def weight(self, at: LayerPosition, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        if at.layer == at.depth - 1:
            return uniform(shape, at.fan_in, key)
        return self.sigma * jr.normal(key, shape)
