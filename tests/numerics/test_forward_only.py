"""Premultipliers in the forward pass only: predictions have them, derivatives do not; the oracle is a net with a custom VJP."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch, prediction_errors, summed_energy
from pcexp.inference import ClosedForm, GradientDescent
from pcexp.inference.gradient_descent import Form
from pcexp.learning import BP, PC
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC

D, N, H, K, B, BETA, T = 5, 6, 4, 3, 7, 0.05, 6
A = (D**-0.5, *[(N * (H + 1)) ** -0.5] * (H - 1), 1 / N)
PHI = {"tanh": jnp.tanh, "relu": jax.nn.relu, "linear": lambda z: z}


def network(activation: str, premultipliers: str = "forward_pass") -> Network:
    shape = FullyConnected(N, H, activation, form="pre", skips=True, segment_size=2, premultipliers=premultipliers)
    net = shape.build(MuPC(), (D,), K, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.astype(float) if eqx.is_array(leaf) else leaf, net)


def weights_of(net: Network) -> list[jax.Array]:
    return [w for segment in net.segments for w in segment.weight]


def batch() -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(1)
    return jnp.asarray(draw.normal(size=(D, B))), jnp.asarray(draw.normal(size=(K, B)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def forward_only(a: float, u: jax.Array) -> jax.Array:
    return a * u


forward_only.defvjp(lambda a, u: (a * u, None), lambda a, _, g: (g,))


def prediction(weights: list[jax.Array], layer: int, z: jax.Array, activation: str) -> jax.Array:
    """mu_l(z) = a_l W_l phi(z) + tau_l z, l counted from 0; phi acts neither on x nor on the output."""
    out = forward_only(A[layer], weights[layer] @ (PHI[activation](z) if layer else z))
    return out + z if 0 < layer < H else out


def forward(weights: list[jax.Array], x: jax.Array, activation: str) -> list[jax.Array]:
    z, activities = x, []
    for layer in range(H + 1):
        z = prediction(weights, layer, z, activation)
        activities.append(z)
    return activities


def energy(
    hidden: list[jax.Array], weights: list[jax.Array], x: jax.Array, y: jax.Array, activation: str
) -> jax.Array | float:
    """Sum over the batch."""
    below, above = [x, *hidden], [*hidden, y]
    errors = [z - prediction(weights, i, v, activation) for i, (v, z) in enumerate(zip(below, above, strict=True))]
    return sum(jnp.sum(e**2) for e in errors) / 2


slope = jax.jit(jax.grad(energy), static_argnums=4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["activities", "deviations"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "linear"])
def test_inference_and_learning_descend_with_the_derivatives_of_a_custom_vjp(activation: str, form: Form) -> None:
    net, (x, y) = network(activation), batch()
    weights = weights_of(net)
    hidden = jax.jit(forward, static_argnums=2)(weights, x, activation)[:-1]
    for _ in range(T):
        pulls = slope(hidden, weights, x, y, activation)
        hidden = [z - BETA * g for z, g in zip(hidden, pulls, strict=True)]
    expected = jax.jit(jax.grad(energy, argnums=1), static_argnums=4)(hidden, weights, x, y, activation)
    found = eqx.filter_jit(PC(GradientDescent(BETA, T, form), "batch_sum").gradient)(net, Batch(x, y)).gradient
    for g, e in zip(weights_of(found), expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12 * float(jnp.max(jnp.abs(e))))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_backpropagation_takes_the_premultipliers_as_1(activation: str) -> None:
    net, (x, y) = network(activation), batch()

    @jax.jit
    def loss(weights: list[jax.Array]) -> jax.Array:
        return jnp.sum((y - forward(weights, x, activation)[-1]) ** 2) / 2

    found = eqx.filter_jit(BP("batch_sum").gradient)(net, Batch(x, y))
    for g, e in zip(weights_of(found.gradient), jax.grad(loss)(weights_of(net)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9)
    assert float(found.loss) == pytest.approx(float(loss(weights_of(net))) / B)


@pytest.mark.usefixtures("x64")
def test_what_jax_differentiates_in_a_solve_has_the_same_derivatives() -> None:
    net, (x, _) = network("tanh").for_inference(), batch()
    activities, _ = eqx.filter_jit(net.forward)(x, batched=True)
    moved = jax.tree.map(lambda z: z + 0.1, activities)
    found = jax.jit(jax.grad(lambda z: summed_energy(net, prediction_errors(net, x, z))))(moved)
    flat = [z for segment in moved for z in segment]
    expected = slope(flat[:-1], weights_of(net), x, flat[-1], "tanh")
    for g, e in zip([z for segment in found for z in segment][:-1], expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9)


def test_predictions_and_weights_are_those_of_premultipliers_everywhere() -> None:
    x, _ = batch()
    x = x.astype(jnp.float32)
    for one, other in zip(*(network("tanh", kind).forward(x, batched=True)[0] for kind in ("forward_pass", "everywhere")), strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)


def test_the_theory_of_linear_networks_is_refused() -> None:
    with pytest.raises(ValueError, match="linear"):
        ClosedForm().check(network("linear"))
