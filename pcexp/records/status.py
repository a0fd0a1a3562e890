"""`python -m pcexp status [NAME ...]`: where studies stand, from their manifests and cell folders. No JAX, no tables.

Of each study and scale: finished cells and lanes, who works now, which lanes failed and why, and the command that continues.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pcexp.files import place
from pcexp.records import manifest
from pcexp.records.cell import Cell, OutputError, read_lines


def command(study: str, scale: str, labels: Mapping[str, Iterable[str]]) -> str:
    """The command that makes runs with these labels; a label of several values is an axis, and is left to the study."""
    parts = [f"python -m pcexp +experiment={study}"]
    for label in ("data", "variant"):
        values = set(labels.get(label, ()))
        if len(values) == 1 and (value := values.pop()):
            said, _, flags = value.partition("XLA_FLAGS=")  # which stand last in a variant, with commas for spaces
            parts[:0] = [f"XLA_FLAGS={shlex.quote(flags.replace(',', ' '))}"] if flags else []
            parts += [said.strip() if label == "variant" else f"{label}={value}"] if said else []
    return " ".join([*parts, f"scale={scale}"])


def status(folder: Path, scale: str) -> str:
    """Where a study stands at one scale, as text. Raises OutputError."""
    cells = manifest.asked(folder, scale)
    lanes, done, cells_done, running, failed = 0, 0, 0, [], Counter[str]()
    unfinished: dict[tuple[str, str], list[str]] = {}
    seeds: dict[tuple[str, str], set[float]] = {}
    for name, entry in cells.items():
        cell = Cell(folder / name, entry["lanes"])
        missing, worker, labels = set(cell.missing), cell.worker, entry["labels"]
        lanes, done = lanes + len(entry["lanes"]), done + len(entry["lanes"]) - len(missing)
        cells_done += not missing
        if worker:
            job = f", job {worker['job']}" if worker.get("job") else ""
            running.append(f"  running: {name} by process {worker.get('pid')} on {worker.get('host')}{job}")
        if missing:
            for variant in {entry["lanes"][lane]["variant"] for lane in missing}:
                unfinished.setdefault((labels.get("data", ""), variant), []).append(name)
            for lane in (entry["lanes"][name] for name in missing):
                seeds.setdefault((labels.get("data", ""), lane["variant"]), set()).add(lane["values"].get("seed", 0))
            last = {line["lane"]: line["outcome"] for line in read_lines(folder / name / "lanes.jsonl")}
            failed.update(outcome for lane, outcome in last.items() if lane in missing)
    lines = [f"{folder.name}, {scale}: {cells_done} of {len(cells)} cells, {done} of {lanes} lanes finished", *running]
    lines += [f"  {n} lanes {outcome}" for outcome, n in failed.most_common()]
    how = manifest.how(folder, scale) if unfinished else []
    for (data, variant), names in unfinished.items():
        these = f"lanes.seed={sorted(seeds[data, variant])}".replace(" ", "")
        words = [these if word.startswith("lanes.seed=") else word for word in how]
        said = f"{command(folder.name, scale, {'data': [data], 'variant': [variant]})} {shlex.join(words)}".rstrip()
        lines.append(f"  {len(names)} cells unfinished: {said}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Where studies stand: what is finished, running, failed, and the command that continues."""
    parser = argparse.ArgumentParser(prog="python -m pcexp status", description=main.__doc__)
    parser.add_argument("studies", nargs="*", metavar="NAME", help="default: all that were asked for")
    parser.add_argument("--outputs", type=place, default=Path("outputs"), help="where runs wrote (default: outputs)")
    options = parser.parse_args(arguments)
    known = {path.name: scales for path in sorted(options.outputs.glob("*")) if (scales := manifest.scales(path))}
    there = f"there are runs of {', '.join(known)}" if known else "run python -m pcexp +experiment=NAME first"
    for name in sorted(set(options.studies) - set(known)) or ([] if known else [""]):
        of = f" of a study {name}" if name else ""
        sys.exit(f"pcexp: nothing was asked for{of} under {options.outputs}; {there}")
    try:
        for name in options.studies or known:
            for scale in known[name]:
                print(status(options.outputs / name, scale))
    except (OutputError, OSError) as error:
        sys.exit(f"pcexp: {error}")
