"""Matrix completion: descents against loops written by hand, and starts where BP is at a saddle."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.data import PublishedMatrix
from pcexp.experiments import matrix_completion
from pcexp.experiments.matrix_completion import descent
from pcexp.learning import BP
from pcexp.model.architecture import FullyConnected
from pcexp.model.network import Network
from pcexp.model.parameterisation import NearOrigin
from pcexp.records.tables import read_outputs
from pcexp.run import sweep
from pcexp.run.draw import training_set
from pcexp.train import Training, TrainState, advance, initial_state

BASE = ("+experiment=matrix_completion", "scale=smoke")
ETA, LEVELS = 0.0005, (2.0, 1.5, 0.5)


def network() -> Network:
    return FullyConnected(width=8, n_hidden=1, activation="tanh").build(
        NearOrigin(0.1), (10,), 10, key=jax.random.key(1)
    )


CALL = 20_000


def descended(masked: bool, limit: int = 400, eta: float = ETA, call: int = CALL) -> tuple[TrainState, list[Any]]:
    """The training loop on the published matrix, past LEVELS."""
    optimiser = eqx.Partial(optax.sgd, learning_rate=jnp.asarray(eta))
    rule = BP("batch_sum") if masked else descent.WholeTargets(BP("batch_sum"))
    events, training = descent.levels_above(list(LEVELS), 3), Training(10, limit, 1)
    at = initial_state(network(), optimiser, events=events, key=jax.random.key(0))
    data, found = training_set(PublishedMatrix().load(), network(), 10), []
    while not bool(at.stopped):
        at, rows = advance(at, rule, optimiser, data, training, descent.measure, 64, jnp.asarray(call, jnp.int32))
        columns = {name: np.asarray(values) for name, values in rows.values.items()}
        found += [{name: values[i] for name, values in columns.items()} for i in range(int(rows.n_rows))]
    return at, found


def by_hand(masked: bool, n: int) -> tuple[list[float], list[float], list[list[np.ndarray]]]:
    """Published losses, gradient norms and weights of n iterations of W2 tanh(W1 x), in numpy."""
    train = PublishedMatrix().load().train
    assert train.mask is not None
    x, y, mask = (np.asarray(array.T, np.float64) for array in (train.x, train.y, train.mask))
    ws = [np.asarray(segment.weight[0], np.float64) for segment in network().segments]
    losses, norms, weights = [], [], []
    for _ in range(n):
        z = np.tanh(ws[0] @ x)
        error = y - ws[1] @ z
        losses.append(float(np.mean((mask * error) ** 2)))
        error = mask * error if masked else error
        gradient = [-((ws[1].T @ error) * (1 - z**2)) @ x.T, -error @ z.T]
        norms.append(float(np.sqrt(sum(np.sum(g**2) for g in gradient)) / 10))
        weights.append(ws)
        ws = [w - ETA * g for w, g in zip(ws, gradient, strict=True)]
    return losses, norms, weights


@pytest.mark.parametrize("masked", [True, False])
def test_a_descent_takes_the_steps_of_a_loop_written_by_hand_and_passes_levels_where_that_does(masked: bool) -> None:
    at, rows = descended(masked)
    losses, norms, weights = by_hand(masked, int(at.iteration) + 1)
    for row in rows:
        t = int(row["iteration"])
        assert float(row["loss"]) == pytest.approx(losses[t], rel=1e-3)
        assert float(row["gradient_norm"]) == pytest.approx(norms[t], rel=1e-3)
        assert int(row["passed"]) == sum(losses[t] < level for level in LEVELS)
    firsts = [next(t for t, found in enumerate(losses) if found < level) for level in LEVELS]
    assert len(set(firsts)) == 3 and len(rows) < int(at.iteration) / 2
    assert [next(int(r["iteration"]) for r in rows if r["passed"] >= k) for k in (1, 2, 3)] == firsts
    assert int(at.iteration) == firsts[-1]
    for segment, w in zip(at.network.segments, weights[-1], strict=True):
        np.testing.assert_allclose(segment.weight[0], w, rtol=1e-3, atol=1e-5)  # no update after the end
    starts = [0, *(int(row["iteration"]) + 1 for row in rows[:-1])]
    for row, first in zip(rows, starts, strict=True):
        least = min(norms[first : int(row["iteration"]) + 1])
        assert float(row["least_gradient_norm"]) == pytest.approx(least, rel=1e-3)


def test_shorter_calls_record_the_same_rows() -> None:
    assert repr(descended(True, call=7)[1]) == repr(descended(True)[1])


def test_a_descent_ends_at_its_limit_or_where_it_is_no_longer_finite() -> None:
    at, rows = descended(True, limit=9)
    assert isinstance(at.events, descent.Levels)
    assert int(at.iteration) == int(rows[-1]["iteration"]) == 9 and int(at.events.passed) < 3
    at, rows = descended(True, eta=1e4)
    assert bool(at.diverged) and int(at.iteration) < 400
    assert not np.isfinite([rows[-1]["loss"], rows[-1]["gradient_norm"]]).all()


def test_the_rank_of_the_map_counts_singular_values_above_a_tenth_of_the_targets_largest() -> None:
    at, rows = descended(True)
    train = PublishedMatrix().load().train
    singular = np.linalg.svd(by_hand_outputs(at.network, train.x.T))[1]
    assert rows[-1]["singular_value"] == pytest.approx(singular[:4], rel=1e-3)
    assert float(rows[-1]["rank_threshold"]) == pytest.approx(np.linalg.svd(train.x)[1][0] / 10, rel=1e-5)
    assert int(rows[-1]["map_rank"]) == np.sum(singular > np.linalg.svd(train.x)[1][0] / 10) > 0


def by_hand_outputs(net: Network, x: np.ndarray) -> np.ndarray:
    first, last = (np.asarray(segment.weight[0]) for segment in net.segments)
    return last @ np.tanh(first @ x)


def test_pc_starts_at_the_weights_at_which_bp_visits_the_saddle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_report", lambda *_: None)
    base = (*BASE, f"execution.outputs={tmp_path}", "protocol=corrected", "network.activation=tanh",
            "optimiser.learning_rate=0.01", "study.bp_learning_rate=0.01")  # fmt: skip
    jobs = (
        ["learning=bp"],
        ["learning=pc", "study.start=1"],
        ["learning=pc", "study.start=1", "study.bp_iterations=1"],
    )
    assert quick.run_all([quick.composed(*job, base=base) for job in jobs]) == 0
    records = read_outputs(tmp_path, "matrix_completion", "smoke")
    runs = {(r["learning"], r["config.study.bp_iterations"]): r for r in records.runs.iter_rows(named=True)}
    bp, pc, lost = runs["bp", 4000], runs["pc", 4000], runs["pc", 1]
    crossed = records.lane(bp["cell"], bp["lane"]).filter(pl.col("passed") >= 1).row(0, named=True)
    first = records.lane(pc["cell"], pc["lane"]).row(0, named=True)
    assert pc["visited_at"] == crossed["iteration"] == bp["iterations_0"] > 0
    assert first["iteration"] == 0 and first["loss"] == crossed["loss"] < 1.2  # to the last bit
    assert first["singular_value_1"] == crossed["singular_value_1"]
    assert (lost["visited_at"], lost["iterations"], lost["ended"]) == (-1, 0, False)


def study(*overrides: str) -> matrix_completion.MatrixCompletion:
    found = quick.cell("learning=pc", "protocol=corrected", *overrides, base=BASE).study
    assert isinstance(found, matrix_completion.MatrixCompletion)
    return found


def test_protocols_differ_in_the_mask_of_pc_and_the_scale_of_bp() -> None:
    cells = {
        (rule, protocol): quick.cell(f"learning={rule}", f"protocol={protocol}", base=BASE)
        for rule in ("pc", "bp")
        for protocol in ("published", "corrected")
    }
    masks = {key: cell.science["study"]["mask_targets"] for key, cell in cells.items()}
    assert [key for key, masked in masks.items() if not masked] == [("pc", "published")]
    scales = {key: cell.science["learning"]["gradient_scale"] for key, cell in cells.items()}
    assert [key for key, scale in scales.items() if scale != "batch_sum"] == [("bp", "published")]


def test_bp_starts_at_the_origin_alone() -> None:
    cells = quick.swept("+experiment=matrix_completion", "scale=smoke")
    starts = {(spec.labels["learning"], spec.science["study"]["start"]) for spec in cells}
    assert starts == {("pc", 0), ("pc", 1), ("pc", 2), ("bp", 0)}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("study.start=3", "start=3"),
        ("study.levels=[1.0,2.0]", r"levels=\[1.0, 2.0\]"),
        ("training.stop_error=null", "training.stop_error"),
        ("training.stop_error=0.5", "training.stop_error=0.5"),
        ("data=digits", "data=published_matrix"),
        ("training.batch_size=5", "training.batch_size=5"),
    ],
)
def test_what_this_study_cannot_run_is_refused(override: str, named: str, tmp_path: Path) -> None:
    base = (*BASE, f"execution.outputs={tmp_path}", "learning=pc", "protocol=corrected")
    with pytest.raises(Refused, match=named):
        quick.run_all([quick.composed(override, base=base)])


def rows(passed: list[int], loss: list[float], **more: Any) -> dict[str, np.ndarray]:
    n = len(passed)
    found = {
        "iteration": 10 * np.arange(n), "passed": np.array(passed), "loss": np.array(loss), "hidden_loss": np.ones(n),
        "gradient_norm": np.ones(n), "least_gradient_norm": np.ones(n), "map_rank": np.array(passed),
        "rank_threshold": np.full(n, 1.5), "end": np.full(n, 0.01), "visited_at": np.zeros(n),
    }  # fmt: skip
    return found | {name: np.asarray(value) for name, value in more.items()}


def test_a_saddle_lasts_from_the_level_above_it_to_its_own_and_its_plateau_half_the_way() -> None:
    # Levels of linear networks: 1.1, 0.15, 0.01. Half-way from 1.1 to 0.15 is 0.41, from 3.4 to 1.1 is 1.9.
    least = np.array([9.0, 5.0, 0.1, 4.0, 3.0, 0.2, 8.0])
    found = study("network.activation=linear").summary(
        rows(
            [0, 0, 0, 1, 1, 1, 2],
            [3.4, 3.3, 1.5, 1.0, 0.5, 0.3, 0.1],
            least_gradient_norm=least,
            gradient_norm=least + 1,
        )
    )
    assert (found["iterations_0"], found["iterations_1"], found["iterations_2"]) == (30, 30, 0)
    assert (found["left_0"], found["left_1"], found["left_2"], found["ended"]) == (True, True, False, False)
    assert (found["norm_0"], found["norm_1"]) == (5.0, 3.0)  # the rows at 1.5 and 0.3 are below half-way
    assert (found["rank_at_1"], found["rank_after_1"]) == (1, 2)


def test_a_run_that_starts_from_a_saddle_has_not_been_at_those_before() -> None:
    found = study("network.activation=linear", "study.start=1").summary(rows([1, 1, 2, 3], [1.09, 1.0, 0.1, 0.009]))
    assert "iterations_0" not in found
    assert (found["iterations_1"], found["iterations_2"], found["ended"]) == (20, 10, True)
