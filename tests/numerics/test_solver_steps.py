"""Steps of the solvers against loops and dense matrices written by hand."""

import by_hand
import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from solving import BATCH, D_OUT, N_HIDDEN, WIDTH, agree, batch, build, heavy_ball, solved

from pcexp.energy import Batch
from pcexp.inference import AdamInference, InferenceProblem, Momentum, Sequential
from pcexp.theory.activity_hessian import extreme_eigenvalues

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("inference_form", ["deviations", "activities"])
@pytest.mark.parametrize(("activation", "form"), [("tanh", "pre"), ("relu", "post")])
def test_a_sweep_takes_the_layers_one_by_one_from_the_output_down(activation, form, inference_form):
    network, net = build(activation, form)
    x, y = batch()
    expected = [*by_hand.forward(net, x)[:-1], y]
    for sweep in range(2):
        for layer in reversed(range(N_HIDDEN)):
            expected[layer] = expected[layer] - 0.3 * by_hand.activity_gradient(net, x, expected)[layer]
        if sweep == 0:
            # One sweep: every layer has an error, where simultaneous steps reach one layer a step.
            assert min(np.abs(e).max() for e in by_hand.errors(net, x, expected)) > 1e-6
    found = solved(Sequential(0.3, 2, form=inference_form), network, x, y)
    agree(by_hand.unstacked(found.activities), expected)


@pytest.mark.parametrize("inference_form", ["deviations", "activities"])
def test_heavy_balls_steps_are_those_of_a_loop_written_by_hand(inference_form):
    network, net = build("tanh")
    x, y = batch()
    found = solved(Momentum(7, inference_form, activity_lr=0.2, momentum=0.6), network, x, y)
    agree(by_hand.unstacked(found.activities), heavy_ball(net, x, y, 0.2, 0.6, 7))


def dense_hessian(net, x):
    """H_z of a linear network, and J0 = de/dz of its hidden layers, as dense matrices."""
    j0 = np.eye(N_HIDDEN * WIDTH)
    *below, top = by_hand.jacobians(net, x[:, :1])[1:]
    for index, jacobian in enumerate(below):
        j0[(index + 1) * WIDTH :, index * WIDTH :][:WIDTH, :WIDTH] = -jacobian
    c = np.zeros((D_OUT, N_HIDDEN * WIDTH))
    c[:, -WIDTH:] = top
    return j0.T @ j0 + c.T @ c, j0


def test_heavy_balls_step_and_momentum_are_those_of_the_extreme_eigenvalues():
    network, net = build("linear")
    x, y = batch()
    hessian, j0 = dense_hessian(net, x)
    values = np.linalg.eigvalsh(hessian)
    bound = np.linalg.svd(j0, compute_uv=False)[-1] ** 2
    assert values[0] / 4 < bound <= values[0] * (1 + 1e-12)  # the estimate of the smallest is from below

    @eqx.filter_jit
    def estimated(network, x, y):
        problem = InferenceProblem.from_batch(network, Batch(x, y))
        return extreme_eigenvalues(problem, 16), Momentum(30).solve(problem).activities

    (smallest, largest), activities = estimated(network, jnp.asarray(x), jnp.asarray(y))
    agree([smallest, largest], [np.full(BATCH, bound), np.full(BATCH, values[-1])], rtol=1e-3)
    rises = [descending_ball(net, x[:, [b]], y[:, [b]], smallest[b], largest[b], 30)[1] for b in range(BATCH)]
    assert 0 < sum(n > 0 for n in rises) < BATCH  # plain heavy ball raises the energy of some samples on its way
    for b in range(BATCH):
        expected, _ = descending_ball(net, x[:, [b]], y[:, [b]], smallest[b], largest[b], 30)
        agree([z[:, b] for z in by_hand.unstacked(activities)], [z[:, 0] for z in expected], rtol=1e-8)
        if not rises[b]:
            low, high = np.sqrt(smallest[b]), np.sqrt(largest[b])
            plain = heavy_ball(net, x[:, [b]], y[:, [b]], 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2, 30)
            agree(expected, plain, rtol=1e-8)


def descending_ball(net, x, y, smallest, largest, steps):
    """Heavy ball of one example of a linear network, read aloud: a step that would raise the energy is taken back, with how often."""
    here, energy, move, rises = [*by_hand.forward(net, x)[:-1], y], np.inf, None, 0
    last, from_rest = here, False
    for step in range(steps + 1):
        found = by_hand.energy(net, x, here)
        if found > energy:
            largest, rises = 2 * largest if from_rest else largest, rises + 1
            here, move = last, None
        else:
            energy = found
        if step == steps:
            return here, rises
        low, high = np.sqrt(smallest), np.sqrt(largest)
        mu = ((high - low) / (high + low)) ** 2
        last, from_rest = here, move is None
        gradient = by_hand.activity_gradient(net, x, here)
        before = [0 * g for g in gradient] if move is None else move
        move = [mu * m - 4 / (high + low) ** 2 * g for m, g in zip(before, gradient, strict=True)]
        here = [*[z + m for z, m in zip(here[:-1], move, strict=True)], y]
    raise AssertionError


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_heavy_balls_two_eigenvalue_loops_run_one_after_the_other(activation):
    # Side by side they waited for each other's threads for ever, on a CPU with two cores.
    network, _ = build(activation)
    problem = InferenceProblem.from_batch(network, Batch(*map(jnp.asarray, batch())))
    program = jax.make_jaxpr(lambda: extreme_eigenvalues(problem, 7))().jaxpr
    first, second = (i for i, equation in enumerate(program.eqns) if equation.params.get("length") == 7)
    depends = set(program.eqns[first].outvars)
    for equation in program.eqns[first + 1 : second + 1]:
        if depends & {v for v in equation.invars if not isinstance(v, jax.extend.core.Literal)}:
            depends |= set(equation.outvars)
    assert depends >= set(program.eqns[second].outvars)


def test_adams_steps_are_optax_in_a_loop_on_gradients_by_hand():
    network, net = build("tanh")
    x, y = batch()
    adam = optax.adam(0.05, b1=0.8, b2=0.99, eps=1e-3)
    activities = [*by_hand.forward(net, x)[:-1], y]
    state = adam.init(activities[:-1])
    for _ in range(5):
        updates, state = adam.update(by_hand.activity_gradient(net, x, activities), state)
        activities = [*[z + np.asarray(u) for z, u in zip(activities[:-1], updates, strict=True)], y]
    found = solved(AdamInference(0.05, 5, b1=0.8, b2=0.99, eps=1e-3), network, x, y)
    agree(by_hand.unstacked(found.activities), activities)
