"""Claims, figures and their page from records: no JAX run, no network, no tracker.

`python -m pcexp report NAME` reads outputs/NAME and writes outputs/report/NAME; with `--results results` it reads and renders
what is committed there. The page is index.html beside the studies' folders: of outputs/ with its figures inside, so that it can
be sent; of results/ with those that lie beside it. What is said of records by hand stands with a date in NAME/notes.md, and is shown.
"""

import argparse
import csv
import hashlib
import importlib
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pcexp.config.grid import SCALES
from pcexp.files import replace_bytes
from pcexp.records.tables import Records, read_outputs, read_results
from pcexp.report import plotting
from pcexp.report.claims import Verdict
from pcexp.report.page import STATUS_MARK, Drawing, Judged, Part, listed, notes, page, words


def judge(study: Any, records: Records) -> list[Judged]:
    """Verdicts of the claims of a study, data set by data set; of each those that speak of it."""
    return [
        Judged(" ".join(filter(None, labels.values())), claim, claim.rule(records.select(labels)))
        for labels in records.apart()
        for claim in study.CLAIMS
        if claim.data in (None, labels["data"])
    ]


def figures(study: Any, records: Records, folder: Path, again: bool = True, suffix: str = "") -> list[Drawing]:
    """All figures of a study as PNG and PDF, one a data set (and variant); drawn `again`, or only where one is missing.

    A `suffix` of their file names keeps those of several scales apart.
    """
    drawings = []
    folder.mkdir(parents=True, exist_ok=True)
    for labels in records.apart():
        part = records.select(labels)
        data = " ".join(filter(None, labels.values()))
        for name, make in study.FIGURES.items():
            stem = re.sub(r"[^\w.=-]+", "_", f"fig_{name}_{data}{suffix}")
            if len(stem) > 80:
                stem = f"{stem[:70]}_{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
            if again or not (folder / f"{stem}.png").exists():
                figure = make(part)
                if figure is None:  # of no meaning for these data
                    continue
                for kind in ("png", "pdf"):
                    replace_bytes(folder / f"{stem}.{kind}", plotting.rendered(figure, kind))
                plotting.pyplot().close(figure)
            drawings.append(Drawing(name, data, (make.__doc__ or "").strip(), folder / f"{stem}.png", part))
    return drawings


def claims_csv(judged: Sequence[Judged]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["figure", "data", "claim", *Verdict.__dataclass_fields__])
    for data, claim, verdict in judged:
        writer.writerow([claim.figure, data, claim.statement, *vars(verdict).values()])
    return buffer.getvalue()


def print_claims(judged: Sequence[Judged], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "figure", "data", "claim", "observed (all seeds)", "n", "scale"):
        table.add_column(column, overflow="fold")
    for data, claim, verdict in judged:
        shown, status, n = verdict.observed, STATUS_MARK[verdict.status], str(verdict.n)
        shown += "" if verdict.status == "insufficient" else f" ({verdict.interval})"
        table.add_row(status, claim.figure, data, claim.statement, shown, n, verdict.scale)
    console.print(table)
    counts = {s: sum(j.verdict.status == s for j in judged) for s in STATUS_MARK}
    console.print(", ".join(f"{n} {words(s)}" for s, n in counts.items()))


def index_markdown(parts: Sequence[Part]) -> str:
    """INDEX.md of results/: a table of figures and their claims."""
    rows = [("study", "scale", "data", "figure", "claim", "status", "observed"), ("---",) * 7]
    rows += [
        (part.study, part.records.scale, data, claim.figure, claim.statement, words(verdict.status), verdict.observed)
        for part in parts
        for data, claim, verdict in part.judged
    ]
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    head = ["# Results", "", "Written by `make records`; `index.html` beside this file shows the figures.", ""]
    return "\n".join([*head, *lines]) + "\n"


def main(arguments: Iterable[str] | None = None) -> None:
    """`python -m pcexp report NAME ...`: claims table, figures and page of studies that have been run."""
    parser = argparse.ArgumentParser(prog="python -m pcexp report", description=main.__doc__)
    asked = "studies, as in pcexp.experiments.NAME; default: all with runs"
    parser.add_argument("studies", nargs="*", metavar="NAME", help=asked)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs wrote (default: outputs)")
    parser.add_argument("--results", type=Path, help="read committed records from here, and render beside them")
    parser.add_argument("--scale", choices=SCALES, help="default: every scale that has runs")
    options = parser.parse_args(None if arguments is None else list(arguments))
    source = options.results or options.outputs
    target = options.results or options.outputs / "report"
    known = sorted(p.name for p in source.glob("*") if list(p.glob("manifest-*.json")) or list(p.glob("*/runs.csv")))
    for name in set(options.studies) - set(known):
        there = ", ".join(known) or "none"
        sys.exit(f"pcexp: there are no runs of a study {name} under {source}; there are runs of {there}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    parts, failed = [], False
    # All studies are on the page, and of results/ all scales; only those asked for are drawn again and printed.
    scales = [options.scale] if options.scale and not options.results else list(reversed(SCALES))
    for name in known:
        named = not options.studies or name in options.studies
        largest: str | None = None
        for scale in scales:
            chosen = named and options.scale in (None, scale)
            records = read_results(source, name, scale) if options.results else read_outputs(source, name, scale)
            if not len(records.asked):
                continue
            try:
                study = importlib.import_module(records.module)
            except ModuleNotFoundError as error:
                if named and options.studies:
                    sys.exit(f"pcexp: the study {name} is not at hand: {error}")
                print(f"left out: the study {name} is not at hand: {error}")
                break
            # Plain names in results/NAME/ are those of the largest scale that has runs.
            largest = largest or scale
            folder = target / name if options.results else target / name / scale
            suffix = f"_{scale}" if options.results and scale != largest else ""
            try:
                judged = judge(study, records)
                drawings = figures(study, records, folder, chosen, suffix)
            except Exception as error:
                if options.results:  # a page that is committed loses no study
                    raise
                print(f"left out: claims or figures of {name} at {scale} failed with {type(error).__name__}: {error}")
                failed = True
                continue
            of_records = notes(source / name / "notes.md", scale)
            parts.append(Part(name, study.__doc__ or "", judged, drawings, records, of_records))
            if not chosen:
                continue
            replace_bytes(target / name / scale / "claims.csv", claims_csv(judged).encode())
            print_claims(judged, console)
            if records.strays:
                where = listed([str(source / name / stray) for stray in records.strays])
                print(f"left out, not in the manifest of scale {scale}: {where}")
            for drawing in drawings:
                print(f"figure {drawing.figure:5} {drawing.png}")
    if not parts:
        sys.exit(f"pcexp: nothing has been run under {source}: start with python -m pcexp +experiment=saddle_escape")
    target.mkdir(parents=True, exist_ok=True)
    replace_bytes(target / "index.html", page(parts, beside=target if options.results else None).encode())
    if options.results:
        replace_bytes(target / "INDEX.md", index_markdown(parts).encode())
    print(f"page         {target / 'index.html'}")
    if failed:
        sys.exit(1)
