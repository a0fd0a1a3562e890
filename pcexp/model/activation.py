"""Activation functions, max pooling, and their differences without cancellation.

The engine's variables are deviations d = z - zhat from the forward pass, which can be 1e-12 of zhat. Written as
phi(zhat + d) - phi(zhat), float32 returns round-off there; the forms below keep full relative accuracy in d.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from pcexp.model.checks import check_choice

Activation = Literal["linear", "tanh", "relu"]
Image = Float[Array, "_ _ channels"]


PHI: dict[Activation, Callable[[Array], Array]] = {"linear": lambda u: u, "tanh": jnp.tanh, "relu": jax.nn.relu}


def activate(activation: Activation, u: Float[Array, "..."]) -> Float[Array, "..."]:
    """Activation phi(u)."""
    check_choice("activation", activation, tuple(PHI))
    return PHI[activation](u)


def _derivative(activation: Activation, u: Array) -> Array:
    if activation == "relu":
        return (u > 0).astype(u.dtype)
    tail = jnp.exp(-2 * jnp.abs(u))  # 1 - tanh(u)^2 loses it where tanh is near 1
    return 4 * tail / jnp.square(1 + tail)


def activation_difference(activation: Activation, u: Array, d: Array, activated: Array | None = None) -> Array:
    """Difference phi(u + d) - phi(u), accurate to round-off of phi'(u) d however small d is, and however saturated tanh is.

    `activated` is phi(u) where it is known already.
    """
    if activation == "linear":
        return d
    return _difference(activation, u, d, activate(activation, u) if activated is None else activated)


def _difference_value(activation: Activation, u: Array, d: Array, activated: Array) -> Array:
    if activation == "tanh":
        # sinh(d) / (cosh(u) cosh(u + d)) without its overflows: 2 / (1 + e^-2|u|) = 1 + |tanh(u)|, and e^-|u| e^-|u+d| e^|d|
        # is 1 where the sign changes and e^-2 min(|u|, |u+d|) elsewhere.
        z, t = u + d, jnp.tanh(d)
        tail = jnp.where(u * z < 0, 1, jnp.exp(-2 * jnp.minimum(jnp.abs(u), jnp.abs(z))))
        return 2 * tail * t * (1 + jnp.abs(activated)) / ((1 + jnp.abs(t)) * (1 + jnp.exp(-2 * jnp.abs(z))))
    # relu, by cases on the two signs: both on -> d, switched off -> -u, switched on -> u + d, both off -> 0.
    z = u + d
    return jnp.where(u > 0, jnp.where(z > 0, d, -u), jnp.maximum(z, 0))


_difference = jax.custom_jvp(_difference_value, nondiff_argnums=(0,))


@functools.partial(_difference.defjvp, symbolic_zeros=True)
def _difference_jvp(activation: Activation, primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> Any:
    # The derivative with respect to d is phi'(u + d) exactly; differentiating the formula would cost more and round more.
    # u is a constant of inference, so its tangent is usually a symbolic zero and costs nothing. That of phi(u) is part of it.
    (u, d, activated), (u_dot, d_dot, _) = primals, tangents
    at_end = _derivative(activation, u + d)
    out = jnp.zeros_like(d) if isinstance(d_dot, SymbolicZero) else at_end * d_dot
    if not isinstance(u_dot, SymbolicZero):
        out = out + (at_end - _derivative(activation, u)) * u_dot
    # The value by the rule again: the second derivative of the formula has kinks at d = 0.
    return _difference(activation, u, d, activated), out


def _windows(v: Array, size: int) -> Array:
    """Windows of v as (rows, size, columns, size, channels); a border that fills no window is cut off."""
    rows, columns, channels = v.shape[0] // size, v.shape[1] // size, v.shape[2]
    return v[: rows * size, : columns * size].reshape(rows, size, columns, size, channels)


def _winner(windows: Array, change: Array | None = None) -> Array:
    """Position (row-major) of the largest entry of each window; ties go to the first, so that each has one owner."""
    size = windows.shape[1]
    change = jnp.zeros_like(windows) if change is None else change
    best, best_change = windows[:, 0, :, 0], change[:, 0, :, 0]
    position = jnp.zeros(best.shape, jnp.int32)
    for k in range(1, size * size):
        candidate, candidate_change = windows[:, k // size, :, k % size], change[:, k // size, :, k % size]
        wins = (candidate - best) + (candidate_change - best_change) > 0
        best, best_change = jnp.where(wins, candidate, best), jnp.where(wins, candidate_change, best_change)
        position = jnp.where(wins, k, position)
    return position


def _pick(windows: Array, winner: Array) -> Array:
    """Entry of each window at the winner's position.

    A masked sum, because its transpose is a masked broadcast: one pass over memory, where that of an index is a scatter.
    """
    size = windows.shape[1]
    position = jnp.arange(size * size, dtype=winner.dtype).reshape(1, size, 1, size, 1)
    mask = jnp.broadcast_to(winner[:, None, :, None], windows.shape) == jnp.broadcast_to(position, windows.shape)
    return jnp.sum(jnp.where(mask, windows, 0), axis=(1, 3))


def max_pool(v: Image, size: int) -> Image:
    """Largest entry of each size x size window."""
    windows = _windows(v, size)
    return _pick(windows, jax.lax.stop_gradient(_winner(windows)))


def max_pool_difference(v: Image, d: Image, size: int) -> Image:
    """Difference max_pool(v + d) - max_pool(v) = d_j + (v_j - v_i) with j, i the winners of v + d and of v.

    The bracket is exactly zero where the winner is unchanged, so nothing cancels there.
    """
    old, change = _windows(v, size), _windows(d, size)
    winner = jax.lax.stop_gradient(_winner(old, change))
    return _pick(change, winner) + (_pick(old, winner) - _pick(old, _winner(old)))
