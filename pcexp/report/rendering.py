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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pcexp.config.grid import SCALES
from pcexp.files import place, replace_bytes
from pcexp.records.tables import Records, read_outputs, read_results
from pcexp.report import plotting
from pcexp.report.claims import Verdict
from pcexp.report.page import STATUS_MARK, Drawing, Judged, Part, listed, notes, page, words


@contextmanager
def _leaving_out(what: str, left_out: list[str] | None) -> Iterator[None]:
    """Inside, whatever fails on records that nobody foresaw becomes a line of `left_out`, where there is such a list."""
    try:
        yield
    except Exception as error:
        if left_out is None:
            raise
        said = " ".join(str(error).split())[:300]
        left_out.append(f"{what}: {type(error).__name__}: {said}")


def judge(study: Any, records: Records, left_out: list[str] | None = None) -> list[Judged]:
    """Verdicts of the claims of a study, data set by data set; of each those that speak of it."""
    judged = []
    for labels in records.apart():
        data, part = " ".join(filter(None, labels.values())), records.select(labels)
        for claim in study.CLAIMS:
            if claim.data in (None, labels["data"]):
                with _leaving_out(f"claim {claim.figure} on {data} ({claim.statement})", left_out):
                    judged.append(Judged(data, claim, claim.rule(part)))
    return judged


def figures(
    study: Any,
    records: Records,
    folder: Path,
    again: bool = True,
    suffix: str = "",
    left_out: list[str] | None = None,
) -> list[Drawing]:
    """All figures of a study as PNG and PDF, one a data set (and variant); drawn `again`, or only where one is missing.

    A `suffix` of their file names keeps those of several scales apart.
    """
    drawings = []
    plotting.pyplot()  # first: a figure that a study makes by other means has our style too, and not that of a matplotlibrc
    folder.mkdir(parents=True, exist_ok=True)
    for labels in records.apart():
        part = records.select(labels)
        data = " ".join(filter(None, labels.values()))
        for name, make in study.FIGURES.items():
            stem = re.sub(r"[^\w.=-]+", "_", f"fig_{name}_{data}{suffix}")
            if len(stem) > 80:
                stem = f"{stem[:70]}_{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
            with _leaving_out(f"figure {name} on {data}", left_out):
                if again or not (folder / f"{stem}.png").exists():
                    figure = make(part)
                    if figure is None:  # of no meaning for these data
                        continue
                    for kind in ("png", "pdf"):
                        replace_bytes(folder / f"{stem}.{kind}", plotting.rendered(figure, kind))
                drawings.append(Drawing(name, data, (make.__doc__ or "").strip(), folder / f"{stem}.png", part))
            plotting.pyplot().close("all")
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


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m pcexp report NAME ...`: claims table, figures and page of studies that have been run.

    What cannot be judged or drawn is said in a line, on the page too, and everything else stays; the status is 1 then.
    """
    parser = argparse.ArgumentParser(prog="python -m pcexp report", description=main.__doc__)
    asked = "studies, as in pcexp.experiments.NAME; default: all with runs"
    parser.add_argument("studies", nargs="*", metavar="NAME", help=asked)
    parser.add_argument("--outputs", type=place, default=Path("outputs"), help="where runs wrote (default: outputs)")
    parser.add_argument("--results", type=place, help="read committed records from here, and render beside them")
    parser.add_argument("--scale", choices=SCALES, help="default: every scale that has runs")
    options = parser.parse_args(None if arguments is None else list(arguments))
    source, committed = options.results or options.outputs, options.results is not None
    target = source if committed else source / "report"
    known = sorted(p.name for p in source.glob("*") if list(p.glob("manifest-*.json")) or list(p.glob("*/runs.csv")))
    for name in set(options.studies) - set(known):
        there = ", ".join(known) or "none"
        sys.exit(f"pcexp: there are no runs of a study {name} under {source}; there are runs of {there}")
    parts, failed, lost = [], False, False
    # All studies are on the page, and of results/ all scales; only those asked for are drawn again and printed.
    scales = [options.scale] if options.scale and not committed else list(reversed(SCALES))
    for name in known:
        # Plain names in results/NAME/ are those of the largest scale that has runs.
        largest: str | None = None
        for scale in scales:
            chosen = name in (options.studies or known) and options.scale in (None, scale)
            left_out: list[str] = []
            whole = False
            with _leaving_out(f"{name} at {scale}", left_out):
                records = read_results(source, name, scale) if committed else read_outputs(source, name, scale)
                if not len(records.asked):
                    whole = True
                    continue
                largest = largest or scale
                suffix = f"_{scale}" if committed and scale != largest else ""
                folder = target / name if committed else target / name / scale
                part = _part(records, folder, source / name / "notes.md", chosen, suffix)
                parts.append(part)
                left_out += part.left_out
                whole = True
                if chosen:
                    replace_bytes(target / name / scale / "claims.csv", claims_csv(part.judged).encode())
                    _print(part, source)
            failed |= (chosen or committed) and bool(left_out)
            lost |= committed and not whole
            print(*(f"left out: {line}\n" for line in left_out), sep="", end="")
    if lost:
        sys.exit(f"pcexp: the page in {target} stays as it was: without what could not be read it would lose a study")
    if not parts and failed:
        return 1
    if not parts:
        sys.exit(f"pcexp: nothing has been run under {source}: start with python -m pcexp +experiment=saddle_escape")
    target.mkdir(parents=True, exist_ok=True)
    replace_bytes(target / "index.html", page(parts, beside=target if committed else None).encode())
    if committed:
        replace_bytes(target / "INDEX.md", index_markdown(parts).encode())
    print(f"page         {target / 'index.html'}")
    return int(failed)


def _part(records: Records, folder: Path, beside: Path, again: bool, suffix: str) -> Part:
    """A study at one scale as its page shows it, its figures drawn into a folder. Raises what a module that is not at hand does."""
    study, left_out = importlib.import_module(records.module), list[str]()
    judged = judge(study, records, left_out)
    drawings = figures(study, records, folder, again, suffix, left_out)
    said = [f"{records.study} at {records.scale}, {line}" for line in left_out]
    return Part(
        records.study, study.__doc__ or "", judged, drawings, records, notes(beside, records.scale), tuple(said)
    )


def _print(part: Part, source: Path) -> None:
    records = part.records
    print_claims(part.judged, Console(width=None if sys.stdout.isatty() else 160))
    if records.strays:
        where = listed([str(source / part.study / stray) for stray in records.strays])
        print(f"left out, not in the manifest of scale {records.scale}: {where}")
    for drawing in part.drawings:
        print(f"figure {drawing.figure:5} {drawing.png}")
