"""Activations, pooling and their differences against extended precision, finite differences and XLA's own pooling."""

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pcexp.model.activation import activate, activation_difference, max_pool, max_pool_difference

NAMES = ["linear", "tanh", "relu"]
difference = jax.jit(activation_difference, static_argnums=0)
pool = jax.jit(max_pool, static_argnums=1)
pool_difference = jax.jit(max_pool_difference, static_argnums=2)


def exact_difference(name, u, d):
    """phi(u + d) - phi(u) in 80-bit floats: by other formulae where the subtraction would cancel."""
    u, d = np.asarray(u, np.longdouble), np.asarray(d, np.longdouble)
    tiny = by_hand.increment(name, u, np.clip(d, -1, 1))
    return np.where(np.abs(d) < 1, tiny, by_hand.phi(name, u + d) - by_hand.phi(name, u)).astype(np.float64)


def grid(largest):
    magnitudes = np.concatenate([10.0 ** -np.arange(0, 31, 3), [3.0, 20.0]])
    u = np.array([-2.0, -1.1, -0.4, -1e-3, 0.0, 1e-3, 0.3, 0.9, 2.0])
    d = np.concatenate([magnitudes, -magnitudes])
    return [v.ravel() for v in np.meshgrid(u[np.abs(u) <= largest], d)]


