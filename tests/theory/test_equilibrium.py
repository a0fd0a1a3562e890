"""The exact equilibrium of linear networks, theorem 3.1 and its envelope, against dense systems solved in numpy."""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch, energy, loss
from pcexp.inference import ClosedForm, GradientDescent, InferenceProblem
from pcexp.learning import PC
from pcexp.model import parameterisation as parameterisations
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.parameterisation import Standard
from pcexp.theory.equilibrated import equilibrated_energy, rescaling

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 4, 5, 4, 3, 6
DEPTH = N_HIDDEN + 1
CASES = {  # form, biases, skips, parameterisation
    "standard": ("post", False, False, "Standard"),
    "muPC with skips and biases": ("pre", True, True, "MuPC"),
    "NTK with biases": ("post", True, False, "NTK"),
}


def build(case):
    form, biases, skips, name = CASES[case]
    architecture = FullyConnected(
        width=WIDTH,
        n_hidden=N_HIDDEN,
        activation="linear",
        form=form,
        biases=biases,
        skips=skips,
        segment_size=2,
    )
    network = architecture.build(getattr(parameterisations, name)(), (D_IN,), D_OUT, key=jax.random.key(1))
    scales = by_hand.premultipliers(name, D_IN, WIDTH, DEPTH, skips)
    return network, by_hand.layers(network, activation="linear", form=form, skips=skips, scales=scales)


def batch(size=BATCH):
    rng = np.random.default_rng(2)
    return rng.normal(size=(D_IN, size)), rng.normal(size=(D_OUT, size))


@eqx.filter_jit
def solve(solver, network, x, y):
    at = solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))
    return at, energy(network, at.errors)


def solved(solver, network, x, y):
    return solve(solver, network, jnp.asarray(x), jnp.asarray(y))


def dense_equilibrium(net, x, y):
    """z* of every example from the (N H)^2 system: errors are A h + c, so A^T A h = -A^T c.

    A and c are read off the errors themselves, one unit vector at a time.
    """
    n = N_HIDDEN * WIDTH

    def errors(h, x, y):
        hidden = list(h.reshape(N_HIDDEN, WIDTH, 1))
        return np.concatenate([e.ravel() for e in by_hand.errors(net, x, [*hidden, y])])

    solutions = []
    for b in range(x.shape[1]):
        example = x[:, b : b + 1], y[:, b : b + 1]
        c = errors(np.zeros(n), *example)
        a = np.stack([errors(unit, *example) - c for unit in np.eye(n)], axis=1)
        solutions.append(np.linalg.solve(a.T @ a, -a.T @ c).reshape(N_HIDDEN, WIDTH))
    return [*np.stack(solutions, axis=-1), y]


def theorem_3_1(net, x, y):
    """F* = 1/(2B) sum_b r_b^T S^-1 r_b, S from products of weight matrices, and S."""
    s = by_hand.rescaling(by_hand.jacobians(net, x[:, :1]))
    r = y - by_hand.forward(net, x)[-1]
    return sum(r[:, b] @ np.linalg.inv(s) @ r[:, b] for b in range(x.shape[1])) / (2 * x.shape[1]), s, r


