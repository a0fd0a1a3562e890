"""Energy, its layers and its gradients, held against numpy written out layer by layer and against jax.grad."""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import (
    Batch,
    energy,
    loss,
    outputs,
    prediction_errors,
    summed_energy,
)
from pcexp.evaluation import ByForwardPass
from pcexp.inference import InferenceProblem
from pcexp.learning.pc import energy_gradient
from pcexp.model import parameterisation as parameterisations
from pcexp.model.architecture import FullyConnected

D_IN, WIDTH, N_HIDDEN, D_OUT, BATCH = 3, 4, 5, 2, 6
CASES = {  # form, activation, biases, skips, parameterisation
    "pre-activation, tanh, biases, skips, muPC": ("pre", "tanh", True, True, "MuPC"),
    "pre-activation, relu, biases, no skips, NTK": ("pre", "relu", True, False, "NTK"),
    "post-activation, tanh, no biases, skips, NTK": ("post", "tanh", False, True, "NTK"),
    "post-activation, relu, biases, no skips, standard": ("post", "relu", True, False, "Standard"),
    "linear, biases, skips, muPC": ("post", "linear", True, True, "MuPC"),
}

pytestmark = pytest.mark.usefixtures("x64")


def build(case, segment_size, n_hidden=N_HIDDEN):
    form, activation, biases, skips, name = CASES[case]
    architecture = FullyConnected(
        width=WIDTH,
        n_hidden=n_hidden,
        activation=activation,
        form=form,
        biases=biases,
        skips=skips,
        segment_size=segment_size,
    )
    network = architecture.build(getattr(parameterisations, name)(), (D_IN,), D_OUT, key=jax.random.key(3))
    scales = by_hand.premultipliers(name, D_IN, WIDTH, n_hidden + 1, skips)
    net = by_hand.layers(network, activation=activation, form=form, skips=skips, scales=scales)
    return network, net


def batch(n_hidden=N_HIDDEN, seed=0):
    rng = np.random.default_rng(seed)
    hidden = [rng.normal(size=(WIDTH, BATCH)) for _ in range(n_hidden)]
    return rng.normal(size=(D_IN, BATCH)), rng.normal(size=(D_OUT, BATCH)), hidden


@eqx.filter_jit
def quantities(network, x, y, hidden):
    problem = InferenceProblem.from_batch(network, Batch(x, y))
    activities = (*hidden, y[None])
    errors = prediction_errors(network, x, activities)
    deviations = tuple(z - zhat for z, zhat in zip(activities, problem.at.activities, strict=True))
    in_activities, gradient = problem.errors_and_gradient("activities", hidden)
    in_deviations, gradient_in_deviations = problem.errors_and_gradient("deviations", deviations[:-1])
    return {
        "forward": problem.at.activities,
        "loss": loss(network, x, y),
        "energy": energy(network, errors),
        "summed": summed_energy(network, in_activities),
        "summed in deviations": summed_energy(network, in_deviations),
        "errors": errors,
        "errors in deviations": problem.errors("deviations", deviations[:-1]),
        "gradient": gradient,
        "gradient in deviations": gradient_in_deviations,
        "weights": energy_gradient(network, x, activities, errors),
        "weights by autodiff": eqx.filter_grad(lambda n: energy(n, prediction_errors(n, x, activities)))(network),
    }


def agree(value, expected):
    for v, e in zip(value, expected, strict=True):
        np.testing.assert_allclose(v, e, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("case", "segment_size"), [*((case, 2) for case in CASES), *((next(iter(CASES)), n) for n in (1, 8))]
)
def test_energy_errors_and_gradients_are_those_of_a_loop_written_by_hand(case, segment_size):
    network, net = build(case, segment_size)
    x, y, hidden = batch()
    out = quantities(network, x, y, by_hand.stacked(network, hidden))
    activities = [*hidden, y]
    errors = by_hand.errors(net, x, activities)

    agree(by_hand.unstacked(out["forward"]), by_hand.forward(net, x))
    agree(by_hand.unstacked(out["errors"]), errors)
    agree(by_hand.unstacked(out["errors in deviations"]), errors)
    total = by_hand.energy(net, x, activities)
    agree([out["energy"], out["summed"], out["summed in deviations"]], [total, BATCH * total, BATCH * total])
    forward = by_hand.forward(net, x)
    agree([out["loss"]], [by_hand.energy(net, x, [*forward[:-1], y])])

    expected = by_hand.activity_gradient(net, x, activities)
    agree(by_hand.unstacked(out["gradient"]), expected)
    agree(by_hand.unstacked(out["gradient in deviations"]), expected)

    for name in ("weights", "weights by autodiff"):
        weights, biases = zip(*by_hand.weight_gradient(net, x, activities), strict=True)
        agree([w for segment in out[name].segments for w in segment.weight], weights)
        if network.segments[0].bias is not None:
            agree([b for segment in out[name].segments for b in segment.bias], biases)


