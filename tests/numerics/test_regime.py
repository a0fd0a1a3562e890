"""Where inference stands in training, against dense Hessians and the closed form F* of small linear nets."""

import dataclasses

import by_hand
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from linear_by_hand import dense_equilibrium
from solving import agree
from test_solver_steps import dense_hessian
from trained_by_hand import BATCH, EPOCHS, build, key, rule, run, sgd

from pcexp.config.targets import ALLOWED_TARGETS, without_defaults
from pcexp.energy import Batch, prediction_errors
from pcexp.inference import STOPPED_BY, ErrorDescent, GradientDescent, InferenceProblem, RandomStart
from pcexp.learning import BP, PC, Beside, Equilibrated, Networks
from pcexp.model import FullyConnected, MuPC, Softmax, Standard
from pcexp.train import Training, initial_state

pytestmark = pytest.mark.usefixtures("x64")


def linear():
    network = FullyConnected(5, 4, "linear", form="pre", biases=True, skips=True, segment_size=2).build(
        MuPC(), (3,), 2, key=jax.random.key(1)
    )
    scales = by_hand.premultipliers("MuPC", 3, 5, 5, True)
    net = by_hand.layers(network, activation="linear", form="pre", skips=True, scales=scales)
    rng = np.random.default_rng(2)
    return network, net, rng.normal(size=(3, 6)), rng.normal(size=(2, 6))


def said(learning, network, x, y):
    batch = Batch(jnp.asarray(x), jnp.asarray(y))
    lane_key = jax.random.key(0)
    return jax.jit(
        lambda: learning.regime(network, batch, learning.gradient(network, batch, key=lane_key), key=lane_key)
    )()


@pytest.mark.parametrize("steps", [0, 7, 3000])
def test_steps_and_closed_fractions_are_those_of_dense_hessians_and_of_the_closed_form(steps):
    network, net, x, y = linear()
    found = said(PC(GradientDescent(0.1, steps, tol=1e-10), "batch_sum"), network, x, y)
    values = np.linalg.eigvalsh(dense_hessian(net, x)[0])
    np.testing.assert_allclose(found["regime_step"], 0.1 * values[-1], rtol=1e-6)
    start = by_hand.energy(net, x, [*by_hand.forward(net, x)[:-1], y])
    reached = by_hand.energy(net, x, by_hand.descended(net, x, y, 0.1, steps))
    _, lowest = dense_equilibrium(net, x, y)
    expected = (start - reached) / (start - lowest)
    assert {0: expected == 0, 7: 0.1 < expected < 0.99, 3000: expected > 1 - 1e-9}[steps]
    np.testing.assert_allclose(found["regime_closed_fraction"], expected, rtol=1e-7, atol=1e-12)
    assert 0 <= float(found["regime_lowest_residual"]) < 1e-6
    assert STOPPED_BY[int(found["regime_stopped_by"])] == ("tolerance" if steps == 3000 else "steps")


def test_the_step_of_a_row_is_that_of_the_sample_with_the_largest_eigenvalue():
    network = build()  # tanh: every sample has a Hessian of its own
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    found = said(PC(GradientDescent(0.3, 2), "batch_sum"), network, x, y)
    largest = []
    for b in range(5):
        problem = InferenceProblem.from_batch(network, Batch(jnp.asarray(x[:, [b]]), jnp.asarray(y[:, [b]])))
        flat, tree = jax.flatten_util.ravel_pytree(problem.start("activities"))

        def energy(z, problem=problem, tree=tree):
            return sum(jnp.sum(e**2) for e in prediction_errors(network, problem.x, (*tree(z), problem.y[None]))) / 2

        largest.append(np.linalg.eigvalsh(jax.hessian(energy)(flat))[-1])
    assert max(largest) > 1.1 * min(largest)
    np.testing.assert_allclose(found["regime_step"], 0.3 * max(largest), rtol=1e-8)


def test_the_energy_gap_is_that_of_the_forward_pass_wherever_inference_starts():
    network, _, x, y = linear()
    found = said(PC(ErrorDescent(50, tol=1e-9), "batch_mean", start=RandomStart(3.0)), network, x, y)
    np.testing.assert_allclose(found["regime_closed_fraction"], 1, rtol=1e-9)
    assert "regime_step" not in found  # error descent has no activity_lr
    # Of a net that is not linear, whose curvature is another elsewhere.
    curved = FullyConnected(5, 4, "tanh", form="pre").build(Standard(), (3,), 2, key=jax.random.key(1))
    rules = PC(GradientDescent(0.1, 1), "batch_mean"), PC(GradientDescent(0.1, 1), "batch_mean", start=RandomStart(3.0))
    here, far = (said(rule, curved, x, y)["regime_step"] for rule in rules)
    np.testing.assert_allclose(far, here, rtol=1e-10)