@pytest.mark.parametrize("case", CASES)
def test_the_closed_form_is_the_solution_of_the_dense_system(case):
    network, net = build(case)
    x, y = batch()
    at, total = solved(ClosedForm(), network, x, y)
    expected = dense_equilibrium(net, x, y)
    for z, wanted in zip(by_hand.unstacked(at.activities), expected, strict=True):
        np.testing.assert_allclose(z, wanted, rtol=1e-9, atol=1e-11)
    for e, wanted in zip(by_hand.unstacked(at.errors), by_hand.errors(net, x, expected), strict=True):
        np.testing.assert_allclose(e, wanted, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(total, by_hand.energy(net, x, expected), rtol=1e-10)
    assert bool(at.converged) and float(at.residual) < 1e-13


@pytest.mark.parametrize("case", CASES)
def test_gradient_descent_converges_to_the_closed_form(case):
    network, _ = build(case)
    x, y = batch()
    exact, lowest = solved(ClosedForm(), network, x, y)
    descended, reached = solved(GradientDescent(activity_lr=0.25, max_steps=4000, tol=1e-14), network, x, y)
    assert bool(descended.converged), float(descended.residual)
    for z, wanted in zip(descended.activities, exact.activities, strict=True):
        np.testing.assert_allclose(z, wanted, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(reached, lowest, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_equilibrated_energy_is_that_of_theorem_3_1_and_of_the_dense_solution(case):
    network, net = build(case)
    x, y = batch()
    expected, s, r = theorem_3_1(net, x, y)
    value = eqx.filter_jit(equilibrated_energy)(network, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(eqx.filter_jit(rescaling)(network), s, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    equilibrium = dense_equilibrium(net, x, y)
    np.testing.assert_allclose(value, by_hand.energy(net, x, equilibrium), rtol=1e-10)
    # The output layer's share is r^T S^-2 r / 2B, not the loss.
    pulled = np.linalg.solve(s, r)
    np.testing.assert_allclose(by_hand.errors(net, x, equilibrium)[-1], pulled, rtol=1e-9, atol=1e-12)
    at_forward = eqx.filter_jit(loss)(network, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(at_forward, np.sum(r**2) / (2 * BATCH), rtol=1e-12)
    assert value < at_forward


@pytest.mark.parametrize("case", CASES)
def test_predictive_codings_gradient_at_equilibrium_is_the_gradient_of_the_equilibrated_energy(case):
    network, _ = build(case)
    x, y = batch()
    rule = PC(ClosedForm(), gradient_scale="batch_mean")
    out = eqx.filter_jit(rule.gradient)(network, Batch(jnp.asarray(x), jnp.asarray(y)))
    envelope = eqx.filter_jit(eqx.filter_grad(equilibrated_energy))(network, jnp.asarray(x), jnp.asarray(y))
    for gradient, expected in zip(jax.tree.leaves(out.gradient), jax.tree.leaves(envelope), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-10)


def test_predictive_codings_gradient_at_equilibrium_is_the_finite_difference_of_theorem_3_1():
    network, net = build("muPC with skips and biases")
    x, y = batch()
    rule = PC(ClosedForm(), gradient_scale="batch_mean")
    out = eqx.filter_jit(rule.gradient)(network, Batch(jnp.asarray(x), jnp.asarray(y)))
    weights = [w for segment in out.gradient.segments for w in segment.weight]
    for index in (0, 2, N_HIDDEN):

        def by_theorem(w, index=index):
            moved = [*net[:index], net[index]._replace(weight=w), *net[index + 1 :]]
            return theorem_3_1(moved, x, y)[0]

        np.testing.assert_allclose(weights[index], by_hand.finite_difference(by_theorem, net[index].weight), atol=1e-8)


def test_the_premultiplier_of_the_output_sets_the_rescaling_and_biases_do_not():
    network, _ = build("muPC with skips and biases")
    without = eqx.tree_at(lambda n: [s.bias for s in n.segments], network, replace_fn=lambda bias: jnp.zeros_like(bias))
    np.testing.assert_array_equal(rescaling(network), rescaling(without))


def test_a_residual_that_is_not_small_is_reported_as_not_converged():
    network, _ = build("standard")
    x, y = batch()
    at, _ = solved(GradientDescent(activity_lr=0.25, max_steps=3, tol=1e-14), network, x, y)
    assert not bool(at.converged)


def test_a_closed_form_that_is_badly_conditioned_says_that_it_has_not_converged():
    network, net = build("standard")
    x, y = batch()
    for scale, well in ((1.0, True), (1e3, False)):
        large = jax.tree.map(lambda leaf, scale=scale: jnp.asarray(scale * leaf, jnp.float32), network)
        scaled = [layer._replace(weight=scale * layer.weight, bias=scale * layer.bias) for layer in net]
        at, _ = solved(ClosedForm(), large, *(jnp.asarray(a, jnp.float32) for a in (x, y)))
        gradient = by_hand.activity_gradient(scaled, x, by_hand.unstacked(at.activities))
        assert (np.sqrt(np.mean(np.square(gradient))) < 1e-3) == well == bool(at.converged)


@pytest.mark.parametrize(
    "network",
    [
        FullyConnected(width=3, n_hidden=2, activation="tanh"),
        Convolutional(channels=(2,), widths=(), activation="linear"),
    ],
    ids=["tanh", "max pooling"],
)
def test_the_closed_form_refuses_what_is_not_linear_and_names_a_solver_that_works(network):
    built = network.build(Standard(), (4,) if network.arrangement.flat else (4, 4, 1), 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"inference=closed_form.*inference=gradient_descent"):
        ClosedForm().check(built)
    with pytest.raises(ValueError, match="linear networks only"):
        rescaling(built)
