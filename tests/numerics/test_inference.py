"""Inference by gradient descent against the same descent written by hand."""

import subprocess
import sys

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.learning import PC
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 3, 4, 3, 2, 6


def build(activation, form="pre"):
    architecture = FullyConnected(
        width=WIDTH, n_hidden=N_HIDDEN, activation=activation, form=form, biases=True, skips=True
    )
    network = architecture.build(NTK(), (D_IN,), D_OUT, key=jax.random.key(5))
    scales = by_hand.premultipliers("NTK", D_IN, WIDTH, N_HIDDEN + 1, True)
    return network, by_hand.layers(network, activation=activation, form=form, skips=True, scales=scales)


def batch(size=BATCH):
    rng = np.random.default_rng(6)
    return rng.normal(size=(D_IN, size)), rng.normal(size=(D_OUT, size))


@eqx.filter_jit
def solve(solver, network, x, y):
    return solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))


def solved(solver, network, x, y):
    solver = eqx.tree_at(lambda s: s.activity_lr, solver, jnp.asarray(solver.activity_lr))  # traced: fewer compilations
    return solve(solver, network, jnp.asarray(x), jnp.asarray(y))


def agree(value, expected, rtol=1e-10):
    for v, e in zip(value, expected, strict=True):
        np.testing.assert_allclose(v, e, rtol=rtol, atol=1e-12)


def residual(net, x, activities):
    """Root mean square of dF_b/dz over every hidden unit and every sample."""
    entries = np.concatenate([g.ravel() for g in by_hand.activity_gradient(net, x, activities)])
    assert entries.size == N_HIDDEN * WIDTH * x.shape[1]
    return np.sqrt(np.mean(entries**2))


@pytest.mark.parametrize("inference_form", ["deviations", "activities"])
@pytest.mark.parametrize(("activation", "form"), [("tanh", "pre"), ("relu", "post")])
def test_gradient_descent_takes_the_steps_that_a_loop_written_by_hand_takes(activation, form, inference_form):
    network, net = build(activation, form)
    x, y = batch()
    out = solved(GradientDescent(activity_lr=0.3, max_steps=7, form=inference_form), network, x, y)
    expected = by_hand.descended(net, x, y, 0.3, 7)
    agree(by_hand.unstacked(out.activities), expected)
    agree(by_hand.unstacked(out.errors), by_hand.errors(net, x, expected))
    agree([out.residual], [residual(net, x, expected)])
    assert (int(out.n_steps), bool(out.converged), int(out.stats["halvings"])) == (7, False, 0)


def test_no_steps_leave_the_forward_pass():
    network, net = build("tanh")
    x, y = batch()
    out = solved(GradientDescent(activity_lr=0.3, max_steps=0), network, x, y)
    agree(by_hand.unstacked(out.activities), [*by_hand.forward(net, x)[:-1], y])
    assert all(not np.any(e) for e in out.errors[:-1])


def test_an_example_has_the_same_equilibrium_alone_and_in_a_batch():
    network, _ = build("tanh")
    x, y = batch()
    solver = GradientDescent(activity_lr=0.3, max_steps=40)
    together = solved(solver, network, x, y)
    for b in range(2):
        alone = solved(solver, network, x[:, b : b + 1], y[:, b : b + 1])
        agree([z[..., b] for z in together.activities], [z[..., 0] for z in alone.activities])


@pytest.mark.parametrize(("scale", "factor"), [("batch_mean", 1), ("batch_sum", 2), ("mean_squared_error", 1)])
def test_the_gradient_of_a_batch_given_twice_is_the_same_unless_it_is_summed(scale, factor):
    network, _ = build("tanh")
    x, y = batch()

    @eqx.filter_jit
    def gradient(x, y):
        rule = PC(GradientDescent(activity_lr=0.3, max_steps=3), gradient_scale=scale)
        return jax.tree.leaves(rule.gradient(network, Batch(x, y)).gradient)

    once, twice = gradient(x, y), gradient(np.tile(x, 2), np.tile(y, 2))
    agree(twice, [factor * np.asarray(g) for g in once])


def halving_descent(net, x, y, beta, max_steps, max_halvings):
    """The published schedule, read aloud: a rise halves beta for good, one rise too many ends inference."""
    activities, last, halved = [*by_hand.forward(net, x)[:-1], y], np.inf, 0
    for step in range(max_steps):
        energy = by_hand.energy(net, x, activities)
        if energy > last:
            if halved == max_halvings:
                return activities, step, halved
            halved += 1
            beta /= 2
        last = energy
        gradient = by_hand.activity_gradient(net, x, activities)
        activities = [*[z - beta * g for z, g in zip(activities[:-1], gradient, strict=True)], y]
    return activities, max_steps, halved


