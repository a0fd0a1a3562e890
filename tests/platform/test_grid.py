"""The grid of a study: blocks of plain values, what a command line makes of them, and how they are composed."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import quick
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from pcexp.config import grid
from pcexp.config.grid import Block, Refused
from pcexp.run import sweep
from pcexp.run.session import Datasets

EXPERIMENTS = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))
GRID = yaml.safe_load("""
- block: width
  figures: ["1"]
  data: [mnist]
  also: others
  cells:
    network.width, network.n_hidden: {smoke: [[8, 2]], small: [[16, 4], [32, 4]]}
    learning: [pc, bp]
- block: depth
  figures: ["1", 2.b]
  data: [mnist]
  also: others
  cells:
    network.width: 16
    network.n_hidden: {smoke: 2, small: [4, 8]}
    learning: pc
  lanes:
    optimiser.learning_rate: [0.1, 0.2]
- block: images
  data: [cifar10]
  cells:
    network: convolutional
    network.channels: [[4, 8]]
    network.activation, lanes.inference.activity_lr: [[relu, 0.5], [tanh, [1, 2]]]
""")
COMMON = yaml.safe_load("""
- lanes: {seed: {smoke: [0], small: [0, 1]}}
- data: [cifar10]
  cells: {network.activation: linear, training.epochs: 3}
