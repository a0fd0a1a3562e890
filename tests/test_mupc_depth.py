"""muPC at depth: arms are what they are for, and measurements what their definitions say."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import quick

from experiments import mupc_depth
from experiments.mupc_depth.runs import BETA, ETA, SP
from pcexp.config.spec import spec
from pcexp.config.targets import SpecError
from pcexp.data.dataset import Dataset, Split
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import NTK
from pcexp.model.segments import Dense
from pcexp.train import Observation, TrainingSet

# Cells


def jobs(*base: str) -> list[list[str]]:
    """The whole product of axes."""
    found: list[list[str]] = [[]]
    for axis, options in quick.axes("+experiment=mupc_depth", *base).items():
        found = [[*job, f"{axis}={option}"] for job in found for option in options]
    return found


def test_a_sweep_has_the_cells_of_its_arms_and_no_others() -> None:
    specs = quick.plans(
        [quick.composed(*job, base=("+experiment=mupc_depth", "scale=smoke")) for job in jobs("scale=smoke")]
    )
    seen = {(s.labels["part"], s.labels["parameterisation"], s.labels["learning"], s.labels["protocol"]) for s in specs}
    pc = {
        (part, "mupc", "pc") for part in ("depth", "width", "one_step", "rates", "anchor", "long", "forward_only")
    } | {("depth", SP, "pc")}
    bp = {(part, "mupc", "bp", "published") for part in ("depth", "long")}
    assert seen == {(*model, protocol) for model in pc for protocol in ("published", "corrected")} | bp
    assert {s.labels["activation"] for s in specs if s.labels["part"] in ("anchor", "long")} == {"relu"}


def test_sp_beyond_the_ends_of_its_small_grid_is_of_the_same_part_and_mupc_has_no_such_cells() -> None:
    def part(parameterisation: str) -> str | None:
        job = ("study={arm:beyond,width:64,n_hidden:8}", f"parameterisation={parameterisation}", "scale=small")
        one = spec(quick.composed(*job, base=("+experiment=mupc_depth",)))
        return one.study.part(one.labels)

    assert part(SP) == "depth" and part("mupc") is None


def test_premultipliers_are_in_the_forward_pass_only_in_their_own_arm() -> None:
    for arm, forward_only in (("forward_only", True), ("depth", False)):
        job = (f"study={{arm:{arm},width:8,n_hidden:2}}", "scale=smoke", "network.activation=tanh")
        one = spec(quick.composed(*job, base=("+experiment=mupc_depth",)))
        net = one.network.build(one.parameterisation, (5,), 3, key=jr.key(0))
        assert {segment.forward_only for segment in net.segments if isinstance(segment, Dense)} == {forward_only}
        assert [segment.premultiplier for segment in net.segments] == pytest.approx([5**-0.5, (8 * 3) ** -0.5, 1 / 8])


def test_a_corner_that_is_in_no_arm_is_refused_by_its_labels() -> None:
    corner = quick.composed("learning=bp", "protocol=corrected", base=("+experiment=mupc_depth",))
    with pytest.raises(SpecError, match=r"mupc_depth has no part with .*learning=bp, .*protocol=corrected"):
        quick.plans([corner])


@pytest.mark.parametrize(
    ("data", "models"), [("mnist", ["mupc", SP]), ("fashion_mnist", ["mupc"]), ("cifar10", ["mupc"])]
)
def test_axes_follow_the_data_set(data: str, models: Sequence[str]) -> None:
    found = quick.axes("+experiment=mupc_depth", f"data={data}", "scale=thesis")
    assert found["parameterisation"] == models
    assert ("{arm:anchor,width:128,n_hidden:29}" in found["study"]) == (data == "mnist")


def test_the_anchor_is_the_published_run_at_every_scale_but_smoke() -> None:
    for scale in ("small", "thesis"):
        config = quick.composed(
            "study={arm:anchor,width:128,n_hidden:29}", "network.activation=relu", "data=mnist", "protocol=published",
            f"scale={scale}", base=("+experiment=mupc_depth",),
        )  # fmt: skip
        (only,) = quick.plans([config])
        training, inference = only.science["training"], only.science["learning"]["inference"]
        assert (training["max_iterations"], training["test_every"], training["batch_size"]) == (900, 100, 64)
        assert (inference["max_steps"], inference["form"]) == (30, "activities")
        assert [(lane.values["seed"], lane.values[ETA], lane.values[BETA]) for lane in only.lanes] == [
            (seed, 0.1, 0.5 / 64) for seed in range(3)
        ]


@pytest.mark.parametrize(("scale", "size"), [("smoke", 8 * 3), ("small", 64 * 9), ("thesis", 512 * 9)])
def test_scaled_rates_are_the_rate_times_and_over_the_root_of_width_times_depth(scale: str, size: int) -> None:
    axes = quick.axes("+experiment=mupc_depth", "data=mnist", f"scale={scale}")
    (arm,) = (option for option in axes["study"] if "arm:rates" in option)
    (only,) = quick.plans(
        [quick.composed(f"study={arm}", f"scale={scale}", "data=mnist", base=("+experiment=mupc_depth",))]
    )
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
