"""Learning at depth: its claims on made-up runs."""

import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pcexp.experiments import learning_depth
from pcexp.experiments.learning_depth.claims import EPS, ETA
from pcexp.records.tables import Records
from pcexp.report.claims import Verdict

SIZES = {8: 9, 32: 33, 128: 129}
RATES = {
    "pc_activities": [(0.1, 1e-8), (0.01, 1e-8)],
    "pc": [(0.1, 1e-8), (0.01, 1e-8), (0.01, 1e-30)],
    "pc_far": [(0.1, 1e-8), (0.01, 1e-8)],
    "pc_float64": [(0.01, 1e-30), (0.01, 1e-100)],
    "pc_equilibrium": [(0.03, 1e-8), (0.01, 1e-8)],
    "bp_last_layers": [(0.1, 1e-8)],
    "bp": [(0.1, 1e-8), (0.01, 1e-8)],
}
Change = Callable[[dict[str, Any]], dict[str, Any]]


def as_the_atlas_has_it(run: dict[str, Any]) -> dict[str, Any]:
    """Accuracies and movements of trap 2, and a net of 128 layers that trains at equilibrium as well as one of 32 does."""
    rule, depth = run["learning"], run["config.network.n_hidden"] + 1
    accuracy = {
        "pc_activities": 0.94,
        "pc": 0.941,
        "pc_far": 0.963,
        "pc_float64": 0.962,
        "bp_last_layers": 0.937,
        "bp": 0.961,
    }
    at_equilibrium = {9: 0.96, 33: 0.933, 129: 0.933}[depth]
    value = accuracy.get(rule, at_equilibrium) - (0.05 if run[ETA] == 0.03 else 0) + 0.001 * run["seed"]
    moving = 5 if rule in ("pc_activities", "bp_last_layers") else depth
    movement = {f"movement_{i}": 0.5 if i > depth - moving else 0.01 for i in range(1, depth + 1)}
    return {
        "test_accuracy": value, "validation_accuracy": value - 0.002, "start_above": 4, "end_above": 3,
        "start_closed": 0.02, "end_closed": 0.01, "start_equilibrium_cosine": 0.97, "end_equilibrium_cosine": 0.5,
    } | movement  # fmt: skip


def records(*changes: Change, leave_out: Callable[[dict[str, Any]], bool] = lambda run: False) -> Records:
    """Runs of all rules at three depths, two seeds; each change is applied to every run."""
    runs = [
        {"cell": f"{rule}{n_hidden}", "lane": f"{eta} {eps} {seed}", "data": "mnist", "variant": "", "learning": rule,
         "activation": "relu", "seed": seed, ETA: eta, EPS: eps, "config.network.width": 64,
         "config.network.n_hidden": n_hidden, "outcome": "done"}
        for rule, rates in RATES.items() for n_hidden in SIZES for eta, eps in rates for seed in (0, 1)
    ]  # fmt: skip
    asked = pl.DataFrame(runs)
    for change in (as_the_atlas_has_it, *changes):
        runs = [run | change(run) for run in runs]
    table = pl.DataFrame([run for run in runs if not leave_out(run)], infer_schema_length=None)
    return Records("learning_depth", "small", table, pl.DataFrame(), asked)


def verdicts(found: Records) -> dict[str, Verdict]:
    return {claim.statement: claim.rule(found) for claim in learning_depth.CLAIMS}


def refuted(*changes: Change) -> set[str]:
    """Words that tell the claims apart which these changes refute."""
    found = verdicts(records(*changes))
    assert {v.status for v in found.values()} <= {"reproduced", "not_reproduced"}
    return {statement for statement, v in found.items() if v.status == "not_reproduced"}


def of(rule: str, n_hidden: int | None = None, **columns: Any) -> Change:
    """A change of the runs of one rule (of one depth)."""

    def change(run: dict[str, Any]) -> dict[str, Any]:
        mine = run["learning"] == rule and n_hidden in (None, run["config.network.n_hidden"])
        return {k: v(run) if callable(v) else v for k, v in columns.items()} if mine else {}

    return change


