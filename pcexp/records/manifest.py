"""What was asked for: the cells and lanes of a study at one scale. Reports and claims count against it.

outputs/STUDY/manifest-SCALE.json    {"scale", "command", "written", "cells": {CELL: {"labels", "lanes", "revision"}}}
"""

import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcexp.records.cell import OutputError, write_json

Cells = dict[str, dict[str, Any]]
"""Of each cell its labels, the values of its lanes by name, and the revision of the study."""


def scales(folder: Path) -> list[str]:
    """The scales at which something was asked for."""
    return sorted(path.stem.removeprefix("manifest-") for path in folder.glob("manifest-*.json"))


def asked(folder: Path, scale: str) -> Cells:
    """The cells asked for at a scale. Raises OutputError."""
    path = _path(folder, scale)
    try:
        return json.loads(path.read_text())["cells"] if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is no manifest: {error}; set it aside and give the study's command again") from error


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> Cells:
    """Both; of what was known, cells of a revision older than the newest of `new` are no longer asked for."""
    newest = max((entry["revision"] for entry in new.values()), default=0)
    cells = {cell: entry for cell, entry in known.items() if entry["revision"] >= newest}
    for cell, entry in new.items():
        before = cells.get(cell, {"labels": entry["labels"], "lanes": {}})
        # The study's own cell stays that, though a command may also have reached it by spelling out an override.
        variant = entry["labels"]["variant"] and before["labels"]["variant"]
        cells[cell] = {
            "labels": entry["labels"] | {"variant": variant},
            "lanes": before["lanes"] | entry["lanes"],
            "revision": entry["revision"],
        }
    return cells


def write(folder: Path, scale: str, cells: Cells) -> None:
    """Write the manifest of a scale, with the command and the time."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(_path(folder, scale), {"scale": scale, "command": sys.argv[1:], "written": now, "cells": cells})


def _path(folder: Path, scale: str) -> Path:
    return folder / f"manifest-{scale}.json"
