"""Batches of an epoch, and where their examples lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.data import Dataset
from pcexp.data.dataset import Split, aligned
from pcexp.train import batch_indices, epoch_permutation


def test_an_epoch_visits_every_example_at_most_once_and_drops_the_partial_batch():
    n, batch_size = 103, 10
    permutation = epoch_permutation(jax.random.key(0), 3, n)
    visited = np.concatenate([batch_indices(permutation, s, batch_size) for s in range(n // batch_size)])
    assert visited.shape == (100,)
    assert len(np.unique(visited)) == 100
    assert np.array_equal(np.sort(permutation), np.arange(n))


def test_the_dropped_examples_differ_between_epochs():
    dropped = [
        frozenset(np.asarray(epoch_permutation(jax.random.key(0), epoch, 103)[100:]).tolist()) for epoch in range(9)
    ]
    assert len(set(dropped)) == 9


def test_a_position_is_equally_likely_to_hold_any_example():
    firsts = jax.vmap(lambda epoch: epoch_permutation(jax.random.key(1), epoch, 4)[0])(jnp.arange(4000))
    # Binomial(4000, 1/4): standard deviation 27.4; five of them.
    assert np.all(np.abs(np.bincount(firsts, minlength=4) - 1000) < 137)


def test_an_epoch_asked_for_in_a_traced_loop_is_the_one_asked_for_alone():
    n, batch_size = 23, 5
    per_epoch = n // batch_size

    @jax.jit
    def visited(key, steps):
        def step(carry, t):
            permutation = epoch_permutation(key, t // per_epoch, n)
            return carry, batch_indices(permutation, t % per_epoch, batch_size)

        return jax.lax.scan(step, None, steps)[1]

    key = jax.random.key(7)
    expected = [epoch_permutation(key, t // 4, n)[(t % 4) * 5 : (t % 4 + 1) * 5] for t in range(12)]
    assert np.array_equal(visited(key, jnp.arange(12)), np.stack(expected))


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_larger_than_the_training_set_or_empty_is_refused_with_both_numbers(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size}.*10"):
        batch_indices(jnp.arange(10), 0, batch_size)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "made",
    [
        lambda x: x,
        lambda x: aligned(np.ascontiguousarray(x.T)).T,
        lambda x: read_only(aligned(x.copy())),
        lambda x: np.concatenate([x[:0].reshape(-1), [0], x.reshape(-1)]).astype(np.float32)[1:].reshape(x.shape),
    ],
    ids=["as made", "Fortran order", "read-only", "off by four bytes"],
)
def test_examples_are_read_in_place_on_a_cpu_wherever_they_were_made(made):
    x = np.random.default_rng(0).normal(size=(96, 7)).astype(np.float32)
    split = Split(made(x), np.ones((96, 2), np.float32))
    dataset = Dataset("made up", split, split, split, "", "")
    np.testing.assert_array_equal(dataset.train.x, x)
    for array in (dataset.train.x, dataset.test.y):
        assert jnp.asarray(array, jnp.float32).unsafe_buffer_pointer() == array.ctypes.data
