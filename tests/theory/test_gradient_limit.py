"""Where predictive coding's gradient at equilibrium meets backpropagation's.

As the output error r shrinks, the errors at equilibrium become those that backpropagation sends down from S^-1 r, with S the
rescaling of theorem 3.1 at the forward pass: not from r. The gradients meet where S tends to the identity besides, as in
muPC at large width.
"""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch
from pcexp.inference import ClosedForm, GradientDescent
from pcexp.learning import BP, PC
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import MuPC, Standard

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, N_HIDDEN, BATCH = 3, 5, 3, 4


def build(activation, d_out):
    architecture = FullyConnected(width=WIDTH, n_hidden=N_HIDDEN, activation=activation, form="post")
    network = architecture.build(Standard(), (D_IN,), d_out, key=jax.random.key(1))
    net = by_hand.layers(network, activation=activation, form="post", skips=False, scales=[1.0] * (N_HIDDEN + 1))
    rng = np.random.default_rng(3)
    return network, net, rng.normal(size=(D_IN, BATCH)), rng.normal(size=(d_out, BATCH))


def flat(gradients):
    return np.concatenate([np.asarray(g).ravel() for g in gradients])


def flat_gradient(out):
    return flat(w for segment in out.gradient.segments for w in segment.weight)


def rescalings(net, x):
    return [by_hand.rescaling(by_hand.jacobians(net, x[:, b : b + 1])) for b in range(x.shape[1])]


@eqx.filter_jit
def both(network, x, y):
    """Predictive coding at the exact equilibrium, and backpropagation."""
    rules = PC(ClosedForm(), gradient_scale="batch_mean"), BP(gradient_scale="batch_mean")
    return [rule.gradient(network, Batch(x, y)) for rule in rules]


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_for_small_output_errors_it_is_backpropagation_of_the_rescaled_error_to_first_order(activation):
    network, net, x, r = build(activation, 2)
    yhat = by_hand.forward(net, x)[-1]
    pulled = np.stack([np.linalg.solve(s, r[:, b]) for b, s in enumerate(rescalings(net, x))], axis=1)
    # The gradient of the loss is not linear in its target, its first-order part is: that of the error alone.
    limit = flat(w for w, _ in by_hand.loss_gradient(net, x, yhat + pulled))
    rule = eqx.filter_jit(PC(GradientDescent(activity_lr=0.3, max_steps=3000), gradient_scale="batch_mean").gradient)
    distances = []
    for size in (1e-2, 5e-3, 2.5e-3):
        out = rule(network, Batch(jnp.asarray(x), jnp.asarray(yhat + size * r)))
        assert out.diagnostics["inference_residual"] < 1e-13
        distances.append(np.linalg.norm(flat_gradient(out) / size - limit) / np.linalg.norm(limit))
    assert distances[-1] < 1e-2
    np.testing.assert_allclose([distances[0] / distances[1], distances[1] / distances[2]], 2, atol=0.1)


def test_with_one_output_it_tends_to_backpropagations_direction_and_to_its_norm_over_s():
    network, net, x, r = build("linear", 1)
    yhat, s = by_hand.forward(net, x)[-1], rescalings(net, x)[0].item()
    angles, ratios = [], []
    for size in (1e-2, 5e-3):
        gradients = [flat_gradient(out) for out in both(network, jnp.asarray(x), jnp.asarray(yhat + size * r))]
        norms = [np.linalg.norm(g) for g in gradients]
        angles.append(np.sqrt(2 * (1 - gradients[0] @ gradients[1] / np.prod(norms))))
        ratios.append(norms[0] / norms[1])
    assert s > 1.1
    assert angles[1] < 1e-2
    assert angles[0] / angles[1] == pytest.approx(2, abs=0.1)
    assert ratios[1] == pytest.approx(1 / s, rel=1e-2)


def test_in_mupc_it_tends_to_backpropagation_itself_as_the_width_grows():
    rng = np.random.default_rng(4)
    x, y = jnp.asarray(rng.normal(size=(D_IN, BATCH))), jnp.asarray(rng.normal(size=(2, BATCH)))
    cosine_gaps, norm_gaps = [], []
    for width in (64, 256):
        architecture = FullyConnected(width=width, n_hidden=N_HIDDEN, activation="linear", form="pre", skips=True)
        network = architecture.build(MuPC(), (D_IN,), 2, key=jax.random.key(0))
        pc, bp = (flat_gradient(out) for out in both(network, x, y))
        norms = np.linalg.norm(pc), np.linalg.norm(bp)
        cosine_gaps.append(1 - pc @ bp / np.prod(norms))
        norm_gaps.append(abs(norms[0] / norms[1] - 1))
    # S - I is of order L/N, so both shrink fourfold, but for the luck of a draw.
    assert cosine_gaps[0] / cosine_gaps[1] > 2.5 and cosine_gaps[1] < 1e-3, cosine_gaps
    assert norm_gaps[0] / norm_gaps[1] > 2.5 and norm_gaps[1] < 0.05, norm_gaps