def largest_eigenvalue(net, x, y):
    """Of the Hessian of B F with respect to one example's activities, by power iteration on gradients of a linear net."""
    rng = np.random.default_rng(0)
    base = [*by_hand.forward(net, x)[:-1], y]
    offset = by_hand.activity_gradient(net, x, base)
    v = [rng.normal(size=z.shape) for z in base[:-1]]
    norm = 1.0
    for _ in range(200):
        moved = by_hand.activity_gradient(net, x, [*[z + d for z, d in zip(base[:-1], v, strict=True)], y])
        v = [m - o for m, o in zip(moved, offset, strict=True)]
        norm = np.sqrt(sum(np.sum(d**2) for d in v))
        v = [d / norm for d in v]
    return norm


@pytest.mark.parametrize("inference_form", ["deviations", "activities"])
@pytest.mark.parametrize(
    ("beta_times_largest_eigenvalue", "max_halvings", "halved", "ends"),
    [(1.5, 1, 0, False), (2.5, 1, 1, False), (8.0, 1, 1, True), (12.0, 3, 3, False), (30.0, 2, 2, True)],
)
def test_the_halving_schedule_is_the_published_one(
    inference_form, beta_times_largest_eigenvalue, max_halvings, halved, ends
):
    network, net = build("linear")
    x, y = batch()
    # Descent of a quadratic lowers the energy at every step if and only if beta < 2 / lambda_max.
    beta = beta_times_largest_eigenvalue / largest_eigenvalue(net, x, y)
    activities, n_steps, times = halving_descent(net, x, y, beta, 25, max_halvings)
    assert times == halved and (n_steps < 25) == ends  # the case is what its name says
    out = solved(
        GradientDescent(activity_lr=beta, max_steps=25, form=inference_form, max_halvings=max_halvings), network, x, y
    )
    agree(by_hand.unstacked(out.activities), activities, rtol=1e-8)
    assert int(out.n_steps) == n_steps
    # One rise more than there are halvings is what ends inference.
    assert min(int(out.stats["halvings"]), max_halvings) == halved


def test_a_tolerance_ends_inference_at_the_first_residual_below_it():
    network, net = build("tanh")
    x, y = batch()
    activities = [*by_hand.forward(net, x)[:-1], y]
    tol, expected_steps = 1e-3, 0
    while residual(net, x, activities) > tol:
        activities = by_hand.descended(net, x, y, 0.3, 1, start=activities)
        expected_steps += 1
    out = solved(GradientDescent(activity_lr=0.3, max_steps=1000, tol=tol), network, x, y)
    assert int(out.n_steps) == expected_steps > 10
    agree([out.residual], [residual(net, x, activities)])
    agree(by_hand.unstacked(out.activities), activities)
    assert bool(out.converged) and float(out.residual) <= tol

    short = solved(GradientDescent(activity_lr=0.3, max_steps=expected_steps - 1, tol=tol), network, x, y)
    assert not bool(short.converged) and float(short.residual) > tol
    assert int(short.n_steps) == expected_steps - 1


@pytest.mark.parametrize("field", ["max_steps", "max_halvings"])
def test_a_negative_number_of_steps_or_halvings_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} must not be negative, not -1"):
        GradientDescent(**{"activity_lr": 0.1, "max_steps": 1, field: -1})


NONE_REFUSED = """
import dataclasses, types
from pcexp import inference
for name in ("GradientDescent", "AdamInference", "Momentum", "ODE", "Sequential", "ErrorDescent"):
    solver = getattr(inference, name)
    fields = {field.name: field.type for field in dataclasses.fields(solver)}
    good = {"activity_lr": 0.1, "max_steps": 1, "horizon": 1.0, "form": "activities"}
    good = {key: value for key, value in good.items() if key in fields}
    for key, kind in fields.items():
        said = ""
        try:
            solver(**(good | {key: None}))
        except ValueError as error:
            said = str(error)
        assert (said.startswith(f"{key} must ") and said.endswith("not None")) == (kind in (int, float)), (name, key, said)
"""


def test_a_field_that_may_not_be_none_is_refused_where_types_are_not_checked_too():
    """In a process of its own: in this one annotations are enforced before a solver sees its fields."""
    subprocess.run([sys.executable, "-c", NONE_REFUSED], check=True)
