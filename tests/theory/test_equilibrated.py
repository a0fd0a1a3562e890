"""Equilibrated energy, its gradient and its activities, with precisions, against a dense system differentiated by complex steps."""

from dataclasses import replace

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import linear_by_hand
import numpy as np
import pytest

from pcexp.energy import Batch, forward_pass
from pcexp.inference import GradientDescent
from pcexp.learning import BP, PC, Equilibrated
from pcexp.model import parameterisation as parameterisations
from pcexp.model.architecture import FullyConnected
from pcexp.theory.equilibrated import (
    activities,
    equilibrated_energy,
    equilibrated_gradient,
    equilibrium,
    rescaling,
    sensitivities,
)

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 4, 5, 4, 3, 6
DEPTH = N_HIDDEN + 1
PRECISIONS = np.array([0.5, 2.0, 1.5, 0.7, 3.0])
CASES = {  # form, biases, skips, parameterisation, segment size, precisions
    "standard": ("post", False, False, "Standard", 3, None),
    "muPC with skips, biases and precisions": ("pre", True, True, "MuPC", 2, PRECISIONS),
    "NTK with biases and precisions": ("post", True, False, "NTK", 1, PRECISIONS),
}


def built(case):
    form, biases, skips, name, size, precisions = CASES[case]
    architecture = FullyConnected(WIDTH, N_HIDDEN, "linear", form, biases, skips, segment_size=size)
    network = architecture.build(getattr(parameterisations, name)(), (D_IN,), D_OUT, key=jax.random.key(1))
    scales = by_hand.premultipliers(name, D_IN, WIDTH, DEPTH, skips)
    net = by_hand.layers(network, activation="linear", form=form, skips=skips, scales=scales)
    return replace(network, precisions=None if precisions is None else tuple(precisions.tolist())), net, precisions


def batch(d_in=D_IN, d_out=D_OUT, size=BATCH):
    rng = np.random.default_rng(2)
    return rng.normal(size=(d_in, size)), rng.normal(size=(d_out, size))


def weights(gradient):
    return linear_by_hand.flat(segment.weight for segment in gradient.segments)


