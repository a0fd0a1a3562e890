"""The grid of a study as data: blocks of plain values, each a product of axes, whose union is what the study asks for.

    common:                          # axes of every block, or a list of such entries for some data sets each
      cells: {network.activation: [linear, tanh]}
      lanes: {seed: {smoke: [0], small: [0, 1], thesis: [0, 1, 2]}}
    grid:
      - block: width                 # its name
        figures: ["5.5"]             # the figures that it serves
        data: [mnist]                # data sets on which the source ran it
        also: others                 # others that it runs on: names, or `others` for those that no block names
        cells:                       # a configuration each
          network.width, network.n_hidden: [[32, 8], [64, 8]]     # rows of a table: these keys vary together
          network.activation, lanes.inference.activity_lr: [[relu, 0.5], [tanh, [1, 2]]]    # `lanes.`: inside those cells
        lanes:                       # numbers that vary inside a cell
          optimiser.learning_rate: [0.1, 0.01]

One value stands for a list of one; a mapping {smoke: .., small: .., thesis: ..} holds the values by scale, and one such as
{mnist: .., others: ..} those by data set. A block without `data` and `also` runs on any data set.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

SCALES = ("smoke", "small", "thesis")
OTHERS = "others"
LANES = "lanes."
BLOCK = ("block", "figures", "data", "also", "cells", "lanes")

Axes = dict[tuple[str, ...], tuple[tuple[Any, ...], ...]]
"""Of keys that vary together the rows of their values; most keys vary alone. An axis of lanes is one value, all of its numbers."""


class Refused(SystemExit):
    """A command that cannot be run: ends the process with status 1 and a message that is all the user needs."""

    def __init__(self, message: str) -> None:
        super().__init__(f"pcexp: {message}")


@dataclass(frozen=True)
class Block:
    """A part of a study's grid at one scale and on one data set: a product of axes, those inside the cells called `lanes.KEY`."""

    name: str
    figures: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)

    def configurations(self) -> Iterator[tuple[dict[str, Any], dict[str, tuple[float | int, ...]]]]:
        """Of every cell the values by key, and its lane axes."""
        for rows in itertools.product(*self.axes.values()):
            values: dict[str, Any] = {}
            for keys, row in zip(self.axes, rows, strict=True):
                values |= zip(keys, row, strict=True)
            lanes = {key: values.pop(key) for key in list(values) if key.startswith(LANES)}
            yield values, {key.removeprefix(LANES): tuple(_several(value)) for key, value in lanes.items()}

    def column(self, key: str) -> list[Any]:
        """Values of a key in the rows of its axis; none where it is no axis."""
        return [row[keys.index(key)] for keys, rows in self.axes.items() if key in keys for row in rows]

    def narrowed(self, key: str, values: Collection[Any]) -> "Block":
        """The block with the rows alone in which a key has one of these values."""
        wanted, axes = set(map(_frozen, values)), dict(self.axes)
        for keys, rows in self.axes.items():
            if key in keys:
                axes[keys] = tuple(row for row in rows if _frozen(row[keys.index(key)]) in wanted)
        return replace(self, axes=axes)

    def replaced(self, key: str, values: Sequence[Any]) -> "Block":
        """The block with these values of a key in the place of its own."""
        axes = self.axes if self.column(key) else self.axes | {(key,): ((None,),)}
        for keys, rows in axes.items():
            if key in keys:
                at = keys.index(key)
                rows = tuple((*row[:at], value, *row[at + 1 :]) for row in rows for value in values)
                axes = axes | {keys: tuple(row for i, row in enumerate(rows) if row not in rows[:i])}
        return replace(self, axes=axes)


def blocks(grid: Any, common: Any, scale: str, data: str) -> list[Block]:
    """The blocks of a study at a scale that run on a data set. Raises Refused."""
    if scale not in SCALES:
        raise Refused(f"scale={scale} is unknown: valid are {', '.join(SCALES)}")
    entries, shared = _entries(grid, "grid"), _entries(common, "common")
    named = {*data_sets(grid), *data_sets(common)}
    found = []
    for entry in entries:
        name = str(entry.get("block") or "")
        _known(entry, BLOCK, f"grid, block {name or '(without a name)'}")
        if not name or " " in name:
            raise Refused(f"grid: a block needs a name of one word under `block`, not {name!r}")
        if not _runs_on(entry, data, named):
            continue
        cells: Axes = {}
        lanes: Axes = {}
        for part in (*shared, entry):
            if part is not entry:
                _known(part, BLOCK[2:], "common")
            if _runs_on(part, data, named):
                for keys, rows in _axes(part.get("cells") or {}, scale, data, named, f"{name}.cells").items():
                    # An axis takes the place of those before it, of `common` or of an anchor, that it shares a key with.
                    cells = {other: kept for other, kept in cells.items() if not set(keys) & set(other)} | {keys: rows}
                for (key, *_), rows in _axes(part.get("lanes") or {}, scale, data, named, f"{name}.lanes").items():
                    lanes[LANES + key,] = ((tuple(row[0] for row in rows),),)
        if all(len(rows) for rows in cells.values()):
            found.append(Block(name, tuple(_listed(entry, "figures")), lanes | cells))
    for name, n in Counter(block.name for block in found).items():
        if n > 1:
            raise Refused(f"grid: two blocks are called {name}")
    return found


