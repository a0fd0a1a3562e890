"""What docstrings promise of solvers, each against an oracle written by hand: energies, outcomes, outputs, refusals."""

import dataclasses
import functools

import by_hand
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from solving import agree, batch, build, solved
from test_cross_entropy import NETWORKS, K, problem, unstacked, written_out
from test_solvers import NODES, patient

from pcexp.energy import Batch
from pcexp.inference import (
    ODE,
    STOPPED_BY,
    AdamInference,
    ClosedForm,
    ErrorDescent,
    GradientDescent,
    InferenceProblem,
    Momentum,
    Sequential,
    base,
)
from pcexp.learning import BP, PC, Equilibrated
from pcexp.model.architecture import FullyConnected
from pcexp.model.output import Sigmoid, Softmax
from pcexp.model.parameterisation import Standard
from pcexp.theory.activity_hessian import extreme_eigenvalues

pytestmark = pytest.mark.usefixtures("x64")


def sample_energies(net, x, y, activities):
    """F_b of every example."""
    return sum(np.sum(e**2, axis=0) / 2 for e in by_hand.errors(net, x, [*activities[:-1], y]))


def deep(activation, form):
    """A net on which steps for the spectrum at the forward pass diverge: standard parameterisation, skips, 16 hidden layers."""
    network = FullyConnected(64, 16, activation, form=form, skips=True).build(
        Standard(), (8,), 4, key=jax.random.key(0)
    )
    net = by_hand.layers(network, activation=activation, form=form, skips=True, scales=[1.0] * 17)
    rng = np.random.default_rng(0)
    return network, net, rng.normal(size=(8, 3)), np.eye(4)[:, :3]


# Energies


DESCENDING = {
    "heavy ball": (Momentum(0), (0, 1, 2, 5, 20, 60, 400)),
    "conjugate gradients": (ErrorDescent(0), (0, 1, 2, 3, 5, 9, 20)),
    "descent": (ErrorDescent(0, "descent"), (0, 1, 2, 3, 5, 9, 60)),
}


@pytest.mark.parametrize(
    ("name", "activation", "form"),
    [
        ("heavy ball", "relu", "pre"),
        ("heavy ball", "tanh", "post"),
        ("conjugate gradients", "tanh", "post"),
        ("descent", "relu", "pre"),
    ],
)
def test_a_solver_that_chooses_its_steps_never_returns_more_energy_of_a_sample_than_it_met(name, activation, form):
    network, net, x, y = deep(activation, form)
    solver, horizons = DESCENDING[name]
    seen = []
    for n in horizons:
        found = solved(eqx.tree_at(lambda s: s.max_steps, solver, jnp.asarray(n)), network, x, y)
        seen.append(sample_energies(net, x, y, by_hand.unstacked(found.activities)))
        np.testing.assert_allclose(found.energy, np.mean(seen[-1]), rtol=1e-9)
        assert STOPPED_BY[int(found.stopped_by)] == "steps"
    np.testing.assert_allclose(seen[0], np.sum((y - by_hand.forward(net, x)[-1]) ** 2, axis=0) / 2, rtol=1e-9)
    assert np.all(np.diff(seen, axis=0) <= 1e-12 * seen[0])
    assert np.all(seen[-1] < 0.1 * seen[0])  # it comes far, and does not merely stay


class Errors:
    """f_b of one example as a function of its hidden errors, one vector: its gradient by hand, its Hessian by complex steps."""

    def __init__(self, net, x, y):
        self.net, self.x, self.y = net, x, y
        self.cuts = np.cumsum([len(layer.weight) for layer in net[:-1]])

    def rebuilt(self, e):
        z, below = [], self.x
        for layer, one in zip(self.net[:-1], np.split(e, self.cuts[:-1]), strict=True):
            below = by_hand.prediction(layer, below) + one[:, None]
            z.append(below)
        return z

    def value(self, e):
        return (np.sum(e**2) + np.sum((self.y - by_hand.prediction(self.net[-1], self.rebuilt(e)[-1])) ** 2)) / 2

    def gradient(self, e):
        z = self.rebuilt(e)
        pulled, found = self.y - by_hand.prediction(self.net[-1], z[-1]), []
        for layer, below in zip(self.net[:0:-1], z[::-1], strict=True):
            pulled = by_hand.pulled_back(layer, below, pulled)
            found.append(pulled[:, 0])
        return e - np.concatenate(found[::-1])

    def step(self, e, p):
        """To the minimum of the quadratic along p; where that is nearly flat or turned over, as if its curvature were 1."""
        curvature = p @ np.imag(self.gradient(e + 1e-100j * p)) * 1e100
        return -(self.gradient(e) @ p) / (curvature if curvature > 0.05 * p @ p else p @ p)


