"""Weight gradients of backpropagation and predictive coding, and the units they are in."""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch
from pcexp.inference import ClosedForm, GradientDescent
from pcexp.learning import BP, PC
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.parameterisation import NTK, Standard

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, D_OUT, BATCH = 3, 5, 4, 6


@pytest.fixture
def network():
    architecture = FullyConnected(width=WIDTH, n_hidden=2, activation="tanh", biases=True, segment_size=1)
    return architecture.build(Standard(), (D_IN,), D_OUT, key=jax.random.key(2))


@pytest.fixture
def batch():
    rng = np.random.default_rng(7)
    return jnp.asarray(rng.normal(size=(D_IN, BATCH))), jnp.asarray(rng.normal(size=(D_OUT, BATCH)))


def parameters(network):
    return [(s.weight[0], s.bias[0]) for s in network.segments]


def output(parameters, x):
    """The network W3 tanh(W2 tanh(W1 x + b1) + b2) + b3, spelt out for one example."""
    (w1, b1), (w2, b2), (w3, b3) = parameters
    return w3 @ jnp.tanh(w2 @ jnp.tanh(w1 @ x + b1) + b2) + b3


# The three units, each as the function of the weights that it is the gradient of.
OBJECTIVES = {
    "batch_sum": lambda error: 0.5 * jnp.sum(error**2),
    "batch_mean": lambda error: 0.5 * jnp.mean(jnp.sum(error**2, axis=0)),
    "mean_squared_error": lambda error: jnp.mean(error**2),
}


def agree(gradient, expected, **tolerance):
    for segment, (w, b) in zip(gradient.segments, expected, strict=True):
        np.testing.assert_allclose(segment.weight[0], w, **tolerance)
        np.testing.assert_allclose(segment.bias[0], b, **tolerance)


@pytest.mark.parametrize("scale", OBJECTIVES)
def test_backpropagation_is_the_gradient_of_the_written_out_objective(network, batch, scale):
    x, y = batch
    out = eqx.filter_jit(BP(gradient_scale=scale).gradient)(network, Batch(x, y))

    def objective(p):
        return OBJECTIVES[scale](y - jax.vmap(output, in_axes=(None, 1), out_axes=1)(p, x))

    agree(out.gradient, jax.grad(objective)(parameters(network)), rtol=1e-10, atol=1e-13)
    loss = OBJECTIVES["batch_mean"](y - jax.vmap(output, in_axes=(None, 1), out_axes=1)(parameters(network), x))
    np.testing.assert_allclose(out.loss, loss, rtol=1e-12)
    expected = {"batch_sum": BATCH, "batch_mean": 1, "mean_squared_error": 2 / D_OUT}[scale]
    assert out.diagnostics["gradient_factor"] == expected


