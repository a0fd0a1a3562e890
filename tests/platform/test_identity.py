"""What makes a cell, what makes a lane, and what makes neither."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.config.identity import lane_name
from pcexp.config.plain import flat
from pcexp.config.spec import SCIENCE, Spec
from pcexp.config.targets import SpecError
from pcexp.experiments.saddle_escape import SaddleEscape

EXPERIMENTS = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))

BASE = quick.composed()
LEAVES = sorted(key for key, _ in flat({key: BASE[key] for key in SCIENCE}))
OTHER = {
    "precision": "bfloat16",
    "learning.precision": "bfloat16",
    "network.premultipliers": "forward_pass",
    "learning.inference.form": "activities",
    "learning.gradient_scale": "batch_mean",
    "network.activation": "tanh",
    "network.form": "pre",
}
"""Another valid word for leaves that are words."""
TARGETS = {
    "data._target_": {"_target_": "pcexp.data.Matrix", "n_rows": 4, "n_columns": 4, "rank": 1, "hidden_fraction": 0.1, "data_seed": 0},
    "learning._target_": {"_target_": "pcexp.learning.BP", "gradient_scale": "batch_sum"},
    "learning.inference._target_": {"_target_": "pcexp.inference.ClosedForm"},
    "network._target_": {"_target_": "pcexp.model.Convolutional", "channels": [4], "widths": [8], "activation": "linear"},
    "learning.start._target_": {"_target_": "pcexp.inference.RandomStart", "scale": 1.0},
    "network.precisions": [1.0, 2.0, 1.0],
    "network.output._target_": {"_target_": "pcexp.model.Softmax"},
    "optimiser._target_": {"_target_": "optax.adam", "learning_rate": 0.008},
    "parameterisation._target_": {"_target_": "pcexp.model.NearZeroRank", "sigma": 0.011},
}  # fmt: skip
"""Another component where a leaf says which one it is."""
ONLY_ONE = {"study._target_", "training._target_", "learning.evaluation._target_"}


def planned(config: dict[str, Any]) -> Spec:
    (only,) = quick.plans([config])
    return only


def cell(config: dict[str, Any]) -> str:
    return planned(config).cell


def another(value: Any) -> Any:
    """A valid value other than this one, for leaves that are numbers, switches or unset."""
    if isinstance(value, bool):
        return not value
    return 1 if value is None else value * 2 or 1


# Cells


@pytest.mark.parametrize("key", [key for key in LEAVES if key not in ONLY_ONE])
def test_every_leaf_that_numbers_depend_on_makes_another_cell(key: str) -> None:
    if key in TARGETS:
        changed = quick.changed(BASE, key.removesuffix("._target_"), TARGETS[key])
    else:
        value = dict(flat({k: BASE[k] for k in SCIENCE}))[key]
        changed = quick.changed(BASE, key, OTHER[key] if isinstance(value, str) else another(value))
    assert cell(changed) != cell(BASE)


@pytest.mark.parametrize("key", sorted(key for key, _ in flat({"execution": BASE["execution"]})))
def test_how_a_run_is_executed_does_not_make_another_cell(key: str) -> None:
    value = dict(flat({"execution": BASE["execution"]}))[key]
    new = ["mylab."] if key == "execution.targets" else "elsewhere" if isinstance(value, str) else another(value)
    assert cell(quick.changed(BASE, key, new)) == cell(BASE)


@pytest.mark.parametrize("override", ["tracker=wandb", "lanes.seed=[4,5,6]", "execution.outputs=there"])
def test_tracker_seeds_and_folder_do_not_make_another_cell(override: str) -> None:
    assert cell(quick.composed(override)) == cell(BASE)


def test_the_scale_itself_does_not_make_another_cell() -> None:
    assert cell(BASE | {"scale": "thesis"}) == cell(BASE)


def test_a_raised_revision_makes_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell(BASE)
    monkeypatch.setattr(SaddleEscape, "revision", SaddleEscape.revision + 1)
    assert cell(BASE) != before


def test_the_order_of_keys_and_the_process_do_not_make_another_cell(tmp_path: Path) -> None:
    backwards = {key: BASE[key] for key in reversed(BASE)}
    backwards["network"] = dict(reversed(BASE["network"].items()))
    assert cell(backwards) == cell(BASE)
    listed = quick.command(*quick.QUICK, "dry_run=true", cwd=tmp_path, PYTHONHASHSEED="7").stdout
    assert cell(BASE) in listed


def test_keys_that_a_learning_rule_does_not_use_make_no_other_cell() -> None:
    bp = quick.composed("learning=bp")
    for override in ("inference.activity_lr=0.7", "inference.max_steps=3", "inference.form=activities"):
        assert cell(quick.composed("learning=bp", override)) == cell(bp)
        assert cell(quick.composed(override)) != cell(BASE)


def test_jobs_that_differ_in_nothing_that_counts_become_one_cell() -> None:
    rates = ("inference.activity_lr=0.1", "inference.activity_lr=0.2")
    bp = [quick.composed("learning=bp", rate) for rate in rates]
    pc = [quick.composed("learning=pc", rate) for rate in rates]
    assert len(quick.plans(bp)) == 1 and len(quick.plans(pc)) == 2


# Lanes


def values(config: dict[str, Any]) -> list[dict[str, float]]:
    return [lane.values for lane in planned(config).lanes]


def values_or_refusal(config: dict[str, Any]) -> list[dict[str, float]] | str:
    try:
        return values(config)
    except SpecError as refused:
        return str(refused)


def test_lanes_are_the_product_of_their_lists() -> None:
    lanes = values(quick.composed("lanes.seed=[0,1]", "+lanes.optimiser.learning_rate=[0.1,0.2]"))
    assert lanes == [{"seed": seed, "optimiser.learning_rate": rate} for seed in (0, 1) for rate in (0.1, 0.2)]


@pytest.mark.parametrize("key", ["optimiser.learning_rate", "parameterisation.sigma", "inference.activity_lr"])
def test_a_lane_key_has_no_value_in_the_cell_and_makes_no_other_cell(key: str) -> None:
    lanes = {"seed": [0], key.partition(".")[0]: {key.partition(".")[2]: [0.5]}}
    one = BASE | {"lanes": lanes}
    for value in (0.25, 0.125):
        lanes = {"seed": [0], key.partition(".")[0]: {key.partition(".")[2]: [value, 0.5]}}
        assert cell(BASE | {"lanes": lanes}) == cell(one)
    assert cell(quick.changed(one, key, 77.0)) == cell(one)
    assert cell(one) != cell(BASE)
    assert key.rpartition(".")[2] not in [leaf.rpartition(".")[2] for leaf, _ in flat(planned(one).science)]


def test_a_lane_key_that_the_rule_does_not_use_is_not_swept() -> None:
    lanes = {"seed": [0, 1], "inference": {"activity_lr": [0.1, 0.2, 0.3]}}
    assert values(quick.composed("learning=bp") | {"lanes": lanes}) == [{"seed": 0}, {"seed": 1}]
    assert len(values(BASE | {"lanes": lanes})) == 6


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lanes.seed=5", [{"seed": 5}]),
        ("lanes.seed=[5,6]", [{"seed": 5}, {"seed": 6}]),
    ],
)
def test_seeds_on_the_command_line_replace_those_of_the_experiment(override: str, expected: list[Any]) -> None:
    assert values(quick.composed(override)) == expected


@pytest.mark.parametrize("written", ["0.00001", "1e-05", "1e-5", "1.0e-5"])
def test_a_lane_key_set_on_the_command_line_is_a_lane_however_its_number_is_written(written: str) -> None:
    base = ("+experiment=mupc_transfer", "scale=smoke")
    for override in (f"optimiser.learning_rate={written}", f"lanes.optimiser.learning_rate=[{written}]"):
        lanes = values(quick.composed(override, base=base))
        assert {lane["optimiser.learning_rate"] for lane in lanes} == {1e-5}


def test_lane_keys_swept_on_the_command_line_become_lanes_of_one_cell(tmp_path: Path) -> None:
    base = [
        "+experiment=mupc_transfer",
        "scale=smoke",
        "blocks=[width]",
        "network.activation=tanh",
        "protocol=corrected",
    ]
    crossed = ("optimiser.learning_rate=0.1,0.00002", "inference.activity_lr=0.1", "lanes.seed=5,6,7")
    done = quick.command(*base, *crossed, "network.width=4,8", "dry_run=true", cwd=tmp_path)
    assert "2 cells, 12 lanes" in done.stdout, done.stderr


def test_a_lane_is_named_by_its_values_alone() -> None:
    assert lane_name({"seed": 1, "a": 0.5}) == lane_name({"a": 0.5, "seed": 1})
    names = {lane_name({"seed": seed, "a": a}) for seed in range(50) for a in (0.1, 0.2)}
    assert len(names) == 100


def test_planning_leaves_the_configuration_as_it_was() -> None:
    config = quick.composed("+lanes.optimiser.learning_rate=[0.1]")
    before = copy.deepcopy(config)
    quick.plans([config])
    assert config == before


# Scales


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_another_configuration_at_each_scale(experiment: str) -> None:
    configs = {}
    for scale in ("smoke", "small", "thesis"):
        base = (f"+experiment={experiment}", f"scale={scale}")
        config = quick.composed(base=base)
        assert cell(config)
        configs[scale] = json.dumps({key: config.get(key) for key in (*SCIENCE, "lanes")}, sort_keys=True)
    assert len(set(configs.values())) == 3


def test_every_experiment_has_a_module_and_a_header_that_says_what_it_is_about() -> None:
    assert EXPERIMENTS
    for name in EXPERIMENTS:
        text = (quick.CONF / "experiment" / f"{name}.yaml").read_text()
        assert text.startswith("# @package _global_\n# ") and f"+experiment={name}" in text


def test_a_value_on_the_command_line_wins_over_the_scale() -> None:
    assert quick.composed("training.epochs=7", "scale=thesis")["training"]["epochs"] == 7
