"""Batches of an epoch: shuffled once an epoch, the last partial batch dropped. All traceable."""

import jax
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray


def n_batches(n: int, batch_size: int) -> int:
    """Full batches in n examples: floor(n / batch_size)."""
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size={batch_size}: valid are 1 to the number of training examples, {n}")
    return n // batch_size


def epoch_permutation(key: PRNGKeyArray, epoch: int | Int[Array, ""], n: int) -> Int[Array, " {n}"]:
    """Order of the n training examples in one epoch, the same whenever it is asked for."""
    # Folded in, not split off step by step: a run that resumes at epoch 7 needs no history.
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


def batch_indices(
    permutation: Int[Array, " n"], step_in_epoch: int | Int[Array, ""], batch_size: int
) -> Int[Array, " {batch_size}"]:
    """Examples of one batch: permutation[s B : (s+1) B], for s below `n_batches`."""
    n_batches(len(permutation), batch_size)
    # dynamic_slice clamps: a step beyond the last full batch would silently repeat examples. Callers take s modulo
    # n_batches.
    return lax.dynamic_slice(permutation, (step_in_epoch * batch_size,), (batch_size,))
