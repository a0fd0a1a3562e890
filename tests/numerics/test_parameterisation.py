"""Draws held against their distributions, and forward passes against the variance that the draws imply."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import forward_pass
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK, LayerPosition, MuPC, NearOrigin, NearZeroRank, Orthogonal, Standard

N_HIDDEN, D_OUT, BATCH = 3, 32, 32
DEPTH = N_HIDDEN + 1
WIDTHS = (32, 128, 512)
KEY = jax.random.key(0)


def build(parameterisation, width, *, d_in=None, d_out=D_OUT, activation="linear", skips=False):
    architecture = FullyConnected(width=width, n_hidden=N_HIDDEN, activation=activation, skips=skips)
    return architecture.build(parameterisation, (d_in or width,), d_out, key=KEY)


def weights(network):
    return [np.asarray(w, np.float64) for segment in network.segments for w in segment.weight]


def scales(network):
    return [segment.premultiplier for segment in network.segments for _ in range(segment.depth)]


def mean_squares(network, width):
    """Mean square of each layer's activities, for inputs of mean square exactly one."""
    x = np.random.default_rng(0).normal(size=(width, BATCH))
    x = jnp.asarray(x / np.sqrt(np.mean(x**2, axis=0)), jnp.float32)
    activities = eqx.filter_jit(forward_pass)(network, x).activities
    return np.array([np.mean(np.square(np.asarray(z))) for stack in activities for z in stack])


def assert_distribution(w, variance, fourth):
    """Mean and variance within five standard errors; `fourth` is the standardised fourth moment."""
    assert abs(w.mean()) < 5 * np.sqrt(variance / w.size)
    assert abs(w.var() / variance - 1) < 5 * np.sqrt((fourth - 1) / w.size)
    assert abs(np.mean(w**4) / variance**2 / fourth - 1) < 0.1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("parameterisation", "skips"),
    [
        (Standard(), False),
        (Standard("uniform"), False),
        (NTK(), False),
        (NTK(), True),
        (MuPC(), False),
        (MuPC(), True),
    ],
    ids=repr,
)
def test_a_linear_forward_pass_has_the_variance_that_the_parameterisation_implies(parameterisation, skips, width):
    hidden = 1 + 1 / DEPTH if skips else 1.0  # identity plus a branch of variance 1/L, or a branch of variance one
    factors = np.array([1.0, hidden, hidden, 1.0])
    if parameterisation == Standard("uniform"):
        factors /= 3
    if isinstance(parameterisation, MuPC):
        factors[-1] /= width  # outputs of size 1/sqrt(N)
    measured = mean_squares(build(parameterisation, width, skips=skips), width)
    # Each layer adds a relative fluctuation of sqrt(2 / (width x batch)).
    np.testing.assert_allclose(measured, np.cumprod(factors), rtol=6 * np.sqrt(2 * DEPTH / (32 * BATCH)))


@pytest.mark.parametrize("skips", [False, True])
def test_premultipliers_are_those_of_table_5_1(skips):
    d, n, depth = 7, 16, DEPTH
    hidden = 1 / np.sqrt(n * depth) if skips else 1 / np.sqrt(n)
    expected = {NTK(): [d**-0.5, hidden, hidden, n**-0.5], MuPC(): [d**-0.5, hidden, hidden, 1 / n]}
    for parameterisation, wanted in expected.items():
        np.testing.assert_allclose(scales(build(parameterisation, n, d_in=d, skips=skips)), wanted, rtol=1e-14)
    for parameterisation in (Standard(), Orthogonal(), NearOrigin(0.1), NearZeroRank(0.1)):
        assert scales(build(parameterisation, n, d_in=d)) == [1.0] * DEPTH


@pytest.mark.parametrize("parameterisation", [NTK(), MuPC()], ids=repr)
def test_weights_of_ntk_and_mupc_are_standard_normal(parameterisation):
    for w in weights(build(parameterisation, 128)):
        assert_distribution(w, 1.0, 3.0)


def test_standard_gaussian_weights_have_variance_one_over_the_fan_in():
    for w in weights(build(Standard(), 128, d_in=300)):
        assert_distribution(w, 1 / w.shape[1], 3.0)


def test_standard_uniform_weights_fill_plus_minus_one_over_the_root_of_the_fan_in():
    for w in weights(build(Standard("uniform"), 128, d_in=300)):
        bound = w.shape[1] ** -0.5
        assert 0.99 * bound < np.max(np.abs(w)) <= bound * (1 + 1e-6)
        assert_distribution(w, bound**2 / 3, 1.8)


def test_weights_near_the_origin_have_deviation_sigma_in_every_layer():
    for w in weights(build(NearOrigin(5e-3), 128)):
        assert_distribution(w, 5e-3**2, 3.0)


def test_near_the_zero_rank_saddle_only_the_penultimate_matrix_is_at_the_default():
    *_, penultimate, last = drawn = weights(build(NearZeroRank(5e-3), 128))
    for w in (*drawn[:-2], last):
        assert_distribution(w, 5e-3**2, 3.0)
    assert np.max(np.abs(penultimate)) <= 128**-0.5 * (1 + 1e-6)
    assert_distribution(penultimate, 1 / (3 * 128), 1.8)


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_orthogonal_matrices_have_orthonormal_rows_or_columns_times_the_gain(activation):
    gain = 1.05 if activation == "tanh" else 1.0
    for w in weights(build(Orthogonal(), 24, d_in=40, d_out=5, activation=activation)):
        short = w @ w.T if len(w) <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(short, gain**2 * np.eye(len(short)), atol=3e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_square_linear_orthogonal_network_preserves_every_norm(width):
    network = build(Orthogonal(), width, d_out=width)
    x = jax.random.normal(jax.random.key(1), (width, BATCH))
    activities = eqx.filter_jit(forward_pass)(network, x).activities
    for stack in activities:
        for z in stack:
            np.testing.assert_allclose(np.linalg.norm(z, axis=0), np.linalg.norm(x, axis=0), rtol=1e-5)


def test_orthogonal_matrices_are_uniform_in_sign():
    # Without the sign fix the first column of Q has a fixed sign in its first entry.
    at = LayerPosition(2, 3, 4, False, "linear")
    corners = jax.vmap(lambda key: Orthogonal().weight(at, (4, 4), key=key)[0, 0])(jax.random.split(KEY, 400))
    # Binomial(400, 1/2): standard deviation 10; five of them.
    assert abs(int(jnp.sum(corners > 0)) - 200) < 50


def test_layers_of_one_network_are_drawn_independently():
    flat = np.stack([w.ravel() for w in weights(build(NTK(), 32))])
    correlation = np.corrcoef(flat) - np.eye(DEPTH)
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(flat.shape[1])


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("n_hidden", 0), ("segment_size", 0)], ids=["width", "n_hidden", "segment_size"]
)
def test_an_impossible_shape_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, not 0"):
        FullyConnected(**{"width": 3, "n_hidden": 2, "activation": "tanh", field: value})
