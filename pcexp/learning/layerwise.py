"""Weight gradients compared layer by layer, at any size: squares of small ones would underflow, so each layer is scaled first."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcexp.model.network import Network


def norms(gradient: Network) -> Float[Array, " depth"]:
    """Frobenius norm ||g_l|| of the weights of every layer, from the input side."""
    return jnp.concatenate([_scaled(segment.weight)[1] for segment in gradient.segments])


def cosines(a: Network, b: Network) -> Float[Array, " depth"]:
    """Cosine <a_l, b_l> / (||a_l|| ||b_l||) of every layer; NaN where a norm is zero."""
    found = []
    for one, other in zip(a.segments, b.segments, strict=True):
        (u, p), (v, q) = _scaled(one.weight), _scaled(other.weight)
        found.append(jnp.where((p > 0) & (q > 0), jnp.sum(u * v, axis=tuple(range(1, u.ndim))), jnp.nan))
    return jnp.concatenate(found)


def relative_errors(gradient: Network, exact: Network) -> Float[Array, " depth"]:
    """||g_l - exact_l|| / ||exact_l|| of every layer; infinite where exact_l is zero."""
    difference, norm = norms(jax.tree.map(jnp.subtract, gradient, exact)), norms(exact)
    return jnp.where(norm > 0, difference / jnp.where(norm > 0, norm, 1), jnp.inf)


def _scaled(weight: Float[Array, "depth ..."]) -> tuple[Float[Array, "depth ..."], Float[Array, " depth"]]:
    """Layers divided by their norms (zero where that is zero), and the norms."""
    axes = tuple(range(1, weight.ndim))
    largest = jnp.max(jnp.abs(weight), axis=axes, keepdims=True)
    unit = weight / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(jnp.square(unit), axis=axes, keepdims=True))
    return unit / jnp.where(length > 0, length, 1), (largest * length).reshape(-1)
