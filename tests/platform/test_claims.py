"""Claims answer on any records, count what is missing, and write bounds as bounds."""

import csv
import importlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made_up
import polars as pl
import pytest
import quick
from hypothesis import given
from hypothesis import strategies as st
from made_up import Fate
from matplotlib.figure import Figure

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.experiments import saddle_escape
from pcexp.records.tables import Records, read_outputs
from pcexp.report import plotting
from pcexp.report import rendering as report
from pcexp.report.claims import Ratio, Verdict, censored_ratio, insufficient, median_ratio, spread

Fates = Callable[[Spec, Lane], Fate | None]
STUDIES = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def cells() -> list[Spec]:
    return quick.grid("scale=small", "lanes.seed=[0,1,2]")


@pytest.fixture
def judged(outputs: Path, cells: list[Spec]) -> Callable[[Fates], dict[str, Verdict]]:
    """Verdicts on runs of these fates, claim by claim."""

    def judged(fates: Fates, wanted: Sequence[Spec] = cells) -> dict[str, Verdict]:
        made_up.written(outputs, wanted, "small", fates)
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
    verdicts = judged(made_up.fast_pc)
    assert {v.status for v in verdicts.values()} == {"reproduced"}
    for verdict in escapes(verdicts):
        assert verdict.observed == "linear 10, tanh 10, relu 10"
        assert (verdict.n, verdict.scale) == (9, "small")
        assert verdict.interval.count("10") == 9  # every seed is shown


def test_bp_faster_in_a_single_pair_is_not_reproduced(judged: Any) -> None:
    def slow(spec: Spec, lane: Lane) -> Fate:
        late = is_pc(spec) and lane.values["seed"] == 1 and spec.science["network"]["activation"] == "relu"
        return Fate(1500) if late else made_up.fast_pc(spec, lane)

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
            return made_up.fast_pc(spec, lane)
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
        return None if left_out[missing] else made_up.fast_pc(spec, lane)

    for verdict in escapes(judged(some)):
        assert verdict.status == "insufficient"
        assert "python -m pcexp +experiment=saddle_escape" in verdict.interval
        if missing != "bp":
            assert "3 missing of 9" in verdict.observed


@pytest.mark.parametrize("outcome", ["diverged", "failed: no memory"])
def test_runs_that_ended_without_numbers_are_counted_as_missing(judged: Any, outcome: str) -> None:
    def spoilt(spec: Spec, lane: Lane) -> Fate:
        return Fate(None, outcome) if lane.values["seed"] == 0 and not is_pc(spec) else made_up.fast_pc(spec, lane)

    for verdict in escapes(judged(spoilt)):
        assert verdict.status == "insufficient" and "3 missing of 9" in verdict.observed
    for verdict in escapes(judged(lambda spec, lane: Fate(None, outcome))):
        assert verdict.status == "insufficient" and verdict.n == 0


def test_a_smaller_grid_is_judged_against_what_it_asked_for(judged: Any, cells: list[Spec]) -> None:
    linear = [spec for spec in cells if spec.science["network"]["activation"] == "linear"]
    for verdict in escapes(judged(made_up.fast_pc, linear)):
        assert (verdict.status, verdict.n, verdict.observed) == ("reproduced", 3, "linear 10")


def test_an_insufficient_verdict_says_why_and_what_to_run() -> None:
    records = Records("saddle_escape", "thesis", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    verdict = insufficient(records, "more", "too few")
    assert (verdict.status, verdict.observed, verdict.expected, verdict.n) == ("insufficient", "too few", "more", 0)
    assert "python -m pcexp +experiment=saddle_escape" in verdict.interval and "scale=thesis" in verdict.interval


@pytest.mark.parametrize("study", STUDIES)
def test_every_claim_of_every_study_answers_on_nothing_at_all(study: str) -> None:
    empty = Records(study, "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    module = importlib.import_module(f"pcexp.experiments.{study}")
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
    made_up.written(outputs, cells, "small", fates)
    records = read_outputs(outputs, quick.STUDY, "small")
    judged = report.judge(saddle_escape, records)
    assert all(j.verdict.status in ("reproduced", "not_reproduced", "insufficient") for j in judged)
    assert len(list(csv.reader(io.StringIO(report.claims_csv(judged))))) == 1 + len(judged)
    for make in saddle_escape.FIGURES.values():
        figure = make(records)
        assert isinstance(figure, Figure)
        plotting.pyplot().close(figure)
