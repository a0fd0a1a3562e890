"""Algebra of one number a sample: the steps of a solver that are its own for every example of a batch.

A tree here is hidden activities, or errors, of a batch: one array a segment, layers along the first axis, the batch along
the network's `batch_axes`. What is decided sample by sample does not depend on who else is in the batch.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float

from pcexp.model.network import Activities, Network


def _with_axes(network: Network, tree: Activities) -> Iterator[tuple[Array, int]]:
    """Arrays of a tree (it may end below the output) with the position of the batch in them."""
    for leaf, axis in zip(tree, network.batch_axes, strict=False):
        yield leaf, leaf.ndim + axis if axis < 0 else axis + 1  # layers come first


def inner(network: Network, a: Activities, b: Activities) -> Float[Array, " batch"]:
    """Inner products <a, b> of every sample."""
    totals = [
        jnp.sum(left * right, axis=tuple(i for i in range(left.ndim) if i != axis))
        for (left, axis), right in zip(_with_axes(network, a), b, strict=True)
    ]
    return jnp.sum(jnp.stack(totals), axis=0)


def scaled(network: Network, factors: Float[Array, " batch"], tree: Activities) -> Activities:
    """Every sample times its own factor."""
    return tuple(_along(axis, factors, leaf) * leaf for leaf, axis in _with_axes(network, tree))


def chosen(network: Network, mask: Bool[Array, " batch"], a: Activities, b: Activities) -> Activities:
    """Samples of a where the mask holds, of b elsewhere."""
    return tuple(
        jnp.where(_along(axis, mask, left), left, right)
        for (left, axis), right in zip(_with_axes(network, a), b, strict=True)
    )


def ratio(numerator: Float[Array, " batch"], denominator: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Quotient that is 0 where the denominator is 0: a sample that has nothing left to do stays where it is."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), 0)


def largest_eigenvalue(
    network: Network, product: Callable[[Activities], Activities], like: Activities, n_products: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Largest eigenvalue of a symmetric operator of every sample by Lanczos: Ritz value (from below), and with its residual.

    Every sample starts from the same random vector. Lost orthogonality only repeats Ritz values, and a breakdown appends
    zeros: neither touches the largest one of an operator that has positive eigenvalues.
    """
    start = _same_for_all(network, like)
    length = jnp.sqrt(inner(network, start, start))
    ones = jnp.ones_like(length)
    unit = scaled(network, ratio(ones, length), start)

    def step(
        state: tuple[Activities, Activities, Array], _: None
    ) -> tuple[tuple[Activities, Activities, Array], tuple[Array, Array]]:
        last, v, beta = state
        w = jax.tree.map(jnp.subtract, product(v), scaled(network, beta, last))
        alpha = inner(network, w, v)
        w = jax.tree.map(jnp.subtract, w, scaled(network, alpha, v))
        beta = jnp.sqrt(inner(network, w, w))
        return (v, scaled(network, ratio(ones, beta), w), beta), (alpha, beta)

    nothing = jax.tree.map(jnp.zeros_like, unit)
    _, (alphas, betas) = lax.scan(step, (nothing, unit, jnp.zeros_like(length)), length=n_products)
    below = jax.vmap(lambda b: jnp.diag(b, -1), in_axes=1)(betas[:-1])
    tridiagonal = jax.vmap(jnp.diag, in_axes=1)(alphas) + below + jnp.swapaxes(below, 1, 2)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    return values[:, -1], values[:, -1] + betas[-1] * jnp.abs(vectors[:, -1, -1])


def _same_for_all(network: Network, like: Activities) -> Activities:
    """Random normal numbers, the same for every sample of the batch; a loop that starts from them waits for `like`."""
    drawn = []
    for index, (leaf, axis) in enumerate(_with_axes(network, like)):
        one = jr.normal(jr.fold_in(jr.key(0), index), (*leaf.shape[:axis], 1, *leaf.shape[axis + 1 :]), leaf.dtype)
        drawn.append(one + 0 * leaf)
    return tuple(drawn)


def _along(axis: int, values: Array, leaf: Array) -> Array:
    """One number a sample in the shape that multiplies an array."""
    return values.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
