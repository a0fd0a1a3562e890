"""Inference in deviations keeps in float32 what float64 has, layers deep under the output; inference in activities does not."""

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcexp.energy import Batch
from pcexp.inference import GradientDescent
from pcexp.learning import PC
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.parameterisation import MuPC, Orthogonal, Standard

WIDTH, D_OUT, BATCH, BETA = 64, 10, 8, 0.1
FAITHFUL = 1e-5  # relative error of a layer's weight gradient that float32 is held to
UNDERFLOW = 1e-33  # gradients below this are lost to float32 in any variables
CASES = {  # form, activation, skips, parameterisation, hidden layers, steps
    "64 layers, pre-activation, tanh, skips, muPC": ("pre", "tanh", True, MuPC(), 63, 64),
    "64 layers, pre-activation, relu, skips, muPC": ("pre", "relu", True, MuPC(), 63, 64),
    "16 layers, post-activation, tanh, orthogonal": ("post", "tanh", False, Orthogonal(), 15, 16),
    "16 layers, post-activation, relu, standard": ("post", "relu", False, Standard(), 15, 16),
}


@eqx.filter_jit
def gradients(network, x, y, form, steps, beta=BETA):
    rule = PC(GradientDescent(activity_lr=beta, max_steps=steps, form=form), gradient_scale="batch_mean")
    return [w for segment in rule.gradient(network, Batch(x, y)).gradient.segments for w in segment.weight]


def problem(case):
    form, activation, skips, parameterisation, n_hidden, steps = CASES[case]
    architecture = FullyConnected(
        width=WIDTH, n_hidden=n_hidden, activation=activation, form=form, skips=skips, segment_size=n_hidden
    )
    network = architecture.build(parameterisation, (WIDTH,), D_OUT, key=jax.random.key(0))
    name = type(parameterisation).__name__
    scales = by_hand.premultipliers(name, WIDTH, WIDTH, n_hidden + 1, skips)
    net = by_hand.layers(network, activation=activation, form=form, skips=skips, scales=scales)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(WIDTH, BATCH)).astype(np.float32)
    y = np.eye(D_OUT, dtype=np.float32)[rng.integers(D_OUT, size=BATCH)].T
    return network, net, x, y, steps


@pytest.mark.parametrize("case", CASES)
def test_float32_deviations_give_every_layer_its_gradient_where_float32_activities_give_round_off(case):
    network, net, x, y, steps = problem(case)
    activities, errors = by_hand.descended_deviations(net, x, y, BETA, steps)
    exact = [w for w, _ in by_hand.weight_gradient(net, x, activities, errors)]
    error = {
        form: np.array(
            [
                by_hand.relative_error(g, e)
                for g, e in zip(gradients(network, jnp.asarray(x), jnp.asarray(y), form, steps), exact, strict=True)
            ]
        )
        for form in ("deviations", "activities")
    }
    norms = np.array([np.max(np.abs(e)) for e in exact])
    told = "\n".join(
        f"layer {i}: gradient {n:.1e}, error in deviations {d:.1e}, in activities {a:.1e}"
        for i, (n, d, a) in enumerate(zip(norms, error["deviations"], error["activities"], strict=True), start=1)
    )
    print(told)
    held = norms > UNDERFLOW
    assert held.sum() >= 12, told
    assert np.all(error["deviations"][held] < FAITHFUL), told
    assert np.all(error["activities"][norms < 1e-9] > 1e-1), told
    assert np.all(error["activities"][-2:] < 1e-3), told  # the two agree where nothing is small
    assert np.any(held & (norms < 1e-9)), told


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_float32_deviations_of_a_convolutional_net_with_pooling_are_those_of_float64_activities(activation):
    architecture = Convolutional(channels=(4, 6), widths=(), activation=activation)
    network = architecture.build(Standard(), (8, 8, 3), 4, key=jax.random.key(0))
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 8, 8, 3), (4, 5)))
    # Two steps reach layer 1 with errors of about beta^2: below float32's round-off of z, above float64's.
    beta, steps = 1e-4, 2
    with jax.enable_x64(True):
        exact_network = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), network)
        as64 = (jnp.asarray(v, jnp.float64) for v in (x, y))
        exact = [np.asarray(g) for g in gradients(exact_network, *as64, form="activities", steps=steps, beta=beta)]
    error = {
        form: [
            by_hand.relative_error(g, e)
            for g, e in zip(gradients(network, jnp.asarray(x), jnp.asarray(y), form, steps, beta), exact, strict=True)
        ]
        for form in ("deviations", "activities")
    }
    told = f"{error}, norms {[float(np.linalg.norm(e)) for e in exact]}"
    assert max(error["deviations"]) < FAITHFUL, told
    assert error["activities"][0] > 1e-1, told
    assert error["activities"][-1] < FAITHFUL, told
