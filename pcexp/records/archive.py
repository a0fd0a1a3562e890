"""Archives of finished lanes: what travels from one machine to another, to be merged there with what is known.

STUDY-HASH.tar, under 16 MB     index.json              the study, and the SHA-256 of every other file
                                manifest-SCALE.json.gz  what is asked for at a scale
                                CELL/config.json.gz     as in outputs/STUDY/CELL/
                                CELL/lanes.jsonl.gz     its finished lanes, or as many of them as fit
                                CELL/rows.jsonl.gz      their rows

The same lanes give the same bytes, and an archive is called by a hash of them: those of several machines fit into one folder.
Failed and unfinished lanes, checkpoints and networks stay where they are. Nothing of an archive is written under a name that
stands in it before that name is known to be a hash, and nothing at all before the whole archive has been read and checked.
"""

import gzip
import hashlib
import io
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pcexp.config.grid import SCALES
from pcexp.config.identity import lane_name
from pcexp.files import replace_bytes
from pcexp.records import manifest
from pcexp.records.cell import Cell, OutputError, read_lines
from pcexp.records.lock import CellBusy

LIMIT = 16_000_000
"""Bytes of an archive, at most."""
FORMAT = "pcexp records 1"
INDEX = "index.json"
STUDY, CELL = r"[A-Za-z_]\w*", r"[0-9a-f]{12}"


class ArchiveError(Exception):
    """A file that is no archive of records, or a truncated one."""


class Lanes(NamedTuple):
    """Finished lanes of one cell, and the cell's config.json."""

    config: dict[str, Any]
    entries: list[dict[str, Any]]
    rows: list[dict[str, Any]]


class Archive(NamedTuple):
    study: str
    manifests: dict[str, tuple[manifest.Cells, manifest.Blocks]]
    cells: dict[str, Lanes]


class Written(NamedTuple):
    """Archives that were written, how many lanes they hold of those asked for, and what did not fit into any."""

    paths: list[Path]
    lanes: int
    asked: int
    too_large: list[str]


class Merged(NamedTuple):
    """Lanes that an archive added, lanes that were there before, and why cells were refused."""

    added: int
    there: int
    refused: list[str]


def write(outputs: Path, study: str, folder: Path, limit: int = LIMIT) -> Written:
    """Write archives of the finished lanes that the manifests of a study ask for. Raises OutputError."""
    source = outputs / study
    manifests = {scale: manifest.read(source, scale) for scale in manifest.scales(source)}
    asked = _asked(cells for cells, _ in manifests.values())
    head = {
        f"manifest-{scale}.json.gz": _squeezed([json.dumps({"scale": scale, "cells": cells, "blocks": grid})])
        for scale, (cells, grid) in manifests.items()
    }
    room, bins, too_large, lanes = limit - _size(head), [dict(head)], [], 0
    for cell in sorted(asked):
        for names, files in _parts(source / cell, asked[cell], room):
            if _size(files) > room:
                too_large.append(f"{source / cell}, lane {names[0]}: {_size(files) / 1e6:.1f} MB by itself")
                continue
            if _size(bins[-1] | files) > limit or files.keys() & bins[-1].keys():  # two parts of one cell
                bins.append(dict(head))
            bins[-1] |= files
            lanes += len(names)
    paths = [_write(folder, study, files) for files in bins if len(files) > len(head)]
    return Written(paths, lanes, sum(len(names) for names in asked.values()), too_large)


def _asked(manifests: Iterable[manifest.Cells]) -> dict[str, set[str]]:
    """Of each cell the lanes that are asked for at some scale."""
    found: dict[str, set[str]] = {}
    for cells in manifests:
        for cell, entry in cells.items():
            found.setdefault(cell, set()).update(entry["lanes"])
    return found


