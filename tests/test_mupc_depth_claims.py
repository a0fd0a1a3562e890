"""muPC at depth: verdicts and figures of made-up accuracies are those that the definitions give."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from pcexp.experiments import mupc_depth
from pcexp.experiments.mupc_depth.claims import BETA, ETA, SP
from pcexp.records.tables import Records
from pcexp.report.claims import Verdict
from pcexp.report.plotting import pyplot
from pcexp.report.rendering import judge


def run(part: str = "depth", accuracy: float | None = 0.9, /, **changes: Any) -> dict[str, Any]:
    """A run of muPC on MNIST with this test accuracy at the end; None: it diverged. `curve` has accuracies by iteration."""
    columns = {
        "data": "mnist", "variant": "", "part": part, "parameterisation": "mupc", "learning": "pc",
        "protocol": "published", "activation": "relu", "seed": 0, ETA: 0.1, BETA: 0.0078125,
        "config.network.width": 512, "config.network.n_hidden": 8, "config.training.max_iterations": 900,
        "iterations": 900, "outcome": "done" if accuracy is not None else "diverged", "test_accuracy": accuracy,
        "validation_accuracy": accuracy, "run.data_caveat": "", "curve": {0: 0.1},
    }  # fmt: skip
    named = {"width": "config.network.width", "n_hidden": "config.network.n_hidden", "eta": ETA, "beta": BETA}
    return columns | {named.get(key, key): value for key, value in changes.items()}


def block(one: Mapping[str, Any]) -> str:
    """The block of the grid that asks for a run."""
    if one["learning"] == "bp":
        return {"depth": "bp", "long": "bp_long"}[one["part"]]
    return "sp" if one["parameterisation"] == SP else one["part"]


def records(runs: Sequence[Mapping[str, Any]], missing: int = 0) -> Records:
    """Records of these runs, of which the last ones are asked for and not there."""
    named = [{"cell": str(i), "lane": str(i), "blocks": block(one), **one} for i, one in enumerate(runs)]
    rows = [
        {"cell": one["cell"], "lane": one["lane"], "iteration": t, "test_accuracy": value if np.isfinite(value) else 0.098,
         "test_loss": 0.1 if np.isfinite(value) else np.nan, "loss": None}
        for one in named for t, value in one["curve"].items()
    ]  # fmt: skip
    schema = {"test_accuracy": pl.Float64, "validation_accuracy": pl.Float64}
    table = pl.DataFrame([{k: v for k, v in one.items() if k != "curve"} for one in named], schema_overrides=schema)
    return Records("mupc_depth", "thesis", table[: len(table) - missing], pl.DataFrame(rows), table)


def verdict(statement: str, found: Records) -> Verdict:
    (claim,) = (claim for claim in mupc_depth.CLAIMS if claim.statement.startswith(statement))
    return claim.rule(found)


def test_every_claim_answers_on_no_records_at_all_that_they_are_insufficient() -> None:
    nothing = Records("mupc_depth", "small", pl.DataFrame(), pl.DataFrame(), pl.DataFrame())
    assert {claim.rule(nothing).status for claim in mupc_depth.CLAIMS} == {"insufficient"}


def at_depths(*accuracies: float | None, **changes: Any) -> list[dict[str, Any]]:
    """Two seeds at H = 8, 32, 128, half a point apart."""
    return [
        run("depth", value if value is None else value + 0.005 * seed, n_hidden=n_hidden, seed=seed, **changes)
        for n_hidden, value in zip((8, 32, 128), accuracies, strict=True)
        for seed in (0, 1)
    ]


def test_mupc_trains_where_every_run_is_above_half() -> None:
    statement = "published, relu: muPC trains"
    assert verdict(statement, records(at_depths(0.94, 0.93, 0.51))).status == "reproduced"
    assert verdict(statement, records(at_depths(0.94, 0.93, 0.497))).status == "not_reproduced"  # one seed of two
    lost = verdict(statement, records(at_depths(0.94, None, 0.93)))
    assert lost.status == "not_reproduced" and lost.observed.endswith("2 without numbers")
    assert verdict(statement, records(at_depths(0.94, 0.93, 0.93), missing=1)).status == "insufficient"
    assert verdict("corrected, relu: muPC trains", records(at_depths(0.94, 0.93, 0.93))).status == "insufficient"


@pytest.mark.parametrize(
    ("bp", "at_128", "everywhere"),
    [
        ((0.96, 0.96, 0.959), "reproduced", "reproduced"),
        ((0.98, 0.96, 0.959), "reproduced", "not_reproduced"),
        ((0.96, 0.96, 0.97), "not_reproduced", "not_reproduced"),
    ],
)
def test_a_few_points_are_three(bp: tuple[float, ...], at_128: str, everywhere: str) -> None:
    found = records([*at_depths(0.94, 0.94, 0.93), *at_depths(*bp, learning="bp")])
    assert verdict("published, relu: muPC within 3 points of BP at H = 128", found).status == at_128
    assert verdict("published, relu: muPC within 3 points of BP at every", found).status == everywhere


def test_a_gap_at_128_needs_runs_of_128() -> None:
    shallow = [one for one in (*at_depths(0.9, 0.9, 0.9), *at_depths(0.9, 0.9, 0.9, learning="bp"))
               if one["config.network.n_hidden"] < 128]  # fmt: skip
    found = verdict("published, relu: muPC within 3 points of BP at H = 128", records(shallow))
    assert (found.status, found.observed) == ("insufficient", "no pairs of runs at H = 128")


def sp_runs(first: Sequence[float | None], second: Sequence[float | None], held_out: tuple[float, float], **more: Any):
    """SP at H = 128 with two pairs of rates, a test accuracy a seed; validation accuracies of the two pairs."""
    return [
        run("depth", value, parameterisation=SP, n_hidden=128, seed=seed, eta=eta, validation_accuracy=None if value is None else v, **more)
        for eta, values, v in ((0.1, first, held_out[0]), (0.01, second, held_out[1]))
        for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "held_out", "status"),
    [
        ((0.11, 0.15), (0.11, 0.10), (0.1, 0.1), "reproduced"),
        ((None, None), (None, None), (0.0, 0.0), "reproduced"),
        ((0.11, 0.12), (0.90, 0.91), (0.1, 0.9), "not_reproduced"),
        ((0.11, 0.12), (0.90, 0.16), (0.1, 0.9), "not_reproduced"),
        ((0.11, 0.12), (0.90, 0.91), (0.9, 0.1), "reproduced"),  # chosen on validation, not on test
        ((0.40, 0.40), (0.95, None), (0.4, 0.7), "not_reproduced"),  # a seed that diverged counts as 0
        ((0.10, 0.10), (0.95, None), (0.4, 0.7), "reproduced"),
    ],
)
def test_sp_fails_where_its_best_pair_on_validation_learns_nothing_in_any_seed(
    first: Sequence[float | None], second: Sequence[float | None], held_out: tuple[float, float], status: str
) -> None:
    assert verdict("published, relu: SP fails", records(sp_runs(first, second, held_out))).status == status


def test_sp_of_a_shallower_net_says_nothing_of_its_failure_at_depth() -> None:
    shallow = [one | {"config.network.n_hidden": 32} for one in sp_runs((0.1, 0.1), (0.1, 0.1), (0.1, 0.1))]
    assert verdict("published, relu: SP fails from H = 64", records(shallow)).status == "insufficient"
    linear = records([one | {"activation": "linear"} for one in shallow])
    assert verdict("published, linear: SP fails from H = 32", linear).status == "reproduced"


@pytest.mark.parametrize(("ours", "status"), [(0.95, "reproduced"), (0.80, "not_reproduced"), (None, "not_reproduced")])
def test_tanh_sp_trains_below_mupc(ours: float | None, status: str) -> None:
    rival = sp_runs((0.85, 0.86), (0.7, 0.7), (0.9, 0.7), activation="tanh")
    found = records([*at_depths(ours, ours, ours, activation="tanh"), *rival])
    assert verdict("published, tanh: SP trains, below muPC", found).status == status


def test_sp_that_does_not_train_is_not_merely_below() -> None:
    rival = sp_runs((0.3, 0.3), (0.2, 0.2), (0.3, 0.2), activation="tanh")
    found = records([*at_depths(0.9, 0.9, 0.9, activation="tanh"), *rival])
    assert verdict("published, tanh: SP trains, below muPC", found).status == "not_reproduced"


def over_widths(values: Mapping[int, float | None]) -> list[dict[str, Any]]:
    """Runs at H = 8; that of N = 512 belongs to the arm of depths, where one of H = 32 is too."""
    made = [run("depth" if width == 512 else "width", value, width=width) for width, value in values.items()]
    return [*made, run("depth", 0.2, width=2048, n_hidden=32)]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({64: 0.93, 512: 0.94, 1024: 0.94}, "reproduced"),
        ({64: 0.93, 512: 0.926, 1024: 0.93}, "reproduced"),
        ({64: 0.93, 512: 0.924, 1024: 0.93}, "not_reproduced"),
        ({64: 0.94, 512: 0.936, 1024: 0.932}, "not_reproduced"),  # against the best of the smaller ones
        ({64: 0.93, 512: 0.94, 1024: None}, "not_reproduced"),
        ({64: None, 512: 0.94, 1024: 0.95}, "not_reproduced"),
    ],
)
def test_accuracy_does_not_fall_with_width_by_more_than_half_a_point(
    values: dict[int, float | None], status: str
) -> None:
    assert verdict("published: muPC's accuracy does not fall", records(over_widths(values))).status == status


@pytest.mark.parametrize(
    ("one", "status"),
    [
        ((0.91, 0.90, 0.85), "reproduced"),
        ((0.91, 0.90, 0.92), "not_reproduced"),  # worse at each depth, and rising
        ((0.91, 0.945, 0.85), "not_reproduced"),  # better than T = H at one depth
        ((0.91, 0.90, None), "not_reproduced"),  # falls to what has no number: nothing to compare
    ],
)
def test_one_step_is_worse_and_falls_with_depth(one: tuple[float | None, ...], status: str) -> None:
    runs = [*at_depths(0.94, 0.94, 0.93), *({**r, "part": "one_step"} for r in at_depths(*one))]
    assert verdict("published, C.14: T = 1", records(runs)).status == status
    fashion = records([{**r, "data": "fashion_mnist"} for r in runs])
    assert verdict("published, C.27: T = 1", fashion).status == status


LONG = {"n_hidden": 128, "config.training.max_iterations": 4685}


@pytest.mark.parametrize(
    ("data", "figures"),
    [
        ("mnist", {"C.14, C.27", "C.17-C.19", "anchor"}),
        ("fashion_mnist", {"C.14, C.27", "C.17-C.19"}),
        ("cifar10", {"C.17-C.19"}),
        ("digits", set()),
    ],
)
def test_numbers_of_one_data_set_are_judged_on_no_other(data: str, figures: set[str]) -> None:
    judged = judge(mupc_depth, records([run("long", 0.98, data=data, **LONG)]))
    assert {claim.data for _, claim, _ in judged} == ({None, data} if figures else {None})
    assert {claim.figure for _, claim, _ in judged if claim.data} == figures


@pytest.mark.parametrize(
    ("accuracy", "changes", "status"),
    [
        (0.975, {}, "reproduced"),
        (0.974, {}, "not_reproduced"),
        (None, {}, "not_reproduced"),
        (0.98, {"n_hidden": 64}, "insufficient"),
        (0.98, {"config.training.max_iterations": 4684}, "insufficient"),
        (0.98, {"run.data_caveat": "a JPEG copy"}, "insufficient"),
    ],
)
def test_five_epochs_at_128_layers_are_judged_where_they_were_run_on_the_published_data(
    accuracy: float | None, changes: dict[str, Any], status: str
) -> None:
    assert verdict("published, C.17", records([run("long", accuracy, **LONG | changes)])).status == status


def test_fashion_is_judged_at_its_highest_and_cifar_against_bp() -> None:
    long = {"n_hidden": 128, "config.training.max_iterations": 15620}
    curve = {0: 0.1, 900: 0.893, 1800: 0.88}
    for shift, status in ((0.0, "reproduced"), (0.02, "not_reproduced"), (-0.02, "not_reproduced")):
        fashion = run("long", 0.86, data="fashion_mnist", curve={t: v + shift for t, v in curve.items()}, **long)
        assert verdict("published, C.18", records([fashion])).status == status
    for ours, status in (
        (0.47, "reproduced"),
        (0.44, "not_reproduced"),
        (0.51, "not_reproduced"),
        (0.2, "not_reproduced"),
    ):
        pair = [run("long", ours, data="cifar10", **long), run("long", 0.5, data="cifar10", learning="bp", **long)]
        assert verdict("published, C.19", records(pair)).status == status


@pytest.mark.parametrize(
    ("shift", "size", "status"),
    [
        ({}, (128, 29), "reproduced"),
        ({900: -0.012}, (128, 29), "not_reproduced"),
        ({100: 0.021}, (128, 29), "not_reproduced"),
        ({200: -0.05}, (128, 29), "reproduced"),  # no tolerance is asked for there
        ({}, (64, 29), "insufficient"),
    ],
)
def test_the_anchor_is_judged_on_the_mean_of_its_seeds(
    shift: dict[int, float], size: tuple[int, int], status: str
) -> None:
    published = {100: 0.85, 200: 0.89, 500: 0.92, 900: 0.94}
    runs = [
        run("anchor", 0.94, width=size[0], n_hidden=size[1], seed=seed,
            curve={t: v + shift.get(t, 0) + 0.03 * (seed - 1) for t, v in published.items()})
        for seed in range(3)
    ]  # fmt: skip
    found = verdict("published: muPC, L = 30", records(runs))
    assert found.status == status
    if not shift and status == "reproduced":
        assert found.observed == "100: 85, 200: 89, 500: 92, 900: 94" and found.interval.endswith("900: 91, 94, 97")


@pytest.mark.parametrize(("accuracy", "status"), [(0.1, "reproduced"), (None, "reproduced"), (0.4, "not_reproduced")])
def test_a_scaled_rate_is_judged_by_its_side(accuracy: float | None, status: str) -> None:
    found = records([run("rates", accuracy, eta=6.8), run("rates", 0.9, eta=0.0015)])
    assert verdict("published: muPC at Adam's rate times", found).status == status
    assert verdict("published: nor at the rate over", found).status == "not_reproduced"


@pytest.mark.parametrize(("accuracy", "status"), [(0.14, "reproduced"), (None, "reproduced"), (0.2, "not_reproduced")])
def test_premultipliers_in_the_forward_pass_only_do_not_train_where_no_rate_of_theirs_learns(
    accuracy: float | None, status: str
) -> None:
    runs = [run("forward_only", 0.1, eta=0.1), run("forward_only", accuracy, eta=0.001), run("rates", 0.9, eta=0.001)]
    assert verdict("published: muPC with premultipliers", records(runs)).status == status
    assert verdict("published: muPC with premultipliers", records(runs[2:])).status == "insufficient"


def test_a_run_that_diverged_is_drawn_as_a_cross_and_with_no_accuracy_that_it_did_not_have() -> None:
    curve = {0: 0.1, 300: 0.6, 420: float("nan")}
    figure = mupc_depth.FIGURES["5.1 right"](records([run("depth", None, curve=curve, iterations=420)]))
    line, cross = figure.axes[0].lines
    assert list(line.get_xdata()) == [0, 300] and list(line.get_ydata()) == pytest.approx([10, 60])
    assert cross.get_marker() == "x" and list(cross.get_xdata()) == [420]
    pyplot().close(figure)


def test_a_run_that_learned_keeps_no_cross() -> None:
    figure = mupc_depth.FIGURES["5.1 right"](records([run("depth", 0.9, curve={0: 0.1, 900: 0.9})]))
    assert len(figure.axes[0].lines) == 1
    pyplot().close(figure)


def test_a_figure_is_left_out_where_none_of_its_runs_is_there_although_all_were_asked_for() -> None:
    asked = records([run("depth", 0.9, curve={0: 0.1, 900: 0.9}), run("long")], missing=1)
    found = {name: draw(asked) for name, draw in mupc_depth.FIGURES.items()}
    assert [name for name, figure in found.items() if figure is not None] == ["5.1 right"]
    pyplot().close("all")
