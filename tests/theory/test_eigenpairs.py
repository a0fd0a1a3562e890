"""Extreme eigenpairs from products against scipy's Lanczos and against dense solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from pcexp.theory.eigenpairs import extreme_eigenpairs, largest_eigenvalue

pytestmark = pytest.mark.usefixtures("x64")


def symmetric(eigenvalues, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return q @ np.diag(eigenvalues) @ q.T


def pairs(matrix, **more):
    matrix = jnp.asarray(matrix)
    return jax.jit(
        lambda key: extreme_eigenpairs(lambda v: matrix @ v, jnp.zeros(len(matrix)), key=key, **more)
    )(jax.random.key(0))  # fmt: skip


def test_both_ends_are_those_that_scipy_finds_and_the_residuals_are_true():
    matrix = symmetric(np.concatenate([[-3.0, -2.5], np.linspace(-1, 1, 196), [4.0, 7.0]]))
    low, high = pairs(matrix, count=2, steps=120)
    theirs = eigsh(matrix, k=2, which="SA")[0], eigsh(matrix, k=2, which="LA")[0]
    for found, values in zip((low, high), theirs, strict=True):
        np.testing.assert_allclose(found.values, np.sort(values), rtol=1e-10)
        images = np.asarray(found.vectors) @ matrix
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(images, found.values[:, None] * found.vectors, atol=1e-9)
        assert np.all(np.asarray(found.residuals) < 1e-9)
    short, _ = pairs(matrix, steps=8)
    expected = np.linalg.norm(matrix @ short.vectors[0] - short.values[0] * short.vectors[0])
    assert expected > 1e-3
    np.testing.assert_allclose(short.residuals[0], expected, rtol=1e-10)


@pytest.mark.parametrize(
    "eigenvalues",
    [np.repeat([-2.0, -1.0, 0.0], [5, 5, 30]), np.zeros(40), np.ones(40), np.arange(40.0), np.array([3.0])],
    ids=["the origin's", "zero", "identity", "all different", "one by one"],
)
def test_with_as_many_steps_as_rows_every_eigenvalue_is_found_as_often_as_it_is_there(eigenvalues):
    low, high = pairs(symmetric(eigenvalues), count=len(eigenvalues), steps=100)
    np.testing.assert_allclose(low.values, np.sort(eigenvalues), atol=1e-12)
    np.testing.assert_array_equal(low.values, high.values)
    np.testing.assert_allclose(low.vectors @ low.vectors.T, np.eye(len(eigenvalues)), atol=1e-12)
    assert np.all(np.asarray(low.residuals) < 1e-11)


@pytest.mark.parametrize("count", [0, 11])
def test_more_pairs_than_steps_are_refused(count):
    with pytest.raises(ValueError, match="count must be from 1 to 10"):
        pairs(np.eye(40), steps=10, count=count)


def test_the_largest_eigenvalue_comes_from_below_and_with_the_residual_of_its_ritz_vector():
    """Oracle: the Krylov space itself, orthonormalised by numpy's QR, and the Rayleigh quotients in it."""
    matrices = np.stack([symmetric(np.linspace(0, 4, 30), seed=1), symmetric(np.geomspace(1e-3, 9, 30), seed=2)])
    first = np.random.default_rng(3).normal(size=(30, 2))
    for steps in (2, 4, 7):
        low, high = jax.jit(
            lambda first, steps=steps: largest_eigenvalue(
                lambda v: jnp.einsum("bij,jb->ib", matrices, v), first, steps=steps
            )
        )(jnp.asarray(first))
        for b, matrix in enumerate(matrices):
            krylov = [first[:, b]]
            for _ in range(steps - 1):
                krylov.append(matrix @ krylov[-1] / np.linalg.norm(krylov[-1]))
            basis, _ = np.linalg.qr(np.stack(krylov, axis=1))
            values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
            ritz = basis @ vectors[:, -1]
            residual = np.linalg.norm(matrix @ ritz - values[-1] * ritz)
            assert residual > 1e-2 and low[b] < np.linalg.eigvalsh(matrix)[-1]
            np.testing.assert_allclose([low[b], high[b]], [values[-1], values[-1] + residual], rtol=1e-6)


@pytest.mark.parametrize("eigenvalues", [[2.0], [1.0, 3.0], [2.0, 2.0], [0.5, 1.0, 4.0], [1.0] * 5, [0.0, 0.0, 5.0]])
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_the_largest_eigenvalue_of_the_smallest_matrices_is_never_above_the_true_one(eigenvalues, steps):
    matrix = jnp.asarray(symmetric(np.array(eigenvalues)))
    first = jnp.asarray(np.random.default_rng(1).normal(size=(len(eigenvalues), 2)))
    below, above = largest_eigenvalue(lambda v: matrix @ v, first, steps=steps)
    assert np.all(below <= max(eigenvalues) * (1 + 1e-12)) and np.all(above >= below)
    if steps == 16:
        np.testing.assert_allclose(below, max(eigenvalues), rtol=1e-12)