def conjugate_gradients(f, steps):
    """Polak-Ribiere, read aloud, from no errors: with how often it was restarted and how often a step was halved."""
    e = np.zeros(f.cuts[-1])
    p, restarts, halvings = -f.gradient(e), 0, 0
    step = f.step(e, p)
    for _ in range(steps):
        if f.value(e + step * p) > f.value(e):
            step, halvings = step / 2, halvings + 1
            continue
        old, e = f.gradient(e), e + step * p
        new = f.gradient(e)
        beta = new @ (new - old) / (old @ old)
        p, restarts = -new + max(beta, 0) * p, restarts + (beta < 0)
        if p @ new >= 0:
            p, restarts = -new, restarts + 1
        step = f.step(e, p)
    return f.rebuilt(e), restarts, halvings


def test_conjugate_gradients_restart_and_halve_as_a_loop_written_by_hand_does():
    network, net = build("tanh", parameterisation=Standard, skips=False)
    network = jax.tree.map(lambda leaf: 3 * leaf, network)
    net = [layer._replace(weight=3 * layer.weight, bias=3 * layer.bias) for layer in net]
    x, y = batch()
    y, restarts, halvings = 5 * y, 0, 0
    found = solved(ErrorDescent(9), network, x, y)
    for b in range(x.shape[1]):
        expected, *seen = conjugate_gradients(Errors(net, x[:, [b]], y[:, [b]]), 9)
        agree([z[:, b] for z in by_hand.unstacked(found.activities)[:-1]], [z[:, 0] for z in expected], rtol=1e-6)
        restarts, halvings = restarts + seen[0], halvings + seen[1]
    assert restarts > 0 and halvings > 0  # the case is what its name says


LONG = {
    "gradient descent": GradientDescent(1.0, 12),
    "gradient descent, a tolerance": GradientDescent(1.0, 12, tol=1e-9),
    "gradient descent, too many rises": GradientDescent(6.0, 12, max_halvings=1),
    "gradient descent, an energy that does not fall": GradientDescent(0.7, 70, energy_tol=1e-3),
    "Adam": AdamInference(3.0, 12),
    "sequential": Sequential(2.0, 12),
    "heavy ball": Momentum(12, activity_lr=1.0, momentum=0.5),
    "heavy ball, a step of its user's": Momentum(12, activity_lr=2.0),
    "flow": ODE(12.0, 20, "euler", step_size=1.0),
}


@pytest.mark.parametrize("name", LONG)
def test_a_solver_of_given_steps_that_ends_above_its_start_says_that_it_has_risen(name):
    network, net = build("tanh")
    x, y = batch()
    found, start = solved(LONG[name], network, x, y), by_hand.energy(net, x, [*by_hand.forward(net, x)[:-1], y])
    ended = by_hand.energy(net, x, by_hand.unstacked(found.activities))
    assert np.isfinite(ended) and ended > start
    assert STOPPED_BY[int(found.stopped_by)] == "risen" and not bool(found.converged)


@pytest.mark.parametrize("form", ["activities", "deviations"])
def test_steps_that_lower_the_energy_do_not_count_as_risen_and_none_do_not_either(form):
    network, _ = build("tanh")
    for steps in (0, 5):
        found = solved(GradientDescent(0.1, steps, form=form), network, *batch())
        assert STOPPED_BY[int(found.stopped_by)] == "steps"


# Outcomes


@pytest.mark.parametrize("name", [name for name in NODES if "tol" in NODES[name]])
def test_a_solve_that_met_its_tolerance_has_converged_whatever_the_residual_is_in_other_arithmetic(name, monkeypatch):
    network, _ = build("tanh")
    solver = eqx.tree_at(lambda s: s.tol, patient(name), 1e-6, is_leaf=lambda leaf: leaf is None)
    at_end = base.root_mean_square
    monkeypatch.setattr(
        base, "root_mean_square", lambda tree: 1e-6 + at_end(tree)
    )  # of what is returned, not of the loop's
    x, y = map(jnp.asarray, batch())
    found = jax.jit(lambda: solver.solve(InferenceProblem.from_batch(network, Batch(x, y))))()
    assert STOPPED_BY[int(found.stopped_by)] == "tolerance" and bool(found.converged)
    assert 0 < int(found.n_steps) < solver.max_steps and 1e-6 < float(found.residual) <= 2e-6


# Outputs


