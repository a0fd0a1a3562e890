"""What cells and lanes are called: names that say what they are, in files and in records. No JAX here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


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


def lane_name(values: Mapping[str, float | int]) -> str:
    """Name of a lane in files and records: a hash of its values."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:8]
