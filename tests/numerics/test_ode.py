"""The gradient flow of the activities against scipy's integrator on gradients written by hand."""

import by_hand
import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from solving import solved

from pcexp.inference import ODE
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 3, 4, 3, 2, 6


def build(activation):
    architecture = FullyConnected(
        width=WIDTH, n_hidden=N_HIDDEN, activation=activation, form="pre", biases=True, skips=True
    )
    network = architecture.build(NTK(), (D_IN,), D_OUT, key=jax.random.key(5))
    scales = by_hand.premultipliers("NTK", D_IN, WIDTH, N_HIDDEN + 1, True)
    return network, by_hand.layers(network, activation=activation, form="pre", skips=True, scales=scales)


def batch():
    rng = np.random.default_rng(6)
    return rng.normal(size=(D_IN, BATCH)), rng.normal(size=(D_OUT, BATCH))


def flowed(net, x, y, horizon, rate=1.0):
    """Activities at time `horizon` of dz/dt = -rate dF_b/dz from the forward pass."""
    start = [*by_hand.forward(net, x)[:-1], y]
    shape = (N_HIDDEN, WIDTH, BATCH)

    def slope(_, hidden):
        activities = [*hidden.reshape(shape), y]
        return -rate * np.stack(by_hand.activity_gradient(net, x, activities)).ravel()

    found = solve_ivp(slope, (0, horizon), np.stack(start[:-1]).ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    return [*found.y[:, -1].reshape(shape), y]


def distance(found, expected):
    return max(np.max(np.abs(z - w)) for z, w in zip(by_hand.unstacked(found.activities), expected, strict=True))


@pytest.mark.parametrize("form", ["activities", "deviations"])
@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_the_controlled_flow_is_where_the_exact_one_is(activation, form):
    network, net = build(activation)
    x, y = batch()
    found = solved(ODE(3.0, 50_000, step_tol=1e-9, form=form), network, x, y)
    assert distance(found, flowed(net, x, y, 3.0)) < 1e-7
    gradient = np.concatenate(by_hand.activity_gradient(net, x, by_hand.unstacked(found.activities)))
    assert float(found.residual) == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=1e-9)
    assert not bool(found.converged)


def test_a_published_horizon_on_the_batch_mean_without_the_half_is_twice_itself_over_the_batch():
    network, net = build("tanh")
    x, y = batch()
    published = flowed(net, x, y, 9.0, rate=2 / BATCH)  # the gradient of sum_l ||e_l||^2 / B
    assert distance(solved(ODE(2 * 9.0 / BATCH, 50_000, step_tol=1e-9), network, x, y), published) < 1e-7


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_of_constant_steps_falls_with_the_power_that_is_the_methods_order(method, order):
    network, net = build("tanh")
    x, y = batch()
    exact = flowed(net, x, y, 2.0)
    errors = [distance(solved(ODE(2.0, 1000, method, step_size=h), network, x, y), exact) for h in (0.04, 0.02, 0.01)]
    powers = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(powers, order, atol=0.1)


def test_constant_steps_of_eulers_method_are_gradient_descent():
    network, net = build("tanh")
    x, y = batch()
    found = solved(ODE(2.1, 100, "euler", step_size=0.3), network, x, y)
    assert int(found.n_steps) == 7
    assert distance(found, by_hand.descended(net, x, y, 0.3, 7)) < 1e-12


def test_the_controllers_tolerance_is_relative_to_large_variables_and_absolute_of_small_ones():
    """A linear flow of data k times as large is k times as large: as many steps where rtol counts, fewer where atol does."""
    network = FullyConnected(WIDTH, N_HIDDEN, "linear").build(NTK(), (D_IN,), D_OUT, key=jax.random.key(5))
    x, y = batch()
    solver = ODE(5.0, 5000, step_tol=1e-4, form="activities")
    small, one, large, larger = (int(solved(solver, network, k * x, k * y).n_steps) for k in (1e-3, 1, 1e6, 1e8))
    assert abs(larger - large) <= 0.02 * large < 100
    assert small < 0.5 * one < 0.5 * large


def test_with_a_tolerance_the_flow_ends_at_rest_before_its_horizon():
    network, _ = build("tanh")
    x, y = batch()
    loose, tight, late = (
        solved(ODE(1000.0, 20_000, longest_step=0.1, tol=tol), network, x, y) for tol in (1e-4, 1e-8, None)
    )
    for found, tol in ((loose, 1e-4), (tight, 1e-8)):
        assert bool(found.converged) and 0 < float(found.residual) <= tol
    # The last step before it was not at rest: the residual falls by a factor that is near 1 in a step.
    assert float(loose.residual) > 0.5e-4 and float(tight.residual) > 0.5e-8
    assert int(loose.n_steps) < int(tight.n_steps) < int(late.n_steps)
    assert not bool(late.converged)


def test_beyond_its_stable_steps_the_controller_hovers_where_shorter_ones_come_to_rest():
    network, _ = build("linear")
    x, y = batch()
    hovering, resting = (solved(ODE(500.0, 20_000, longest_step=h), network, x, y) for h in (None, 0.1))
    assert float(hovering.residual) > 1e-6
    assert float(resting.residual) < 1e-12


def test_steps_that_are_used_up_leave_a_flow_on_its_way():
    network, _ = build("tanh")
    x, y = batch()
    found = solved(ODE(100.0, 3, longest_step=0.1, tol=1e-8), network, x, y)
    assert (int(found.n_steps), bool(found.converged)) == (3, False)
    assert all(np.isfinite(z).all() for z in by_hand.unstacked(found.activities))
    assert float(found.residual) > 1e-8


@pytest.mark.parametrize("field", ["horizon", "step_size", "step_tol", "longest_step"])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_times_and_tolerances_that_are_not_positive_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be positive"):
        ODE(**{"horizon": 1.0, "max_steps": 3} | {field: value})


def test_eulers_method_without_a_step_is_refused():
    with pytest.raises(ValueError, match="step_size must be a number with method=euler"):
        ODE(1.0, 3, "euler")
