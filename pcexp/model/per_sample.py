"""Algebra of one number a sample: the steps of a solver that are its own for every example of a batch.

A tree here is hidden activities, or errors, of a batch: one array a segment, layers along the first axis, the batch along
the network's `batch_axes`. What is decided sample by sample does not depend on who else is in the batch.
"""

import itertools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from pcexp.model.network import Activities, Network

PerSample = Float[Array, " batch"]
Columns = Float[Array, "n batch"]


def _with_axes(network: Network, tree: Activities) -> Iterator[tuple[Array, int]]:
    """Arrays of a tree (it may end below the output) with the position of the batch in them."""
    for leaf, axis in zip(tree, network.batch_axes, strict=False):
        yield leaf, leaf.ndim + axis if axis < 0 else axis


def inner(network: Network, a: Activities, b: Activities) -> PerSample:
    """Inner products <a, b> of every sample."""
    totals = [
        jnp.sum(left * right, axis=tuple(i for i in range(left.ndim) if i != axis))
        for (left, axis), right in zip(_with_axes(network, a), b, strict=True)
    ]
    return jnp.sum(jnp.stack(totals), axis=0)


def scaled(network: Network, factors: PerSample, tree: Activities) -> Activities:
    """Every sample times its own factor."""
    return tuple(_along(axis, factors, leaf) * leaf for leaf, axis in _with_axes(network, tree))


def chosen(network: Network, mask: Bool[Array, " batch"], a: Activities, b: Activities) -> Activities:
    """Samples of a where the mask holds, of b elsewhere."""
    return tuple(
        jnp.where(_along(axis, mask, left), left, right)
        for (left, axis), right in zip(_with_axes(network, a), b, strict=True)
    )


def ratio(numerator: PerSample, denominator: PerSample) -> PerSample:
    """Quotient that is 0 where the denominator is 0: a sample that has nothing left to do stays where it is."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), 0)


def flattened(network: Network, tree: Activities) -> tuple[Columns, Callable[[Columns], Activities]]:
    """One column a sample, and the way back."""
    moved = [jnp.moveaxis(leaf, axis, -1) for leaf, axis in _with_axes(network, tree)]
    ends = list(itertools.accumulate(leaf[..., 0].size for leaf in moved))
    axes = [axis for _, axis in _with_axes(network, tree)]

    def back(columns: Columns) -> Activities:
        parts = jnp.split(columns, ends[:-1])
        return tuple(
            jnp.moveaxis(part.reshape(leaf.shape), -1, axis)
            for part, leaf, axis in zip(parts, moved, axes, strict=True)
        )

    return jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in moved]), back


def same_for_all(network: Network, like: Activities) -> Activities:
    """Random normal numbers, the same for every sample of the batch; a loop that starts from them waits for `like`."""
    drawn = []
    for index, (leaf, axis) in enumerate(_with_axes(network, like)):
        one = jr.normal(jr.fold_in(jr.key(0), index), (*leaf.shape[:axis], 1, *leaf.shape[axis + 1 :]), leaf.dtype)
        drawn.append(one + 0 * leaf)
    return tuple(drawn)


def _along(axis: int, values: Array, leaf: Array) -> Array:
    """One number a sample in the shape that multiplies an array."""
    return values.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
