"""Outputs: their errors against automatic differentiation of their losses, their losses against scipy and plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pcexp.energy import Batch, loss
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.learning import BP
from pcexp.model import FullyConnected, Sigmoid, Softmax, Squared, Standard

pytestmark = pytest.mark.usefixtures("x64")
OUTPUTS = [Squared(), Softmax(), Sigmoid()]


def sample(k=4, batch=3):
    u, d, y = jax.random.normal(jax.random.key(0), (3, 1, k, batch))
    return u, d, jax.nn.softmax(y, axis=1)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: o.name)
def test_the_error_y_minus_g_is_minus_the_derivative_of_the_loss(output):
    u, d, y = sample()
    np.testing.assert_allclose(
        y - output.value(u), -jax.grad(lambda u: jnp.sum(output.losses(u, y)))(u), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(output.difference(u, d), output.value(u + d) - output.value(u), rtol=1e-10, atol=1e-15)


def test_losses_are_those_of_scipy():
    u, _, y = sample()
    p = scipy.special.expit(np.asarray(u))
    np.testing.assert_allclose(Squared().losses(u, y), (y - u) ** 2 / 2, rtol=1e-14)
    np.testing.assert_allclose(
        Softmax().losses(u, y), -y * scipy.special.log_softmax(np.asarray(u), axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(Sigmoid().losses(u, y), -(y * np.log(p) + (1 - y) * np.log(1 - p)), rtol=1e-12)


def test_binary_cross_entropy_counts_what_a_mask_counts_in_bp_and_in_inference():
    network = FullyConnected(5, 2, "tanh", output=Sigmoid()).build(Standard(), (3,), 4, key=jax.random.key(1))
    x, y = jax.random.normal(jax.random.key(2), (3, 6)), jnp.asarray(np.eye(4)[:, [0, 1, 2, 3, 0, 1]])
    mask = jnp.asarray(np.arange(24).reshape(4, 6) % 3 > 0, jnp.float64)
    out = BP("batch_mean").gradient(network, Batch(x, y, mask))
    exact = jax.grad(loss)(network, x, y, mask)
    for ours, theirs in zip(jax.tree.leaves(out.gradient), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)

    def written(z):
        (w1, w2, w3), (z1, z2) = (s.weight[0] for s in network.segments), z
        u = w3 @ z2
        p = 1 / (1 + jnp.exp(-u))
        cross = -mask * (y * jnp.log(p) + (1 - y) * jnp.log(1 - p))
        squares = jnp.sum((z1 - jnp.tanh(w1 @ x)) ** 2) + jnp.sum((z2 - jnp.tanh(w2 @ z1)) ** 2)
        return squares / 2 + jnp.sum(cross)

    problem = InferenceProblem.from_batch(network, Batch(x, y, mask))
    z = tuple(stack[0] for stack in problem.at.activities[:-1])
    for _ in range(5):
        z = jax.tree.map(lambda a, g: a - 0.1 * g, z, jax.grad(written)(z))
    for form in ("activities", "deviations"):
        found = GradientDescent(0.1, 5, form=form).solve(problem)
        for ours, theirs in zip(found.activities[:-1], z, strict=True):
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-9)