@pytest.mark.parametrize("name", NAMES)
def test_differences_keep_full_relative_accuracy_in_float64_down_to_1e_30_of_the_activity(name, x64):
    u, d = grid(largest=2.0)
    np.testing.assert_allclose(
        difference(name, jnp.asarray(u), jnp.asarray(d)), exact_difference(name, u, d), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_differences_keep_full_relative_accuracy_in_float32(name):
    u, d = (v.astype(np.float32) for v in grid(largest=2.0))
    np.testing.assert_allclose(
        difference(name, jnp.asarray(u), jnp.asarray(d)), exact_difference(name, u, d), rtol=1e-5, atol=0
    )


def sweep(dtype):
    u, d = np.linspace(-20, 20, 81), np.concatenate([s * 10.0 ** np.arange(-12, 1.25, 0.25) for s in (1, -1)])
    return [v.ravel().astype(dtype) for v in np.meshgrid(u, d)]


def exact_everywhere(name, u, d):
    """phi(u + d) - phi(u) in 80-bit floats, by a form that loses nothing in this range, however saturated."""
    u, d = u.astype(np.longdouble), d.astype(np.longdouble)
    return by_hand.increment(name, u, d).astype(np.float64)


@pytest.mark.parametrize(("dtype", "within"), [(np.float32, 4e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("name", NAMES)
def test_differences_keep_their_relative_accuracy_however_saturated_the_activation(name, dtype, within):
    """The tolerance is that of u + d, which is rounded to an ulp of u: e^-2u turns |u| ulps into relative error."""
    u, d = sweep(dtype)
    with jax.enable_x64(dtype is np.float64):
        value = difference(name, jnp.asarray(u), jnp.asarray(d))
        slopes = jax.jit(jax.vmap(jax.grad(lambda d, u: activation_difference(name, u, d))))(
            jnp.asarray(d), jnp.asarray(u)
        )
    np.testing.assert_allclose(value, exact_everywhere(name, u, d), rtol=within, atol=0)
    np.testing.assert_allclose(slopes, by_hand.slope(name, (u + d).astype(np.longdouble)).astype(float), rtol=within)


def test_a_difference_of_tanh_does_not_overflow_where_cosh_would():
    u, d = (np.array(v, np.float32) for v in ([50.0, -200, 100, 0, 3e38, -60], [-100.0, 400, 1e-3, -300, 1, 60]))
    np.testing.assert_allclose(difference("tanh", jnp.asarray(u), jnp.asarray(d)), [-2, 2, 0, -1, 0, 1], atol=1e-30)


@pytest.mark.parametrize(
    ("u", "d", "expected"), [(1, -3, -1), (-1, 3, 2), (-1, -1, 0), (2, 1, 1), (0, 2, 2), (0, -2, 0)]
)
def test_a_relu_difference_crosses_the_kink_as_the_function_does(u, d, expected):
    assert difference("relu", jnp.array(float(u)), jnp.array(float(d))) == expected


@pytest.mark.parametrize("name", NAMES)
@given(values=arrays(np.float64, (2, 8), elements=st.floats(-50, 50)))
def test_differences_agree_with_subtraction_wherever_subtraction_is_accurate(name, values):
    with jax.enable_x64(True):
        u, d = jnp.asarray(values)
        value = np.asarray(difference(name, u, d))
    plain = by_hand.phi(name, values.sum(axis=0)) - by_hand.phi(name, values[0])
    np.testing.assert_allclose(value, plain, rtol=1e-12, atol=1e-14 * (1 + np.max(np.abs(values))))


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_a_difference_are_its_finite_differences(name, x64):
    rng = np.random.default_rng(0)
    u, d = rng.normal(size=(2, 40))
    for argument in (0, 1):
        slopes = jax.vmap(jax.grad(lambda u, d: activation_difference(name, u, d), argument))(
            jnp.asarray(u), jnp.asarray(d)
        )
        h = 1e-6
        up, down = ((u + s, d) if argument == 0 else (u, d + s) for s in (h, -h))
        expected = (exact_difference(name, *up) - exact_difference(name, *down)) / (2 * h)
        np.testing.assert_allclose(slopes, expected, atol=2e-9)


@pytest.mark.parametrize("u", [0.7, -3.0, 0.0])
def test_the_second_derivative_at_no_deviation_is_that_of_tanh_through_a_pull_too(u, x64):
    def pulled(d):
        return jax.vjp(lambda d: activation_difference("tanh", jnp.asarray(u), d), d)[0]

    expected = -2 * np.tanh(u) * (1 - np.tanh(u) ** 2)
    for f in (pulled, lambda d: activation_difference("tanh", jnp.asarray(u), d)):
        for d in (0.0, 1e-9):
            np.testing.assert_allclose(jax.grad(jax.grad(f))(jnp.asarray(d)), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_by_a_tiny_deviation_is_the_slope_of_the_activation(name):
    u = np.array([-1.5, -0.2, 0.4, 1.2], np.float32)
    slopes = jax.vmap(jax.grad(lambda d, u: activation_difference(name, u, d)))(jnp.full(4, 1e-20), jnp.asarray(u))
    np.testing.assert_allclose(slopes, by_hand.slope(name, u.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_the_functions_they_name(name, x64):
    u = np.linspace(-3, 3, 25)
    np.testing.assert_allclose(activate(name, jnp.asarray(u)), by_hand.phi(name, u), rtol=1e-14)
    slopes = jax.vmap(jax.grad(lambda v: activate(name, v)))(jnp.asarray(u[u != 0]))
    np.testing.assert_allclose(slopes, by_hand.slope(name, u[u != 0]), rtol=1e-12)


def test_the_derivative_of_relu_at_zero_is_zero_in_both_variables_of_inference():
    # A unit behind a dead layer sits at exactly zero: a slope of 1/2 there would move what should be still.
    zero = jnp.array(0.0)
    assert jax.grad(lambda u: activate("relu", u))(zero) == 0
    assert jax.grad(lambda d: activation_difference("relu", zero, d))(zero) == 0


def plain_pool(v, size):
    rows, columns, channels = v.shape[0] // size, v.shape[1] // size, v.shape[2]
    out = np.zeros((rows, columns, channels), v.dtype)
    for i, j, c in np.ndindex(out.shape):
        out[i, j, c] = v[i * size : (i + 1) * size, j * size : (j + 1) * size, c].max()
    return out


@pytest.mark.parametrize(("shape", "size"), [((6, 6, 2), 2), ((7, 5, 3), 2), ((7, 7, 1), 3), ((4, 4, 2), 1)])
def test_pooling_is_xlas_and_drops_a_border_that_fills_no_window(shape, size):
    v = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    out = pool(v, size)
    np.testing.assert_array_equal(out, plain_pool(np.asarray(v), size))
    reduced = jax.lax.reduce_window(v, -jnp.inf, jax.lax.max, (size, size, 1), (size, size, 1), "VALID")
    np.testing.assert_array_equal(out, reduced)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32)
    ours, xlas = (
        jax.grad(lambda v, f=f: jnp.sum(weights * f(v)))(v)
        for f in (
            lambda v: max_pool(v, size),
            lambda v: jax.lax.reduce_window(v, -jnp.inf, jax.lax.max, (size, size, 1), (size, size, 1), "VALID"),
        )
    )
    np.testing.assert_array_equal(ours, xlas)


def test_the_gradient_of_a_tied_window_has_one_owner_the_first():
    gradient = jax.grad(lambda v: jnp.sum(max_pool(v, 2)))(jnp.ones((4, 4, 1)))
    expected = np.zeros((4, 4, 1))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_pooled_differences_agree_with_subtraction_whether_or_not_the_winner_changes(x64):
    rng = np.random.default_rng(3)
    v = rng.normal(size=(8, 6, 2))
    changed = 0
    for size in (1e-3, 0.3, 1.0, 10.0):
        d = size * rng.normal(size=v.shape)
        plain = plain_pool(v + d, 2) - plain_pool(v, 2)
        np.testing.assert_allclose(pool_difference(jnp.asarray(v), jnp.asarray(d), 2), plain, rtol=1e-11, atol=1e-14)
        changed += np.sum(~np.isin(plain, d))
    assert changed > 10  # in so many windows the difference is no entry of d


def test_pooled_differences_keep_tiny_deviations_of_the_winner_exactly():
    rng = np.random.default_rng(4)
    v = rng.normal(size=(6, 6, 3)).astype(np.float32)
    d = (1e-12 * rng.normal(size=v.shape)).astype(np.float32)
    expected = np.zeros((3, 3, 3), np.float32)
    for i, j, c in np.ndindex(expected.shape):
        window = v[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        expected[i, j, c] = d[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c].ravel()[np.argmax(window)]
    np.testing.assert_array_equal(pool_difference(jnp.asarray(v), jnp.asarray(d), 2), expected)


def test_in_a_tied_window_the_largest_deviation_wins_however_small():
    # Flat regions of an image give exact ties; v + d rounds to v there, so the winner cannot be read off the sum.
    d = jnp.asarray(np.array([1.0, 3.0, 2.0, -5.0]).reshape(2, 2, 1) * 1e-12, jnp.float32)
    assert pool_difference(jnp.ones((2, 2, 1)), d, 2)[0, 0, 0] == d[0, 1, 0]


def test_the_derivative_of_a_pooled_difference_is_its_finite_difference(x64):
    rng = np.random.default_rng(5)
    v, d = rng.normal(size=(4, 4, 1)), rng.normal(size=(4, 4, 1))
    weights = rng.normal(size=(2, 2, 1))

    def total(d):
        return float(np.sum(weights * (plain_pool(v + d, 2) - plain_pool(v, 2))))

    gradient = jax.grad(lambda d: jnp.sum(jnp.asarray(weights) * max_pool_difference(jnp.asarray(v), d, 2)))(
        jnp.asarray(d)
    )
    np.testing.assert_allclose(gradient, by_hand.finite_difference(total, d), atol=1e-8)
