"""What cannot be judged or drawn of some records is said, and takes nothing else from the report."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest
import quick
from made_up import Fate
from matplotlib.figure import Figure
from test_report import Links, nothing

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.experiments import saddle_escape
from pcexp.records.tables import Records, read_outputs
from pcexp.report import rendering as report
from pcexp.report.claims import Claim, Verdict


@pytest.fixture(scope="module")
def cells() -> list[Spec]:
    return quick.grid("scale=small", "lanes.seed=[0,1,2]")


@pytest.mark.parametrize("broken", ["figure", "claim", "all"])
def test_what_cannot_be_judged_or_drawn_of_one_variant_is_said_and_everything_else_stays(
    outputs: Path, cells: list[Spec], broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, beside = (quick.cell(*o) for o in (("scale=small",), ("scale=small", "network.width=9")))
    lanes = tuple(lane._replace(variant="network.width=9") for lane in beside.lanes)
    made_up.written(outputs, [own, dataclasses.replace(beside, lanes=lanes)], "small")

    def spoilt(records: Records) -> Any:
        if records.asked["variant"][0]:
            raise ZeroDivisionError("a hole\nin it")
        return Figure() if broken == "figure" else Verdict("reproduced", "", "", "", 1, "small")

    spoilt.__doc__ = "Nothing to see."
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": nothing} | ({"B.5": spoilt} if broken == "figure" else {}))
    claims = saddle_escape.CLAIMS[:1] + ((Claim("4.5", "spoilt", spoilt),) if broken == "claim" else ())
    monkeypatch.setattr(saddle_escape, "CLAIMS", claims)
    if broken == "all":
        (outputs / quick.STUDY / beside.cell / "rows.jsonl").write_text("foreign\n")
    assert report.main([quick.STUDY, "--outputs", str(outputs)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    page = outputs / "report" / "index.html"
    if broken == "all":  # the study's records cannot be read
        assert "rows.jsonl, line 1" in line and not page.exists()
        return
    assert f"{broken} " in line and "network.width=9" in line and "ZeroDivisionError: a hole in it" in line
    text = Links(page.read_text())
    assert line.removeprefix("left out: ") in " ".join(text.text.split())
    assert text.tags.count("img") == {"figure": 3, "claim": 2}[broken]
    table = (outputs / "report" / quick.STUDY / "small" / "claims.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(table)))) == {"figure": 2, "claim": 3}[broken]


@pytest.mark.parametrize("fates", [made_up.diverging, made_up.only([0], made_up.diverging)], ids=["all", "some"])
def test_runs_that_diverged_at_once_leave_figures_and_claims(
    outputs: Path, cells: list[Spec], fates: Callable[[Spec, Lane], Fate | None]
) -> None:
    """Before the first row of some, and with nothing but NaN in the rows of others."""
    made_up.written(outputs, cells[:6], "small", fates)
    for spec in cells[:6]:
        path = outputs / quick.STUDY / spec.cell / "rows.jsonl"
        rows = [
            json.loads(line) | {"gradient_norm": [math.nan] * 3, "train_error": math.nan}
            for line in path.read_text().splitlines()
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[:1]) if spec is cells[0] else "")
    records, left_out = read_outputs(outputs, quick.STUDY, "small"), list[str]()
    assert len(report.judge(saddle_escape, records, left_out)) == len(saddle_escape.CLAIMS)
    assert len(report.figures(saddle_escape, records, outputs / "drawn", left_out=left_out)) == 3
    assert left_out == []
