"""Claims, figures and one self-contained page from records: no JAX run, no network, no tracker.

`python -m pcexp.report NAME` reads outputs/NAME and writes outputs/report/NAME; with `--results results` it reads and renders
what is committed there. The page is index.html beside the studies' folders.
"""

import argparse
import base64
import csv
import hashlib
import html
import importlib
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from pcexp import __version__, plotting
from pcexp.claims import Claim, Verdict
from pcexp.files import replace_bytes
from pcexp.records import Records, read_outputs, read_results

SCALES = ("thesis", "small", "smoke")
STATUS_MARK = {"reproduced": "✓", "not_reproduced": "✗", "insufficient": "?"}


class Judged(NamedTuple):
    """A claim with what the records of one data set say of it."""

    data: str
    claim: Claim
    verdict: Verdict


class Drawn(NamedTuple):
    """A figure file of one data set."""

    figure: str
    data: str
    title: str
    png: Path
    records: Records


def judge(study: Any, records: Records) -> list[Judged]:
    """Verdicts of all claims of a study, data set by data set."""
    return [
        Judged(" ".join(filter(None, group.values())), claim, claim.rule(records.select(**group)))
        for group in records.groups()
        for claim in study.CLAIMS
    ]


def figures(study: Any, records: Records, folder: Path, again: bool = True) -> list[Drawn]:
    """All figures of a study as PNG and PDF, one a data set (and variant); drawn `again`, or only where one is missing."""
    drawn = []
    folder.mkdir(parents=True, exist_ok=True)
    for group in records.groups():
        part = records.select(**group)
        data = " ".join(filter(None, group.values()))
        for name, make in study.FIGURES.items():
            stem = re.sub(r"[^\w.=-]+", "_", f"fig_{name}_{data}")
            if len(stem) > 80:
                stem = f"{stem[:70]}_{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
            if again or not (folder / f"{stem}.png").exists():
                figure = make(part)
                if figure is None:  # of no meaning for these data
                    continue
                for kind in ("png", "pdf"):
                    replace_bytes(folder / f"{stem}.{kind}", plotting.rendered(figure, kind))
                plt.close(figure)
            drawn.append(Drawn(name, data, (make.__doc__ or "").strip(), folder / f"{stem}.png", part))
    return drawn


def claims_csv(judged: Sequence[Judged]) -> str:
    """Verdicts as a table."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["figure", "data", "claim", *Verdict.__dataclass_fields__])
    for data, claim, verdict in judged:
        writer.writerow([claim.figure, data, claim.statement, *vars(verdict).values()])
    return buffer.getvalue()


def print_claims(judged: Sequence[Judged], console: Console) -> None:
    """The claims table on a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "figure", "data", "claim", "observed (all seeds)", "n", "scale"):
        table.add_column(column, overflow="fold")
    for data, claim, verdict in judged:
        observed = verdict.observed if verdict.status == "insufficient" else f"{verdict.observed} ({verdict.interval})"
        table.add_row(
            STATUS_MARK[verdict.status], claim.figure, data, claim.statement, observed, str(verdict.n), verdict.scale
        )
    console.print(table)
    counts = {s: sum(j.verdict.status == s for j in judged) for s in STATUS_MARK}
    console.print(", ".join(f"{n} {s.replace('_', ' ')}" for s, n in counts.items()))


