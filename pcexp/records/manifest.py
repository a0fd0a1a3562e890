"""What was asked for: the study's grid at one scale on each data set that was run, and what commands asked for beyond it.

Reports and claims count against it; a command that is narrower than the grid does not narrow it.

outputs/STUDY/manifest-SCALE.json
    {"scale", "command", "written",
     "blocks": {DATA: {BLOCK: [figures]}},
     "cells": {CELL: {"labels", "revision", "science", "lanes": {NAME: {"values", "blocks", "variant"}}}}}
"""

import datetime
import fcntl
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pcexp.config.identity import Identity
from pcexp.config.plain import discreet
from pcexp.records.cell import OutputError, write_json

Cells = dict[str, dict[str, Any]]
"""Of each cell its labels, the revision of the study, its science half, and its lanes by name."""
Blocks = Mapping[str, Mapping[str, Sequence[str]]]
"""Of each data set the blocks of the grid, with the figures that they serve."""


def scales(folder: Path) -> list[str]:
    """The scales at which something was asked for."""
    return sorted(path.stem.removeprefix("manifest-") for path in folder.glob("manifest-*.json"))


def asked(folder: Path, scale: str) -> Cells:
    """The cells asked for at a scale. Raises OutputError."""
    return read(folder, scale)[0]


def read(folder: Path, scale: str) -> tuple[Cells, Blocks]:
    """The cells asked for at a scale, and the blocks of the grid. Raises OutputError."""
    path = folder / f"manifest-{scale}.json"
    try:
        content = json.loads(path.read_text()) if path.exists() else {"cells": {}, "blocks": {}}
        return content["cells"], content["blocks"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is no manifest: {error}; set it aside and give the study's command again") from error


def how(folder: Path, scale: str) -> list[str]:
    """Words of the last command that asked for something that say how and where it ran, and with which seeds."""
    found, before = list[str](), ""
    for word in words(folder, scale):
        kept = ("--config-dir", "-cd", "execution.targets=", "execution.outputs=", "data.path=", "lanes.seed=")
        if word.startswith(kept) or before in kept:
            found.append(word)
        before = word
    return found


def words(folder: Path, scale: str) -> list[str]:
    """The words of the last command that asked for something."""
    path = folder / f"manifest-{scale}.json"
    return list(json.loads(path.read_text()).get("command", ())) if path.exists() else []


def entries(cells: Iterable[Identity]) -> Cells:
    """Cells as a manifest holds them."""
    found: Cells = {}
    for cell in cells:
        entry = {"labels": cell.labels, "revision": cell.revision, "science": cell.science}
        lanes = {
            lane.name: {"values": lane.values, "blocks": list(lane.blocks), "variant": lane.variant}
            for lane in cell.lanes
        }
        found = merged(found, {cell.cell: entry | {"lanes": lanes}})
    return found


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> Cells:
    """Both; of what was known, cells of an older revision than the newest of `new`, or on the same data of other content, are
    no longer asked for."""
    newest = max((entry["revision"] for entry in new.values()), default=0)
    other = of_other_content(known, new)
    cells = {cell: entry for cell, entry in known.items() if entry["revision"] >= newest and cell not in other}
    for cell, entry in new.items():
        before = cells.get(cell, entry)
        lanes = dict(before["lanes"])
        for name, lane in entry["lanes"].items():
            old = lanes.get(name, lane)
            # The study's own lane stays that, though a command may have reached it by spelling out an override too.
            own = [one for one in (old, lane) if not one["variant"]] or [lane]
            belongs = dict.fromkeys(block for one in own for block in one["blocks"])
            lanes[name] = {"values": lane["values"], "blocks": list(belongs), "variant": own[-1]["variant"]}
        cells[cell] = {**entry, "lanes": lanes}
    return cells


def _study(entry: Mapping[str, Any]) -> str:
    return str(entry["science"].get("study", {}).get("_target_", "")).removeprefix("pcexp.")


def of_other_content(known: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Known cells whose data are called as those of new ones, and have changed."""

    def read(entry: Mapping[str, Any]) -> tuple[str, str]:
        return entry["labels"].get("data", ""), entry["labels"].get("content", "")

    now = dict(map(read, new.values()))
    return [cell for cell, entry in known.items() if now.get(read(entry)[0], read(entry)[1]) != read(entry)[1]]


def add(folder: Path, scale: str, cells: Cells, grid: Blocks, command: Sequence[str] | None = None) -> list[str]:
    """Ask for cells: what was asked for at the same revision stays asked for, but for the cells that are returned.

    On those, the data that are called the same have another content by now. The words of the `command` (of this process)
    stay there. Raises OutputError, also where another study of that name was run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        known, there = read(folder, scale)
        other = {_study(entry) for entry in known.values()} - {_study(entry) for entry in cells.values()} - {""}
        if known and cells and other:
            raise OutputError(
                f"{folder} has runs of another study, {', '.join(other)}: choose execution.outputs=FOLDER"
            )
        said = map(discreet, sys.argv[1:]) if command is None else command
        _write(folder, scale, merged(known, cells), {**there, **grid}, list(said))
    return of_other_content(known, cells)


def forget(folder: Path, scale: str, withdrawn: Callable[[str, str, str], bool]) -> list[tuple[str, str, bool]]:
    """Ask no more for lanes that are `withdrawn` (by cell, lane and variant), but for the study's own, which stay asked for.

    Their cells and names, and whether they are the study's own. Raises OutputError.
    """
    with _held(folder):
        known, blocks = read(folder, scale)
        found = [
            (cell, name, not lane["variant"])
            for cell, entry in known.items()
            for name, lane in entry["lanes"].items()
            if withdrawn(cell, name, lane["variant"])
        ]
        for cell, name, own in found:
            if not own:
                del known[cell]["lanes"][name]
        left = {cell: entry for cell, entry in known.items() if entry["lanes"]}
        if found:
            _write(folder, scale, left, blocks, words(folder, scale))
    return found


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Inside, no other process changes the manifests of a study: two commands at once must not lose cells."""
    with (folder / "manifest.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(folder: Path, scale: str, cells: Cells, blocks: Blocks, command: Sequence[str]) -> None:
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"scale": scale, "command": command, "written": written, "blocks": blocks, "cells": cells}
    write_json(folder / f"manifest-{scale}.json", content)
