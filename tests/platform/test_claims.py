"""Claims answer on any records, count what is missing, write bounds as bounds; figures and the page follow from records."""

import csv
import importlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import quick
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from quick import Fate

from experiments import saddle_escape
from pcexp import plotting, report
from pcexp.claims import Claim, Ratio, Verdict, censored_ratio, insufficient, median_ratio, spread
from pcexp.records import Records, collect, read_outputs
from pcexp.spec import Lane, Spec

Fates = Callable[[Spec, Lane], Fate | None]
STUDIES = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def cells() -> list[Spec]:
    return quick.grid("scale=small", "lanes.seed=[0,1,2]")


@pytest.fixture
def judged(outputs: Path, cells: list[Spec]) -> Callable[[Fates], dict[str, Verdict]]:
    """Verdicts on runs of these fates, claim by claim."""

    def judged(fates: Fates, wanted: Sequence[Spec] = cells) -> dict[str, Verdict]:
        quick.written(outputs, wanted, "small", fates)
        found = report.judge(saddle_escape, read_outputs(outputs, quick.STUDY, "small"))
        assert len(found) == len(saddle_escape.CLAIMS)
        return {f"{claim.figure} {claim.statement}": verdict for _, claim, verdict in found}

    return judged


def is_pc(spec: Spec) -> bool:
    return spec.labels["learning"] == "pc"


def escapes(verdicts: dict[str, Verdict]) -> list[Verdict]:
    """Verdicts on who escapes first: one a protocol and start."""
    return [v for name, v in verdicts.items() if "fewer iterations than BP" in name or "the same near" in name]


# Ratios

TIMES = st.integers(0, 10_000)


@given(TIMES, TIMES)
def test_a_ratio_of_two_times_that_were_seen_is_exact(numerator: int, denominator: int) -> None:
    ratio = censored_ratio(numerator, True, denominator, True)
    assert ratio.bound == "exact" and ratio.value == numerator / max(denominator, 1)


@given(TIMES, TIMES, TIMES)
def test_a_time_that_was_not_seen_bounds_the_ratio_from_its_side(run: int, seen: int, beyond: int) -> None:
    """Whatever the time would have been, had the run gone on, the bound holds."""
    true = run + beyond
    below, above = censored_ratio(run, False, seen, True), censored_ratio(seen, True, run, False)
    assert below.bound == "at_least" and below.value <= true / max(seen, 1)
    assert above.bound == "at_most" and above.value >= seen / max(true, 1)
    assert str(below).startswith("≥ ") and str(above).startswith("≤ ")


def test_two_times_that_were_not_seen_say_nothing() -> None:
    ratio = censored_ratio(5, False, 7, False)
    assert ratio.bound == "unknown" and "unknown" in str(ratio)


ENDS = {"exact": lambda v: (v, v), "at_least": lambda v: (v, math.inf), "at_most": lambda v: (0.0, v)}
RATIOS = st.lists(
    st.builds(Ratio, st.floats(0.01, 100), st.sampled_from(["exact", "at_least", "at_most"])), min_size=1, max_size=7
)


@given(RATIOS, st.data())
def test_a_median_of_bounds_holds_wherever_the_true_values_lie(ratios: list[Ratio], data: st.DataObject) -> None:
    true = []
    for ratio in ratios:
        low, high = ENDS[ratio.bound](ratio.value)
        true.append(data.draw(st.floats(low, min(high, 1e6))))
    ordered = sorted(true)
    middle = (ordered[(len(true) - 1) // 2], ordered[len(true) // 2])  # of an even number, either one will do
    median = median_ratio(ratios)
    if median.bound == "exact":
        assert median.value in middle
    elif median.bound == "at_least":
        assert median.value <= middle[1]
    elif median.bound == "at_most":
        assert median.value >= middle[0]


def test_the_median_of_exact_ratios_is_the_middle_one_and_of_none_unknown() -> None:
    assert str(median_ratio([Ratio(v, "exact") for v in (9.0, 1.0, 4.0)])) == "4"
    assert median_ratio([]).bound == median_ratio([Ratio(math.nan, "unknown")]).bound == "unknown"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6))
