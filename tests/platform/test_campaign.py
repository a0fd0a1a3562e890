"""The campaign: what is unfinished of all studies, in an order that a rule gives, as far as the budget goes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import made_up
import pytest
import quick
from hypothesis import given
from hypothesis import strategies as st

from pcexp import campaign
from pcexp.campaign import Piece, order
from pcexp.config.composition import Refused
from pcexp.config.spec import Spec
from pcexp.records.cell import Cell
from pcexp.run import sweep
from pcexp.run.session import Execution, Session
from pcexp.run.tracking import NoTracker

BASE = [override for override in quick.QUICK if not override.startswith(("+", "learning="))]
"""Two quick cells of one study: PC and BP."""
TWO = [quick.STUDY, *BASE, "learning=pc,bp"]


def piece(study: str, cell: str, cost: float, data: str = "digits", begun: bool = False) -> Piece:
    return Piece((study, data, ""), cell, cost, begun)


def in_order(ordered: Iterable[list[Piece]]) -> list[tuple[str, str]]:
    return [together[0].labels[:2] for together in ordered]


# The order


def test_most_claims_for_the_cost_of_all_their_cells_come_first() -> None:
    # a: 6 claims for 3, b: 1 for 1, c: 8 for 2
    pieces = [piece("a", "1", 1), piece("a", "2", 2), piece("b", "3", 1), piece("c", "4", 2)]
    assert in_order(order(pieces, {"a": 6, "b": 1, "c": 8}, ())) == [("c", "digits"), ("a", "digits"), ("b", "digits")]


def test_a_study_without_evidence_goes_before_one_with_evidence_however_dear() -> None:
    pieces = [piece("a", "1", 1), piece("b", "2", 1000)]
    claims = {"a": 9, "b": 1}
    assert in_order(order(pieces, claims, ())) == [("a", "digits"), ("b", "digits")]
    assert in_order(order(pieces, claims, {"a"})) == [("b", "digits"), ("a", "digits")]
    assert in_order(order(pieces, claims, {"a", "b"})) == [("a", "digits"), ("b", "digits")]


def test_the_second_data_set_of_a_study_waits_until_all_studies_have_their_first() -> None:
    pieces = [piece("a", "1", 1), piece("a", "2", 2, "mnist"), piece("b", "3", 10), piece("b", "4", 5, "mnist")]
    wanted = [("a", "digits"), ("b", "mnist"), ("a", "mnist"), ("b", "digits")]
    assert in_order(order(pieces, {"a": 1, "b": 1}, ())) == wanted


def test_of_cells_that_run_together_the_begun_come_first_and_then_the_cheapest() -> None:
    pieces = [piece("a", "1", 5), piece("a", "2", 1), piece("a", "3", 9, begun=True), piece("a", "4", 1)]
    (together,) = order(pieces, {"a": 1}, ())
    assert [p.cell for p in together] == ["3", "2", "4", "1"]


def test_a_study_without_claims_counts_as_one_and_nothing_gives_nothing() -> None:
    pieces = [piece("a", "1", 1), piece("b", "2", 2)]
    assert in_order(order(pieces, {"a": 0, "b": 1}, ())) == [("a", "digits"), ("b", "digits")]
    assert order([], {}, ()) == []


PIECES = st.lists(
    st.builds(
        Piece,
        labels=st.tuples(st.sampled_from("abc"), st.sampled_from(["digits", "mnist"]), st.just("")),
        cell=st.text("0123456789", min_size=1, max_size=3),
        cost=st.floats(0, 1e18), begun=st.booleans(),
    ),
    unique_by=lambda p: p.cell,
    max_size=12,
)  # fmt: skip


@given(pieces=PIECES, data=st.data())
def test_every_cell_is_listed_once_in_an_order_that_does_not_depend_on_how_they_were_found(
    pieces: list[Piece], data: st.DataObject
) -> None:
    claims = {"a": 3, "b": 0, "c": 12}
    ordered = order(pieces, claims, {"b"})
    assert sorted(p.cell for together in ordered for p in together) == sorted(p.cell for p in pieces)
    assert all(len({p.labels for p in together}) == 1 for together in ordered)
    assert len({together[0].labels for together in ordered}) == len(ordered)
    assert order(data.draw(st.permutations(pieces)), claims, {"b"}) == ordered


@given(pieces=PIECES)
def test_a_slot_after_another_goes_on_where_the_order_stood(pieces: list[Piece]) -> None:
    """What was listed behind the first cells is listed in the same order once those are finished."""
    claims = {"a": 3, "b": 1, "c": 12}
    ordered = order(pieces, claims, ())
    for done in range(len(ordered)):
        evidence = {together[0].labels[0] for together in ordered[:done]}
        left = [p for together in ordered[done:] for p in together]
        assert order(left, claims, evidence) == ordered[done:]


# The command


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The studies that would have been reported."""
    reported: list[str] = []
    monkeypatch.setattr(sweep, "_report", lambda study, scale, outputs: reported.append(study))
    return reported


