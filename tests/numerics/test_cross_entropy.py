"""A softmax output: its energy is the cross-entropy. Oracle: automatic differentiation of the energy written out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from pcexp.energy import Batch, energy, loss, outputs
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.learning import BP, PC
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.output import Softmax
from pcexp.model.parameterisation import Standard

pytestmark = pytest.mark.usefixtures("x64")
BATCH, K = 5, 4
NETWORKS = {
    "pre-activation, skips": FullyConnected(6, 3, "tanh", form="pre", skips=True, segment_size=1, output=Softmax()),
    "post-activation, biases": FullyConnected(6, 3, "relu", form="post", biases=True, segment_size=2, output=Softmax()),
    "no hidden nonlinearity": FullyConnected(6, 2, "linear", form="post", output=Softmax()),
}


def problem(name):
    network = NETWORKS[name].build(Standard(), (7,), K, key=jr.key(0))
    return network, jr.normal(jr.key(1), (7, BATCH)), jax.nn.softmax(jr.normal(jr.key(2), (K, BATCH)), axis=0)


def predictions(network, x, hidden):
    """Predictions of every layer and the output's logits, layer by layer, from weights alone."""
    below, found = x, []
    layers = [(s, i) for s in network.segments for i in range(s.depth)]
    phi = {"tanh": jnp.tanh, "relu": lambda u: jnp.maximum(u, 0), "linear": lambda u: u}
    for (segment, i), z in zip(layers, [*hidden, None], strict=True):
        u = segment.premultiplier * segment.weight[i] @ phi[segment.before](below)
        u = u if segment.bias is None else u + segment.bias[i][:, None]
        last = z is None
        found.append(u if last else phi[segment.after](u) + (below if segment.skip else 0))
        below = z
    return found


def written_out(network, x, y, hidden):
    """Energy summed over the batch: squared errors of the hidden layers, cross-entropy of the output."""
    *mu, logits = predictions(network, x, hidden)
    squares = sum(jnp.sum((z - m) ** 2) / 2 for z, m in zip(hidden, mu, strict=True))
    return squares - jnp.sum(y * jax.nn.log_softmax(logits, axis=0))


def unstacked(activities):
    return [z for stack in activities for z in stack]


def weights(network):
    return jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))


@pytest.mark.parametrize("form", ["activities", "deviations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_of_inference_and_the_weight_gradient_are_those_of_the_energy_written_out(name, form):
    network, x, y = problem(name)
    solver = GradientDescent(activity_lr=0.1, max_steps=4, form=form)
    found = eqx.filter_jit(solver.solve)(InferenceProblem.from_batch(network, Batch(x, y)))
    z = unstacked(InferenceProblem.from_batch(network, Batch(x, y)).at.activities)[:-1]
    descend = jax.grad(written_out, argnums=3)
    for _ in range(4):
        z = [a - 0.1 * g for a, g in zip(z, descend(network, x, y, z), strict=True)]
    for ours, theirs in zip(unstacked(found.activities)[:-1], z, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    out = PC(solver, "batch_mean").gradient(network, Batch(x, y))
    exact = eqx.filter_grad(lambda net: written_out(net, x, y, z) / BATCH)(network)
    for ours, theirs in zip(weights(out.gradient), weights(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_bp_is_the_gradient_of_the_cross_entropy(name):
    network, x, y = problem(name)

    def cross_entropy(network):
        z = x
        hidden = []
        for _ in range(network.depth - 1):  # forward pass: each prediction becomes the activity
            z = predictions(network, x, [*hidden, *[jnp.zeros((6, BATCH))] * (network.depth - 1 - len(hidden))])[
                len(hidden)
            ]
            hidden.append(z)
        return -jnp.sum(y * jax.nn.log_softmax(predictions(network, x, hidden)[-1], axis=0)) / BATCH

    out = BP("batch_mean").gradient(network, Batch(x, y))
    value, exact = eqx.filter_value_and_grad(cross_entropy)(network)
    np.testing.assert_allclose(out.loss, value, rtol=1e-12)
    np.testing.assert_allclose(loss(network, x, y), value, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(outputs(network, x), axis=0), 1, rtol=1e-12)
    by_autodiff = eqx.filter_grad(loss)(network, x, y)
    for ours, theirs, third in zip(weights(out.gradient), weights(exact), weights(by_autodiff), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(third, theirs, rtol=1e-9, atol=1e-13)


def test_a_convolutional_net_takes_a_softmax_output_too():
    network = Convolutional((4,), (8,), "tanh", output=Softmax()).build(Standard(), (4, 4, 1), K, key=jr.key(0))
    x, y = jr.normal(jr.key(1), (BATCH, 4, 4, 1)), jax.nn.one_hot(jnp.arange(BATCH) % K, K).T
    out, exact = BP("batch_mean").gradient(network, Batch(x, y)), eqx.filter_grad(loss)(network, x, y)
    for ours, theirs in zip(weights(out.gradient), weights(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


def test_squared_errors_are_no_energy_of_a_softmax_output():
    network, x, y = problem("pre-activation, skips")
    found = GradientDescent(0.1, 5).solve(InferenceProblem.from_batch(network, Batch(x, y)))
    with pytest.raises(ValueError, match="output=squared"):
        energy(network, found.errors)
