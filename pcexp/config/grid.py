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
from dataclasses import dataclass, replace
from typing import Any

SCALES = ("smoke", "small", "thesis")
OTHERS = "others"
LANES = "lanes."
BLOCK = ("block", "figures", "data", "also", "cells", "lanes")

Keys = tuple[str, ...]
Table = tuple[tuple[Any, ...], ...]
Axes = dict[Keys, Table]
"""Of keys that vary together the rows of their values; most keys vary alone."""


class GridError(ValueError):
    """A grid that cannot be read; the message names the block and the key."""


@dataclass(frozen=True)
class Block:
    """A part of a study's grid at one scale and on one data set: a product of axes, between cells and inside them."""

    name: str
    figures: tuple[str, ...]
    data: tuple[str, ...]
    cells: Axes
    lanes: dict[str, tuple[float | int, ...]]

    def configurations(self) -> Iterator[tuple[dict[str, Any], dict[str, tuple[float | int, ...]]]]:
        """Of every cell the values by key, and its lane axes."""
        for rows in itertools.product(*self.cells.values()):
            values: dict[str, Any] = {}
            lanes = dict(self.lanes)
            for keys, row in zip(self.cells, rows, strict=True):
                for key, value in zip(keys, row, strict=True):
                    if key.startswith(LANES):
                        lanes[key.removeprefix(LANES)] = tuple(value) if isinstance(value, Sequence) else (value,)
                    else:
                        values[key] = value
            yield values, lanes

    @property
    def lane_keys(self) -> set[str]:
        """Keys that vary inside cells."""
        return {*self.lanes, *(key.removeprefix(LANES) for keys in self.cells for key in keys if key.startswith(LANES))}

    def values(self, key: str) -> list[Any] | None:
        """Values that a key takes in the cells; None where it is no axis."""
        for keys, rows in self.cells.items():
            if key in keys:
                return list(dict.fromkeys(map(_frozen, (row[keys.index(key)] for row in rows))))
        return None

    def narrowed(self, key: str, values: Collection[Any]) -> "Block":
        """The block with the rows alone in which a key has one of these values."""
        wanted = {_frozen(value) for value in values}
        return replace(
            self,
            cells={
                keys: tuple(row for row in rows if _frozen(row[keys.index(key)]) in wanted) if key in keys else rows
                for keys, rows in self.cells.items()
            },
        )

    def replaced(self, key: str, values: Sequence[Any]) -> "Block":
        """The block with these values of a key in the place of its own."""
        cells: Axes = {}
        for keys, rows in self.cells.items():
            if key in keys:
                at = keys.index(key)
                rows = tuple((*row[:at], value, *row[at + 1 :]) for row in rows for value in values)
                rows = tuple(row for i, row in enumerate(rows) if row not in rows[:i])
            cells[keys] = rows
        if not any(key in keys for keys in cells):
            cells[key,] = tuple((value,) for value in values)
        return replace(self, cells=cells)


def blocks(grid: Any, common: Any, scale: str, data: str) -> list[Block]:
    """The blocks of a study at a scale that run on a data set. Raises GridError."""
    if scale not in SCALES:
        raise GridError(f"scale={scale} is unknown: valid are {', '.join(SCALES)}")
    entries, shared = _entries(grid, "grid"), _entries(common, "common")
    named = {name for entry in (*entries, *shared) for name in (*_listed(entry, "data"), *_listed(entry, "also"))}
    found = []
    for entry in entries:
        name = str(entry.get("block") or "")
        _known(entry, BLOCK, f"grid, block {name or '(without a name)'}")
        if not name or " " in name:
            raise GridError(f"grid: a block needs a name of one word under `block`, not {name!r}")
        if not _runs_on(entry, data, named):
            continue
        cells: Axes = {}
        lanes: Axes = {}
        for part in (*shared, entry):
            if part is not entry:
                _known(part, BLOCK[2:], "common")
            if _runs_on(part, data, named):
                for keys, rows in _axes(part.get("cells") or {}, scale, data, f"{name}.cells").items():
                    # An axis takes the place of those before it, of `common` or of an anchor, that it shares a key with.
                    cells = {other: kept for other, kept in cells.items() if not set(keys) & set(other)} | {keys: rows}
                lanes |= _axes(part.get("lanes") or {}, scale, data, f"{name}.lanes")
        if all(len(rows) for rows in cells.values()):
            figures = tuple(map(str, _listed(entry, "figures")))
            values = {keys[0]: tuple(row[0] for row in rows) for keys, rows in lanes.items()}
            found.append(Block(name, figures, tuple(_listed(entry, "data")), cells, values))
    names = Counter(block.name for block in found)
    if len(names) < len(found):
        raise GridError(f"grid: two blocks are called {next(name for name, n in names.items() if n > 1)}")
    return found