def test_all_values_have_a_spread(values: list[float]) -> None:
    text = spread(values)
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        assert f"{min(finite):.3g}" in text and f"{max(finite):.3g}" in text


# Verdicts


def test_pc_ten_times_faster_in_every_pair_is_reproduced_with_its_ratio(judged: Any) -> None:
    verdicts = judged(quick.fast_pc)
    assert {v.status for v in verdicts.values()} == {"reproduced"}
    for verdict in escapes(verdicts):
        assert verdict.observed == "linear 10, tanh 10, relu 10"
        assert (verdict.n, verdict.scale) == (9, "small")
        assert verdict.interval.count("10") == 9  # every seed is shown


def test_bp_faster_in_a_single_pair_is_not_reproduced(judged: Any) -> None:
    def slow(spec: Spec, lane: Lane) -> Fate:
        late = is_pc(spec) and lane.values["seed"] == 1 and spec.science["network"]["activation"] == "relu"
        return Fate(1500) if late else quick.fast_pc(spec, lane)

    for verdict in escapes(judged(slow)):
        assert verdict.status == "not_reproduced" and verdict.n == 9
        assert "0.667" in verdict.interval


def test_bp_that_never_escapes_gives_a_bound_that_is_written_as_one(judged: Any) -> None:
    verdicts = judged(lambda spec, lane: Fate(100) if is_pc(spec) else Fate(None))
    for verdict in escapes(verdicts):
        assert verdict.status == "reproduced" and verdict.n == 9
        assert verdict.observed == "linear ≥ 20, tanh ≥ 20, relu ≥ 20"
        assert verdict.interval.count("20") == verdict.interval.count("≥") == 9


def test_one_censored_seed_makes_its_activation_a_bound(judged: Any) -> None:
    """Of 10, 20 and at least 4 the median is at least 10, not exactly."""

    def censored(spec: Spec, lane: Lane) -> Fate:
        if spec.science["network"]["activation"] != "tanh" or lane.values["seed"] == 0:
            return quick.fast_pc(spec, lane)
        if lane.values["seed"] == 1:
            return Fate(50) if is_pc(spec) else Fate(1000)
        return Fate(500) if is_pc(spec) else Fate(None)

    for verdict in escapes(judged(censored)):
        assert verdict.status == "reproduced"
        assert "≥ 4" in verdict.interval
        assert verdict.observed == "linear 10, tanh ≥ 10, relu 10"


def test_pc_that_never_escapes_decides_nothing_unless_bp_was_seen_to_be_faster(judged: Any) -> None:
    for verdict in escapes(judged(lambda spec, lane: Fate(None))):
        assert verdict.status == "insufficient"
    for verdict in escapes(judged(lambda spec, lane: Fate(None) if is_pc(spec) else Fate(100))):
        assert verdict.status == "not_reproduced" and "≤ 0.05" in verdict.observed


@pytest.mark.parametrize("missing", ["a seed", "an activation", "bp"])
def test_runs_that_are_missing_are_counted_and_the_command_that_would_settle_it_is_named(
    judged: Any, missing: str
) -> None:
    def some(spec: Spec, lane: Lane) -> Fate | None:
        left_out = {
            "a seed": is_pc(spec) and lane.values["seed"] == 1,
            "an activation": spec.science["network"]["activation"] == "relu",
            "bp": not is_pc(spec),
        }
        return None if left_out[missing] else quick.fast_pc(spec, lane)

    for verdict in escapes(judged(some)):
        assert verdict.status == "insufficient"
        assert "python -m pcexp +experiment=saddle_escape" in verdict.interval
        if missing != "bp":
            assert "3 missing of 9" in verdict.observed


@pytest.mark.parametrize("outcome", ["diverged", "failed: no memory"])
def test_runs_that_ended_without_numbers_are_counted_as_missing(judged: Any, outcome: str) -> None:
    def spoilt(spec: Spec, lane: Lane) -> Fate:
        return Fate(None, outcome) if lane.values["seed"] == 0 and not is_pc(spec) else quick.fast_pc(spec, lane)

    for verdict in escapes(judged(spoilt)):
        assert verdict.status == "insufficient" and "3 missing of 9" in verdict.observed
    for verdict in escapes(judged(lambda spec, lane: Fate(None, outcome))):
        assert verdict.status == "insufficient" and verdict.n == 0


