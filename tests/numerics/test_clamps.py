"""Every solver of conf/inference, whatever is clamped, against dense float64 systems of linear networks written out."""

import dataclasses
from pathlib import Path

import by_hand
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
from pcexp.model import FullyConnected, MuPC, Softmax, Standard

pytestmark = pytest.mark.usefixtures("x64")
D_IN, D_OUT, BATCH, P0 = 3, 4, 5, 0.5
FAR = {  # far enough to compare equilibria; what is not named is as configured
    "adam": {"activity_lr": 0.02, "max_steps": 20000, "tol": 1e-9, "eps": 0.1},
    "closed_form": {},
    "error_descent": {"max_steps": 200, "tol": 1e-9},
    "gradient_descent": {"activity_lr": 0.1, "max_steps": 20000, "tol": 1e-9},
    "momentum": {"max_steps": 20000, "tol": 1e-9},
    "ode": {"horizon": 5000.0, "max_steps": 40000, "longest_step": 0.2, "tol": 1e-9},
    "sequential": {"activity_lr": 0.1, "max_steps": 20000, "tol": 1e-9},
}


def solvers():
    """Every solver of conf/inference with its own settings, but for the time that it is given."""
    read = {path.stem: yaml.safe_load(path.read_text()) for path in Path("conf/inference").glob("*.yaml")}
    nodes = {name: node | FAR[name] for name, node in sorted(read.items()) if "_target_" in node}
    nodes["error_descent, descent"] = nodes["error_descent"] | {"method": "descent", "max_steps": 2000}
    return {
        name: getattr(inference, node["_target_"].rpartition(".")[2])(
            **{key: value for key, value in node.items() if key != "_target_" and not str(value).startswith("${")}
        )
        for name, node in nodes.items()
    }


SOLVERS = solvers()
ONES = (1.0, 1.0, 1.0)
CASES = {  # what is clamped of x and of y ("part" is a mask), precisions of the layers
    "supervised": ("all", "all", ONES),
    "generative, input free": ("none", "all", ONES),
    "unsupervised, output free": ("all", "none", ONES),
    "unsupervised, both free": ("none", "none", ONES),
    "masked outputs": ("all", "part", ONES),
    "parts of both": ("part", "part", ONES),
    "precisions": ("part", "all", (0.5, 2.0, 1.5)),
}


def clamps(case):
    of_x, of_y, precisions = CASES[case]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(D_IN, BATCH)), rng.normal(size=(D_OUT, BATCH))
    part = {"all": np.ones, "none": np.zeros, "part": lambda shape: (rng.random(shape) > 0.5) * 1.0}
    x_mask, mask = part[of_x](x.shape), part[of_y](y.shape)
    # A mask of ones where the input is free: cases of one structure share a program.
    return x, y, None if of_x == "all" else x_mask, None if of_x == of_y == "all" else mask, precisions


def networks(name):
    """A network and its layers written out."""
    if name == "plain":
        network = FullyConnected(4, 2, "linear", segment_size=1).build(
            Standard(), (D_IN,), D_OUT, key=jax.random.key(1)
        )
        return network, by_hand.layers(network, activation="linear", form="post", skips=False, scales=[1.0] * 3)
    deep = FullyConnected(4, 4, "linear", form="pre", biases=True, skips=True, segment_size=2)
    network = deep.build(MuPC(), (D_IN,), D_OUT, key=jax.random.key(1))
    scales = by_hand.premultipliers("MuPC", D_IN, 4, 5, True)
    return network, by_hand.layers(network, activation="linear", form="pre", skips=True, scales=scales)