def data_sets(node: Any) -> list[str]:
    """Names of data sets on which blocks of a grid run, `others` among them. Raises Refused."""
    parts = [name for entry in _entries(node, "grid") for key in ("data", "also") for name in _listed(entry, key)]
    return list(dict.fromkeys(parts))


def chosen(found: Sequence[Block], names: Sequence[str]) -> list[Block]:
    """The blocks of these names. Raises Refused."""
    there = [block.name for block in found]
    for name in names:
        if name not in there:
            raise Refused(f"blocks={list(names)}: there is no block {name}; there are {', '.join(there) or 'none'}")
    return [block for block in found if block.name in names]


def inside(found: Sequence[Block], key: str, values: Sequence[Any]) -> bool:
    """Whether the blocks have all of these values of a key."""
    there = [value for block in found for value in block.column(key)]
    known = set(map(_frozen, there))
    whole = all(isinstance(value, int) for value in there)  # 64.0 there is refused later
    return bool(there) and all(_frozen(v) in known and not (whole and isinstance(v, float)) for v in values)


def asked(found: Sequence[Block], key: str, values: Sequence[Any]) -> list[Block]:
    """The blocks when a key is asked for with these values.

    Values that the blocks have choose among their rows. Others take the place of what is there, in every block.
    """
    if inside(found, key, values):
        narrow = [b.narrowed(key, values) if b.column(key) else b.replaced(key, values) for b in found]
        return [block for block in narrow if all(len(rows) for rows in block.axes.values())]
    return [block.replaced(key, values) for block in found]


def with_lanes(found: Sequence[Block], key: str, values: Sequence[float | int]) -> list[Block]:
    """The blocks with these values of a lane key, in all of them if it is the seed or no block has it, else in those that do."""
    key = LANES + key
    everywhere = key == f"{LANES}seed" or not any(block.column(key) for block in found)
    return [b.replaced(key, [tuple(values)]) if everywhere or b.column(key) else b for b in found]


def _axes(node: Any, scale: str, data: str, named: Collection[str], path: str) -> Axes:
    """Axes of a block at a scale and on a data set. Raises Refused."""
    if not isinstance(node, Mapping):
        raise Refused(f"grid, {path}: a mapping of keys to values is needed, not {node!r}")
    found: Axes = {}
    for text, value in node.items():
        keys = tuple(part.strip() for part in str(text).split(","))
        while isinstance(value, Mapping):
            value = _chosen(value, scale, data, named, f"{path}.{text}")
        options = _several(value)
        if len(keys) > 1 and options and not isinstance(options[0], Sequence):
            options = [options]
        rows = tuple(tuple(row) if len(keys) > 1 else (row,) for row in options)
        if any(len(row) != len(keys) for row in rows):
            raise Refused(f"grid, {path}.{text}: every row needs {len(keys)} values")
        found[keys] = rows
    return found


def _chosen(value: Mapping[str, Any], scale: str, data: str, named: Collection[str], path: str) -> Any:
    """What a mapping by scale or by data set holds for these. Raises Refused."""
    if set(value) & set(SCALES):
        if not set(value) <= set(SCALES):
            raise Refused(f"grid, {path}: values by scale have the keys {', '.join(SCALES)}, not {list(value)}")
        if scale not in value:
            raise Refused(f"grid, {path}: there is nothing for scale={scale}")
        return value[scale]
    if unknown := set(value) - {*named, data, OTHERS}:  # a misspelt name would leave its data to the others' value
        raise Refused(
            f"grid, {path}: no block names the data {', '.join(unknown)}; they name {', '.join(sorted(named))}"
        )
    if data not in value and OTHERS not in value:
        raise Refused(
            f"grid, {path}: there is nothing for scale={scale} and data={data}; values go by scale ({', '.join(SCALES)}) "
            f"or by data set (names, {OTHERS}), not by {list(value)}"
        )
    return value.get(data, value.get(OTHERS))


def _entries(node: Any, name: str) -> list[Mapping[str, Any]]:
    entries = [node] if isinstance(node, Mapping) and node else list(node or [])
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise Refused(f"{name} is a list of mappings")
    return entries


def _listed(entry: Mapping[str, Any], key: str) -> list[str]:
    return [] if entry.get(key) is None else list(map(str, _several(entry[key])))


def _several(value: Any) -> list[Any]:
    """The values that stand in a list, or the one that does not."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _runs_on(entry: Mapping[str, Any], data: str, named: Collection[str]) -> bool:
    own = {*_listed(entry, "data"), *_listed(entry, "also")}
    return not own or data in own or (OTHERS in own and data not in named)


def _known(entry: Mapping[str, Any], valid: Sequence[str], path: str) -> None:
    for key in entry:
        if key not in valid:
            raise Refused(f"{path}: {key} is no key; valid are {', '.join(valid)}")


def _frozen(value: Any) -> Any:
    """A value that can be compared: 1 and 1.0 are one, true is no number."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    return float(value) if isinstance(value, int) else value
