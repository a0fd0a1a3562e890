"""What cells and lanes are called: names that say what they are, in files and in records. No JAX here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar


class Lane(NamedTuple):
    """One run inside a cell: its name in files, the values of its lane keys, and the blocks of the grid that ask for it.

    `variant` is the text of the overrides that led to it, where it is none of the study's own.
    """

    name: str
    values: dict[str, float | int]
    blocks: tuple[str, ...] = ()
    variant: str = ""


@dataclass(frozen=True)
class Identity:
    """What a cell is called and why: the study's name and revision, a hash of its science half, labels for people, lanes."""

    name: str
    revision: int
    cell: str
    science: dict[str, Any]
    labels: dict[str, str]
    lanes: tuple[Lane, ...]


Who = TypeVar("Who", bound=Identity)


def cell_name(said: Any) -> str:
    """Name of a cell in files and records: a hash of what is said of it. Equal numbers are equal: 1 and 1.0, 0 and -0.0."""
    return hashlib.sha256(json.dumps(_equal(said), sort_keys=True).encode()).hexdigest()[:12]


def _equal(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _equal(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_equal(value) for value in node]
    if isinstance(node, str) and node.startswith(("pcexp.experiments.", "experiments.")):
        # What studies were once imported as: they are who they were, and one of the user's in such a folder is another.
        return node.removeprefix("pcexp.") if node.startswith("pcexp.") else f".{node}"
    return int(node) if isinstance(node, float) and node.is_integer() else node


def under(who: Who, content: str, flags: str) -> Who:
    """The cell on data of a `content` that its configuration does not say, with compiler `flags` that can change numbers.

    Other content is another cell of the study; other flags are another cell, and a variant.
    """
    if not (content or flags):
        return who
    lanes = tuple(lane._replace(variant=" ".join(filter(None, (lane.variant, flags)))) for lane in who.lanes)
    labels = who.labels | ({"content": content[:12]} if content else {})
    return replace(who, cell=cell_name([who.cell, content, flags]), labels=labels, lanes=lanes if flags else who.lanes)


def lane_name(values: Mapping[str, float | int]) -> str:
    """Name of a lane in files and records: a hash of its values."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:8]
