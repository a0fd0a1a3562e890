"""Extreme eigenpairs of a symmetric matrix that is known by its products: Lanczos, every vector kept orthogonal to all before."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

Vector = Float[Array, " n"]


class Eigenpairs(NamedTuple):
    """Eigenvalues, ascending, their unit eigenvectors, and the residuals ||H v - lambda v|| that say how well they are known."""

    values: Float[Array, " count"]
    vectors: Float[Array, "count n"]
    residuals: Float[Array, " count"]


def extreme_eigenpairs(
    product: Callable[[Vector], Vector], like: Vector, *, steps: int = 128, count: int = 1, key: PRNGKeyArray
) -> tuple[Eigenpairs, Eigenpairs]:
    """The `count` lowest and the `count` highest eigenpairs after `steps` products; `like` has the matrix' size and type.

    The vectors of all steps are kept. Where they fill an invariant subspace the next one is drawn anew, orthogonal to
    them: eigenvalues of high multiplicity are found as often as steps allow.
    """
    n, steps = like.size, min(steps, like.size)
    if not 1 <= count <= steps:
        raise ValueError(f"count must be from 1 to {steps} (the steps, at most the size of the matrix), not {count}")
    eps = jnp.finfo(like.dtype).eps

    def orthogonal(w: Vector, basis: Float[Array, "steps n"]) -> Vector:
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        return w

    def unit(w: Vector) -> Vector:
        return w / jnp.linalg.norm(w)

    def step(j: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        basis, diagonal, beside, q = state
        basis = basis.at[j].set(q)
        w = product(q)
        alpha = q @ w
        scale = jnp.maximum(jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.abs(alpha)), jnp.max(beside))
        w = orthogonal(w, basis)
        beta = jnp.linalg.norm(w)
        exhausted = beta <= 10 * eps * jnp.sqrt(n) * scale
        fresh = orthogonal(unit(jr.normal(jr.fold_in(key, j + 1), like.shape, like.dtype)), basis)
        w = jnp.where(exhausted, fresh, w)
        following = unit(orthogonal(w / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(like.dtype).tiny), basis))
        return basis, diagonal.at[j].set(alpha), beside.at[j].set(jnp.where(exhausted, 0, beta)), following

    first = unit(jr.normal(jr.fold_in(key, 0), like.shape, like.dtype))
    zeros = jnp.zeros(steps, like.dtype)
    basis, diagonal, beside, _ = lax.fori_loop(0, steps, step, (jnp.zeros((steps, n), like.dtype), zeros, zeros, first))
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, mixtures = jnp.linalg.eigh(tridiagonal)

    def pairs(chosen: slice) -> Eigenpairs:
        vectors = mixtures[:, chosen].T @ basis
        images = lax.map(product, vectors)
        return Eigenpairs(
            values[chosen],
            vectors,
            jax.vmap(lambda w, v, a: jnp.linalg.norm(w - a * v))(images, vectors, values[chosen]),
        )

    return pairs(slice(0, count)), pairs(slice(steps - count, steps))
