"""The wavefront skips what no signal has reached, and what it computes is the same."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.learning import PC
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.parameterisation import MuPC, Standard

H, BATCH = 12, 5


def problem(form="pre", activation="tanh", segment_size=4):
    architecture = FullyConnected(
        6, H, activation, form=form, biases=form == "post", skips=form == "pre", segment_size=segment_size
    )
    network = architecture.build(MuPC() if form == "pre" else Standard(), (7,), 3, key=jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (7, BATCH)), jax.random.normal(jax.random.key(2), (3, BATCH))
    return InferenceProblem.from_batch(network, Batch(x, y))


@eqx.filter_jit
def solve(solver, problem):
    return solver.solve(problem)


def both(problem, steps, **fields):
    solvers = [GradientDescent(0.2, steps, wavefront=wavefront, **fields) for wavefront in (True, False)]
    return [solve(solver, problem) for solver in solvers]


@pytest.mark.parametrize(
    ("form", "activation", "size", "steps"),
    [
        ("pre", "linear", 4, 5),
        ("pre", "linear", 1, H),
        ("post", "relu", 4, H),
        ("pre", "tanh", 4, H),
        ("pre", "tanh", 4, 5),
    ],
)
def test_skipping_changes_nothing(form, activation, size, steps):
    skipped, full = both(problem(form, activation, size), steps)
    for ours, theirs in zip(jax.tree.leaves(skipped), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # compiled in another place, XLA fuses otherwise


def test_operation_by_operation_skipping_changes_no_bit():
    with jax.disable_jit():
        for steps in (3, 6):
            skipped, full = both(problem(), steps)
            for ours, theirs in zip(jax.tree.leaves(skipped), jax.tree.leaves(full), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_skipping_changes_nothing_with_convolutions():
    network = Convolutional([2, 3], [6, 5], "relu").build(Standard(), (8, 8, 3), 4, key=jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (BATCH, 8, 8, 3)), jax.random.normal(jax.random.key(2), (4, BATCH))
    for steps in (2, 7):
        skipped, full = both(InferenceProblem.from_batch(network, Batch(x, y)), steps)
        for ours, theirs in zip(jax.tree.leaves(skipped), jax.tree.leaves(full), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 7, H - 1])
def test_a_layer_that_is_not_reached_has_a_gradient_of_exactly_zero_and_a_reached_one_has_not(steps):
    at = problem()
    rule = PC(GradientDescent(0.2, steps), "batch_sum")
    gradient = eqx.filter_jit(rule.gradient)(at.network, Batch(at.x, at.y)).gradient
    norms = np.concatenate([np.abs(np.asarray(s.weight)).max(axis=(1, 2)) for s in gradient.segments])
    assert norms.shape == (H + 1,)
    assert not norms[: H - steps].any() and norms[H - steps :].all()


def poisoned(at, n_segments):
    """The same problem with weights in its lowest segments that spoil whatever touches them."""
    network = at.network
    for index in range(n_segments):
        weight = network.segments[index].weight
        network = eqx.tree_at(lambda n, i=index: n.segments[i].weight, network, jnp.full_like(weight, jnp.nan))
    return dataclasses.replace(at, network=network)


def test_segments_that_no_signal_has_reached_are_not_computed():
    # 7 - 12 x 6 - 3: layer 1, hidden layers 2-5, 6-9, 10-12, output. After 3 steps nothing below layer 10 has moved.
    at = problem()
    assert [segment.depth for segment in at.network.segments] == [1, 3, 4, 4, 1]
    solver = GradientDescent(0.2, 4)
    hidden = eqx.filter_jit(lambda p: solver._fixed(p, p.start("deviations")))(poisoned(at, 3))
    clean = eqx.filter_jit(lambda p: solver._fixed(p, p.start("deviations")))(at)
    for ours, theirs in zip(hidden, clean, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    full = dataclasses.replace(solver, wavefront=False)
    spoilt = eqx.filter_jit(lambda p: full._fixed(p, p.start("deviations")))(poisoned(at, 3))
    assert np.isnan(spoilt[1]).any()


@pytest.mark.parametrize("fields", [{"form": "activities"}, {"max_halvings": 1}, {"tol": 1e-9}])
def test_where_its_conditions_fail_the_wavefront_is_off(fields):
    """In activities round-off moves every layer; a schedule that looks at the energy needs all of it."""
    _, at = both(problem(), 3, **fields)
    spoilt = solve(GradientDescent(0.2, 3, **fields), poisoned(problem(), 2))
    assert np.isfinite(at.residual) and not np.isfinite(spoilt.residual)
    assert any(np.isnan(z).any() for z in spoilt.activities)