def test_what_the_atlas_found_reproduces_every_claim() -> None:
    found = verdicts(records())
    assert {statement for statement, v in found.items() if v.status != "reproduced"} == set()
    at_equilibrium = "trained at equilibrium, 32 hidden layers and more: less accurate than BP, each at its best rate"
    assert "relu N=64 H=32 -2.8" in found[at_equilibrium].observed and "H=8" not in found[at_equilibrium].observed
    assert found["published: at most the top 5 layers move"].n == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of("pc_activities", 32, end_above=5), "at most 4 layers get"),
        (of("pc_activities", 8, start_closed=0.2), "less than a tenth"),
        (of("pc_activities", 128, **{f"movement_{i}": 0.06 for i in range(100, 130)}), "at most the top 5"),
        (of("bp_last_layers", 8, test_accuracy=0.96), "BP on the last k layers"),
        (of("bp", 32, test_accuracy=0.94, validation_accuracy=0.94), "less accurate than BP on all layers"),
        (of("pc", 8, test_accuracy=0.96), "exact gradients alone change nothing"),
        (of("pc_float64", 128, movement_1=0.04), "every layer moves"),
        (of("pc_float64", 32, test_accuracy=0.94), "exact gradients and eps near 0"),
        (of("pc_far", 32, movement_2=0.04), "beta = 0.25 and T = 4 H: every layer moves"),
        (of("pc_far", 8, test_accuracy=0.945), "beta = 0.25 and T = 4 H: more accurate"),
        (of("pc_far", 128, test_accuracy=0.945), "beta = 0.25 and T = 4 H: as accurate as BP"),
        (of("pc_equilibrium", 128, start_equilibrium_cosine=0.85), "has BP's direction at the start"),
        (of("pc_equilibrium", 8, end_equilibrium_cosine=0.9), "leaves BP's direction"),
        (of("pc_equilibrium", 8, test_accuracy=0.94), "up to 8 hidden layers: as accurate"),
        (of("pc_equilibrium", 32, test_accuracy=0.958), "32 hidden layers and more"),
    ],
)
def test_a_number_beyond_its_threshold_refutes_its_own_claim(change: Change, says: str) -> None:
    assert any(says in statement for statement in refuted(change))


def test_the_smallest_eps_at_a_hundredth_is_what_is_judged_as_exact() -> None:
    def larger_eps_fails(run: dict[str, Any]) -> dict[str, Any]:
        return {"test_accuracy": 0.5, "movement_1": 0.0} if run["learning"] == "pc_float64" and run[EPS] > 1e-50 else {}

    assert refuted(larger_eps_fails) == set()


def test_the_best_rate_is_chosen_on_validation_and_judged_on_the_test_split() -> None:
    def wrong_rate_shines_on_test(run: dict[str, Any]) -> dict[str, Any]:
        return {"test_accuracy": 0.99} if run["learning"] == "pc_equilibrium" and run[ETA] == 0.03 else {}

    def it_shines_on_validation(run: dict[str, Any]) -> dict[str, Any]:
        return {"validation_accuracy": 0.99} if run["learning"] == "pc_equilibrium" and run[ETA] == 0.03 else {}

    assert refuted(wrong_rate_shines_on_test) == set()
    assert len(refuted(wrong_rate_shines_on_test, it_shines_on_validation)) == 2


def test_a_rate_at_which_one_seed_diverges_is_not_the_best_and_counts_as_nothing_learned_where_it_is_prescribed() -> (
    None
):
    def diverging(rule: str, eta: float) -> Change:
        def change(run: dict[str, Any]) -> dict[str, Any]:
            mine = run["learning"] == rule and run[ETA] == eta and run["seed"] == 1
            lost = {"outcome": "diverged", "validation_accuracy": math.nan, "test_accuracy": math.nan}
            return lost if mine else {}

        return change

    assert refuted(diverging("pc_equilibrium", 0.03)) == set()
    assert any("BP on the last k" in statement for statement in refuted(diverging("pc_activities", 0.1)))


def test_100_layers_are_trained_where_one_rule_moves_all_of_them_and_is_close_to_bp() -> None:
    some = "some rule trains 100 layers and more, all of them, with PC's own gradient"
    stuck = [of(rule, 128, movement_1=0.0) for rule in ("pc", "pc_far", "pc_float64")]
    assert some in refuted(*stuck)  # at equilibrium all move, 2.8 points behind
    assert some not in refuted(*stuck, of("pc_equilibrium", 128, test_accuracy=0.945))
    found = verdicts(records(leave_out=lambda run: run["config.network.n_hidden"] == 128))[some]
    assert found.status == "insufficient" and found.interval.endswith("scale=thesis")


@pytest.mark.parametrize("rule", list(RATES))
def test_a_run_that_is_missing_leaves_open_whatever_rests_on_its_rule(rule: str) -> None:
    whole, found = (
        verdicts(records(leave_out=leave_out))
        for leave_out in (
            lambda run: False,
            lambda run: run["learning"] == rule and run["seed"] == 1 and run[ETA] < 0.1,
        )
    )
    changed = {statement for statement in found if found[statement].status != whole[statement].status}
    assert {found[statement].status for statement in changed} <= {"insufficient"}
    assert changed or rule == "bp_last_layers"


def test_an_accuracy_that_is_not_a_number_leaves_open_what_rests_on_it() -> None:
    whole = verdicts(records())
    for rule in ("pc_equilibrium", "pc_activities"):
        found = verdicts(records(of(rule, test_accuracy=math.nan)))
        changed = [verdict for statement, verdict in found.items() if verdict.status != whole[statement].status]
        assert changed and {verdict.status for verdict in changed} <= {"insufficient"}


def test_claims_answer_on_no_records_at_all() -> None:
    empty = Records("learning_depth", "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    assert {v.status for v in verdicts(empty).values()} == {"insufficient"}
