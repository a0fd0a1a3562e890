"""The HTML page of a report: a table of studies, and of each study its text, claims, figures, commands and provenance."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pcexp import __version__
from pcexp.records.tables import Records
from pcexp.report.claims import Claim, Verdict

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


class Part(NamedTuple):
    """A study at one scale; `text` is its docstring: its question, and paragraphs on how it is answered and what was found."""

    study: str
    text: str
    judged: Sequence[Judged]
    drawn: Sequence[Drawn]
    records: Records


HEADING = r"^[A-Z]\w+(?: \w+){0,3}?(?=[.:]| \(| at )"
CSS = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.6em}h2{margin-top:2.2em;border-bottom:1px solid #ddd;padding-bottom:.2em}h3{margin-bottom:.2em}
table{border-collapse:collapse;font-size:.86em;width:100%}td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #eee;
vertical-align:top}code{background:#f4f4f4;padding:.1em .3em;border-radius:3px;font-size:.9em}img{max-width:100%;height:auto}
a{color:#0b57d0;text-decoration:none}
td:first-child{white-space:nowrap}.reproduced{color:#1a7f37}.not_reproduced{color:#b42318}.insufficient{color:#8a6d00}.meta{color:#666;font-size:.85em}
"""


def page(parts: Sequence[Part], beside: Path | None = None) -> str:
    """One HTML page. Images are inside it, or named where they lie under the folder `beside` that the page goes to."""
    body = ["<h1>pcexp: figures and claims</h1>", _contents(parts)]
    for part in parts:
        body += _study(part)
        body.append(_claims(part.judged))
        body += [_figure(drawn, beside) for drawn in part.drawn]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>pcexp</title><style>{CSS}</style><body>{''.join(body)}</body></html>"
    )


def _contents(parts: Sequence[Part]) -> str:
    """A table of the studies, with how many claims came out how."""
    rows = []
    for part in parts:
        counts = "".join(f"<td>{sum(j.verdict.status == status for j in part.judged)}</td>" for status in STATUS_MARK)
        rows.append(
            f"<tr><td><a href='#{part.study}-{part.records.scale}'>{part.study}</a></td><td>{part.records.scale}</td>{counts}"
            f"<td>{html.escape(_paragraphs(part.text)[0])}</td></tr>"
        )
    heads = "".join(f"<th class={status}>{mark} {status.replace('_', ' ')}" for status, mark in STATUS_MARK.items())
    return f"<table class=contents><tr><th>study<th>scale{heads}<th>question</tr>{''.join(rows)}</table>"


def _study(part: Part) -> list[str]:
    """Heading, text and counts of a study."""
    records = part.records
    question, *others = _paragraphs(part.text)
    body = [f"<h2 id='{part.study}-{records.scale}'>{part.study} <span class=meta>at scale {records.scale}</span></h2>"]
    body.append(f"<p>{_written(question)}</p>")
    body += [_block(paragraph) for paragraph in others]
    outcomes = records.runs["outcome"].value_counts().rows() if len(records.runs) else []
    counts = ", ".join(f"{n} {html.escape(str(outcome))}" for outcome, n in sorted(outcomes))
    body.append(f"<p class=meta>{len(records.asked)} runs asked for; {counts or 'none finished'}.</p>")
    if records.strays:
        body.append(f"<p class=meta>Left out, not in the manifest: {html.escape(listed(records.strays))}.</p>")
    return body


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a docstring, one line each; what begins with a dash stays on a line of its own."""
    return [
        "\n".join(" ".join(item.split()) for item in re.split(r"\n(?=- )", paragraph.strip()))
        for paragraph in text.strip().split("\n\n")
    ]


def _block(paragraph: str) -> str:
    """A paragraph, or a list where its lines begin with a dash."""
    if paragraph.startswith("- "):
        items = "".join(f"<li>{_written(item.removeprefix('- '))}</li>" for item in paragraph.split("\n"))
        return f"<ul>{items}</ul>"
    # How it begins ("Setting.", "Findings (MNIST, 3 seeds).") is its heading.
    headed = re.sub(HEADING, r"<b>\g<0></b>", _written(paragraph), count=1)
    return f"<p>{headed}</p>"


def _written(text: str) -> str:
    """Text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _claims(judged: Sequence[Judged]) -> str:
    rows = "".join(
        f"<tr><td class={v.status}>{STATUS_MARK[v.status]} {v.status.replace('_', ' ')}</td><td>{html.escape(c.figure)}</td><td>{html.escape(data)}</td>"
        f"<td>{html.escape(c.statement)}<br><span class=meta>expected: {html.escape(v.expected)}</span></td>"
        f"<td>{html.escape(v.observed)}<br><span class=meta>{html.escape(v.interval)}</span></td><td>{v.n}</td></tr>"
        for data, c, v in judged
    )
    return f"<table><tr><th>status<th>figure<th>data<th>claim<th>observed, all seeds<th>n</tr>{rows}</table>"


def _figure(drawn: Drawn, beside: Path | None) -> str:
    if beside is None:
        source = f"data:image/png;base64,{base64.b64encode(drawn.png.read_bytes()).decode()}"
    else:
        source = html.escape(drawn.png.relative_to(beside).as_posix())
    name = f"{html.escape(drawn.figure)}, {html.escape(drawn.data)}"
    return (
        f"<h3>{name}</h3><p>{html.escape(drawn.title)} Regenerate: <code>{html.escape(drawn.records.command)}</code></p>"
        f"<img alt='figure {name}' src='{source}'><p class=meta>{html.escape(_provenance(drawn.records))}</p>"
    )


def listed(names: Sequence[str], at_most: int = 5) -> str:
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
