"""Extreme eigenpairs of symmetric matrices that are known by their products: Lanczos, of one matrix or of one for each of a batch.

Where the vectors fill an invariant subspace the next one is drawn anew, orthogonal to those that are kept: with all of them
kept, eigenvalues of high multiplicity are found as often as steps allow. Of fewer the largest eigenvalue is the same,
because lost orthogonality only repeats Ritz values.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

Vector = Float[Array, " n"]
Vectors = Float[Array, "n *batch"]


class Eigenpairs(NamedTuple):
    """Eigenvalues, ascending, their unit eigenvectors, and the residuals ||H v - lambda v|| that say how well they are known."""

    values: Float[Array, " count"]
    vectors: Float[Array, "count n"]
    residuals: Float[Array, " count"]


def tridiagonalised(
    product: Callable[[Vectors], Vectors], first: Vectors, *, steps: int, kept: int, key: PRNGKeyArray
) -> tuple[Float[Array, "steps *batch"], Float[Array, "steps *batch"], Float[Array, "kept n *batch"]]:
    """Diagonal and what is beside it of the matrix in the basis that `steps` products span, and the `kept` last of its vectors."""
    n, batch = first.shape[0], first.shape[1:]
    eps = jnp.finfo(first.dtype).eps

    def orthogonal(w: Array, basis: Array) -> Array:
        for _ in range(2):  # twice is enough
            w = w - jnp.einsum("sn...,s...->n...", basis, jnp.einsum("sn...,n...->s...", basis, w))
        return w

    def step(j: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        basis, diagonal, beside, q = state
        basis = basis.at[j % kept].set(q)
        w = product(q)
        alpha = jnp.einsum("n...,n...->...", q, w)
        scale = jnp.maximum(jnp.maximum(jnp.max(jnp.abs(diagonal), axis=0), jnp.abs(alpha)), jnp.max(beside, axis=0))
        w = orthogonal(w, basis)
        beta = jnp.linalg.norm(w, axis=0)
        exhausted = beta <= 10 * eps * jnp.sqrt(n) * scale
        drawn = unit(jr.normal(jr.fold_in(key, j + 1), (n,), first.dtype))
        fresh = orthogonal(jnp.broadcast_to(drawn.reshape(n, *[1] * len(batch)), first.shape), basis)
        w = jnp.where(exhausted[None], fresh, w)
        length = jnp.maximum(jnp.linalg.norm(w, axis=0), jnp.finfo(first.dtype).tiny)
        following = unit(orthogonal(w / length[None], basis))
        return basis, diagonal.at[j].set(alpha), beside.at[j].set(jnp.where(exhausted, 0, beta)), following

    zeros = jnp.zeros((steps, *batch), first.dtype)
    start = (jnp.zeros((kept, *first.shape), first.dtype), zeros, zeros, unit(first))
    basis, diagonal, beside, _ = lax.fori_loop(0, steps, step, start)
    return diagonal, beside, basis


def unit(w: Vectors) -> Vectors:
    """Vectors of length one."""
    return w / jnp.linalg.norm(w, axis=0)[None]


def largest_eigenvalue(
    product: Callable[[Vectors], Vectors], first: Vectors, *, steps: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Largest eigenvalue of every sample's matrix after some products: Ritz value (from below), and with its residual."""
    steps = min(steps, first.shape[0])  # beyond that no vector is left
    diagonal, beside, _ = tridiagonalised(product, first, steps=steps, kept=min(steps, 2), key=jr.key(1))
    below = jax.vmap(lambda b: jnp.diag(b, -1), in_axes=1)(beside[:-1])
    tridiagonal = jax.vmap(jnp.diag, in_axes=1)(diagonal) + below + jnp.swapaxes(below, 1, 2)
    values, mixtures = jnp.linalg.eigh(tridiagonal)
    return values[:, -1], values[:, -1] + beside[-1] * jnp.abs(mixtures[:, -1, -1])


def extreme_eigenpairs(
    product: Callable[[Vector], Vector], like: Vector, *, steps: int = 128, count: int = 1, key: PRNGKeyArray
) -> tuple[Eigenpairs, Eigenpairs]:
    """The `count` lowest and the `count` highest eigenpairs after `steps` products; `like` has the matrix' size and type."""
    steps = min(steps, like.size)
    if not 1 <= count <= steps:
        raise ValueError(f"count must be from 1 to {steps} (the steps, at most the size of the matrix), not {count}")
    first = jr.normal(jr.fold_in(key, 0), like.shape, like.dtype)
    diagonal, beside, basis = tridiagonalised(product, first, steps=steps, kept=steps, key=key)
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, mixtures = jnp.linalg.eigh(tridiagonal)

    def pairs(chosen: slice) -> Eigenpairs:
        vectors = mixtures[:, chosen].T @ basis
        images = lax.map(product, vectors)
        residuals = jax.vmap(lambda w, v, a: jnp.linalg.norm(w - a * v))(images, vectors, values[chosen])
        return Eigenpairs(values[chosen], vectors, residuals)

    return pairs(slice(0, count)), pairs(slice(steps - count, steps))