@pytest.mark.parametrize("case", list(CASES)[:2])
def test_the_gradients_written_by_hand_are_finite_differences_of_the_energy(case):
    _, net = build(case, 8)
    x, y, hidden = batch(seed=1)
    for index, gradient in enumerate(by_hand.activity_gradient(net, x, [*hidden, y])):

        def at(z, index=index):
            return BATCH * by_hand.energy(net, x, [*hidden[:index], z, *hidden[index + 1 :], y])

        np.testing.assert_allclose(gradient, by_hand.finite_difference(at, hidden[index]), atol=1e-8)
    for index, (gradient, _) in enumerate(by_hand.weight_gradient(net, x, [*hidden, y])):

        def moved(w, index=index):
            return by_hand.energy([*net[:index], net[index]._replace(weight=w), *net[index + 1 :]], x, [*hidden, y])

        np.testing.assert_allclose(gradient, by_hand.finite_difference(moved, net[index].weight), atol=1e-8)


@pytest.mark.parametrize("segment_size", [1, 3, 64])
def test_the_segment_size_does_not_change_a_drawn_weight_or_bias(segment_size):
    drawn, again = (build("pre-activation, tanh, biases, skips, muPC", size)[0] for size in (8, segment_size))
    for name in ("weight", "bias"):
        layers = [[np.asarray(p) for s in net.segments for p in getattr(s, name)] for net in (drawn, again)]
        assert all(np.array_equal(a, b) for a, b in zip(*layers, strict=True))
    assert max(s.depth for s in again.segments) <= segment_size
    assert again.depth == N_HIDDEN + 1


def test_a_network_with_one_hidden_layer_has_two_layers():
    case = "post-activation, relu, biases, no skips, standard"
    network, net = build(case, 8, n_hidden=1)
    x, y, hidden = batch(n_hidden=1)
    out = quantities(network, x, y, by_hand.stacked(network, hidden))
    agree([out["energy"]], [by_hand.energy(net, x, [*hidden, y])])
    agree(by_hand.unstacked(out["gradient"]), by_hand.activity_gradient(net, x, [*hidden, y]))


@pytest.mark.parametrize("form", ["pre", "post"])
def test_the_ends_have_no_skip_and_phi_acts_neither_on_x_nor_on_the_output_even_where_shapes_would_allow_it(form):
    architecture = FullyConnected(width=WIDTH, n_hidden=2, activation="tanh", form=form, skips=True)
    network = architecture.build(parameterisations.Standard(), (WIDTH,), WIDTH, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(WIDTH, BATCH))
    first, second, last = (np.asarray(segment.weight[0]) for segment in network.segments)
    if form == "pre":
        z = first @ x
        expected = last @ np.tanh(second @ np.tanh(z) + z)
    else:
        z = np.tanh(first @ x)
        expected = last @ (np.tanh(second @ z) + z)
    np.testing.assert_allclose(eqx.filter_jit(outputs)(network, x), expected, rtol=1e-12)


def test_errors_are_exactly_zero_at_the_forward_pass_but_at_the_output():
    network, net = build("pre-activation, tanh, biases, skips, muPC", 2)
    x, y, _ = batch()
    problem = eqx.filter_jit(InferenceProblem.from_batch)(network, Batch(jnp.asarray(x), jnp.asarray(y)))
    still = problem.start("deviations")
    *hidden, output = eqx.filter_jit(problem.errors)("deviations", still)
    assert all(not np.any(e) for e in hidden)
    np.testing.assert_allclose(output[0], y - by_hand.forward(net, x)[-1], rtol=1e-12)


def test_accuracy_counts_the_examples_whose_largest_output_is_the_targets():
    network, net = build("linear, biases, skips, muPC", 8)
    x, _, _ = batch()
    np.testing.assert_allclose(eqx.filter_jit(outputs)(network, x), by_hand.forward(net, x)[-1], rtol=1e-12)
    labels = np.argmax(by_hand.forward(net, x)[-1], axis=0)
    labels[:2] = 1 - labels[:2]
    hits = ByForwardPass().hits(outputs(network, jnp.asarray(x)), jnp.asarray(np.eye(D_OUT)[labels].T))
    assert np.mean(hits["accuracy"]) == pytest.approx((BATCH - 2) / BATCH)
