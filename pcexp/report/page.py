"""The HTML page of a report: a table of studies, and of each study its text, notes, claims, figures, commands and provenance.

Its layout is page.html beside this file, a template of jinja2.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from pcexp import __version__
from pcexp.records.tables import Records
from pcexp.report.claims import Claim, Verdict

STATUS_MARK = {"reproduced": "✓", "not_reproduced": "✗", "insufficient": "?"}


class Judged(NamedTuple):
    """A claim with what the records of one data set say of it."""

    data: str
    claim: Claim
    verdict: Verdict


class Drawing(NamedTuple):
    """A figure file of one data set."""

    figure: str
    data: str
    title: str
    png: Path
    records: Records


class Part(NamedTuple):
    """A study at one scale. `text` is its docstring, `notes` are headings and texts of what was written of these records.

    `left_out` says what of it could not be judged or drawn.
    """

    study: str
    text: str
    judged: Sequence[Judged]
    drawings: Sequence[Drawing]
    records: Records
    notes: Sequence[tuple[str, str]] = ()
    left_out: Sequence[str] = ()


def page(parts: Sequence[Part], beside: Path | None = None) -> str:
    """One HTML page. Images are inside it, or named where they lie under the folder `beside` that the page goes to."""

    def source(png: Path) -> str:
        if beside is not None:
            return png.relative_to(beside).as_posix()
        return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters = (headed, listed, outcomes, paragraphs_of, prose, provenance, source, words)
    environment.filters |= {one.__name__: one for one in filters}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))
    return template.render(parts=parts, marks=STATUS_MARK)


def notes(path: Path, scale: str) -> list[tuple[str, str]]:
    """Heading and text of each section of a study's notes.md whose heading names this scale."""
    sections = path.read_text("utf-8").split("\n## ")[1:] if path.exists() else []
    parts = (section.partition("\n") for section in sections)
    return [(heading, text) for heading, _, text in parts if scale in re.split(r"\W+", heading)]


def words(status: str) -> str:
    return status.replace("_", " ")


def listed(names: Sequence[str], at_most: int = 5) -> str:
    """Names, or the first of them and how many there are."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} ... ({len(names)} in all)"


def paragraphs_of(text: str) -> list[str]:
    """Paragraphs of a text, one line each; what begins with a dash stays on a line of its own."""
    return [
        "\n".join(" ".join(item.split()) for item in re.split(r"\n(?=- )", paragraph.strip()))
        for paragraph in text.strip().split("\n\n")
    ]


def prose(text: str) -> Markup:
    """Text as HTML, what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def headed(prose: Markup) -> Markup:
    """How a paragraph begins ("Setting.", "Text and code.") is its heading."""
    return Markup(re.sub(r"^[A-Z]\w+(?: \w+){0,3}?(?=[.:]| \(| at )", r"<b>\g<0></b>", str(prose), count=1))


def outcomes(records: Records) -> str:
    """How many runs ended how."""
    outcomes = records.runs["outcome"].value_counts().rows() if len(records.runs) else []
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes)) or "none finished"


def provenance(records: Records) -> str:
    """What made these runs, in one line."""
    if not len(records.runs):
        return "no runs"
    runs, parts = records.runs, []
    for label, column, shown in (
        ("commit", "commit", 12),
        ("device", "device_kind", None),
        ("processor", "cpu_model", None),
        ("jax", "jax_version", None),
        ("date", "date", 10),
    ):
        if f"run.{column}" in runs.columns:
            first, *others = sorted({str(value)[:shown] for value in runs[f"run.{column}"]})
            parts.append(f"{label} {' ... '.join([first, *others[-1:]])}")
    if "run.dirty" in runs.columns and runs["run.dirty"].any():
        parts.append("with uncommitted changes")
    if "run.data_caveat" in runs.columns:
        parts += sorted({str(v) for v in runs["run.data_caveat"] if v})
    if "run.seconds_run" in runs.columns:
        parts.append(f"{runs['run.seconds_run'].sum() / 3600:.2f} core hours")
    return ", ".join(parts) + f"; pcexp {__version__}"