def ended(*words: str) -> int:
    """Exit status of the command, run in this process."""
    try:
        campaign.main(words)
    except SystemExit as status:
        return int(status.code or 0)
    return 0


def test_it_runs_the_cells_that_the_studys_own_command_runs(
    outputs: Path, run: Callable[..., int], quiet: list[str], tmp_path: Path
) -> None:
    assert ended(*TWO, f"execution.outputs={outputs}") == 0
    apart = tmp_path / "apart"
    base = [f"+experiment={quick.STUDY}", *TWO[1:], f"execution.outputs={apart}"]
    own = quick.composer(base=base)
    assert sweep.run_all(own.asked(), own.settings) == 0
    assert quick.numbers(outputs) == quick.numbers(apart) and len(quick.numbers(outputs)) == 2
    assert quick.manifest(outputs) == quick.manifest(apart)
    assert quiet == [quick.STUDY, quick.STUDY]  # here, and by the command itself


def test_a_dry_run_lists_the_order_and_the_cost_and_writes_nothing(
    outputs: Path, quiet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*TWO, f"execution.outputs={outputs}", "dry_run=true", "execution.max_minutes=0.000000001") == 0
    first, together, *cells = capsys.readouterr().out.splitlines()
    assert "campaign at scale smoke: 2 cells of 1 studies, 2 lanes to run; about" in first
    assert "1 saddle_escape digits" in together and "2 cells, 2 lanes, about" in together and "claims" in together
    assert "learning=bp" in cells[0] and "learning=pc" in cells[1]  # BP is cheaper
    assert all("1 lanes" in line and line.endswith("more than half of the budget") for line in cells)
    assert not outputs.exists()
    assert ended(*TWO, f"execution.outputs={outputs}", "dry_run=true", "execution.max_minutes=100000") == 0
    assert "half of the budget" not in capsys.readouterr().out


def test_when_the_budget_is_used_it_says_what_is_left_and_the_same_command_continues(
    outputs: Path, quiet: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*TWO, f"execution.outputs={outputs}")
    assert ended(*words, "execution.max_minutes=0") == 130
    said = capsys.readouterr().out
    assert said.count("campaign at scale smoke: 2 cells of 1 studies, 2 lanes to run") == 2
    assert "stopped; 2 lanes are not finished. The same command continues." in said and quiet == []
    assert {len(entry["lanes"]) for entry in quick.manifest(outputs).values()} == {1}

    finished = []
    with monkeypatch.context() as patch:
        finish = Cell.finish

        def counted(cell: Cell, lane: str, outcome: str, **entry: Any) -> None:
            finish(cell, lane, outcome, **entry)
            finished.append(cell.folder.name)

        patch.setattr(Cell, "finish", counted)
        patch.setattr(Session, "stopping", property(lambda _: len(finished) > 0))
        # One worker: cells one after the other.
        assert ended(*words, "execution.max_minutes=60", "execution.workers=1") == 130
    said = capsys.readouterr().out
    assert said.count("campaign at scale smoke: 1 cells of 1 studies, 1 lanes to run") == 1
    assert len(quick.numbers(outputs)) == 1

    assert ended(*words, "execution.max_minutes=60") == 0
    assert len(quick.numbers(outputs)) == 2 and quiet == [quick.STUDY]
    capsys.readouterr()
    assert ended(*words, "execution.max_minutes=60") == 0
    assert "0 cells of 0 studies, 0 lanes to run; nothing to run" in capsys.readouterr().out