def test_backpropagation_is_the_finite_difference_of_the_loss(network, batch):
    x, y = batch
    out = eqx.filter_jit(BP(gradient_scale="batch_mean").gradient)(network, Batch(x, y))
    net = by_hand.layers(network, activation="tanh", form="post", skips=False, scales=[1.0] * 3)
    x, y = np.asarray(x), np.asarray(y)
    for index, (segment, (w, _)) in enumerate(
        zip(out.gradient.segments, by_hand.loss_gradient(net, x, y), strict=True)
    ):

        def loss(weight, index=index):
            moved = [*net[:index], net[index]._replace(weight=weight), *net[index + 1 :]]
            return np.sum((y - by_hand.forward(moved, x)[-1]) ** 2) / (2 * BATCH)

        np.testing.assert_allclose(segment.weight[0], by_hand.finite_difference(loss, net[index].weight), atol=1e-8)
        np.testing.assert_allclose(segment.weight[0], w, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scale", OBJECTIVES)
def test_predictive_coding_is_the_gradient_of_the_written_out_energy_at_the_inferred_activities(network, batch, scale):
    x, y = batch
    solver = GradientDescent(activity_lr=0.2, max_steps=6)
    out = eqx.filter_jit(PC(solver, gradient_scale=scale).gradient)(network, Batch(x, y))
    net = by_hand.layers(network, activation="tanh", form="post", skips=False, scales=[1.0] * 3)
    activities = by_hand.descended(net, np.asarray(x), np.asarray(y), 0.2, 6)

    def objective(p):
        total, last = 0.0, x
        for index, ((w, b), z) in enumerate(zip(p, activities, strict=True)):
            u = w @ last + b[:, None]
            total = total + OBJECTIVES[scale](jnp.asarray(z) - (jnp.tanh(u) if index < 2 else u))
            last = jnp.asarray(z)
        return total

    expected = jax.grad(objective)(parameters(network))
    if scale == "mean_squared_error":  # a mean over the outputs, in hidden layers too
        widths = [WIDTH, WIDTH, D_OUT]
        expected = [(g * n / D_OUT, h * n / D_OUT) for (g, h), n in zip(expected, widths, strict=True)]
    agree(out.gradient, expected, rtol=1e-9, atol=1e-12)
    assert out.diagnostics["inference_steps"] == 6
    forward = by_hand.forward(net, np.asarray(x))
    np.testing.assert_allclose(out.loss, np.sum((np.asarray(y) - forward[-1]) ** 2) / (2 * BATCH), rtol=1e-12)


def test_backpropagation_through_convolutions_is_the_finite_difference_of_the_loss():
    network = Convolutional(channels=(2,), widths=(3,), activation="tanh").build(
        NTK(), (4, 4, 1), 2, key=jax.random.key(0)
    )
    rng = np.random.default_rng(8)
    x, y = jnp.asarray(rng.normal(size=(3, 4, 4, 1))), jnp.asarray(rng.normal(size=(2, 3)))
    rule = eqx.filter_jit(BP(gradient_scale="batch_sum").gradient)
    out = rule(network, Batch(x, y))
    for name in ("weight", "bias"):
        where = lambda net, name=name: getattr(net.segments[0], name)  # noqa: E731
        parameter = np.asarray(where(network))

        def loss(p, where=where):
            return 3 * float(rule(eqx.tree_at(where, network, jnp.asarray(p)), Batch(x, y)).loss)

        np.testing.assert_allclose(where(out.gradient), by_hand.finite_difference(loss, parameter), atol=1e-8)


def test_a_rule_refuses_the_network_that_its_solver_refuses(network):
    with pytest.raises(ValueError, match="inference=gradient_descent"):
        PC(ClosedForm(), gradient_scale="batch_mean").check(network)
    PC(GradientDescent(activity_lr=0.1, max_steps=1), gradient_scale="batch_mean").check(network)
    BP(gradient_scale="batch_mean").check(network)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_with_last_layers_the_others_have_a_gradient_of_exactly_zero(batch, size):
    architecture = FullyConnected(WIDTH, 6, "tanh", biases=True, segment_size=size)
    network = architecture.build(Standard(), (D_IN,), D_OUT, key=jax.random.key(2))
    counts = (1, 3, 6, 7)  # within segments, at their ends, all but the first layer, all

    @eqx.filter_jit
    def gradients(network, batch):
        return [BP("batch_mean", k).gradient(network, batch).gradient for k in (None, *counts)]

    whole, *found = gradients(network, Batch(*batch))

    def layers(gradient):
        return [(w, b) for s in gradient.segments for w, b in zip(s.weight, s.bias, strict=True)]

    for k, last in zip(counts, found, strict=True):
        for layer, (ours, full) in enumerate(zip(layers(last), layers(whole), strict=True), start=1):
            for g, expected in zip(ours, full, strict=True):
                np.testing.assert_array_equal(g, expected if layer > 7 - k else np.zeros_like(expected))
                assert np.any(expected)


def test_last_layers_beyond_the_network_are_refused_with_its_depth(network):
    with pytest.raises(ValueError, match="the network has 3 weight matrices"):
        BP("batch_mean", last_layers=4).check(network)
    with pytest.raises(ValueError, match="at least 1"):
        BP("batch_mean", last_layers=0)
