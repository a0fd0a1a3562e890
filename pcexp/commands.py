"""Verbs of the command that stand on several rooms: `records` collects, packs and unpacks what runs left."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pcexp.files import place
from pcexp.records import archive, manifest, tables
from pcexp.records.cell import Cell, OutputError
from pcexp.records.lock import CellBusy
from pcexp.report import rendering


def records(arguments: Sequence[str] | None = None) -> None:
    """Records of a study: merged into results/ and rendered, or in archives that travel to another machine."""
    parser = argparse.ArgumentParser(prog="python -m pcexp records", description=records.__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    about = {
        "collect": "merge finished runs into results/ and render them",
        "pack": "write archives of finished lanes, each under 16 MB",
        "unpack": "merge archives; lanes that are finished there stay as they are",
        "forget": "withdraw runs: of variants they are asked for no more, and the study's own are to be run again",
    }
    for verb, text in about.items():
        verbs.add_parser(verb, help=text, description=text).add_argument(
            "--outputs", type=place, default=Path("outputs"), help="where runs wrote (default: outputs)"
        )
    for verb in ("collect", "pack", "forget"):
        verbs.choices[verb].add_argument("study", metavar="NAME", help="name of a study, as in pcexp.experiments.NAME")
    verbs.choices["collect"].add_argument("--results", type=place, default=Path("results"))
    verbs.choices["pack"].add_argument("--to", type=place, help="folder of the archives (default: OUTPUTS/archives)")
    verbs.choices["unpack"].add_argument("files", type=place, nargs="+", metavar="FILE")
    forget = verbs.choices["forget"]
    forget.add_argument("--scale", help="default: all scales")
    forget.add_argument("--cell", help="of one cell")
    forget.add_argument("--lane", help="of one lane of it")
    forget.add_argument("--variant", help="of one variant, as it is written: 'optimiser.learning_rate=0.002'")
    forget.add_argument("--results", type=place, help="committed records that they are withdrawn from too")
    options = parser.parse_args(arguments)
    if options.verb == "forget" and options.cell is None and options.variant is None:
        forget.error("say which runs: --cell CELL or --variant TEXT, as python -m pcexp status prints them")
    if options.verb != "unpack" and not manifest.scales(options.outputs / options.study):
        sys.exit(
            f"no runs of {options.study} under {options.outputs}: run python -m pcexp +experiment={options.study} first"
        )
    try:
        if options.verb == "pack":
            code = _pack(options.outputs, options.study, options.to or options.outputs / "archives")
        elif options.verb == "forget":
            code = _forget(options)
        elif options.verb == "unpack":
            code = _unpack(options.files, options.outputs)
        else:
            code = _collect(options.outputs, options.results, options.study)
    except (CellBusy, OutputError, OSError) as error:
        sys.exit(f"pcexp: {error}")
    if code:
        sys.exit(code)


def _collect(outputs: Path, results: Path, study: str) -> int:
    for scale in manifest.scales(outputs / study):
        if scale == "smoke":
            continue  # seconds of a test: not a result
        records = tables.collect(outputs, results, study, scale)
        print(f"{results / study / scale}: {len(records.runs)} runs, {len(records.rows)} rows")
        if records.strays:
            print(f"kept, of an older revision or not asked for: {len(records.strays)} cells")
    return rendering.main([study, "--results", str(results)])


def _pack(outputs: Path, study: str, folder: Path) -> int:
    packed = archive.write(outputs, study, folder)
    for path in packed.paths:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    print(f"{packed.lanes} of {packed.asked} lanes asked for are finished and packed")
    for name in packed.too_large:
        print(f"left out, more than an archive holds: {name}; copy the cell's folder")
    return 1 if packed.too_large else 0


def _forget(options: argparse.Namespace) -> int:
    def withdrawn(cell: str, lane: str, variant: str) -> bool:
        said = (options.cell, cell), (options.lane, lane), (options.variant, variant)
        return all(wanted in (None, there) for wanted, there in said)

    study, total, variants = options.study, 0, set[str]()
    folder = options.outputs / study
    for scale in [options.scale] if options.scale else manifest.scales(folder):
        variants |= {
            lane["variant"] for cell in manifest.asked(folder, scale).values() for lane in cell["lanes"].values()
        }
        for cell, entry in manifest.asked(folder, scale).items():
            named = any(withdrawn(cell, lane, said["variant"]) for lane, said in entry["lanes"].items())
            if named and (worker := Cell(folder / cell, ()).worker):
                raise CellBusy(f"{folder / cell} is being run by process {worker.get('pid')}: stop it first")
        found = manifest.forget(folder, scale, withdrawn)
        for cell in sorted({cell for cell, _, own in found if own}):
            path = folder / cell / "config.json"
            if path.exists():
                with Cell(folder / cell, ()).open(json.loads(path.read_text())) as handle:
                    for lane in (lane for one, lane, own in found if own and one == cell):
                        handle.withdraw(lane)
        total += len(found)
        print(f"{folder}, {scale}: {len(found)} lanes withdrawn")
        if options.results:
            n = tables.forget(options.results / study / scale, study, scale, withdrawn)
            print(f"{options.results / study / scale}: {n} runs withdrawn")
            total += n
    if not total:
        sys.exit(f"pcexp: no such runs; variants there are {', '.join(sorted(filter(None, variants))) or 'none'}")
    return 0


def _unpack(files: Iterable[Path], outputs: Path) -> int:
    code = 0
    for path in files:
        try:
            content = archive.read(path)
            merged = archive.merge(content, outputs)
        except archive.ArchiveError as error:
            refused = [str(error)]
        else:
            print(f"{path}: {content.study}, {merged.added} lanes added, {merged.there} were there")
            refused = merged.refused
        for reason in refused:
            print(f"refused: {reason}")
            code = 1
    return code