@functools.cache
def exact_equilibrium(output):
    """Hidden activities at rest by Newton's method, from the forward pass, on an energy that is written out."""
    network, x, y, energy = of_output(output)
    start = unstacked(InferenceProblem.from_batch(network, Batch(x, y)).at.activities)[:-1]
    flat, tree = jax.flatten_util.ravel_pytree(start)
    of = jax.jit(lambda z: energy(network, x, y, tree(z)))
    slope, curvature = jax.jit(jax.grad(of)), jax.jit(jax.hessian(of))
    for _ in range(60):
        values, vectors = np.linalg.eigh(curvature(flat))
        step = -vectors @ (vectors.T @ np.asarray(slope(flat)) / np.maximum(np.abs(values), 1e-2))
        size = 1.0
        while of(flat + size * step) > of(flat) + 1e-13 and size > 1e-6:
            size /= 2
        flat = flat + size * step
    assert np.max(np.abs(slope(flat))) < 1e-12 and np.linalg.eigvalsh(curvature(flat))[0] > 0
    return tree(flat), float(of(flat))


def by_output(output, network, x, y, hidden):
    """Energy summed over the batch: squared errors of two hidden layers, and the (binary) cross-entropy of the output."""
    (w1, w2, w3), (z1, z2) = (s.weight[0] for s in network.segments), hidden
    u = w3 @ jnp.tanh(z2)
    squares = jnp.sum((z1 - w1 @ x) ** 2) + jnp.sum((z2 - w2 @ jnp.tanh(z1)) ** 2)
    log_p = u - jax.scipy.special.logsumexp(u, axis=0, keepdims=True)
    binary = y * jnp.log(jax.nn.sigmoid(u)) + (1 - y) * jnp.log(jax.nn.sigmoid(-u))
    return squares / 2 - jnp.sum(y * log_p if output == "softmax" else binary)


def of_output(output):
    ends = {"softmax": Softmax(), "sigmoid": Sigmoid()}[output]
    network = FullyConnected(6, 2, "tanh", form="pre", output=ends).build(Standard(), (7,), K, key=jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (7, 5)), jax.random.uniform(jax.random.key(2), (K, 5))
    y = y / jnp.sum(y, axis=0, keepdims=True) if output == "softmax" else y
    return network, x, y, functools.partial(by_output, output)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", [name for name in NODES if "," not in name])