def test_rows_say_the_regime_at_the_weights_before_each_update_and_nothing_else_changes():
    training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=3)
    start = initial_state(build(), sgd(), key=key())
    plain_state, plain = run(start, rule("PC"), sgd(), training)
    state, rows = run(start, rule("PC"), sgd(), dataclasses.replace(training, regime=True))
    assert plain.keys() == rows.keys() - {
        "regime_step",
        "regime_closed_fraction",
        "regime_lowest_residual",
        "regime_stopped_by",
    }
    for name in plain:
        np.testing.assert_allclose(rows[name], plain[name], rtol=1e-12, atol=1e-15)  # another program: round-off
    agree(jax.tree.leaves(state.network), jax.tree.leaves(plain_state.network), rtol=1e-12, atol=1e-15)
    assert np.all(np.diff(rows["regime_step"]) != 0) and len(rows["regime_step"]) == len(rows["iteration"]) > 2
    assert np.all((rows["regime_closed_fraction"] > 0) & (rows["regime_closed_fraction"] <= 1 + 1e-9))
    _, none = run(start, rule("BP"), sgd(), dataclasses.replace(training, regime=True))
    assert none.keys() == plain.keys()


def test_rules_side_by_side_say_it_of_each_that_infers():
    network, _, x, y = linear()
    pc, batch = PC(GradientDescent(0.1, 7), "batch_sum"), Batch(jnp.asarray(x), jnp.asarray(y))
    both, models = Beside((BP("batch_sum"), pc)), Networks((network, network))
    alone = said(pc, network, x, y)
    beside = jax.jit(lambda: both.regime(models, batch, both.gradient(models, batch)))()
    assert beside.keys() == {f"{name}_1" for name in alone}
    agree([beside[f"{name}_1"] for name in alone], alone.values())


def test_what_has_no_regime_is_refused_with_the_key():
    softmax = FullyConnected(5, 2, "tanh", output=Softmax()).build(Standard(), (3,), 2, key=jax.random.key(1))
    for network in (softmax, forward_only()):
        with pytest.raises(ValueError, match=r"training\.regime=true"):
            PC(GradientDescent(0.1, 1), "batch_sum").check_regime(network)
        BP("batch_sum").check_regime(network)


def forward_only():
    network = linear()[0]
    return network.with_segments(dataclasses.replace(segment, forward_only=True) for segment in network.segments)


def test_left_at_its_default_it_is_no_part_of_a_cells_identity():
    node = {"_target_": "pcexp.train.Training", "batch_size": 64, "epochs": 1, "record_every": 10}
    kept = without_defaults(node, "training", ALLOWED_TARGETS)
    assert without_defaults(node | {"regime": False}, "training", ALLOWED_TARGETS) == kept
    assert without_defaults(node | {"regime": True}, "training", ALLOWED_TARGETS) == kept | {"regime": True}


def test_a_gradient_says_how_its_inference_ended():
    network, net, x, y = linear()
    batch = Batch(jnp.asarray(x), jnp.asarray(y))
    exact = jax.jit(lambda: Equilibrated("batch_sum").gradient(network, batch).diagnostics)()
    assert STOPPED_BY[int(exact["inference_stopped_by"])] == "tolerance" and float(exact["inference_residual"]) < 1e-13
    np.testing.assert_allclose(exact["inference_energy"], dense_equilibrium(net, x, y)[1], rtol=1e-10)
    for solver, word in (
        (GradientDescent(0.1, 4), "steps"),
        (GradientDescent(9.0, 4), "risen"),
        (GradientDescent(0.1, 5000, tol=1e-8), "tolerance"),
    ):
        seen = jax.jit(lambda solver=solver: PC(solver, "batch_sum").gradient(network, batch).diagnostics)()
        assert STOPPED_BY[int(seen["inference_stopped_by"])] == word
        assert int(seen["inference_steps"]) == 4 or word == "tolerance"
        if word != "tolerance":
            at = by_hand.descended(net, x, y, float(solver.activity_lr), 4)
            np.testing.assert_allclose(seen["inference_energy"], by_hand.energy(net, x, at), rtol=1e-9)
            rms = np.sqrt(np.mean(np.square(by_hand.activity_gradient(net, x, at))))
            np.testing.assert_allclose(seen["inference_residual"], rms, rtol=1e-9)