CSS = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.6em}h2{margin-top:2.2em;border-bottom:1px solid #ddd;padding-bottom:.2em}h3{margin-bottom:.2em}
table{border-collapse:collapse;font-size:.86em;width:100%}td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #eee;
vertical-align:top}code{background:#f4f4f4;padding:.1em .3em;border-radius:3px;font-size:.9em}img{max-width:100%;height:auto}
td:first-child{white-space:nowrap}.reproduced{color:#1a7f37}.not_reproduced{color:#b42318}.insufficient{color:#8a6d00}.meta{color:#666;font-size:.85em}
"""


def page(parts: Sequence[tuple[str, str, Sequence[Judged], Sequence[Drawn], Records]]) -> str:
    """One self-contained HTML page: per study its question, claims, figures, commands and provenance."""
    body = ["<h1>pcexp: figures and claims</h1>"]
    for study, question, judged, drawn, records in parts:
        body.append(f"<h2 id='{study}-{records.scale}'>{study} <span class=meta>at scale {records.scale}</span></h2>")
        body.append(f"<p>{html.escape(question)}</p>")
        outcomes = records.runs["outcome"].value_counts().rows() if len(records.runs) else []
        counts = ", ".join(f"{n} {html.escape(str(outcome))}" for outcome, n in sorted(outcomes))
        body.append(f"<p class=meta>{len(records.asked)} runs asked for; {counts or 'none finished'}.</p>")
        if records.strays:
            body.append(f"<p class=meta>Left out, not in the manifest: {html.escape(_listed(records.strays))}.</p>")
        rows = "".join(
            f"<tr><td class={v.status}>{STATUS_MARK[v.status]} {v.status.replace('_', ' ')}</td><td>{html.escape(c.figure)}</td><td>{html.escape(data)}</td>"
            f"<td>{html.escape(c.statement)}<br><span class=meta>expected: {html.escape(v.expected)}</span></td>"
            f"<td>{html.escape(v.observed)}<br><span class=meta>{html.escape(v.interval)}</span></td><td>{v.n}</td></tr>"
            for data, c, v in judged
        )
        body.append(f"<table><tr><th>status<th>figure<th>data<th>claim<th>observed, all seeds<th>n</tr>{rows}</table>")
        for figure in drawn:
            image = base64.b64encode(figure.png.read_bytes()).decode()
            body.append(
                f"<h3>{html.escape(figure.figure)}, {html.escape(figure.data)}</h3><p>{html.escape(figure.title)} Regenerate: "
                f"<code>{html.escape(figure.records.command)}</code></p>"
                f"<img alt='figure {html.escape(figure.figure)}, {html.escape(figure.data)}' src='data:image/png;base64,{image}'>"
                f"<p class=meta>{html.escape(_provenance(figure.records))}</p>"
            )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>pcexp</title><style>{CSS}</style><body>{''.join(body)}</body></html>"
    )


def _listed(names: Sequence[str], at_most: int = 5) -> str:
    """Names, or the first of them and how many there are."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} ... ({len(names)} in all)"


def _provenance(records: Records) -> str:
    """What made these runs, in one line."""
    if not len(records.runs):
        return "no runs"
    parts = []
    for label, column in (
        ("commit", "run.commit"),
        ("device", "run.device_kind"),
        ("processor", "run.cpu_model"),
        ("jax", "run.jax_version"),
        ("date", "run.date"),
    ):
        if column in records.runs.columns:
            values = sorted(
                {
                    str(v)[:12] if label == "commit" else str(v)[:10] if label == "date" else str(v)
                    for v in records.runs[column]
                }
            )
            parts.append(f"{label} {values[0] if len(values) == 1 else f'{values[0]} ... {values[-1]}'}")
    if "run.dirty" in records.runs.columns and records.runs["run.dirty"].any():
        parts.append("with uncommitted changes")
    if "run.data_caveat" in records.runs.columns:
        parts += sorted({str(v) for v in records.runs["run.data_caveat"] if v})
    if "run.seconds_run" in records.runs.columns:
        parts.append(f"{records.runs['run.seconds_run'].sum() / 3600:.2f} core hours")
    return ", ".join(parts) + f"; pcexp {__version__}"


def index_markdown(parts: Sequence[tuple[str, str, Sequence[Judged], Sequence[Drawn], Records]]) -> str:
    """INDEX.md of results/: a table of figures and their claims."""
    lines = ["# Results", "", "Written by `make records`; `index.html` beside this file shows the figures.", ""]
    lines += [
        "| study | scale | data | figure | claim | status | observed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for study, _, judged, _, records in parts:
        for data, claim, v in judged:
            cells = (study, records.scale, data, claim.figure, claim.statement, v.status.replace("_", " "), v.observed)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Iterable[str] | None = None) -> None:
    """`python -m pcexp.report NAME ...`: claims table, figures and page of studies that have been run."""
    parser = argparse.ArgumentParser(prog="python -m pcexp.report", description=main.__doc__)
    parser.add_argument(
        "studies", nargs="*", metavar="NAME", help="studies, as in experiments.NAME; default: all with runs"
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs wrote (default: outputs)")
    parser.add_argument("--results", type=Path, help="read committed records from here, and render beside them")
    parser.add_argument("--scale", choices=SCALES, help="default: every scale that has runs")
    options = parser.parse_args(None if arguments is None else list(arguments))
    source = options.results or options.outputs
    target = options.results or options.outputs / "report"
    known = sorted(p.name for p in source.glob("*") if list(p.glob("manifest-*.json")) or list(p.glob("*/runs.csv")))
    for name in set(options.studies) - set(known):
        sys.exit(
            f"pcexp: there are no runs of a study {name} under {source}; there are runs of {', '.join(known) or 'none'}"
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    parts = []
    # All studies are on the page; only those asked for are drawn again and printed.
    for name in known:
        chosen = not options.studies or name in options.studies
        drawn_at: str | None = None
        for scale in [options.scale] if options.scale else SCALES:
            records = (
                read_results(options.results, name, scale)
                if options.results
                else read_outputs(options.outputs, name, scale)
            )
            if not len(records.asked):
                continue
            try:
                study = importlib.import_module(records.module)
            except ModuleNotFoundError as error:
                if chosen and options.studies:
                    sys.exit(f"pcexp: the study {name} is not at hand: {error}")
                print(f"left out: the study {name} is not at hand: {error}")
                break
            judged = judge(study, records)
            # results/NAME/ holds the figures of the largest scale that has runs.
            drawn_at = drawn_at or scale
            folder = target / name if options.results else target / name / scale
            drawn = figures(study, records, folder, again=chosen) if not options.results or drawn_at == scale else []
            parts.append(
                (name, (study.__doc__ or "").strip().split("\n\n")[0].replace("\n", " "), judged, drawn, records)
            )
            if not chosen:
                continue
            replace_bytes(target / name / scale / "claims.csv", claims_csv(judged).encode())
            print_claims(judged, console)
            if records.strays:
                where = _listed([str(source / name / stray) for stray in records.strays])
                print(f"left out, not in the manifest of scale {scale}: {where}")
            for figure in drawn:
                print(f"figure {figure.figure:5} {figure.png}")
    if not parts:
        sys.exit(f"pcexp: nothing has been run under {source}: start with python -m pcexp +experiment=saddle_escape")
    target.mkdir(parents=True, exist_ok=True)
    replace_bytes(target / "index.html", page(parts).encode())
    if options.results:
        replace_bytes(target / "INDEX.md", index_markdown(parts).encode())
    print(f"page         {target / 'index.html'}")


if __name__ == "__main__":
    main()