def _parts(folder: Path, asked: set[str], room: int) -> Iterator[tuple[list[str], dict[str, bytes]]]:
    """Names and files of the finished lanes of a cell: all of them, or halves of them until all fit."""
    # A lane is finished after its last row is written, so a run that goes on meanwhile does no harm in this order.
    finished = {name: entry for name, entry in Cell(folder, ()).finished.items() if name in asked}
    if not finished or not (folder / "config.json").exists():
        return
    config = json.loads((folder / "config.json").read_text())
    rows: dict[str, list[str]] = {name: [] for name in sorted(finished)}
    for row in read_lines(folder / "rows.jsonl"):
        if row["lane"] in rows:
            rows[row["lane"]].append(json.dumps(row))  # as text: of many lanes it is much less than objects

    def halved(names: list[str]) -> Iterator[tuple[list[str], dict[str, bytes]]]:
        files = {
            f"{folder.name}/config.json.gz": _squeezed([json.dumps(config)]),
            f"{folder.name}/lanes.jsonl.gz": _squeezed(json.dumps(finished[name]) for name in names),
            f"{folder.name}/rows.jsonl.gz": _squeezed(row for name in names for row in rows[name]),
        }
        if _size(files) <= room or len(names) == 1:
            yield names, files
        else:
            middle = len(names) // 2
            yield from itertools.chain(halved(names[:middle]), halved(names[middle:]))

    yield from halved(list(rows))


def _squeezed(lines: Iterable[str]) -> bytes:
    # Without a date: the same lines give the same bytes.
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def _size(files: Mapping[str, bytes]) -> int:
    """Bytes of a tar of these files, or some more: headers and padding, their lines in the index, the end."""
    return sum(len(content) + 1024 + 256 for content in files.values()) + 2 * tarfile.RECORDSIZE


def _write(folder: Path, study: str, files: Mapping[str, bytes]) -> Path:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    index = json.dumps({"format": FORMAT, "study": study, "files": hashes}, indent=1).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in [(INDEX, index), *sorted(files.items())]:
            about = tarfile.TarInfo(name)  # date, owner and group stay 0
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    content = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study}-{hashlib.sha256(content).hexdigest()[:12]}.tar"
    replace_bytes(path, content)
    return path


def read(path: Path) -> Archive:
    """What an archive holds, every name, hash and entry of it checked. Raises ArchiveError."""
    if not path.is_file():
        raise ArchiveError(f"there is no file {path}")
    try:
        if (size := path.stat().st_size) > LIMIT:
            raise ValueError(f"it has {size / 1e6:.0f} MB, and archives are under {LIMIT // 1_000_000}")
        return _checked(_files(path.read_bytes()))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, tarfile.TarError, zlib.error) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else error
        raise ArchiveError(f"{path} is no archive of records, or is truncated: {reason}") from error


