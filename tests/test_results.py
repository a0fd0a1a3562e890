"""The records that are committed still give the claims that are committed beside them."""

import datetime
import importlib
import re
from pathlib import Path

import quick

from pcexp.records.tables import read_results
from pcexp.report import rendering as report

RESULTS = quick.CONF.parent / "results"
STUDIES = sorted(path.name for path in RESULTS.glob("*") if path.is_dir())
TABLES = sorted((path.parent.parent.name, path.parent.name) for path in RESULTS.glob("*/*/runs.csv"))


def test_every_study_with_a_folder_has_records_claims_figures_and_a_place_on_the_page() -> None:
    assert {study for study, _ in TABLES} == set(STUDIES)
    for study, scale in TABLES:
        there = {path.name for path in (RESULTS / study / scale).iterdir()}
        assert there >= {"runs.csv", "shared.json", "asked.csv", "records.parquet", "claims.csv"}
        assert scale in report.SCALES and scale != "smoke"
        assert list((RESULTS / study).glob("fig_*.png")) and list((RESULTS / study).glob("fig_*.pdf"))
        assert f"| {study} | {scale} |" in (RESULTS / "INDEX.md").read_text()
        assert f"{study} <span class=meta>at scale {scale}" in (RESULTS / "index.html").read_text()


def test_committed_records_give_the_claims_that_are_committed_beside_them() -> None:
    for study, scale in TABLES:
        records = read_results(RESULTS, study, scale)
        assert len(records.runs) and len(records.rows) and len(records.asked)
        judged = report.judge(importlib.import_module(f"pcexp.experiments.{study}"), records)
        assert judged
        assert report.claims_csv(judged) == (RESULTS / study / scale / "claims.csv").read_text(), (study, scale)


def test_committed_records_are_small_and_belong_to_what_was_asked_for() -> None:
    for study, scale in TABLES:
        assert sum(path.stat().st_size for path in (RESULTS / study / scale).iterdir()) < 1_000_000
        records = read_results(RESULTS, study, scale)
        key = ["cell", "lane"]
        assert records.runs.select(key).is_unique().all() and records.asked.select(key).is_unique().all()
        assert records.runs.join(records.asked, on=key, how="anti").is_empty()
        assert records.rows.join(records.runs, on=key, how="anti").is_empty()


def test_what_is_said_of_results_by_hand_stands_with_its_date_beside_them_and_not_in_modules() -> None:
    for study, scale in TABLES:
        days = read_results(RESULTS, study, scale).runs["run.date"].str.slice(0, 10)
        first, last = (datetime.date.fromisoformat(day) for day in (str(days.min()), str(days.max())))
        headings = re.findall(r"^## (.+)$", (RESULTS / study / "notes.md").read_text(), re.MULTILINE)
        of_scale = [heading for heading in headings if re.search(rf"\b{scale}\b", heading)]
        assert of_scale
        for day in re.findall(r"\d{4}-\d\d-\d\d", " ".join(of_scale)):
            assert first <= datetime.date.fromisoformat(day) <= last
    for path in (RESULTS.parent / "experiments").rglob("*.py"):
        assert "Findings" not in path.read_text(), path


def test_results_are_found_where_they_are_committed() -> None:
    assert (RESULTS.parent / "pcexp").is_dir() and Path(report.__file__).parents[2] == RESULTS.parent