def test_a_smaller_grid_is_judged_against_what_it_asked_for(judged: Any, cells: list[Spec]) -> None:
    linear = [spec for spec in cells if spec.science["network"]["activation"] == "linear"]
    for verdict in escapes(judged(quick.fast_pc, linear)):
        assert (verdict.status, verdict.n, verdict.observed) == ("reproduced", 3, "linear 10")


def test_an_insufficient_verdict_says_why_and_what_to_run() -> None:
    records = Records("saddle_escape", "thesis", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    verdict = insufficient(records, "more", "too few")
    assert (verdict.status, verdict.observed, verdict.expected, verdict.n) == ("insufficient", "too few", "more", 0)
    assert "python -m pcexp +experiment=saddle_escape" in verdict.interval and "scale=thesis" in verdict.interval


@pytest.mark.parametrize("study", STUDIES)
def test_every_claim_of_every_study_answers_on_nothing_at_all(study: str) -> None:
    empty = Records(study, "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    module = importlib.import_module(f"experiments.{study}")
    assert module.CLAIMS and module.FIGURES
    for claim in module.CLAIMS:
        verdict = claim.rule(empty)
        assert verdict.status == "insufficient" and f"+experiment={study}" in verdict.interval
        assert claim.figure in module.FIGURES


@pytest.mark.parametrize(
    "fates",
    [
        lambda spec, lane: None,
        lambda spec, lane: Fate(None, "diverged"),
        lambda spec, lane: Fate(None, "failed: no memory"),
        lambda spec, lane: Fate(None),
        lambda spec, lane: Fate(1),
        lambda spec, lane: [None, Fate(None, "diverged"), Fate(7)][int(lane.values["seed"])],
    ],
    ids=["nothing", "all diverged", "all failed", "none escaped", "all at once", "some of each"],
)
def test_claims_and_figures_answer_on_any_records(outputs: Path, cells: list[Spec], fates: Fates) -> None:
    quick.written(outputs, cells, "small", fates)
    records = read_outputs(outputs, quick.STUDY, "small")
    judged = report.judge(saddle_escape, records)
    assert all(j.verdict.status in ("reproduced", "not_reproduced", "insufficient") for j in judged)
    assert len(list(csv.reader(io.StringIO(report.claims_csv(judged))))) == 1 + len(judged)
    for make in saddle_escape.FIGURES.values():
        figure = make(records)
        assert isinstance(figure, Figure)
        plotting.plt.close(figure)


# Figures


def test_a_figure_drawn_again_has_the_same_bytes(
    outputs: Path, cells: list[Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": saddle_escape.FIGURES["4.5"]})
    quick.written(outputs, cells[:4], "small", n_rows=20)
    records = read_outputs(outputs, quick.STUDY, "small")
    for folder, date in (("first", "1000000000"), ("second", "1700000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
        report.figures(saddle_escape, records, tmp_path / folder)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("first", "second"))
    assert first == second
    assert {Path(name).suffix for name in first} == {".png", ".pdf"}
    assert all(b"CreationDate" not in content for name, content in first.items() if name.endswith(".pdf"))


def test_every_panel_says_data_scale_and_number_of_runs(outputs: Path, cells: list[Spec]) -> None:
    corrected = [spec for spec in cells if spec.labels["protocol"] == "corrected"]
    quick.written(
        outputs, corrected, "small", lambda s, lane: None if lane.values["seed"] == 2 else quick.fast_pc(s, lane)
    )
    for make in saddle_escape.FIGURES.values():
        figure = make(read_outputs(outputs, quick.STUDY, "small"))
        for axis in figure.axes:
            texts = " ".join(text.get_text() for text in axis.texts)
            n = 0 if "published" in axis.get_title(loc="left") else 4
            assert "digits" in texts and "small" in texts and re.search(rf"\b{n}\b", texts)
            assert len(axis.lines) == (8 if n else 0)  # a curve and a mark each
            assert ("no runs" in texts) is (n == 0)
        plotting.plt.close(figure)


def test_one_colour_means_one_learning_rule(outputs: Path, cells: list[Spec]) -> None:
    quick.written(outputs, cells, "small", lambda spec, lane: Fate(None))
    figure = saddle_escape.FIGURES["4.5"](read_outputs(outputs, quick.STUDY, "small"))
    colours = {line.get_color() for axis in figure.axes for line in axis.lines}
    assert colours == {plotting.COLOURS["pc"], plotting.COLOURS["bp"]}
    plotting.plt.close(figure)


# The report


class Links(HTMLParser):
    """Everything that a page would load, the text of its elements, and whether it is well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def nothing(records: Records) -> Figure:
    """Nothing to see."""
    return Figure()


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is slow: an empty figure stands for all."""
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": nothing})


@pytest.mark.usefixtures("one_figure")
def test_the_page_contains_all_it_shows_and_how_to_make_it_again(
    outputs: Path, cells: list[Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    quick.written(outputs, cells, "small")
    report.main([quick.STUDY, "--outputs", str(outputs)])
    text = (outputs / "report" / "index.html").read_text()
    page = Links(text)
    assert page.loaded and all(link.startswith(("data:image/png;base64,", "#")) for link in page.loaded)
    assert "http://" not in text and "https://" not in text and "script" not in page.tags and "@import" not in text
    assert page.tags.count("img") == 1
    assert "python -m pcexp +experiment=saddle_escape data=digits" in page.text and "scale=small" in page.text
    assert "commit 0123456789ab" in page.text and "72 done" in page.text
    for claim in saddle_escape.CLAIMS:
        assert claim.statement in page.text
    said = capsys.readouterr().out
    assert f"{len(saddle_escape.CLAIMS)} reproduced" in said and str(outputs / "report" / "index.html") in said
    table = (outputs / "report" / quick.STUDY / "small" / "claims.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["status"] for row in rows] == ["reproduced"] * len(saddle_escape.CLAIMS)
    assert list(rows[0]) == ["figure", "data", "claim", "status", "observed", "interval", "expected", "n", "scale"]


def test_the_page_shows_text_as_text(outputs: Path, cells: list[Spec], tmp_path: Path) -> None:
    evil = "<img src=http://evil.example/x onerror=alert(1)> & <b>"
    quick.written(outputs, cells[:1], "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    verdict = Verdict("reproduced", f"o{evil}", f"i{evil}", f"e{evil}", 1, "small")
    spoilt = Records(quick.STUDY, "small", records.runs, records.rows, records.asked, (f"s{evil}",))
    png = tmp_path / "a.png"
    png.write_bytes(b"not drawn")
    judged = [report.Judged(f"d{evil}", Claim(f"f{evil}", f"c{evil}", lambda _: verdict), verdict)]
    drawn = [report.Drawn(f"f{evil}", f"d{evil}", f"t{evil}", png, spoilt)]
    page = Links(report.page([(quick.STUDY, f"q{evil}", judged, drawn, spoilt)]))
    for part in "oiesdfctq":
        assert f"{part}{evil}" in page.text, part
    assert page.tags.count("img") == 1 and not any("evil" in link for link in page.loaded)


@pytest.mark.usefixtures("one_figure")
def test_claims_that_hold_commas_quotes_and_bars_stay_in_their_cells(outputs: Path, cells: list[Spec]) -> None:
    quick.written(outputs, cells[:1], "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    verdict = Verdict("reproduced", 'a, "b" | c', "", "", 1, "small")
    judged = [report.Judged("digits", Claim("1", "x | y, z", lambda _: verdict), verdict)]
    (row,) = csv.DictReader(io.StringIO(report.claims_csv(judged)))
    assert (row["claim"], row["observed"]) == ("x | y, z", 'a, "b" | c')
    table = report.index_markdown([(quick.STUDY, "", judged, [], records)]).splitlines()
    header = next(line for line in table if line.startswith("| study"))
    assert len(re.findall(r"(?<!\\)\|", table[-1])) == header.count("|")


@pytest.mark.usefixtures("one_figure")
def test_a_report_of_several_scales_and_of_committed_results(outputs: Path, cells: list[Spec], tmp_path: Path) -> None:
    quick.written(outputs, cells[:2], "small")
    quick.written(outputs, cells[2:4], "thesis", lambda *_: None)
    report.main(["--outputs", str(outputs)])  # all studies with runs
    page = Links((outputs / "report" / "index.html").read_text())
    assert "at scale small" in page.text and "at scale thesis" in page.text and "none finished" in page.text
    collect(outputs, tmp_path / "results", quick.STUDY, "small")
    report.main(["--results", str(tmp_path / "results")])
    assert "| saddle_escape | small | digits |" in (tmp_path / "results" / "INDEX.md").read_text()
    assert (tmp_path / "results" / "index.html").exists()
    assert len(list((tmp_path / "results" / quick.STUDY).glob("fig_*.png"))) == 1


def test_a_report_of_a_study_that_does_not_exist_lists_those_that_do(outputs: Path, cells: list[Spec]) -> None:
    quick.written(outputs, cells[:1], "small")
    with pytest.raises(SystemExit, match=r"study saddle_escap\b.*\bsaddle_escape\b"):
        report.main(["saddle_escap", "--outputs", str(outputs)])
    assert not (outputs / "report").exists()


@pytest.mark.parametrize("names", [[], [quick.STUDY]])
def test_a_report_without_runs_says_so_and_writes_nothing(outputs: Path, names: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"(nothing has been run|no runs).*" + str(outputs)):
        report.main([*names, "--outputs", str(outputs)])
    assert not outputs.exists()


@pytest.mark.usefixtures("one_figure")
def test_a_study_that_is_not_at_hand_does_not_stop_the_report_of_another(
    outputs: Path, cells: list[Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of a study outside the repository lie in the same folder, and its module is not on the path today."""
    quick.written(outputs, cells[:1], "small")
    shutil.copytree(outputs / quick.STUDY, outputs / "gone")
    for path in (outputs / "gone").glob("*/config.json"):
        path.write_text(path.read_text().replace("experiments.saddle_escape.SaddleEscape", "gone.Gone"))
    report.main([quick.STUDY, "--outputs", str(outputs)])
    assert "at scale small" in (outputs / "report" / "index.html").read_text()
    said = capsys.readouterr()
    assert "gone" in said.out + said.err
    with pytest.raises(SystemExit, match="gone"):
        report.main(["gone", "--outputs", str(outputs)])


def test_an_unknown_scale_of_a_report_lists_the_valid_ones(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([quick.STUDY, "--scale", "huge", "--outputs", str(outputs)])
    assert "thesis" in capsys.readouterr().err


def test_a_report_runs_no_jax_and_needs_no_network(outputs: Path, cells: list[Spec], tmp_path: Path) -> None:
    """With no device to run on, no way out, and outside the checkout."""
    quick.written(outputs, cells[:2], "small")
    code = (
        "import socket, sys; from experiments import saddle_escape as s; from pcexp import report\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from matplotlib.figure import Figure\n"
        "s.FIGURES = {'4.5': lambda records: Figure()}\n"
        f"report.main(['saddle_escape', '--outputs', {str(outputs)!r}])\n"
        "print(json.dumps(sorted(m for m in ('wandb', 'tensorflow_datasets') if m in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import json\n{code}"],
        cwd=tmp_path, env=quick.environment(tmp_path, JAX_PLATFORMS="none_such"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert (outputs / "report" / "index.html").exists()


def test_a_run_with_many_overrides_is_reported_apart_from_the_study_itself(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": saddle_escape.FIGURES["4.5"]})
    overrides = [o for o in quick.QUICK if not o.startswith(("+", "scale", "learning", "param", "protocol", "lanes"))]
    own = quick.cell(base=(f"+experiment={quick.STUDY}", "scale=small", "parameterisation=near_origin"))
    changed = quick.cell(*overrides, base=(f"+experiment={quick.STUDY}", "scale=small", "parameterisation=near_origin"))
    quick.written(outputs, [own, changed], "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    assert len(records.groups()) == 2
    drawn = report.figures(saddle_escape, records, outputs / "drawn")
    assert len(drawn) == 2 == len({d.png for d in drawn}) and all(d.png.exists() for d in drawn)
    assert ["network.width=8" in d.records.command for d in drawn].count(True) == 1