@pytest.mark.parametrize("case", CASES)
def test_energy_activities_and_errors_are_those_of_the_dense_system(case):
    network, net, precisions = built(case)
    x, y = batch()
    z, energy = linear_by_hand.dense_equilibrium(net, x, y, precisions)

    @jax.jit
    def ours(x, y):
        at = forward_pass(network, x)
        found = equilibrium(network, at, y)
        return found, activities(at, found, y), equilibrated_energy(network, x, y)

    found, at_equilibrium, value = ours(x, y)
    np.testing.assert_allclose(value, energy, rtol=1e-11)
    np.testing.assert_allclose(found.energy, energy, rtol=1e-11)
    for mine, theirs in zip(by_hand.unstacked(at_equilibrium), z, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(by_hand.unstacked(found.errors), by_hand.errors(net, x, z), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_dense_systems_energy_and_of_the_formula_differentiated(case):
    network, net, precisions = built(case)
    x, y = batch()
    mine = jax.jit(equilibrated_gradient)(network, jnp.asarray(x), jnp.asarray(y))
    by_steps = linear_by_hand.jacobian(lambda n: linear_by_hand.dense_equilibrium(n, x, y, precisions)[1], net)
    np.testing.assert_allclose(weights(mine), by_steps, rtol=1e-9, atol=1e-12)
    by_autodiff = jax.jit(jax.grad(equilibrated_energy))(network, jnp.asarray(x), jnp.asarray(y))
    for ours, theirs in zip(jax.tree.leaves(mine), jax.tree.leaves(by_autodiff), strict=True):  # biases too
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_an_output_wider_than_a_hidden_layer_and_a_batch_of_one_are_no_special_case():
    network = FullyConnected(2, 2, "linear").build(parameterisations.Standard(), (3,), 6, key=jax.random.key(3))
    net = by_hand.layers(network, activation="linear", form="post", skips=False, scales=[1.0] * 3)
    x, y = batch(3, 6, 1)
    by_steps = linear_by_hand.jacobian(lambda n: linear_by_hand.dense_equilibrium(n, x, y)[1], net)
    mine = jax.jit(equilibrated_gradient)(network, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(weights(mine), by_steps, rtol=1e-9, atol=1e-12)


def chain(weights):
    network = FullyConnected(1, len(weights) - 1, "linear", segment_size=1).build(
        parameterisations.Standard(), (1,), 1, key=jax.random.key(0)
    )
    return eqx.tree_at(
        lambda n: [s.weight for s in n.segments], network, [jnp.array(w, float).reshape(1, 1, 1) for w in weights]
    )


@pytest.mark.parametrize("w", [(0.7, -1.3), (0.5, 1.2, -0.8), (1.1, -0.4, 0.9, 1.3, 0.6)])
def test_a_chains_rescaling_is_one_plus_squares_of_partial_products(w):
    """B.3.4 and its one-layer case: s = 1 + w_L^2 + (w_L w_{L-1})^2 + ... + (w_L ... w_2)^2 and F* = loss / s."""
    x, y = np.array([[0.3, -1.0, 2.0]]), np.array([[1.0, 0.5, -0.7]])
    s = 1 + sum(np.prod(w[first:]) ** 2 for first in range(1, len(w)))
    f = np.mean((y - np.prod(w) * x) ** 2) / 2 / s
    np.testing.assert_allclose(rescaling(chain(w)), [[s]], rtol=1e-13)
    np.testing.assert_allclose(equilibrated_energy(chain(w), jnp.asarray(x), jnp.asarray(y)), f, rtol=1e-13)


@pytest.mark.parametrize("gamma", [2.0, 1.0, 0.5])
def test_with_precisions_a_chains_energy_is_that_of_figure_a5(gamma):
    """F* / p_2 = loss / (1 + w_2^2 / gamma), gamma = p_1 / p_2."""
    x, y, p2 = jnp.array([[0.3, -1.0]]), jnp.array([[1.0, 0.5]]), 3.0
    value = equilibrated_energy(replace(chain((0.7, -1.3)), precisions=(gamma * p2, p2)), x, y)
    loss = np.mean((np.asarray(y) + 0.7 * 1.3 * np.asarray(x)) ** 2) / 2
    np.testing.assert_allclose(value / p2, loss / (1 + 1.3**2 / gamma), rtol=1e-13)


def test_weights_in_bfloat16_are_solved_with_in_float32():
    network, _, _ = built("standard")
    with jax.enable_x64(False):
        single = jax.tree.map(lambda w: w.astype(jnp.float32), network)
        assert {g.dtype for g in sensitivities(single.in_products("bfloat16"))} == {jnp.dtype("float32")}


def descended(rule, network, x, y, steps):
    """Weights after each step of gradient descent."""
    gradient = eqx.filter_jit(rule.gradient)
    seen = []
    for _ in range(steps):
        out = gradient(network, Batch(jnp.asarray(x), jnp.asarray(y)))
        network = jax.tree.map(lambda w, g: w - 0.1 * g, network, out.gradient)
        seen.append(linear_by_hand.flat(jax.tree.leaves(network)))
    return seen, out


def test_learning_on_it_is_predictive_coding_with_converged_inference_step_by_step():
    network = replace(built("muPC with skips, biases and precisions")[0], precisions=None)
    x, y = batch()
    exact, out = descended(Equilibrated("batch_sum"), network, x, y, 12)
    inferred, _ = descended(PC(GradientDescent(0.2, 3000), "batch_sum"), network, x, y, 12)
    np.testing.assert_allclose(exact, inferred, rtol=1e-9, atol=1e-11)
    assert np.linalg.norm(exact[-1] - exact[0]) > 1e-2
    assert float(out.diagnostics["gradient_factor"]) == BATCH
    assert 0 < float(out.diagnostics["equilibrated_energy"]) < float(out.loss)
    backpropagated, _ = descended(BP("batch_sum"), network, x, y, 12)
    assert np.linalg.norm(exact[-1] - backpropagated[-1]) > 1e-4


def test_learning_on_it_refuses_a_nonlinear_network_and_names_what_works():
    network = FullyConnected(3, 2, "tanh").build(parameterisations.Standard(), (4,), 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"learning=equilibrated.*network.activation=linear.*learning=pc"):
        Equilibrated("batch_sum").check(network)


@pytest.mark.parametrize("n_hidden", [8, 32, 64])
def test_float32_keeps_the_energy_and_the_errors_of_deep_standard_nets_with_skips(n_hidden):
    """By S, whose condition is 1e10 at 64 layers, float32 lost a sixth of F* there."""
    network = FullyConnected(32, n_hidden, "linear", "pre", skips=True).build(
        parameterisations.Standard(), (D_IN,), D_OUT, key=jax.random.key(0)
    )
    net = by_hand.layers(network, activation="linear", form="pre", skips=True, scales=[1.0] * (n_hidden + 1))
    x, y = (np.asarray(v, np.float32).astype(np.float64) for v in batch())
    maps, lowest = [np.eye(D_OUT)], by_hand.jacobians(net, x[:, :1])
    for jacobian in lowest[:0:-1]:
        maps.append(maps[-1] @ jacobian)
    r = y - by_hand.forward(net, x)[-1]
    q = np.linalg.solve(sum(g @ g.T for g in maps), r)
    energy = np.sum(r * q) / (2 * BATCH)
    with jax.enable_x64(False):
        single = jax.tree.map(lambda w: jnp.asarray(np.asarray(w), jnp.float32), network)
        x32, y32 = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        found = eqx.filter_jit(lambda n: equilibrium(n, forward_pass(n, x32), y32))(single)
        value = eqx.filter_jit(equilibrated_energy)(single, x32, y32)
    np.testing.assert_allclose([value, found.energy], energy, rtol=2e-6)
    for mine, g in zip(by_hand.unstacked(found.errors), maps[::-1], strict=True):
        assert by_hand.relative_error(mine, g.T @ q) < 2e-5


@pytest.mark.parametrize("masked", [False, True])
def test_where_the_input_has_moved_the_equilibrium_is_that_of_the_moved_input(masked):
    network, _, _ = built("muPC with skips, biases and precisions")
    x, y = (jnp.asarray(a) for a in batch())
    mask = jnp.asarray(np.random.default_rng(3).integers(0, 2, y.shape).astype(float)) if masked else None
    moved = 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    found = equilibrium(network, forward_pass(network, x), y, mask=mask, moved=moved)
    np.testing.assert_allclose(found.energy, equilibrated_energy(network, x + moved, y, mask=mask), rtol=1e-12)
    there = equilibrium(network, forward_pass(network, x + moved), y, mask=mask)
    for one, other in zip(found.errors, there.errors, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
