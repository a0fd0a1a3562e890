"""Learning depth: gradients, closed fractions and movements are those of numpy in float64, and verdicts those of their rules."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import quick

from experiments import learning_depth
from experiments.learning_depth import LearningDepth
from experiments.learning_depth.runs import EPS, ETA, ROUND_OFF
from pcexp.data.dataset import Dataset, Split
from pcexp.inference import ErrorDescent
from pcexp.learning.layerwise import cosines, norms, relative_errors
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import MuPC
from pcexp.records.tables import Records
from pcexp.report.claims import Verdict
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


# Claims

SIZES = {8: 9, 32: 33, 128: 129}
RATES = {
    "pc_activities": [(0.1, 1e-8), (0.01, 1e-8)],
    "pc": [(0.1, 1e-8), (0.01, 1e-8), (0.01, 1e-30)],
    "pc_far": [(0.1, 1e-8), (0.01, 1e-8)],
    "pc_float64": [(0.01, 1e-30), (0.01, 1e-100)],
    "pc_equilibrium": [(0.03, 1e-8), (0.01, 1e-8)],
    "bp_last_layers": [(0.1, 1e-8)],
    "bp": [(0.1, 1e-8), (0.01, 1e-8)],
}
Change = Callable[[dict[str, Any]], dict[str, Any]]


def as_the_atlas_has_it(run: dict[str, Any]) -> dict[str, Any]:
    """Accuracies and movements of trap 2, and a net of 128 layers that trains at equilibrium as well as one of 32 does."""
    rule, depth = run["learning"], run["config.network.n_hidden"] + 1
    accuracy = {
        "pc_activities": 0.94,
        "pc": 0.941,
        "pc_far": 0.963,
        "pc_float64": 0.962,
        "bp_last_layers": 0.937,
        "bp": 0.961,
    }
    at_equilibrium = {9: 0.96, 33: 0.933, 129: 0.933}[depth]
    value = accuracy.get(rule, at_equilibrium) - (0.05 if run[ETA] == 0.03 else 0) + 0.001 * run["seed"]
    moving = 5 if rule in ("pc_activities", "bp_last_layers") else depth
    movement = {f"movement_{i}": 0.5 if i > depth - moving else 0.01 for i in range(1, depth + 1)}
    return {
        "test_accuracy": value, "validation_accuracy": value - 0.002, "start_above": 4, "end_above": 3,
        "start_closed": 0.02, "end_closed": 0.01, "start_equilibrium_cosine": 0.97, "end_equilibrium_cosine": 0.5,
    } | movement  # fmt: skip


def records(*changes: Change, leave_out: Callable[[dict[str, Any]], bool] = lambda run: False) -> Records:
    """Runs of all rules at three depths, two seeds; each change is applied to every run."""
    runs = [
        {"cell": f"{rule}{n_hidden}", "lane": f"{eta} {eps} {seed}", "data": "mnist", "variant": "", "learning": rule,
         "activation": "relu", "seed": seed, ETA: eta, EPS: eps, "config.network.width": 64,
         "config.network.n_hidden": n_hidden, "outcome": "done"}
        for rule, rates in RATES.items() for n_hidden in SIZES for eta, eps in rates for seed in (0, 1)
    ]  # fmt: skip
    asked = pl.DataFrame(runs)
    for change in (as_the_atlas_has_it, *changes):
        runs = [run | change(run) for run in runs]
    table = pl.DataFrame([run for run in runs if not leave_out(run)], infer_schema_length=None)
    return Records("learning_depth", "small", table, pl.DataFrame(), asked)


def verdicts(found: Records) -> dict[str, Verdict]:
    return {claim.statement: claim.rule(found) for claim in learning_depth.CLAIMS}


def refuted(*changes: Change) -> set[str]:
    """Words that tell the claims apart which these changes refute."""
    found = verdicts(records(*changes))
    assert {v.status for v in found.values()} <= {"reproduced", "not_reproduced"}
    return {statement for statement, v in found.items() if v.status == "not_reproduced"}


def of(rule: str, n_hidden: int | None = None, **columns: Any) -> Change:
    """A change of the runs of one rule (of one depth)."""

    def change(run: dict[str, Any]) -> dict[str, Any]:
        mine = run["learning"] == rule and n_hidden in (None, run["config.network.n_hidden"])
        return {k: v(run) if callable(v) else v for k, v in columns.items()} if mine else {}

    return change


def test_what_the_atlas_found_reproduces_every_claim() -> None:
    found = verdicts(records())
    assert {statement for statement, v in found.items() if v.status != "reproduced"} == set()
    at_equilibrium = "trained at equilibrium, 32 hidden layers and more: less accurate than BP, each at its best rate"
    assert "relu N=64 H=32 -2.8" in found[at_equilibrium].observed and "H=8" not in found[at_equilibrium].observed
    assert found["published: at most the top 5 layers move"].n == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of("pc_activities", 32, end_above=5), "at most 4 layers get"),
        (of("pc_activities", 8, start_closed=0.2), "less than a tenth"),
        (of("pc_activities", 128, **{f"movement_{i}": 0.06 for i in range(100, 130)}), "at most the top 5"),
        (of("bp_last_layers", 8, test_accuracy=0.96), "BP on the last k layers"),
        (of("bp", 32, test_accuracy=0.94, validation_accuracy=0.94), "less accurate than BP on all layers"),
        (of("pc", 8, test_accuracy=0.96), "exact gradients alone change nothing"),
        (of("pc_float64", 128, movement_1=0.04), "every layer moves"),
        (of("pc_float64", 32, test_accuracy=0.94), "exact gradients and eps near 0"),
        (of("pc_far", 32, movement_2=0.04), "beta = 0.25 and T = 4 H: every layer moves"),
        (of("pc_far", 8, test_accuracy=0.945), "beta = 0.25 and T = 4 H: more accurate"),
        (of("pc_far", 128, test_accuracy=0.945), "beta = 0.25 and T = 4 H: as accurate as BP"),
        (of("pc_equilibrium", 128, start_equilibrium_cosine=0.85), "has BP's direction at the start"),
        (of("pc_equilibrium", 8, end_equilibrium_cosine=0.9), "leaves BP's direction"),
        (of("pc_equilibrium", 8, test_accuracy=0.94), "up to 8 hidden layers: as accurate"),
        (of("pc_equilibrium", 32, test_accuracy=0.958), "32 hidden layers and more"),
    ],
)
def test_a_number_beyond_its_threshold_refutes_its_own_claim(change: Change, says: str) -> None:
    assert any(says in statement for statement in refuted(change))


def test_the_smallest_eps_at_a_hundredth_is_what_is_judged_as_exact() -> None:
    def larger_eps_fails(run: dict[str, Any]) -> dict[str, Any]:
        return {"test_accuracy": 0.5, "movement_1": 0.0} if run["learning"] == "pc_float64" and run[EPS] > 1e-50 else {}

    assert refuted(larger_eps_fails) == set()


def test_the_best_rate_is_chosen_on_validation_and_judged_on_the_test_split() -> None:
    def wrong_rate_shines_on_test(run: dict[str, Any]) -> dict[str, Any]:
        return {"test_accuracy": 0.99} if run["learning"] == "pc_equilibrium" and run[ETA] == 0.03 else {}

    def it_shines_on_validation(run: dict[str, Any]) -> dict[str, Any]:
        return {"validation_accuracy": 0.99} if run["learning"] == "pc_equilibrium" and run[ETA] == 0.03 else {}

    assert refuted(wrong_rate_shines_on_test) == set()
    assert len(refuted(wrong_rate_shines_on_test, it_shines_on_validation)) == 2


def test_a_rate_at_which_one_seed_diverges_is_not_the_best_and_counts_as_nothing_learned_where_it_is_prescribed() -> (
    None
):
    def diverging(rule: str, eta: float) -> Change:
        def change(run: dict[str, Any]) -> dict[str, Any]:
            mine = run["learning"] == rule and run[ETA] == eta and run["seed"] == 1
            lost = {"outcome": "diverged", "validation_accuracy": math.nan, "test_accuracy": math.nan}
            return lost if mine else {}

        return change

    assert refuted(diverging("pc_equilibrium", 0.03)) == set()
    assert any("BP on the last k" in statement for statement in refuted(diverging("pc_activities", 0.1)))


def test_100_layers_are_trained_where_one_rule_moves_all_of_them_and_is_close_to_bp() -> None:
    some = "some rule trains 100 layers and more, all of them, with PC's own gradient"
    stuck = [of(rule, 128, movement_1=0.0) for rule in ("pc", "pc_far", "pc_float64")]
    assert some in refuted(*stuck)  # at equilibrium all move, 2.8 points behind
    assert some not in refuted(*stuck, of("pc_equilibrium", 128, test_accuracy=0.945))
    found = verdicts(records(leave_out=lambda run: run["config.network.n_hidden"] == 128))[some]
    assert found.status == "insufficient" and found.interval.endswith("scale=thesis")


@pytest.mark.parametrize("rule", list(RATES))
def test_a_run_that_is_missing_leaves_open_whatever_rests_on_its_rule(rule: str) -> None:
    whole, found = (
        verdicts(records(leave_out=leave_out))
        for leave_out in (
            lambda run: False,
            lambda run: run["learning"] == rule and run["seed"] == 1 and run[ETA] < 0.1,
        )
    )
    changed = {statement for statement in found if found[statement].status != whole[statement].status}
    assert {found[statement].status for statement in changed} <= {"insufficient"}
    assert changed or rule == "bp_last_layers"


def test_claims_answer_on_no_records_at_all() -> None:
    empty = Records("learning_depth", "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    assert {v.status for v in verdicts(empty).values()} == {"insufficient"}
