"""Every solver of conf/inference, whatever is clamped, against dense float64 systems of linear networks written out."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from pcexp import inference
from pcexp.energy import Batch, energy
from pcexp.inference import STOPPED_BY, GradientDescent, InferenceProblem
from pcexp.learning import BP, PC
from pcexp.model import FullyConnected, Standard

pytestmark = pytest.mark.usefixtures("x64")
D_IN, D_OUT, BATCH, P0 = 3, 4, 5, 0.5
NAMES = sorted(
    {
        yaml.safe_load(path.read_text())["_target_"].rpartition(".")[2]
        for path in Path("conf/inference").glob("*.yaml")
        if "_target_" in yaml.safe_load(path.read_text())
    }
)
SETTINGS = {  # far enough to compare equilibria
    "AdamInference": {"activity_lr": 0.02, "max_steps": 20000, "tol": 1e-9, "eps": 0.1},
    "ClosedForm": {},
    "ErrorDescent": {"max_steps": 200, "tol": 1e-9},
    "GradientDescent": {"activity_lr": 0.1, "max_steps": 20000, "tol": 1e-9},
    "Momentum": {"max_steps": 20000, "tol": 1e-9},
    "ODE": {"horizon": 5000.0, "max_steps": 40000, "longest_step": 0.2, "tol": 1e-9},
    "Sequential": {"activity_lr": 0.1, "max_steps": 20000, "tol": 1e-9},
}
ONES = (1.0, 1.0, 1.0)
CASES = {  # what is clamped of x and of y ("all" is no mask; cases with two masks share a program), precisions of the layers
    "supervised": ("all", "all", ONES),
    "generative, input free": ("none", "ones", ONES),
    "parts of both": ("part", "part", ONES),
    "neither": ("none", "none", ONES),
    "precisions": ("part", "all", (0.5, 2.0, 1.5)),
}


def clamps(case):
    of_x, of_y, precisions = CASES[case]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(D_IN, BATCH)), rng.normal(size=(D_OUT, BATCH))
    part = {
        "all": lambda shape: None,
        "ones": np.ones,
        "none": np.zeros,
        "part": lambda shape: (rng.random(shape) > 0.5) * 1.0,
    }
    return x, y, part[of_x]((D_IN, BATCH)), part[of_y]((D_OUT, BATCH)), precisions


def by_hand(network, x, y, x_mask, mask, precisions):
    """z_0, z_1, z_2 of every example by one least-squares problem of its free activities."""
    w1, w2, w3 = (np.asarray(s.weight[0], float) for s in network.segments)
    n1, n2 = len(w1), len(w2)
    p = np.repeat([P0, *precisions], [D_IN, n1, n2, D_OUT])
    found = []
    for b in range(BATCH):
        seen = np.ones(D_OUT) if mask is None else mask[:, b]
        free = np.zeros(D_IN) if x_mask is None else 1 - x_mask[:, b]
        a = np.block(
            [
                [np.eye(D_IN), np.zeros((D_IN, n1 + n2))],
                [-w1, np.eye(n1), np.zeros((n1, n2))],
                [np.zeros((n2, D_IN)), -w2, np.eye(n2)],
                [np.zeros((D_OUT, D_IN + n1)), -seen[:, None] * w3],
            ]
        )
        c = np.concatenate([-x[:, b], np.zeros(n1 + n2), seen * y[:, b]])
        moving = np.concatenate([free, np.ones(n1 + n2)]) > 0
        z = np.concatenate([x[:, b], np.zeros(n1 + n2)])
        root = np.sqrt(p)[:, None]
        z[moving] = np.linalg.lstsq(root * a[:, moving], -root[:, 0] * (a @ (z * ~moving) + c))[0]
        found.append(z)
    return np.split(np.stack(found, axis=1), [D_IN, D_IN + n1])


def arrays(*values):
    return [None if value is None else jnp.asarray(value) for value in values]


@eqx.filter_jit
def solved(solver, network, batch):
    problem = InferenceProblem.from_batch(network, batch, input_precision=P0)
    found = solver.solve(problem)
    return found, energy(problem.network, found.errors)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_solver_reaches_the_equilibrium_of_the_dense_system(name, case):
    x, y, x_mask, mask, precisions = clamps(case)
    network = FullyConnected(4, 2, "linear", segment_size=1).build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    network = dataclasses.replace(network, precisions=None if precisions == ONES else precisions)
    solver = getattr(inference, name)(**SETTINGS[name])
    batch = Batch(*arrays(x, y, mask, x_mask))

    found, value = solved(solver, network, batch)
    assert STOPPED_BY[int(found.stopped_by)] == "tolerance" and bool(found.converged)
    np.testing.assert_allclose(found.energy, value, rtol=1e-12)
    hidden = [layer for stack in found.activities[:-1] for layer in stack]
    expected = by_hand(network, x, y, x_mask, mask, precisions)
    for mine, theirs in zip(hidden, expected[-len(hidden) :], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    if x_mask is not None:
        np.testing.assert_array_equal(np.asarray(hidden[0])[x_mask == 1], x[x_mask == 1])


@pytest.mark.parametrize("name", ["ClosedForm", "ErrorDescent"])  # badly conditioned: the others take too many steps
def test_with_a_prior_of_precision_zero_the_input_is_the_one_that_explains_the_output_best(name):
    x, y, *_ = clamps("supervised")
    network = FullyConnected(4, 2, "linear").build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    batch = Batch(jnp.zeros_like(jnp.asarray(x)), jnp.asarray(y), None, jnp.zeros((D_IN, BATCH)))
    solver = getattr(inference, name)(**SETTINGS[name])
    found = jax.jit(lambda: solver.solve(InferenceProblem.from_batch(network, batch)))()
    w1, w2, w3 = (np.asarray(s.weight[0]) for s in network.segments)
    s = np.eye(D_OUT) + w3 @ w3.T + w3 @ w2 @ w2.T @ w3.T
    g, q = w3 @ w2 @ w1, np.linalg.inv(s)
    np.testing.assert_allclose(found.activities[0][0], np.linalg.solve(g.T @ q @ g, g.T @ q @ y), rtol=1e-3, atol=1e-4)


def test_the_weight_gradient_with_precisions_and_free_inputs_is_that_of_the_energy_at_the_equilibrium():
    x, y, x_mask, mask, precisions = clamps("precisions")
    network = FullyConnected(4, 2, "tanh").build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    network = dataclasses.replace(network, precisions=precisions)
    batch, solver = Batch(*arrays(x, y, mask, x_mask)), GradientDescent(0.1, 30)
    at = eqx.filter_jit(lambda: solver.solve(InferenceProblem.from_batch(network, batch)))()
    z0, z1, z2, _ = (stack[0] for stack in at.activities)

    def written(w1, w2, w3):
        layers = (z1 - jnp.tanh(w1 @ z0), z2 - jnp.tanh(w2 @ z1), batch.y - w3 @ z2)
        return sum(p * jnp.sum(e**2) for p, e in zip(precisions, layers, strict=True)) / (2 * BATCH)

    out = eqx.filter_jit(PC(solver, "batch_mean").gradient)(network, batch)
    exact = jax.jit(jax.grad(written, argnums=(0, 1, 2)))(*(s.weight[0] for s in network.segments))
    for segment, theirs in zip(out.gradient.segments, exact, strict=True):
        np.testing.assert_allclose(segment.weight[0], theirs, rtol=1e-9, atol=1e-14)


def test_what_cannot_be_clamped_or_weighed_is_refused():
    network = FullyConnected(4, 2, "tanh").build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    x, y = jnp.ones((D_IN, BATCH)), jnp.ones((D_OUT, BATCH))
    with pytest.raises(ValueError, match="infers no free input"):
        BP("batch_mean").gradient(network, Batch(x, y, None, jnp.zeros_like(x)))
    with pytest.raises(ValueError, match="3 are needed, one a layer"):
        dataclasses.replace(network, precisions=(1.0, 2.0))
    with pytest.raises(ValueError, match="must not be negative"):
        network.with_prior(-1.0)


def test_a_solve_without_finite_numbers_says_so():
    network = FullyConnected(4, 2, "linear").build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    x, y = jnp.ones((D_IN, BATCH)), jnp.ones((D_OUT, BATCH))
    found, _ = solved(GradientDescent(1e200, 20), network, Batch(x, y))
    assert STOPPED_BY[int(found.stopped_by)] == "not finite" and not bool(found.converged)
    found, _ = solved(GradientDescent(0.1, 20), network, Batch(x, y))
    assert STOPPED_BY[int(found.stopped_by)] == "steps"