def equilibrium_by_hand(net, x, y, x_mask, mask, precisions):
    """z_0, z_1, ... of every example: least squares of all errors, the prior's among them, over what is free.

    Errors are A h + c in the activities h of all layers but the last; A is read off the errors of unit vectors.
    """
    cuts = np.cumsum([D_IN, *(len(layer.weight) for layer in net[:-1])])
    p = np.repeat([P0, *precisions], [D_IN, *(len(layer.weight) for layer in net)])
    found = []
    for b in range(BATCH):
        at = slice(b, b + 1)
        seen = np.ones((D_OUT, 1)) if mask is None else mask[:, at]
        free = np.zeros(D_IN) if x_mask is None else 1 - x_mask[:, b]

        def errors(h, at=at, seen=seen):
            z0, *hidden = (part[:, None] for part in np.split(h, cuts[:-1]))
            *below, last = by_hand.errors(net, z0, [*hidden, y[:, at]])
            return np.concatenate([z0 - x[:, at], *below, seen * last])[:, 0]

        c = errors(np.zeros(cuts[-1]))
        a = np.stack([errors(unit) - c for unit in np.eye(cuts[-1])], axis=1)
        moving = np.concatenate([free, np.ones(cuts[-1] - D_IN)]) > 0
        h = np.concatenate([x[:, b], np.zeros(cuts[-1] - D_IN)])
        root = np.sqrt(p)[:, None]
        h[moving] = np.linalg.lstsq(root * a[:, moving], -root[:, 0] * (a @ (h * ~moving) + c))[0]
        found.append(h)
    return np.split(np.stack(found, axis=1), cuts[:-1])


def arrays(*values):
    return [None if value is None else jnp.asarray(value) for value in values]


@eqx.filter_jit
def solved(solver, network, batch):
    problem = InferenceProblem.from_batch(network, batch, input_precision=P0)
    found = solver.solve(problem)
    return found, energy(problem.network, found.errors)


@pytest.mark.parametrize(("kind", "case"), [*(("plain", case) for case in CASES), ("residual", "parts of both")])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reaches_the_equilibrium_of_the_dense_system(name, kind, case):
    x, y, x_mask, mask, precisions = clamps(case)
    network, net = networks(kind)
    precisions = (1.0,) * len(net) if precisions == ONES else precisions
    network = network if precisions == (1.0,) * len(net) else dataclasses.replace(network, precisions=precisions)
    SOLVERS[name].check(network)
    found, value = solved(SOLVERS[name], network, Batch(*arrays(x, y, mask, x_mask)))
    assert STOPPED_BY[int(found.stopped_by)] == "tolerance" and bool(found.converged)
    np.testing.assert_allclose(found.energy, value, rtol=1e-12)
    hidden = [layer for stack in found.activities[:-1] for layer in stack]
    expected = equilibrium_by_hand(net, x, y, x_mask, mask, precisions)
    for mine, theirs in zip(hidden, expected[-len(hidden) :], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    if x_mask is not None:
        np.testing.assert_array_equal(np.asarray(hidden[0])[x_mask == 1], x[x_mask == 1])


REFUSED = {  # what a solver says of a network that it cannot serve; all others take it
    "tanh": {"closed_form": "exact for linear networks only"},
    "softmax": {name: "error_descent descends squared errors" for name in SOLVERS if name.startswith("error_descent")}
    | {"closed_form": "exact for linear networks only"},
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_refuses_the_networks_that_it_cannot_serve_and_no_others(name, kind):
    architecture = {"tanh": FullyConnected(4, 2, "tanh"), "softmax": FullyConnected(4, 2, "linear", output=Softmax())}
    network = architecture[kind].build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    if name in REFUSED[kind]:
        with pytest.raises(ValueError, match=REFUSED[kind][name]):
            SOLVERS[name].check(network)
    else:
        SOLVERS[name].check(network)


@pytest.mark.parametrize("name", ["closed_form", "error_descent"])  # badly conditioned: the others take too many steps
def test_with_a_prior_of_precision_zero_the_input_is_the_one_that_explains_the_output_best(name):
    x, y, *_ = clamps("supervised")
    network = FullyConnected(4, 2, "linear").build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    batch = Batch(jnp.zeros_like(jnp.asarray(x)), jnp.asarray(y), None, jnp.zeros((D_IN, BATCH)))
    found = jax.jit(lambda: SOLVERS[name].solve(InferenceProblem.from_batch(network, batch)))()
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
    with pytest.raises(ValueError, match="precision of a prior must not be negative"):
        network.with_prior(-1.0)


def test_a_solve_without_finite_numbers_says_so():
    network = FullyConnected(4, 2, "linear").build(Standard(), (D_IN,), D_OUT, key=jax.random.key(1))
    x, y = jnp.ones((D_IN, BATCH)), jnp.ones((D_OUT, BATCH))
    found, _ = solved(GradientDescent(1e200, 20), network, Batch(x, y))
    assert STOPPED_BY[int(found.stopped_by)] == "not finite" and not bool(found.converged)
    found, _ = solved(GradientDescent(0.1, 20), network, Batch(x, y))
    assert STOPPED_BY[int(found.stopped_by)] == "steps"
