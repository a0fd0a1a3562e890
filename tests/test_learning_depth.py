"""Learning depth: gradients, closed fractions and movements are those of numpy in float64."""

import math
from collections.abc import Mapping
from typing import Any

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from pcexp.data.dataset import Dataset, Split
from pcexp.experiments import learning_depth
from pcexp.experiments.learning_depth import LearningDepth
from pcexp.experiments.learning_depth.claims import ROUND_OFF
from pcexp.inference import ErrorDescent
from pcexp.learning.layerwise import cosines, norms, relative_errors
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC
from pcexp.train import Observation, TrainingSet

D, N, H, K, B, BETA = 12, 16, 6, 4, 5, 0.5 / 64


def network(activation: str = "relu", seed: int = 0) -> Network:
    architecture = FullyConnected(N, H, activation, form="pre", skips=True, segment_size=8)
    return architecture.build(MuPC(), (D,), K, key=jax.random.key(seed))


def oracle(net: Network, activation: str) -> list[by_hand.Layer]:
    scales = by_hand.premultipliers("MuPC", D, N, H + 1, skips=True)
    return by_hand.layers(net, activation=activation, form="pre", skips=True, scales=scales)


def batch() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(D, B)).astype(np.float32), np.eye(K, dtype=np.float32)[draw.integers(K, size=B)].T


def study(steps: int = H, **grid: Any) -> LearningDepth:
    return LearningDepth(B, BETA, steps, ErrorDescent(60, tol=1e-7), **grid)


measure = eqx.filter_jit(learning_depth.measure)


def measured(net: Network, steps: int = H) -> Mapping[str, np.ndarray]:
    x, y = (jnp.asarray(a) for a in batch())
    seen = Observation(net, net, jnp.zeros(()), {}, TrainingSet(x.T, y.T, x, y))
    return {name: np.asarray(value) for name, value in measure(study(steps), seen).items()}


def weights_of(*layers: float) -> Network:
    """A network whose every layer has all its entries at these values."""
    net = network()
    values = iter(layers)
    filled = [
        eqx.tree_at(lambda s: s.weight, s, jnp.stack([jnp.full(w.shape, float(next(values))) for w in s.weight]))
        for s in net.segments
    ]
    return Network(tuple(filled))


# Numerics