def test_the_budget_counts_from_the_start_of_the_command_composition_included(
    outputs: Path, quiet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour goes by while the studies are composed: nothing is begun then."""
    clock = iter([0.0] + [3600.0] * 100)
    monkeypatch.setattr(campaign.time, "monotonic", lambda: next(clock))
    given: list[float | None] = []

    def run(asked: sweep.Sweep, *_: Any) -> int:
        given.append(asked.execution.max_minutes)
        return 130

    monkeypatch.setattr(sweep.Sweep, "run", run)
    assert ended(*TWO, f"execution.outputs={outputs}", "execution.max_minutes=90") == 130
    assert given == [30.0]


def test_cells_whose_data_are_missing_are_skipped_with_the_reason(
    outputs: Path, quiet: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (*TWO, f"execution.outputs={outputs}", "data=digits,mnist")
    assert ended(*words) == 1
    said = capsys.readouterr().out
    (skipped,) = [line for line in said.splitlines() if line.startswith("skipped:")]
    assert "saddle_escape: no prepared copy of mnist" in skipped and "(2 cells)" in skipped
    assert {entry["labels"]["data"] for entry in quick.manifest(outputs).values()} == {"digits"}
    assert len(quick.numbers(outputs)) == 2


def test_a_study_with_evidence_at_this_scale_is_one_whose_cells_on_some_data_are_finished(
    outputs: Path, small: list[Spec]
) -> None:
    asked = sweep.Sweep(tuple(small), Execution(outputs=str(outputs)), NoTracker(), "small", False, (), {})
    assert not campaign._evidence(asked)
    made_up.written(outputs, small, "small", made_up.only([0, 1]))
    assert not campaign._evidence(asked)
    made_up.written(outputs, small, "small", made_up.only([2]))
    assert campaign._evidence(asked)


def test_a_name_or_a_key_that_there_is_not_is_refused_with_what_there_is(outputs: Path) -> None:
    with pytest.raises(Refused, match=r"no experiment sadle_escape \(did you mean saddle_escape\?\); there are .*mupc"):
        campaign.main(["sadle_escape"])
    with pytest.raises(Refused, match=r"excution is no key \(did you mean execution\?\)"):
        campaign.main([quick.STUDY, "excution.max_minutes=3"])
    with pytest.raises(Refused, match="scale=huge is unknown"):
        campaign.main([quick.STUDY, "scale=huge"])
    assert not outputs.exists()


def test_all_experiments_at_thesis_scale_are_what_it_takes_without_words(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def planned(loader: Any, chosen: list[str]) -> Any:
        taken.extend(chosen)
        raise Refused("enough")

    monkeypatch.setattr(campaign, "compose", planned)
    with pytest.raises(Refused, match="enough"):
        campaign.main([])
    experiments = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))
    assert [word for word in taken if word.startswith("+")] == [f"+experiment={name}" for name in experiments]
    assert taken.count("scale=thesis") == len(experiments)


def test_the_command_runs_in_a_process_of_its_own_without_tables_figures_or_tracker(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "try:\n    runpy.run_module('pcexp.campaign', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as status:\n    print('status', status.code)\n"
        "print(*[name for name in ('polars', 'matplotlib', 'wandb', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TWO, "execution.max_minutes=0"],
        cwd=tmp_path, env=quick.environment(tmp_path), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    *_, status, imported = done.stdout.split("\n")[:-1]
    assert status == "status 130" and imported == "", done.stdout + done.stderr
    assert json.loads((tmp_path / "outputs" / quick.STUDY / "manifest-smoke.json").read_text())["cells"]