def _files(content: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is None or member.name in found:
                raise ValueError(f"{member.name!r} is no plain file, or is there twice")
            found[member.name] = file.read()
    return found


def _checked(files: dict[str, bytes]) -> Archive:
    index = json.loads(files.pop(INDEX, b"null"))
    _need(isinstance(index, dict) and index.get("format") == FORMAT, f"it has no {INDEX} of the format {FORMAT!r}")
    _need(re.fullmatch(STUDY, index["study"], re.ASCII), f"{index['study']!r} is no name of a study")
    _need(files.keys() == index["files"].keys(), "it has other files than its index says")
    for name, content in files.items():
        _need(hashlib.sha256(content).hexdigest() == index["files"][name], f"{name} is damaged")
    manifests: dict[str, tuple[manifest.Cells, manifest.Blocks]] = {}
    parts: dict[str, dict[str, list[Any]]] = {}
    for name, content in files.items():
        entries = [json.loads(line) for line in gzip.decompress(content).decode().splitlines()]
        if match := re.fullmatch(rf"manifest-({'|'.join(SCALES)})\.json\.gz", name):
            manifests[match[1]] = _manifest(entries)
        elif match := re.fullmatch(rf"({CELL})/(config\.json|lanes\.jsonl|rows\.jsonl)\.gz", name):
            parts.setdefault(match[1], {})[match[2]] = entries
        else:
            raise ValueError(f"{name!r} is no name of a file in it")
    return Archive(index["study"], manifests, {cell: _lanes(index["study"], cell, p) for cell, p in parts.items()})


def _manifest(entries: Sequence[Any]) -> tuple[manifest.Cells, manifest.Blocks]:
    cells, grid = entries[0]["cells"], entries[0]["blocks"]
    _need(all(isinstance(there, dict) for there in grid.values()), "a manifest has no blocks")
    for cell, entry in cells.items():
        whole = re.fullmatch(CELL, cell) and _has(entry, revision=int, labels=dict, science=dict)
        _need(whole, f"a manifest asks for a cell {cell!r}, which is none")
        for name, lane in entry["lanes"].items():
            whole = _has(lane, variant=str, blocks=list) and lane_name(lane["values"]) == name
            _need(whole, f"a manifest asks for a lane {name!r}, which is not that of its values")
    return cells, grid


def _lanes(study: str, cell: str, parts: Mapping[str, list[Any]]) -> Lanes:
    config, entries, rows = parts["config.json"][0], parts["lanes.jsonl"], parts["rows.jsonl"]
    ours = (config["study"], config["cell"]) == (study, cell) and _has(config, science=dict, labels=dict, revision=int)
    _need(ours, f"the configuration of {cell} is another's")
    for entry in entries:
        _need(lane_name(entry["values"]) == entry["lane"], f"lane {entry['lane']!r} is not that of its values")
        whole = _has(entry, outcome=str, summary=dict, provenance=dict) and not entry["outcome"].startswith("failed")
        _need(whole, f"a lane of {cell}")
    names = {entry["lane"] for entry in entries}
    _need(len(names) == len(entries), f"lanes of {cell} are there twice")
    _need(all(row["lane"] in names and _has(row, iteration=int) for row in rows), f"rows of {cell}")
    return Lanes(config, entries, rows)


def _has(entry: Mapping[str, Any], **kinds: type) -> bool:
    return all(isinstance(entry[key], kind) for key, kind in kinds.items())


def _need(condition: object, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def merge(archive: Archive, outputs: Path) -> Merged:
    """Merge an archive into an outputs folder; lanes that are finished or withdrawn there stay as they are.

    Raises OutputError, and ArchiveError where the data have another content than those that are called so there.

    A cell that runs there is refused. Cut off at any moment, the same command completes it.
    """
    folder = outputs / archive.study
    for scale, (cells, grid) in archive.manifests.items():
        known = manifest.asked(folder, scale)
        newest = max((entry["revision"] for entry in [*known.values(), *cells.values()]), default=0)
        new = {cell: entry for cell, entry in cells.items() if entry["revision"] >= newest}
        if other := manifest.of_other_content(known, new):
            raise ArchiveError(
                f"{archive.study} was run here on data of another content ({len(other)} cells at {scale}): unpack it into another "
                "folder with --outputs, or give the study's command with those data first"
            )
        if manifest.merged(known, new) != known:
            manifest.add(folder, scale, new, grid, manifest.words(folder, scale))
    asked = _asked(manifest.asked(folder, scale) for scale in SCALES)
    added, there, refused = 0, 0, []
    for cell, lanes in archive.cells.items():
        try:
            n = _adopt(Cell(folder / cell, sorted(asked.get(cell, ()))), lanes)
            added, there = added + n, there + len(lanes.entries) - n
        except CellBusy as error:
            refused.append(f"{error}: unpack its lanes again when that has ended")
    return Merged(added, there, refused)


def _adopt(handle: Cell, lanes: Lanes) -> int:
    """Add the lanes that are not finished in a cell; their number. Raises CellBusy and OutputError."""

    def new() -> set[str]:
        return {entry["lane"] for entry in lanes.entries} - handle.finished.keys() - handle.withdrawn

    if not new():
        return 0  # nothing is touched, not even the lock of a run that goes on
    path = handle.folder / "config.json"
    try:
        config = json.loads(path.read_text()) if path.exists() else lanes.config
    except ValueError as error:
        raise OutputError(f"{path} is not JSON: {error}; set the cell's folder aside and unpack again") from error
    with handle.open(config):
        names = new()
        handle.adopt([e for e in lanes.entries if e["lane"] in names], [r for r in lanes.rows if r["lane"] in names])
    return len(names)