def chosen(found: Sequence[Block], names: Sequence[str]) -> list[Block]:
    """The blocks of these names. Raises GridError."""
    there = [block.name for block in found]
    for name in names:
        if name not in there:
            raise GridError(f"blocks={list(names)}: there is no block {name}; there are {', '.join(there) or 'none'}")
    return [block for block in found if block.name in names]


def inside(found: Sequence[Block], key: str, values: Sequence[Any]) -> bool:
    """Whether the blocks have all of these values of a key."""
    known = {value for block in found for value in map(_frozen, block.values(key) or ())}
    axes = [(keys.index(key), rows) for block in found for keys, rows in block.cells.items() if key in keys]
    whole = all(isinstance(row[at], int) for at, rows in axes for row in rows)  # 64.0 there is refused later
    return bool(known) and all(_frozen(v) in known and not (whole and isinstance(v, float)) for v in values)


def asked(found: Sequence[Block], key: str, values: Sequence[Any]) -> list[Block]:
    """The blocks when a key is asked for with these values.

    Values that the blocks have choose among their rows. Others take the place of what is there, in every block.
    """
    if inside(found, key, values):
        narrow = [b.narrowed(key, values) if b.values(key) is not None else b.replaced(key, values) for b in found]
        return [block for block in narrow if all(len(rows) for rows in block.cells.values())]
    return [block.replaced(key, values) for block in found]


def with_lanes(found: Sequence[Block], key: str, values: Sequence[float | int]) -> list[Block]:
    """The blocks with these values of a lane key, in all of them if it is the seed or no block has it, else in those that do."""
    everywhere = key == "seed" or not any(key in block.lane_keys for block in found)

    def changed(block: Block) -> Block:
        if block.values(LANES + key) is not None:
            return block.replaced(LANES + key, [list(values)])
        if everywhere or key in block.lanes:
            return replace(block, lanes=block.lanes | {key: tuple(values)})
        return block

    return [changed(block) for block in found]


def _axes(node: Any, scale: str, data: str, path: str) -> Axes:
    """Axes of a block at a scale and on a data set. Raises GridError."""
    if not isinstance(node, Mapping):
        raise GridError(f"grid, {path}: a mapping of keys to values is needed, not {node!r}")
    found: Axes = {}
    for text, value in node.items():
        keys = tuple(part.strip() for part in str(text).split(","))
        while isinstance(value, Mapping):
            value = _chosen(value, scale, data, f"{path}.{text}")
        options = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if len(keys) > 1 and options and not isinstance(options[0], Sequence):
            options = [options]
        rows = tuple(tuple(row) if len(keys) > 1 else (row,) for row in options)
        if any(len(row) != len(keys) for row in rows):
            raise GridError(f"grid, {path}.{text}: every row needs {len(keys)} values")
        found[keys] = rows
    return found


def _chosen(value: Mapping[str, Any], scale: str, data: str, path: str) -> Any:
    """What a mapping by scale or by data set holds for these. Raises GridError."""
    if set(value) & set(SCALES):
        if not set(value) <= set(SCALES):
            raise GridError(f"grid, {path}: values by scale have the keys {', '.join(SCALES)}, not {list(value)}")
        if scale not in value:
            raise GridError(f"grid, {path}: there is nothing for scale={scale}")
        return value[scale]
    if data not in value and OTHERS not in value:
        raise GridError(
            f"grid, {path}: there is nothing for scale={scale} and data={data}; values go by scale ({', '.join(SCALES)}) "
            f"or by data set (names, {OTHERS}), not by {list(value)}"
        )
    return value.get(data, value.get(OTHERS))


def _entries(node: Any, name: str) -> list[Mapping[str, Any]]:
    entries = [node] if isinstance(node, Mapping) and node else list(node or [])
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise GridError(f"{name} is a list of mappings")
    return entries


def _listed(entry: Mapping[str, Any], key: str) -> list[str]:
    value = entry.get(key)
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return [] if value is None else list(map(str, value if several else [value]))


def _runs_on(entry: Mapping[str, Any], data: str, named: Collection[str]) -> bool:
    own = {*_listed(entry, "data"), *_listed(entry, "also")}
    return not own or data in own or (OTHERS in own and data not in named)


def _known(entry: Mapping[str, Any], valid: Sequence[str], path: str) -> None:
    for key in entry:
        if key not in valid:
            raise GridError(f"{path}: {key} is no key; valid are {', '.join(valid)}")


def _frozen(value: Any) -> Any:
    """A value that can be compared: 1 and 1.0 are one, true is no number."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    return float(value) if isinstance(value, int) else value
