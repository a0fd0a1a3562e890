"""muPC at depth: arms are what they are for, and measurements what their definitions say."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import quick

from pcexp.config.spec import Spec
from pcexp.data.dataset import Dataset, Split
from pcexp.experiments import mupc_depth
from pcexp.experiments.mupc_depth.claims import BETA, ETA, SP
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import NTK
from pcexp.model.segments import Dense
from pcexp.train import Observation, TrainingSet

# Cells


def cells(*overrides: str) -> list[Spec]:
    return quick.swept("+experiment=mupc_depth", *overrides)


def test_the_grid_has_the_models_of_its_blocks_and_no_others() -> None:
    found = cells("scale=small", "data=mnist")
    models = {
        (block, s.labels["parameterisation"], s.labels["learning"], s.labels["protocol"])
        for s in found
        for lane in s.lanes
        for block in lane.blocks
    }
    pc = {
        (block, "mupc", "pc") for block in ("depth", "width", "one_step", "rates", "anchor", "long", "forward_only")
    } | {("sp", SP, "pc"), ("sp_beyond", SP, "pc")}
    bp = {(block, "mupc", "bp", "published") for block in ("bp", "bp_long")}
    assert models == {(*model, protocol) for model in pc for protocol in ("published", "corrected")} | bp
    only_relu = [s for s in found if {"anchor", "long", "bp_long"} & {b for lane in s.lanes for b in lane.blocks}]
    assert {s.labels["activation"] for s in only_relu} == {"relu"}


def test_premultipliers_are_in_the_forward_pass_only_in_their_own_block() -> None:
    for block, forward_only in (("forward_only", True), ("depth", False)):
        one = cells(f"blocks=[{block}]", "scale=smoke", "network.activation=tanh")[0]
        net = one.network.build(one.parameterisation, (5,), 3, key=jr.key(0))
        assert {segment.forward_only for segment in net.segments if isinstance(segment, Dense)} == {forward_only}
        assert [segment.premultiplier for segment in net.segments] == pytest.approx([5**-0.5, (8 * 3) ** -0.5, 1 / 8])


@pytest.mark.parametrize(
    ("data", "models"), [("mnist", {"mupc", SP}), ("fashion_mnist", {"mupc"}), ("cifar10", {"mupc"})]
)
def test_the_grid_follows_the_data_set(data: str, models: set[str]) -> None:
    found = cells(f"data={data}", "scale=small")
    assert {s.labels["parameterisation"] for s in found} == models
    assert any("anchor" in lane.blocks for s in found for lane in s.lanes) == (data == "mnist")


def test_the_anchor_is_the_published_run_at_every_scale_but_smoke() -> None:
    for scale in ("small", "thesis"):
        (only,) = cells("blocks=[anchor]", "data=mnist", "protocol=published", f"scale={scale}")
        training, inference = only.science["training"], only.science["learning"]["inference"]
        assert (training["max_iterations"], training["test_every"], training["batch_size"]) == (900, 100, 64)
        assert (inference["max_steps"], inference["form"]) == (30, "activities")
        assert [(lane.values["seed"], lane.values[ETA], lane.values[BETA]) for lane in only.lanes] == [
            (seed, 0.1, 0.5 / 64) for seed in range(3)
        ]


@pytest.mark.parametrize(("scale", "size"), [("smoke", 8 * 3), ("small", 64 * 9), ("thesis", 512 * 9)])
def test_scaled_rates_are_the_rate_times_and_over_the_root_of_width_times_depth(scale: str, size: int) -> None:
    only = cells("blocks=[rates]", "data=mnist", f"scale={scale}")[0]
    network = only.science["network"]
    assert network["width"] * (network["n_hidden"] + 1) == size
    rates = sorted({lane.values[ETA] for lane in only.lanes})
    assert rates == pytest.approx([0.1 / size**0.5, 0.1 * size**0.5], rel=1e-5)


# Measurements


def network() -> Network:
    return FullyConnected(6, 4, "tanh", form="pre", skips=True, segment_size=2).build(NTK(), (5,), 3, key=jr.key(0))


def dataset(validation: Split) -> Dataset:
    """One whose other splits hold an example each."""
    other = Split(np.zeros((1, 5), np.float32), np.eye(3, dtype=np.float32)[:1])
    return Dataset("made up", other, validation, other, "", "")


def test_validation_accuracy_is_the_share_of_examples_with_the_largest_output_at_their_class() -> None:
    net, draw = network(), np.random.default_rng(0)
    x = draw.standard_normal((25, 5)).astype(np.float32)
    weights = [np.asarray(w, np.float64) for segment in net.segments for w in segment.weight]
    z = weights[0] @ x.T / np.sqrt(5)
    for w in weights[1:-1]:
        z = z + w @ np.tanh(z) / np.sqrt(6 * 5)
    right = np.argmax(weights[-1] @ np.tanh(z), axis=0)
    labels = np.where(np.arange(25) < 20, right, (right + 1) % 3)
    split = Split(x, np.eye(3, dtype=np.float32)[labels])
    assert mupc_depth.validation_accuracy(net, dataset(split)) == pytest.approx(0.8)
    assert np.isnan(mupc_depth.validation_accuracy(net, dataset(Split(x[:0], split.y[:0]))))


def test_layers_reached_are_those_whose_gradient_is_above_round_off_of_the_largest() -> None:
    net = network()
    for factor, expected in ((1.0, 5), (1e-4, 5), (1e-9, 4), (0.0, 4)):
        gradient = eqx.tree_at(lambda n: n.segments[0].weight, net, factor * net.segments[0].weight)
        data = TrainingSet(jnp.zeros((0, 5)), jnp.zeros((0, 3)), jnp.zeros((5, 0)), jnp.zeros((3, 0)))
        seen = Observation(net, gradient, jnp.zeros(()), {}, data)
        assert int(mupc_depth.measure(seen)["layers_reached"]) == expected
