"""Figures and the page follow from records, and from nothing else."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import made_up
import pytest
import quick
from made_up import Fate
from matplotlib.figure import Figure

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.experiments import saddle_escape
from pcexp.records.tables import Records, collect, read_outputs
from pcexp.report import plotting
from pcexp.report import rendering as report
from pcexp.report.claims import Claim, Verdict
from pcexp.report.page import Drawing, Judged, Part
from pcexp.report.page import page as written_page

Fates = Callable[[Spec, Lane], Fate | None]
STUDIES = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def cells() -> list[Spec]:
    return quick.grid("scale=small", "lanes.seed=[0,1,2]")


def test_a_figure_drawn_again_has_the_same_bytes(
    outputs: Path, cells: list[Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saddle_escape, "FIGURES", {"4.5": saddle_escape.FIGURES["4.5"]})
    made_up.written(outputs, cells[:4], "small", n_rows=20)
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
    made_up.written(
        outputs, corrected, "small", lambda s, lane: None if lane.values["seed"] == 2 else made_up.fast_pc(s, lane)
    )
    for make in saddle_escape.FIGURES.values():
        figure = make(read_outputs(outputs, quick.STUDY, "small"))
        for axis in figure.axes:
            texts = " ".join(text.get_text() for text in axis.texts)
            n = 0 if "published" in axis.get_title(loc="left") else 4
            assert "digits" in texts and "small" in texts and re.search(rf"\b{n}\b", texts)
            assert len(axis.lines) == (12 if n else 0)  # a curve and two marks each
            assert ("no runs" in texts) is (n == 0)
        plotting.pyplot().close(figure)


def test_one_colour_means_one_learning_rule(outputs: Path, cells: list[Spec]) -> None:
    made_up.written(outputs, cells, "small", lambda spec, lane: Fate(None))
    figure = saddle_escape.FIGURES["4.5"](read_outputs(outputs, quick.STUDY, "small"))
    colours = {line.get_color() for axis in figure.axes for line in axis.lines}
    assert colours == {plotting.COLOURS["pc"], plotting.COLOURS["bp"]}
    plotting.pyplot().close(figure)


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
    made_up.written(outputs, cells, "small")
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
    for paragraph in (saddle_escape.__doc__ or "").strip().split("\n\n"):
        assert " ".join(paragraph.replace("`", "").split()) in page.text
    said = capsys.readouterr().out
    assert f"{len(saddle_escape.CLAIMS)} reproduced" in said and str(outputs / "report" / "index.html") in said
    table = (outputs / "report" / quick.STUDY / "small" / "claims.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["status"] for row in rows] == ["reproduced"] * len(saddle_escape.CLAIMS)
    assert list(rows[0]) == ["figure", "data", "claim", "status", "observed", "interval", "expected", "n", "scale"]


def test_the_page_shows_text_as_text(outputs: Path, cells: list[Spec], tmp_path: Path) -> None:
    evil = "<img src=http://evil.example/x onerror=alert(1)> & <b>"
    made_up.written(outputs, cells[:1], "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    verdict = Verdict("reproduced", f"o{evil}", f"i{evil}", f"e{evil}", 1, "small")
    spoilt = Records(quick.STUDY, "small", records.runs, records.rows, records.asked, (f"s{evil}",))
    png = tmp_path / "a.png"
    png.write_bytes(b"not drawn")
    judged = [Judged(f"d{evil}", Claim(f"f{evil}", f"c{evil}", lambda _: verdict), verdict)]
    drawn = [Drawing(f"f{evil}", f"d{evil}", f"t{evil}", png, spoilt)]
    page = Links(
        written_page(
            [Part(quick.STUDY, f"q{evil}\n\nFindings{evil}\n\n- one\n  thing\n- another", judged, drawn, spoilt)]
        )
    )
    for part in "oiesdfctq":
        assert f"{part}{evil}" in page.text, part
    assert f"Findings{evil}" in page.text and page.tags.count("li") == 2
    assert page.tags.count("img") == 1 and not any("evil" in link for link in page.loaded)


@pytest.mark.usefixtures("one_figure")
def test_the_page_shows_of_a_studys_notes_those_on_its_scale(outputs: Path, cells: list[Spec]) -> None:
    made_up.written(outputs, cells[:1], "small")
    text = "# Notes\n\n## small, 2026-11-20\n\nLess <b>.\n\n- `one`\n- two\n\n## thesis, 2026-11-21\n\nMore.\n"
    (outputs / quick.STUDY / "notes.md").write_text(text)
    report.main([quick.STUDY, "--outputs", str(outputs)])
    page = Links((outputs / "report" / "index.html").read_text())
    assert "small, 2026-11-20" in page.text and "Less <b>." in page.text and page.tags.count("li") == 2
    assert "2026-11-21" not in page.text and "More." not in page.text


@pytest.mark.usefixtures("one_figure")
def test_claims_that_hold_commas_quotes_and_bars_stay_in_their_cells(outputs: Path, cells: list[Spec]) -> None:
    made_up.written(outputs, cells[:1], "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    verdict = Verdict("reproduced", 'a, "b" | c', "", "", 1, "small")
    judged = [Judged("digits", Claim("1", "x | y, z", lambda _: verdict), verdict)]
    (row,) = csv.DictReader(io.StringIO(report.claims_csv(judged)))
    assert (row["claim"], row["observed"]) == ("x | y, z", 'a, "b" | c')
    table = report.index_markdown([Part(quick.STUDY, "", judged, [], records)]).splitlines()
    header = next(line for line in table if line.startswith("| study"))
    assert len(re.findall(r"(?<!\\)\|", table[-1])) == header.count("|")


@pytest.mark.usefixtures("one_figure")
def test_a_report_of_several_scales_and_of_committed_results(outputs: Path, cells: list[Spec], tmp_path: Path) -> None:
    made_up.written(outputs, cells[:2], "small")
    made_up.written(outputs, cells[2:4], "thesis", lambda *_: None)
    report.main(["--outputs", str(outputs)])  # all studies with runs
    page = Links((outputs / "report" / "index.html").read_text())
    assert "at scale small" in page.text and "at scale thesis" in page.text and "none finished" in page.text
    collect(outputs, tmp_path / "results", quick.STUDY, "small")
    report.main(["--results", str(tmp_path / "results")])
    assert "| saddle_escape | small | digits |" in (tmp_path / "results" / "INDEX.md").read_text()
    committed = Links((tmp_path / "results" / "index.html").read_text())
    images = [link for link in committed.loaded if not link.startswith("#")]
    assert images == [f"{quick.STUDY}/{p.name}" for p in (tmp_path / "results" / quick.STUDY).glob("fig_*.png")] != []


def test_a_report_of_one_scale_of_results_leaves_the_page_and_the_figures_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(quick.CONF.parent / "results" / "forward_pass", tmp_path / "forward_pass")
    drawn: list[tuple[str, bool, str]] = []

    def figures(_: object, records: Records, folder: Path, chosen: bool, suffix: str, __: object) -> list[Drawing]:
        drawn.append((records.scale, chosen, suffix))
        return []

    monkeypatch.setattr(report, "figures", figures)
    report.main(["forward_pass", "--results", str(tmp_path), "--scale", "small"])
    assert sorted(drawn) == [
        ("small", True, "_small"),
        ("thesis", False, ""),
    ]  # plain names are those of the largest scale
    index = (tmp_path / "INDEX.md").read_text()
    assert "| forward_pass | thesis |" in index and "| forward_pass | small |" in index


def test_a_report_of_a_study_that_does_not_exist_lists_those_that_do(outputs: Path, cells: list[Spec]) -> None:
    made_up.written(outputs, cells[:1], "small")
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
    made_up.written(outputs, cells[:1], "small")
    shutil.copytree(outputs / quick.STUDY, outputs / "gone")
    for path in (outputs / "gone").glob("manifest-*.json"):
        path.write_text(path.read_text().replace("pcexp.experiments.saddle_escape.SaddleEscape", "gone.Gone"))
    assert report.main([quick.STUDY, "--outputs", str(outputs)]) == 0  # what was asked for is whole
    assert "at scale small" in (outputs / "report" / "index.html").read_text()
    said = capsys.readouterr()
    assert "gone" in said.out + said.err
    assert report.main(["gone", "--outputs", str(outputs)]) == 1
    assert "left out: gone at small: ModuleNotFoundError: No module named 'gone'" in capsys.readouterr().out


def test_an_unknown_scale_of_a_report_lists_the_valid_ones(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([quick.STUDY, "--scale", "huge", "--outputs", str(outputs)])
    assert "thesis" in capsys.readouterr().err


def test_a_report_runs_no_jax_and_needs_no_network(outputs: Path, cells: list[Spec], tmp_path: Path) -> None:
    """With no device to run on, no way out, and outside the checkout."""
    made_up.written(outputs, cells[:2], "small")
    code = (
        "import socket, sys; from pcexp.experiments import saddle_escape as s; from pcexp.report import rendering as report\n"
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
    chosen = ("scale=small", "parameterisation=near_origin", "learning=pc", "protocol=published")
    changed = quick.swept(f"+experiment={quick.STUDY}", *chosen, *overrides)[0]
    made_up.written(outputs, [own, changed], "small")
    records = read_outputs(outputs, quick.STUDY, "small")
    assert len(records.apart()) == 2
    drawn = report.figures(saddle_escape, records, outputs / "drawn")
    assert len(drawn) == 2 == len({d.png for d in drawn}) and all(d.png.exists() for d in drawn)
    assert ["network.width=8" in d.records.command for d in drawn].count(True) == 1