""")


def blocks(data: str = "mnist", scale: str = "small") -> list[Block]:
    return grid.blocks(GRID, COMMON, scale, data)


def lanes(block: Block) -> list[dict[str, Any]]:
    return [lanes for _, lanes in block.configurations()]


def cells(found: Sequence[Block]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [(block.name, values, lanes) for block in found for values, lanes in block.configurations()]


def test_a_block_is_the_product_of_its_axes_and_a_table_is_one_axis() -> None:
    width, depth = blocks()
    assert [values for values, _ in width.configurations()] == [
        {"network.width": width, "network.n_hidden": 4, "learning": rule} for width in (16, 32) for rule in ("pc", "bp")
    ]
    assert [values["network.n_hidden"] for values, _ in depth.configurations()] == [4, 8]
    assert lanes(depth) == [{"seed": (0, 1), "optimiser.learning_rate": (0.1, 0.2)}] * 2
    assert lanes(width) == [{"seed": (0, 1)}] * 4
    assert (width.figures, depth.figures) == (("1",), ("1", "2.b"))


def test_blocks_run_on_the_data_that_they_name_or_on_what_no_block_names() -> None:
    assert [block.name for block in blocks("mnist")] == [block.name for block in blocks("digits")] == ["width", "depth"]
    assert [block.name for block in blocks("cifar10")] == ["images"]


def test_an_axis_takes_the_place_of_a_common_one_and_lane_keys_of_a_table_belong_to_its_cells() -> None:
    (images,) = blocks("cifar10")
    found = [
        (values["network.activation"], lanes["inference.activity_lr"]) for values, lanes in images.configurations()
    ]
    assert found == [("relu", (0.5,)), ("tanh", (1, 2))]
    assert all(
        values["training.epochs"] == 3 and values["network.channels"] == [4, 8] for values, _ in images.configurations()
    )


def test_values_that_the_blocks_have_choose_among_their_rows() -> None:
    assert [name for name, _, _ in cells(grid.asked(blocks(), "network.width", [32]))] == ["width", "width"]
    assert [name for name, _, _ in cells(grid.asked(blocks(), "learning", ["bp"]))] == ["width", "width"]
    assert [v["network.n_hidden"] for _, v, _ in cells(grid.asked(blocks(), "network.n_hidden", [8]))] == [8]


def test_other_values_take_the_place_of_what_is_there_in_every_block() -> None:
    found = cells(grid.asked(blocks(), "network.width", [64, 32]))
    assert {(name, values["network.width"]) for name, values, _ in found} == set(
        itertools.product(("width", "depth"), (64, 32))
    )
    assert len(found) == 2 * 2 + 2 * 2
    assert {values["training.epochs"] for _, values, _ in cells(grid.asked(blocks(), "training.epochs", [7]))} == {7}


@pytest.mark.parametrize(
    ("data", "scale", "steps"), [("mnist", "small", 5), ("mnist", "thesis", 9), ("digits", "thesis", 7)]
)
def test_a_value_may_go_by_data_set_and_by_scale_within_it_or_the_other_way_round(
    data: str, scale: str, steps: int
) -> None:
    for text in (
        "{mnist: {small: 5, thesis: 9}, others: 7}",
        "{small: {mnist: 5, others: 7}, thesis: {mnist: 9, others: 7}}",
    ):
        for part in ("cells", "lanes"):
            (found,) = grid.blocks(
                [{"block": "a", "data": "mnist", "also": "others", part: {"steps": yaml.safe_load(text)}}],
                None,
                scale,
                data,
            )
            ((values, lanes),) = found.configurations()
            assert values | lanes == {"steps": steps if part == "cells" else (steps,)}


def test_lane_values_of_the_command_replace_an_axis_where_it_is_and_seeds_everywhere() -> None:
    width, depth = grid.with_lanes(blocks(), "optimiser.learning_rate", [0.5])
    assert all(found["optimiser.learning_rate"] == (0.5,) for found in lanes(depth))
    assert all("optimiser.learning_rate" not in found for found in lanes(width))
    assert all(found["seed"] == (7,) for block in grid.with_lanes(blocks(), "seed", [7]) for found in lanes(block))
    (images,) = grid.with_lanes(blocks("cifar10"), "inference.activity_lr", [0.25])
    assert {lanes["inference.activity_lr"] for _, lanes in images.configurations()} == {(0.25,)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{block: a, cell: {}}]", "cell is no key; valid are block, figures, data, also, cells, lanes"),
        ("[{cells: {}}]", "a block needs a name"),
        ("[{block: two words}]", "a name of one word"),
        ("[{block: a}, {block: a}]", "two blocks are called a"),
        ("[{block: a, cells: {'x, y': [[1, 2, 3]]}}]", "every row needs 2 values"),
        ("[{block: a, cells: {x: {smoke: 1, huge: 2}}}]", "smoke, small, thesis"),
        ("[{block: a, cells: {x: {smoke: 1}}}]", "nothing for scale=small"),
        ("[{block: a, cells: {x: {mnist: 1, small: 2}}}]", "smoke, small, thesis, not"),
        (
            "[{block: a, data: mnist, also: others, cells: {x: {mnist: 1}}}]",
            "nothing for scale=small and data=digits; values go by scale",
        ),
        (
            "[{block: a, also: others, data: mnist, cells: {x: {mnst: 1, others: 2}}}]",
            "no block names the data mnst; .* mnist",
        ),
        ("[{block: a, cells: [x]}]", "a mapping of keys to values"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused_by_block_and_key(text: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        grid.blocks(yaml.safe_load(text), None, "small", "digits")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["blocks=[wdith]"], "there is no block wdith; there are"),
        (["network.widht=3,4"], r"network.widht is no key \(did you mean width\?\)"),
        (["scale=huge"], "scale=huge is unknown: valid are smoke, small, thesis"),
        (["scale=small,thesis"], "scale: one value is needed here"),
        (["network={width:1},{width:2}"], "mappings are no axis"),
    ],
)
def test_a_command_that_asks_for_what_is_not_there_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        quick.composer(*overrides, base=("+experiment=mupc_depth", "scale=smoke")).asked()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_study_has_a_grid_of_plain_values_at_every_scale(experiment: str) -> None:
    text = (quick.CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert "by_choice" not in text and "by_scale" not in text and "sweeper" not in text
    figures = set()
    for scale in grid.SCALES:
        asked = quick.composer(base=(f"+experiment={experiment}", f"scale={scale}")).asked()
        assert asked.cells is asked.own and asked.cells and asked.variant == ""
        figures |= {figure for blocks in asked.blocks.values() for shown in blocks.values() for figure in shown}
    assert figures


def made_up(folder: Path, sizes: Mapping[str, int]) -> Path:
    """A --config-dir with an experiment of so many values of each axis, options and leaves."""
    axes = {
        "learning": ["pc", "bp"][: sizes["rules"]],
        "protocol": ["published", "corrected"],
        "network.width": list(range(1, sizes["widths"] + 1)),
        "network.n_hidden": list(range(1, sizes["depths"] + 1)),
        "network.activation": ["tanh", "relu"],
    }
    block = {"block": "all", "cells": axes, "lanes": {"seed": [0, 1]}}
    study = {"_target_": "pcexp.experiments.saddle_escape.SaddleEscape", "probe_size": 8}
    return quick.experiment_file(folder, yaml.safe_dump({"study": study, "grid": [block]}))


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        (
            "[saddle_escape, override /inference: null, _self_]",
            "inference: {_target_: pcexp.inference.ClosedForm}\ngrid: [{block: a}]",
        ),
        ("[saddle_escape, _self_]", "grid: [{block: a, cells: {learning: bp, inference: null, start: null}}]"),
    ],
    ids=["an inference of its own", "none"],
)
def test_a_study_may_write_an_option_of_its_own_or_take_one_away(tmp_path: Path, defaults: str, text: str) -> None:
    folder = quick.experiment_file(tmp_path, f"common: null\n{text}", defaults)
    asked = quick.composer(base=("+experiment=own", "scale=smoke", "network.activation=linear"), folder=folder).asked()
    specs = quick.plans([one.config for one in asked.cells])
    assert specs and {hasattr(spec.learning, "inference") for spec in specs} == {"override" in defaults}


def test_a_thousand_cells_are_composed_once_for_each_choice_of_options(tmp_path: Path, monkeypatch: Any) -> None:
    folder, loaded = made_up(tmp_path, {"rules": 2, "widths": 25, "depths": 5}), []
    composer = quick.composer(base=("+experiment=own", "scale=small"), folder=folder)
    load = composer._loader.load_configuration
    monkeypatch.setattr(composer._loader, "load_configuration", lambda *a, **k: (loaded.append(a), load(*a, **k))[1])
    asked = composer.asked()
    assert len(asked.cells) == 1000 and len(loaded) == 4
    assert len({json.dumps(one.config, sort_keys=True, default=str) for one in asked.cells}) == 1000


def test_cells_are_composed_as_plain_hydra_composes_them(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"rules": 2, "widths": 5, "depths": 4})
    composer = quick.composer(base=("+experiment=own", "scale=small"), folder=folder)
    found = composer.asked().cells
    block = grid.blocks(composer.settings["grid"], None, "small", "digits")[0]
    pairs = list(zip(found, block.configurations(), strict=True))
    with initialize_config_dir(str(quick.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().hydra.config_loader
        for one, (values, _) in random.Random(0).sample(pairs, 16):
            overrides = [f"hydra.searchpath=[file://{folder}]", "+experiment=own", "scale=small"]
            config = loader.load_configuration(
                "config", [*overrides, *(f"{key}={value}" for key, value in values.items())], run_mode=RunMode.RUN
            )
            plain = OmegaConf.create(
                {k: config._get_node(k) for k in config if k not in ("hydra", "grid", "common", "lanes")}
            )
            expected = OmegaConf.to_container(plain, resolve=True)
            groups = {path.name for path in quick.CONF.iterdir()} - {"config.yaml", "experiment", "execution", "hydra"}
            choices = {group: config.hydra.runtime.choices[group] for group in groups}
            assert {k: v for k, v in one.config.items() if k not in ("lanes", "choices")} == expected
            assert one.config["choices"] == choices


def test_what_is_asked_beyond_the_grid_is_a_variant_and_more_seeds_are_not(tmp_path: Path) -> None:
    base = ("+experiment=mupc_depth", "scale=smoke", "blocks=[depth]", "network.activation=relu", "protocol=corrected")

    def lanes(*overrides: str) -> list[tuple[str, tuple[str, ...]]]:
        found = quick.composer(*overrides, base=base)
        return [
            (lane.variant, lane.blocks)
            for spec in sweep.sweep(found.asked(), found.settings, Datasets()).specs
            for lane in spec.lanes
        ]

    # At this scale the long runs are the short ones.
    assert lanes() == [("", ("depth", "long"))]
    assert lanes("lanes.seed=[0,5]") == [("", ("depth", "long"))] * 2
    assert lanes("optimiser.learning_rate=0.002") == [("optimiser.learning_rate=0.002", ("depth",))]
    assert lanes("training.epochs=7", "network.width=9") == [("network.width=9 training.epochs=7", ("depth",))]