def test_a_solver_is_right_for_an_output_or_refuses_it_before_anything_is_compiled(name, output):
    network, x, y, _ = of_output(output)
    solver = patient(name)
    if name in ("error_descent", "closed_form"):
        for door in (solver.solve, lambda p: PC(solver, "batch_mean").gradient(network, Batch(x, y))):
            with pytest.raises(ValueError, match=r"[Cc]hoose .*inference=(momentum|gradient_descent)"):
                jax.eval_shape(door, InferenceProblem.from_batch(network, Batch(x, y)))
        return
    expected, lowest = exact_equilibrium(output)
    found = eqx.filter_jit(solver.solve)(InferenceProblem.from_batch(network, Batch(x, y)))
    agree(unstacked(found.activities)[:-1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.energy, lowest / x.shape[1], rtol=1e-10)


@pytest.mark.parametrize("form", ["activities", "deviations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_halving_of_a_softmax_net_looks_at_its_cross_entropy(name, form):
    network, x, y = problem(name)
    z = unstacked(InferenceProblem.from_batch(network, Batch(x, y)).at.activities)[:-1]
    of, slope = (jax.jit(f) for f in (written_out, jax.grad(written_out, argnums=3)))
    beta, last, halved = 0.8, np.inf, 0
    for _ in range(9):
        value = of(network, x, y, z)
        beta, halved, last = (beta / 2, halved + 1, value) if value > last else (beta, halved, value)
        z = [a - beta * g for a, g in zip(z, slope(network, x, y, z), strict=True)]
    solver = GradientDescent(0.8, 9, form=form, max_halvings=9)
    found = eqx.filter_jit(solver.solve)(InferenceProblem.from_batch(network, Batch(x, y)))
    agree(unstacked(found.activities)[:-1], z, rtol=1e-7, atol=1e-9)
    assert int(found.stats["halvings"]) == halved
    np.testing.assert_allclose(found.energy, of(network, x, y, z) / x.shape[1], rtol=1e-8)


# Doors


@pytest.mark.parametrize(
    ("door", "says"),
    [
        (lambda n, b: ClosedForm().solve(InferenceProblem.from_batch(n, b)), "closed_form is exact for linear"),
        (lambda n, b: PC(ClosedForm(), "batch_mean").gradient(n, b), "closed_form is exact for linear"),
        (lambda n, b: BP("batch_mean", last_layers=9).gradient(n, b), "last_layers=9"),
        (lambda n, b: Equilibrated("batch_mean").gradient(n, b), "learning=equilibrated"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door_before_anything_is_compiled(door, says):
    network, _ = build("tanh")
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(door, network, Batch(*map(jnp.asarray, batch())))


@pytest.mark.parametrize("form", ["activities", "deviations"])
def test_an_energy_has_risen_above_where_inference_started_and_not_above_the_forward_pass(form):
    network, net = build("tanh")
    x, y = batch()
    problem = InferenceProblem.from_batch(network, Batch(jnp.asarray(x), jnp.asarray(y)))
    far = tuple(z + 2 for z in problem.at.activities[:-1])
    found = eqx.filter_jit(lambda: GradientDescent(0.01, 3, form).solve(problem.starting_at(far)))()
    energy = [
        np.sum(sample_energies(net, x, y, by_hand.unstacked((*z, y[None])))) for z in (far, problem.at.activities[:-1])
    ]
    assert energy[1] < float(found.energy) * x.shape[1] < energy[0]
    assert STOPPED_BY[int(found.stopped_by)] == "steps"


def test_heavy_balls_lmax_becomes_the_curvature_that_a_move_meets():
    network = FullyConnected(5, 4, "tanh", form="post", skips=True).build(Standard(), (3,), 2, key=jax.random.key(5))
    net = by_hand.layers(network, activation="tanh", form="post", skips=True, scales=[1.0] * 5)
    x, y = batch(1)

    def energies(point):
        return np.sum(sample_energies(net, x, y, point))

    def estimates():
        problem = InferenceProblem.from_batch(network, Batch(jnp.asarray(x), jnp.asarray(y)))
        return extreme_eigenvalues(problem, 2)

    (low,), (high,) = (np.asarray(value) for value in eqx.filter_jit(estimates)())
    here, move, last, gradient = [*by_hand.forward(net, x)[:-1], y], None, None, None
    energy, from_rest, met = np.inf, False, 0
    for step in range(13):
        slope = by_hand.activity_gradient(net, x, here)
        if move is not None:
            change = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(slope, gradient, strict=True)))
            curvature = change / np.sqrt(sum(np.sum(m**2) for m in move))
            met += curvature > high
            high = max(high, curvature)
        if energies(here) > energy:
            high = 2 * high if from_rest else high
            here, slope, move = last, gradient, None
        else:
            energy = energies(here)
        if step == 12:
            break
        a, b = np.sqrt(low), np.sqrt(high)
        before = [0 * g for g in slope] if move is None else move
        last, gradient, from_rest = here, slope, move is None
        move = [((b - a) / (b + a)) ** 2 * m - 4 / (b + a) ** 2 * g for m, g in zip(before, slope, strict=True)]
        here = [*[z + m for z, m in zip(here[:-1], move, strict=True)], y]
    assert met  # some move meets more than the forward pass says
    found = solved(Momentum(12, n_eigen_steps=2), network, x, y)
    agree(by_hand.unstacked(found.activities), here, rtol=1e-7)


@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_heavy_ball_reaches_the_minimum_of_the_smallest_nets(hidden, activation):
    network = FullyConnected(1, hidden, activation).build(Standard(), (2,), 1, key=jax.random.key(0))
    x, y = jnp.asarray(batch()[0][:2]), jnp.asarray(batch()[1][:1])
    found = solved(Momentum(300, tol=1e-10), network, x, y)
    lowest = solved(ErrorDescent(300, tol=1e-10), network, x, y)
    assert STOPPED_BY[int(found.stopped_by)] == "tolerance"
    np.testing.assert_allclose(found.energy, lowest.energy, rtol=1e-10)


def test_a_mask_of_targets_that_only_count_together_is_refused_before_inference():
    network = FullyConnected(4, 1, "tanh", output=Softmax()).build(Standard(), (3,), 2, key=jax.random.key(0))
    x, y = (jnp.asarray(a) for a in batch())
    with pytest.raises(ValueError, match="masked targets are for losses of one output each"):
        InferenceProblem.from_batch(network, Batch(x, y, jnp.ones_like(y)))


def test_a_precision_of_zero_is_refused_by_the_closed_form():
    network = FullyConnected(4, 1, "linear", precisions=(0.0, 1.0)).build(Standard(), (3,), 2, key=jax.random.key(0))
    x, y = (jnp.asarray(a) for a in batch())
    with pytest.raises(ValueError, match="a layer's precision is 0"):
        ClosedForm().solve(InferenceProblem.from_batch(network, Batch(x, y)))


def test_the_energy_of_a_cross_entropy_has_the_precision_of_its_layer():
    network, x, y, energy = of_output("softmax")
    doubled = dataclasses.replace(network, precisions=(1.0, 1.0, 2.0))
    one, two = (InferenceProblem.from_batch(net, Batch(x, y)) for net in (network, doubled))
    z = one.at.activities[:-1]  # no hidden errors there
    found, twice = (p.summed_energy("activities", z, p.errors("activities", z)) for p in (one, two))
    np.testing.assert_allclose(found, energy(network, x, y, unstacked(z)), rtol=1e-12)
    np.testing.assert_allclose(twice, 2 * found, rtol=1e-12)