def test_norms_and_cosines_do_not_underflow_and_zero_has_no_direction() -> None:
    a, b = weights_of(1e-30, 1e-20, 2, 2, 2, 2, 0), weights_of(2e-30, -1e-20, 2, 2, 2, 1, 3)
    sizes = [N * D, *[N * N] * (H - 1), K * N]
    np.testing.assert_allclose(norms(a), np.abs([1e-30, 1e-20, 2, 2, 2, 2, 0]) * np.sqrt(sizes), rtol=1e-5)
    np.testing.assert_allclose(cosines(a, b), [1, -1, 1, 1, 1, 1, math.nan], rtol=1e-5)
    np.testing.assert_allclose(relative_errors(b, a), [1, 2, 0, 0, 0, 0.5, math.inf], rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_norms_and_cosines_in_deviations_are_those_of_float64_and_activities_lose_the_lowest_layers(
    activation: str,
) -> None:
    net, (x, y) = network(activation), batch()
    by = oracle(net, activation)
    exact = [w for w, _ in by_hand.weight_gradient(by, x, *by_hand.descended_deviations(by, x, y, BETA, H))]
    bp = [w for w, _ in by_hand.loss_gradient(by, x, y)]
    found = measured(net)
    np.testing.assert_allclose(found["deviations_norm"], [np.linalg.norm(g) for g in exact], rtol=1e-4)
    np.testing.assert_allclose(found["bp_norm"], [np.linalg.norm(g) for g in bp], rtol=1e-4)
    cosine = [np.sum(g * h) / np.linalg.norm(g) / np.linalg.norm(h) for g, h in zip(exact, bp, strict=True)]
    np.testing.assert_allclose(found["deviations_cosine"], cosine, atol=1e-4)
    assert found["activities_error"][0] > ROUND_OFF > 1e-2 > found["activities_error"][-2]


def test_above_round_off_means_that_float32_activities_are_within_a_tenth_of_float64() -> None:
    net, (x, y) = network(), batch()
    by = oracle(net, "relu")
    exact = [w for w, _ in by_hand.weight_gradient(by, x, *by_hand.descended_deviations(by, x, y, BETA, H))]
    seen = eqx.filter_jit(learning_depth.seen_by)(
        learning_depth.GradientDescent(BETA, H, "activities"), net, jnp.asarray(x), jnp.asarray(y)
    )
    float32 = [np.asarray(w, float) for s in seen.gradient.segments for w in s.weight]
    error = [np.linalg.norm(g - e) / np.linalg.norm(e) for g, e in zip(float32, exact, strict=True)]
    found = measured(net)["activities_error"]
    assert list(found < ROUND_OFF) == [e < 0.1 for e in error]
    assert 0 < sum(found < ROUND_OFF) < H + 1


def test_the_closed_fraction_of_a_linear_net_is_that_of_the_closed_form() -> None:
    net, (x, y) = network("linear"), batch()
    by = oracle(net, "linear")
    r = y - by_hand.forward(by, x)[-1]
    start, lowest = np.sum(r**2) / (2 * B), np.sum(r * np.linalg.solve(by_hand.rescaling(maps(by, x)), r)) / (2 * B)
    reached = by_hand.energy(by, x, by_hand.descended(by, x, y, BETA, 100))
    found = measured(net, 100)
    assert float(found["closed_fraction"]) == pytest.approx((start - reached) / (start - lowest), rel=1e-3)
    assert float(found["equilibrium_residual"]) < 1e-6


def maps(by: list[by_hand.Layer], x: np.ndarray) -> list[np.ndarray]:
    return by_hand.jacobians(by, x[:, :1])


def test_movement_validation_accuracy_and_the_grid_are_what_they_say() -> None:
    first, last, (x, y) = network(), network(seed=1), batch()
    draw = np.random.default_rng(3)
    held_out = Split(draw.normal(size=(50, D)).astype(np.float32), np.eye(K, dtype=np.float32)[np.arange(50) % K])
    data = Dataset("made up", Split(x.T, y.T), held_out, Split(x.T, y.T), "", "")
    horizons, betas = [1, 8], [BETA, 0.1]
    found = learning_depth.outcome(study(horizons=horizons, activity_lrs=betas), first, last, dataset=data)
    before, after = ([np.asarray(w, float) for s in n.segments for w in s.weight] for n in (first, last))
    moved = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(before, after, strict=True)]
    assert [found[f"movement_{i}"] for i in range(1, H + 2)] == pytest.approx(moved, rel=1e-5)
    outputs = by_hand.forward(oracle(last, "relu"), held_out.x.T)[-1]
    right = np.mean(np.argmax(outputs, axis=0) == np.argmax(held_out.y.T, axis=0))
    assert found["validation_accuracy"] == pytest.approx(right)

    by = oracle(first, "relu")
    start = np.sum((y - by_hand.forward(by, x)[-1]) ** 2) / (2 * B)
    gained = [
        start - by_hand.energy(by, x, by_hand.descended(by, x, y, beta, round(m * H)))
        for m in horizons
        for beta in betas
    ]
    closed = np.array([found[f"grid_closed_{i}"] for i in range(1, 5)])
    np.testing.assert_allclose(closed / closed[-1], np.array(gained) / gained[-1], rtol=1e-3)
    assert found["grid_above_1"] == np.sum(measured(first)["activities_error"] < ROUND_OFF)
    assert found["grid_alive_1"] == H + 1 and found["grid_above_1"] < found["grid_above_4"]


# Settings


def test_each_rule_is_what_its_name_says_in_one_precision_but_for_float64() -> None:
    found = {}
    for spec in quick.swept("+experiment=learning_depth", "scale=small", "network.n_hidden=8"):
        rule, inference = spec.science["learning"], spec.science["learning"].get("inference", {})
        kind = inference.get("form") or inference.get("method")
        found[spec.labels["learning"]] = (kind, spec.precision, rule.get("last_layers"))
    assert found == {
        "pc_activities": ("activities", "float32", None),
        "pc": ("deviations", "float32", None),
        "pc_far": ("deviations", "float32", None),
        "pc_float64": ("deviations", "float64", None),
        "pc_equilibrium": (None, "float32", None),
        "bp_last_layers": (None, "float32", 4),
        "bp": (None, "float32", None),
    }


@pytest.mark.parametrize("scale", ["smoke", "small", "thesis"])
def test_far_inference_takes_four_steps_a_layer_and_is_what_is_measured(scale: str) -> None:
    found = quick.swept("+experiment=learning_depth", "data=mnist", f"scale={scale}", "blocks=[pc_far]")
    assert found
    for spec in found:
        inference, seen = spec.science["learning"]["inference"], spec.science["study"]
        n_hidden = spec.science["network"]["n_hidden"]
        assert (inference["activity_lr"], inference["max_steps"]) == (0.25, 4 * n_hidden)
        assert (seen["activity_lr"], seen["max_steps"]) == (0.25, 4 * n_hidden)
        if scale == "small":  # the last is measured
            training = spec.science["training"]
            assert (training["max_iterations"] - 1) % training["record_every"] == 0
