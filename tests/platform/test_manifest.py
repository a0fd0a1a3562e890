"""The manifest: what was asked for is the study's grid, whatever a command narrows, and two commands at once lose nothing."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.config.identity import Identity, Lane
from pcexp.records import manifest
from pcexp.run import sweep
from pcexp.run.session import Datasets

Cells = dict[str, Any]


def cells(
    name: str = "a", seeds: Sequence[int] = (0,), blocks: Sequence[str] = ("one",), variant: str = "", revision: int = 1
) -> Cells:
    """What one command asks for: a cell with a lane a seed."""
    lanes = tuple(Lane(f"lane {seed}", {"seed": seed}, tuple(blocks), variant) for seed in seeds)
    return manifest.entries([Identity("study", revision, name, {}, {"data": "digits"}, lanes)])


def asked(folder: Path) -> dict[str, list[str]]:
    return {cell: sorted(entry["lanes"]) for cell, entry in manifest.asked(folder, "small").items()}


def test_a_command_that_is_narrower_than_the_grid_asks_for_the_whole_grid(outputs: Path) -> None:
    base = ("+experiment=strict_saddles", "scale=small", f"execution.outputs={outputs}")
    whole = quick.composer(base=base)
    own = sweep.identities(whole.asked().own, sweep.ALLOWED_TARGETS)
    narrow = quick.composer("lanes.seed=[0,7]", "blocks=[one_hidden_layer]", base=base)
    found = sweep.sweep(narrow.asked(), narrow.settings, Datasets())
    assert 0 < len(found.specs) < len(own)
    found.ask(found.specs)
    there = manifest.asked(outputs / "strict_saddles", "small")
    assert there.keys() == own.keys()
    for name, cell in own.items():
        more = {lane.name for spec in found.specs if spec.cell == name for lane in spec.lanes}
        assert there[name]["lanes"].keys() == {lane.name for lane in cell.lanes} | more
    assert {7 in (lane["values"]["seed"] for lane in entry["lanes"].values()) for entry in there.values()} == {
        True,
        False,
    }


def test_lanes_and_cells_of_an_earlier_command_stay_asked_for(outputs: Path) -> None:
    manifest.add(outputs, "small", cells(seeds=(0, 1)), {})
    manifest.add(outputs, "small", cells("b"), {})
    manifest.add(outputs, "small", cells(seeds=(2,)), {})
    assert asked(outputs) == {"a": ["lane 0", "lane 1", "lane 2"], "b": ["lane 0"]}
    manifest.add(outputs, "thesis", cells("c"), {})
    assert manifest.scales(outputs) == ["small", "thesis"] and asked(outputs).keys() == {"a", "b"}


def test_what_was_asked_for_at_an_older_revision_no_longer_is(outputs: Path) -> None:
    manifest.add(outputs, "small", cells("old") | cells("older", revision=0), {})
    manifest.add(outputs, "small", cells("new", revision=2), {})
    assert asked(outputs) == {"new": ["lane 0"]}
    manifest.add(outputs, "small", cells("newer", revision=2), {})
    assert asked(outputs).keys() == {"new", "newer"}


def test_blocks_of_other_data_are_kept_and_those_of_the_same_data_replaced(outputs: Path) -> None:
    digits, mnist = {"digits": {"width": ["1"], "depth": ["2"]}}, {"mnist": {"width": ["1"]}}
    manifest.add(outputs, "small", cells(), digits)
    manifest.add(outputs, "small", cells(), mnist)
    assert manifest.read(outputs, "small")[1] == digits | mnist
    manifest.add(outputs, "small", cells(), {"digits": {"width": ["1", "3"]}})
    assert manifest.read(outputs, "small")[1] == {"digits": {"width": ["1", "3"]}} | mnist


@pytest.mark.parametrize("own_first", [True, False])
def test_a_lane_of_the_study_stays_its_own_though_an_override_spells_it_out(outputs: Path, own_first: bool) -> None:
    both = [cells(blocks=("one",)), cells(blocks=("other",), variant="network.width=8")]
    for one in both if own_first else reversed(both):
        manifest.add(outputs, "small", one, {})
    (lane,) = manifest.asked(outputs, "small")["a"]["lanes"].values()
    assert (lane["variant"], lane["blocks"]) == ("", ["one"])


def test_a_lane_of_two_blocks_belongs_to_both(outputs: Path) -> None:
    manifest.add(outputs, "small", cells(blocks=("one", "two")), {})
    manifest.add(outputs, "small", cells(blocks=("two", "three")), {})
    (lane,) = manifest.asked(outputs, "small")["a"]["lanes"].values()
    assert lane["blocks"] == ["one", "two", "three"]


def test_commands_that_ask_at_once_lose_no_cell(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = manifest.write_json

    def slow(*arguments: Any) -> None:
        time.sleep(0.05)  # the others have read meanwhile, unless they wait
        write(*arguments)

    monkeypatch.setattr(manifest, "write_json", slow)
    names = [f"cell {i}" for i in range(6)]
    threads = [threading.Thread(target=manifest.add, args=(outputs, "small", cells(name), {})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked(outputs)) == names
