"""Solves that end on the energy, against the rule read aloud on energies of loops written by hand."""

import functools

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch
from pcexp.inference import AdamInference, GradientDescent, InferenceProblem, Momentum, Sequential
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK

pytestmark = pytest.mark.usefixtures("x64")

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 3, 5, 4, 2, 6
TOL = 1e-3


def build(activation):
    architecture = FullyConnected(width=WIDTH, n_hidden=N_HIDDEN, activation=activation, form="pre", skips=True)
    network = architecture.build(NTK(), (D_IN,), D_OUT, key=jax.random.key(5))
    scales = by_hand.premultipliers("NTK", D_IN, WIDTH, N_HIDDEN + 1, True)
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(D_IN, BATCH)), rng.normal(size=(D_OUT, BATCH))
    return network, by_hand.layers(network, activation=activation, form="pre", skips=True, scales=scales), x, y


@eqx.filter_jit
def solve(solver, network, x, y):
    return solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))


def heavy_ball_energies(net, x, y, beta, mu, steps):
    """Energies after 0, 1, ... steps, and the activities there."""
    activities = last = [*by_hand.forward(net, x)[:-1], y]
    energies, visited = [by_hand.energy(net, x, activities)], [activities]
    for _ in range(steps):
        gradient = by_hand.activity_gradient(net, x, activities)
        moved = [z - beta * g + mu * (z - w) for z, g, w in zip(activities[:-1], gradient, last[:-1], strict=True)]
        activities, last = [*moved, y], activities
        energies.append(by_hand.energy(net, x, activities))
        visited.append(activities)
    return np.array(energies), visited


def end(energies, tol):
    """The rule: 64, 128, 256, ... steps, where the second half of them lowered the lowest energy by no more than `tol` of it."""
    n = 64
    while True:
        half, whole = energies[: n // 2 + 1].min(), energies[: n + 1].min()
        if half - whole <= tol * half:
            return n
        n *= 2


def climbs(energies, n_steps):
    """Whether at an earlier look the energy was above the lowest of the first half of the steps."""
    return any(energies[n] > energies[: n // 2 + 1].min() for n in (64, 128, 256, 512) if n < n_steps)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_solve_ends_where_the_second_half_of_its_steps_has_gained_too_little(activation):
    network, net, x, y = build(activation)
    energies, visited = heavy_ball_energies(net, x, y, 0.2, 0.0, 512)
    expected = end(energies, TOL)
    assert 64 < expected <= 512
    found = solve(GradientDescent(0.2, 2000, energy_tol=TOL), network, jnp.asarray(x), jnp.asarray(y))
    assert int(found.n_steps) == expected
    np.testing.assert_allclose(by_hand.energy(net, x, by_hand.unstacked(found.activities)), energies[expected])
    gradient = by_hand.activity_gradient(net, x, visited[expected])
    np.testing.assert_allclose(found.residual, np.sqrt(np.mean(np.square(gradient))), rtol=1e-8)
    assert not bool(found.converged)
    # A tolerance on the residual that was not met beside it makes it no more converged; one that was met ends it sooner.
    both = solve(GradientDescent(0.2, 2000, energy_tol=TOL, tol=1e-12), network, jnp.asarray(x), jnp.asarray(y))
    assert (int(both.n_steps), bool(both.converged)) == (expected, False)
    met = 1.001 * float(found.residual)
    sooner = solve(GradientDescent(0.2, 2000, energy_tol=1e-12, tol=met), network, jnp.asarray(x), jnp.asarray(y))
    assert bool(sooner.converged) and int(sooner.n_steps) <= expected


def test_a_climb_on_the_way_down_does_not_end_a_solve():
    network, net, x, y = build("tanh")
    beta, mu = 0.2, 0.99
    energies, _ = heavy_ball_energies(net, x, y, beta, mu, 4096)
    expected = end(energies, TOL)
    assert expected <= 4096 and climbs(energies, expected)  # the case is what its name says
    solver = Momentum(5000, energy_tol=TOL, activity_lr=beta, momentum=mu)
    assert int(solve(solver, network, jnp.asarray(x), jnp.asarray(y)).n_steps) == expected


SOLVERS = {
    "gradient descent": GradientDescent(0.2, 100_000, tol=1e-12, energy_tol=1e-9),
    "gradient descent, halving": GradientDescent(0.2, 100_000, tol=1e-12, max_halvings=2, energy_tol=1e-9),
    "heavy ball": Momentum(100_000, tol=1e-12, energy_tol=1e-9),
    "Adam": AdamInference(0.01, 100_000, eps=0.01, tol=1e-12, energy_tol=1e-9),
    "sequential": Sequential(0.2, 100_000, tol=1e-12, energy_tol=1e-9),
}


@functools.cache
def lowest_energy_with_relu():
    _, net, x, y = build("relu")
    return by_hand.energy(net, x, by_hand.descended(net, x, y, 0.02, 3000))


@pytest.mark.parametrize("name", SOLVERS)
def test_with_relu_every_solver_ends_on_the_energy_near_the_lowest_and_says_that_it_has_not_converged(name):
    network, net, x, y = build("relu")
    found = solve(SOLVERS[name], network, jnp.asarray(x), jnp.asarray(y))
    activities = by_hand.unstacked(found.activities)
    residual = np.sqrt(np.mean(np.square(by_hand.activity_gradient(net, x, activities))))
    np.testing.assert_allclose(found.residual, residual, rtol=1e-8)
    assert 0 < int(found.n_steps) < 100_000
    assert not bool(found.converged) and residual > 1e-12
    start = by_hand.energy(net, x, [*by_hand.forward(net, x)[:-1], y])
    lowest = lowest_energy_with_relu()
    assert by_hand.energy(net, x, activities) - lowest < 0.05 * (start - lowest)


def test_a_solve_that_diverges_ends_on_the_energy():
    network, _, x, y = build("linear")
    found = solve(GradientDescent(50.0, 100_000, energy_tol=TOL), network, jnp.asarray(x), jnp.asarray(y))
    assert int(found.n_steps) == 64 and not bool(found.converged)


@pytest.mark.parametrize("solver", [GradientDescent, Momentum, AdamInference, Sequential])
def test_an_energy_tolerance_that_makes_no_sense_is_refused_by_name(solver):
    valid = {"max_steps": 3} | ({} if solver is Momentum else {"activity_lr": 0.1})
    solver(**valid, energy_tol=1e-3)
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"^energy_tol must be positive or null, not {value}$"):
            solver(**valid, energy_tol=value)
