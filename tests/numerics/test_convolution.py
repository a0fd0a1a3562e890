"""The convolutional segment against nested loops, XLA and itself on single examples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from pcexp.energy import Batch, forward_pass, outputs, prediction_errors
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.learning import PC
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.convolution import Convolution
from pcexp.model.parameterisation import NTK, MuPC, Standard
from pcexp.model.segments import Dense

pytestmark = pytest.mark.usefixtures("x64")

A, POOL = 0.7, 2


@pytest.fixture
def segment():
    rng = np.random.default_rng(0)
    weight, bias = jnp.asarray(rng.normal(size=(1, 3, 3, 2, 4))), jnp.asarray(rng.normal(size=(1, 1, 1, 4)))
    return Convolution(weight, bias, A, False, "linear", "tanh", POOL)


def convolved(image, kernel):
    """Zero-padded 3x3 cross-correlation, one product at a time."""
    height, width, c_in = image.shape
    out = np.zeros((height, width, kernel.shape[-1]))
    for row, column, i, j, c, o in np.ndindex(height, width, 3, 3, c_in, kernel.shape[-1]):
        r, k = row + i - 1, column + j - 1
        if 0 <= r < height and 0 <= k < width:
            out[row, column, o] += image[r, k, c] * kernel[i, j, c, o]
    return out


def pooled(v):
    out = np.zeros((v.shape[0] // POOL, v.shape[1] // POOL, v.shape[2]))
    for i, j, c in np.ndindex(out.shape):
        out[i, j, c] = v[i * POOL : (i + 1) * POOL, j * POOL : (j + 1) * POOL, c].max()
    return out


def test_a_segment_is_a_scaled_convolution_a_bias_the_activation_and_max_pooling(segment):
    image = np.random.default_rng(1).normal(size=(6, 5, 2))
    u = A * convolved(image, np.asarray(segment.weight[0])) + np.asarray(segment.bias[0, 0, 0])
    np.testing.assert_allclose(segment.linear(jnp.asarray(image)[None])[0], u, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(segment.predict(jnp.asarray(image)[None])[0], pooled(np.tanh(u)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_the_linear_map_is_xlas_convolution_and_so_are_its_gradients(kernel_size):
    rng = np.random.default_rng(kernel_size)
    image, weight, cotangent = (
        jnp.asarray(rng.normal(size=shape)) for shape in ((7, 6, 2), (kernel_size, kernel_size, 2, 3), (7, 6, 3))
    )

    def ours(image, weight):
        return Convolution(weight[None], None, A, False, "linear", "linear", 1).multiply(image[None])[0]

    def xla(image, weight):
        channels_first = image.transpose(2, 0, 1)[None], weight.transpose(3, 2, 0, 1)
        return A * jax.lax.conv_general_dilated(*channels_first, (1, 1), "SAME")[0].transpose(1, 2, 0)

    def value_and_gradients(f):
        out, pull = jax.vjp(f, image, weight)
        return out, *pull(cotangent)

    for value, wanted in zip(*(jax.jit(lambda f=f: value_and_gradients(f))() for f in (ours, xla)), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-11, atol=1e-12)


def test_a_difference_of_predictions_is_the_difference_of_two_predictions(segment):
    rng = np.random.default_rng(2)
    image, d = jnp.asarray(rng.normal(size=(2, 1, 6, 6, 2)))
    at = segment.reference(image, segment.linear(image))
    np.testing.assert_allclose(
        segment.difference(at, d), segment.predict(image + d) - segment.predict(image), rtol=1e-10, atol=1e-13
    )


@pytest.fixture
def batch_of_images():
    rng = np.random.default_rng(3)
    network = Convolutional(channels=(3, 4), widths=(5,), activation="tanh").build(
        NTK(), (9, 8, 2), 3, key=jax.random.key(1)
    )
    return network, jnp.asarray(rng.normal(size=(4, 9, 8, 2))), jnp.asarray(rng.normal(size=(3, 4)))


def test_the_layers_are_convolutions_with_biases_then_dense_ones_without_and_a_linear_output(batch_of_images):
    network, x, _ = batch_of_images
    assert [s.weight.shape[1:] for s in network.segments] == [(3, 3, 2, 3), (3, 3, 3, 4), (5, 2 * 2 * 4), (3, 5)]
    assert [s.bias is None for s in network.segments] == [False, False, True, True]
    scales = [(9 * 2) ** -0.5, (9 * 3) ** -0.5, 16**-0.5, 5**-0.5]
    forward = eqx.filter_jit(forward_pass)(network, x).activities
    for b, example in enumerate(np.asarray(x)):
        z = example
        for s, a in zip(network.segments[:2], scales[:2], strict=True):
            z = pooled(np.tanh(a * convolved(z, np.asarray(s.weight[0])) + np.asarray(s.bias[0, 0, 0])))
        np.testing.assert_allclose(forward[1][0, b], z, rtol=1e-11)
        z = np.tanh(scales[2] * np.asarray(network.segments[2].weight[0]) @ z.ravel())
        np.testing.assert_allclose(forward[2][0, :, b], z, rtol=1e-11)
        np.testing.assert_allclose(
            forward[3][0, :, b], scales[3] * np.asarray(network.segments[3].weight[0]) @ z, rtol=1e-11
        )


def test_convolutional_biases_are_uniform_within_one_over_the_root_of_the_fan_in():
    network = Convolutional(channels=(4000,), widths=(), activation="relu", kernel_size=3).build(
        Standard(), (2, 2, 1), 1, key=jax.random.key(0)
    )
    bias = np.asarray(network.segments[0].bias).ravel()
    assert np.max(np.abs(bias)) <= 1 / 3
    # Variance of U(-1/3, 1/3) is 1/27; its estimate from n draws has standard error (1/27) sqrt(0.8 / n).
    assert abs(np.mean(bias**2) * 27 - 1) < 4 * np.sqrt(0.8 / bias.size)


def test_an_example_in_a_batch_is_what_it_is_alone(batch_of_images):
    network, x, y = batch_of_images

    @eqx.filter_jit
    def solved(x, y):
        problem = InferenceProblem.from_batch(network, Batch(x, y))
        at = GradientDescent(activity_lr=0.2, max_steps=5).solve(problem)
        return at.activities, at.errors, outputs(network, x)

    activities, errors, together = solved(x, y)
    for b in range(len(x)):
        alone = solved(x[b : b + 1], y[:, b : b + 1])
        for whole, one in zip([*activities, *errors, together], [*alone[0], *alone[1], alone[2]], strict=True):
            axis = 1 if whole.ndim == 5 else -1
            np.testing.assert_allclose(np.take(whole, [b], axis), one, rtol=1e-11, atol=1e-13)
    # The solver's errors are those of the activities that it returns.
    again = prediction_errors(network, x, activities)
    for e, expected in zip(errors, again, strict=True):
        np.testing.assert_allclose(e, expected, rtol=1e-9, atol=1e-12)


def test_a_flat_input_is_refused_with_what_is_needed():
    with pytest.raises(ValueError, match=r"images \(height, width, channels\), not \(784,\)"):
        Convolutional(channels=(3,), widths=(), activation="relu").build(Standard(), (784,), 2, key=jax.random.key(0))


def by_scipy(image, weight):
    """Cross-correlation of the size of the image; an even kernel has its extra row and column after the centre."""
    kernel, _, c_in, c_out = weight.shape
    below = (kernel - 1) // 2
    padded = np.pad(image, ((below, kernel - 1 - below), (below, kernel - 1 - below), (0, 0)))
    maps = [
        sum(scipy.signal.correlate2d(padded[:, :, c], weight[:, :, c, o], "valid") for c in range(c_in))
        for o in range(c_out)
    ]
    return np.stack(maps, axis=-1)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_what_a_gpu_runs_is_the_same_convolution_with_the_same_derivatives(kernel_size, monkeypatch):
    rng = np.random.default_rng(kernel_size)
    images, weight, cotangent = (
        rng.normal(size=shape) for shape in ((4, 1, 7, 5, 2), (1, kernel_size, kernel_size, 2, 3), (4, 1, 7, 5, 3))
    )

    def results():
        segment = Convolution(jnp.asarray(weight), None, A, False, "linear", "linear", 1)
        out = jax.vmap(segment.multiply)(jnp.asarray(images))
        back = jax.vmap(segment.multiply_transposed)(jnp.asarray(cotangent), jnp.asarray(images))
        return out, back, segment.weight_gradient(jnp.asarray(images), jnp.asarray(cotangent), (0, 0))

    products = results()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda: results()[0])())
    for found, wanted in zip(results(), products, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    forward = A * np.stack([by_scipy(image[0], weight[0]) for image in images])[:, None]
    np.testing.assert_allclose(products[0], forward, rtol=1e-11, atol=1e-12)
    # The map is linear in both: its derivatives are its coefficients.
    total = np.sum(cotangent * forward)
    np.testing.assert_allclose([np.sum(products[1] * images), np.sum(products[2] * weight)], total, rtol=1e-11)
    for index in [(0, 0, 0, 0, 0), (2, 0, 6, 4, 1), (3, 0, 3, 2, 0)]:
        unit = np.zeros_like(images)
        unit[index] = 1
        moved = A * by_scipy(unit[index[0], 0], weight[0])
        np.testing.assert_allclose(products[1][index], np.sum(cotangent[index[0], 0] * moved), rtol=1e-11, atol=1e-12)
    for index in [(0, 0, 0, 0), (kernel_size - 1, 0, 1, 2), (1, kernel_size - 1, 0, 1)]:
        unit = np.zeros_like(weight[0])
        unit[index] = 1
        moved = A * sum(np.sum(c[0] * by_scipy(image[0], unit)) for c, image in zip(cotangent, images, strict=True))
        np.testing.assert_allclose(products[2][0][index], moved, rtol=1e-11, atol=1e-12)


def test_a_network_on_a_gpu_has_larger_segments_no_copies_of_weights_and_the_same_gradient(monkeypatch):
    def gradient():
        network = FullyConnected(5, 40, "tanh", "pre", skips=True).build(MuPC(), (4,), 3, key=jax.random.key(0))
        x, y = jax.random.normal(jax.random.key(1), (4, 6)), jax.random.normal(jax.random.key(2), (3, 6))
        problem = InferenceProblem.from_batch(network, Batch(x, y))
        found = PC(GradientDescent(0.1, 8), "batch_mean").gradient(network, Batch(x, y)).gradient
        weights = np.concatenate([np.ravel(w) for segment in found.segments for w in segment.weight])
        return (
            [s.depth for s in network.segments],
            {s.transposed is None for s in problem.network.segments if isinstance(s, Dense)},
            weights,
        )

    depths, without_copy, weights = gradient()
    assert max(depths) == 3 and without_copy == {False}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    depths, without_copy, others = gradient()
    assert depths == [1, 39, 1] and without_copy == {True}
    np.testing.assert_allclose(others, weights, rtol=1e-9, atol=1e-14)
