"""Packs: several lanes in one program, what the test set says on the way, and a memory that does not hold them all."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import polars as pl
import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.records.cell import Cell
from pcexp.records.tables import thinned
from pcexp.run import lanes
from pcexp.run.draw import initial_network
from pcexp.run.job import Job
from pcexp.run.lanes import trained_network
from pcexp.run.session import Session

Run = Callable[..., int]
SEEDS = "lanes.seed=[0,1,2]"


def test_a_pack_that_the_memory_does_not_hold_runs_in_halves_and_says_so(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call, sizes = lanes.Pack.call, []

    def small_memory(pack: Any, data: Any, course: Any, n: int) -> Any:
        if len(pack.lanes) > 2 or (len(pack.lanes) == 2 and pack.iteration >= 20):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")
        sizes.append(len(pack.lanes))
        return call(pack, data, course, n)

    with monkeypatch.context() as patch:
        patch.setattr(lanes.Pack, "call", small_memory)
        assert run("lanes.seed=[0,1,2,3]", "execution.pack_size=4") == 0
    said = capsys.readouterr().out
    assert "4 lanes of" in said
    assert "2 lanes of" in said
    assert "do not fit in memory: in halves" in said
    assert 2 in sizes and 1 in sizes
    assert {entry["outcome"] for entry in quick.entries(outputs).values()} == {"done"}
    losses = quick.column(outputs, "train_error")
    assert run("lanes.seed=[0,1,2,3]", f"execution.outputs={outputs.parent / 'single'}") == 0
    single = quick.column(outputs.parent / "single", "train_error")
    assert losses.keys() == single.keys()
    np.testing.assert_allclose(list(losses.values()), [single[key] for key in losses], rtol=1e-4)


def test_a_pack_that_would_take_more_than_half_of_the_budget_is_halved(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call, sizes = lanes.Pack.call, set()

    def slow(pack: Any, data: Any, course: Any, n: int) -> Any:
        sizes.add(len(pack.lanes))
        rows, _ = call(pack, data, course, n)
        return rows, len(pack.lanes) * 120.0 / 300  # 300 iterations: two minutes a lane

    monkeypatch.setattr(lanes.Pack, "call", slow)
    monkeypatch.setattr(lanes.Programs, "call_size", lambda *_: 20)
    asked = (*quick.LONG, "lanes.seed=[0,1,2,3]", "execution.pack_size=4")
    assert run(*asked, "execution.max_minutes=8.5") == 0
    assert sizes == {4, 2}
    assert "4 lanes would take 7 min 28 s of 8.5 min: in halves" in capsys.readouterr().out


@pytest.mark.parametrize(("pack_size", "most"), [(1, 2), (2, 4)])
def test_only_lanes_that_are_being_advanced_are_in_memory(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch, pack_size: int, most: int
) -> None:
    begin, begun, seen = lanes.Pack.begin, weakref.WeakSet[Any](), []

    def counted(pack: Any) -> Any:
        drawn = begin(pack)
        begun.add(pack)
        seen.append(sum(len(one.lanes) for one in begun))
        return drawn

    monkeypatch.setattr(lanes.Pack, "begin", counted)
    asked = ("lanes.seed=[0,1,2,3,4,5,6,7]", "execution.workers=2", f"execution.pack_size={pack_size}")
    assert run(*quick.LONG[:2], *asked) == 0
    assert len(quick.entries(outputs)) == 8 and max(seen) == most


def test_lanes_that_stand_at_different_iterations_do_not_share_a_pack(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*quick.LONG, quick.OFTEN)
    written, append = [0], Cell.append

    def counted(cell: Cell, new: Any) -> None:
        append(cell, new)
        written[0] += 1

    with monkeypatch.context() as patch:  # one worker, single lanes: some go ahead of others
        patch.setattr(Cell, "append", counted)
        patch.setattr(Session, "stopping", property(lambda _: written[0] >= 4))
        assert run(*asked, "execution.workers=1") == 130
    packs: list[set[int]] = []
    make = lanes.Pack.__init__

    def seen(pack: Any, of: Any, draw: Any, before: Any) -> None:
        packs.append({int(draw(lane).state.iteration) for lane in of})
        make(pack, of, draw, before)

    monkeypatch.setattr(lanes.Pack, "__init__", seen)
    assert run(*asked, "execution.pack_size=3") == 0
    assert len(packs) == 2 and all(len(iterations) == 1 for iterations in packs)
    assert {key[1] for key in quick.column(outputs, "train_error")} == set(range(0, 300, 5))


@pytest.mark.parametrize("extra", [[], ["execution.pack_size=3"]], ids=["single lanes", "one pack"])
def test_accuracies_on_the_way_are_those_of_runs_that_end_there(outputs: Path, run: Run, extra: list[str]) -> None:
    assert run(SEEDS, "training.test_every=15", *extra) == 0
    found = quick.column(outputs, "test_accuracy")
    asked = {(lane, t) for lane in quick.entries(outputs) for t in (0, 15, 30, 40)}
    assert found.keys() == asked
    assert not {
        key for key in quick.column(outputs, "train_error") if key[1] % 2
    }  # rows of a kind have their own turns
    for t in (15, 30, 40):
        elsewhere = outputs.parent / f"until {t}"
        assert run(SEEDS, f"training.max_iterations={t}", f"execution.outputs={elsewhere}") == 0
        for lane, entry in quick.entries(elsewhere).items():
            assert found[lane, t] == pytest.approx(entry["summary"]["test_accuracy"], abs=2e-3)
    assert len({round(value, 6) for value in found.values()}) > 3


def test_accuracies_on_the_way_are_neither_lost_nor_doubled_by_a_stop(
    outputs: Path, run: Run, short_calls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("training.epochs=15", "training.test_every=30")
    assert run(*asked, f"execution.outputs={outputs.parent / 'whole'}") == 0
    written, append = [0], Cell.append

    def counted(cell: Cell, new: Any) -> None:
        append(cell, new)
        written[0] += 1

    for stop_after in (3, 2):
        written[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(Cell, "append", counted)
            patch.setattr(Session, "stopping", property(lambda _, n=stop_after: written[0] >= n))
            assert run(*asked, quick.OFTEN) == 130
    assert run(*asked) == 0
    assert quick.column(outputs, "test_accuracy") == quick.column(outputs.parent / "whole", "test_accuracy")


def test_what_a_study_says_of_initial_and_final_weights_joins_the_summary(
    outputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Job.train

    def moved(initial: Any, final: Any) -> dict[str, Any]:
        return {
            "moved": [
                np.linalg.norm(f.weight - i.weight) for i, f in zip(initial.segments, final.segments, strict=True)
            ]
        }

    with monkeypatch.context() as patch:
        patch.setattr(Job, "train", lambda job, measure, probe_size: train(job, measure, probe_size, at_end=moved))
        assert run("execution.save_networks=true") == 0
    (entry,) = quick.entries(outputs).values()
    spec = quick.cell()
    folder = quick.cell_folder(outputs)
    from pcexp.run.session import Datasets

    fresh = initial_network(spec, spec.lanes[0], Datasets()(spec))
    trained = trained_network(folder, entry["lane"])
    expected = [np.linalg.norm(f.weight - i.weight) for i, f in zip(fresh.segments, trained.segments, strict=True)]
    np.testing.assert_allclose(entry["summary"]["moved"], expected, rtol=1e-6)
    assert min(expected) > 0


def test_float64_is_float64_throughout_and_says_so(outputs: Path, run: Run) -> None:
    assert run("precision=float64", "execution.save_networks=true") == 0
    (entry,) = quick.entries(outputs).values()
    assert entry["provenance"]["jax_enable_x64"] is True
    assert entry["provenance"]["jax_default_matmul_precision"] == "float32"  # never TF32
    with np.load(quick.cell_folder(outputs) / "networks" / f"{entry['lane']}.npz") as archive:
        kinds = {archive[name].dtype for name in archive.files if name != "__about__"}
    assert kinds == {np.dtype("float64")}
    other = outputs.parent / "float32"
    assert run(f"execution.outputs={other}") == 0
    (low,) = quick.entries(other).values()
    assert low["provenance"]["jax_enable_x64"] is False
    assert entry["summary"]["test_loss"] == pytest.approx(low["summary"]["test_loss"], rel=1e-3)
    assert quick.cell_folder(outputs).name != quick.cell_folder(other).name


def test_bfloat16_products_change_the_numbers_a_little_and_the_weights_stay_in_float32(outputs: Path, run: Run) -> None:
    assert run("precision=bfloat16", "execution.save_networks=true") == 0
    (entry,) = quick.entries(outputs).values()
    with np.load(quick.cell_folder(outputs) / "networks" / f"{entry['lane']}.npz") as archive:
        assert {archive[name].dtype for name in archive.files if name != "__about__"} == {np.dtype("float32")}
    other = outputs.parent / "float32"
    assert run(f"execution.outputs={other}") == 0
    (exact,) = quick.entries(other).values()
    assert entry["summary"]["test_loss"] == pytest.approx(exact["summary"]["test_loss"], rel=3e-2)
    assert entry["summary"]["test_loss"] != exact["summary"]["test_loss"]


def test_a_study_that_does_not_train_refuses_bfloat16_before_anything_is_compiled() -> None:
    base = (
        "+experiment=forward_pass",
        "scale=smoke",
        "network.n_hidden=8",
        "network.activation=tanh",
        "protocol=published",
    )
    with pytest.raises(Refused, match="precision=bfloat16: this study takes float32, float64"):
        quick.cell("precision=bfloat16", base=base)


def test_thinning_keeps_every_row_of_the_test_set() -> None:
    losses = [{"cell": "c", "lane": "l", "iteration": t, "loss": 1.0 / (t + 1)} for t in range(500)]
    tests = [{"cell": "c", "lane": "l", "iteration": t, "test_loss": t / 500} for t in range(0, 501, 25)]
    kept = thinned(pl.DataFrame(losses + tests, infer_schema_length=None))
    assert sorted(kept.drop_nulls("test_loss")["iteration"]) == [row["iteration"] for row in tests]
    assert 30 < len(kept.drop_nulls("loss")) <= 60
    assert kept["iteration"].is_sorted()


def test_a_program_for_a_pack_measures_only_when_a_row_is_due() -> None:
    """Under a vmap of the whole loop every condition would be a choice, and all lanes would be measured in all iterations."""
    import optax
    from jax import numpy as jnp

    from pcexp.learning import BP
    from pcexp.model.architecture import FullyConnected
    from pcexp.model.parameterisation import Standard
    from pcexp.train import Training, TrainingSet, advance_pack, initial_state

    calls = []

    def measure(seen: Any) -> dict[str, Any]:
        jax.debug.callback(lambda loss: calls.append(loss), seen.loss)
        return {"loss": seen.loss}

    x, y = jax.random.normal(jax.random.key(0), (32, 6)), jnp.ones((32, 3))
    optimiser = eqx.Partial(optax.sgd, learning_rate=jnp.float32(0.01))
    states = [
        initial_state(
            FullyConnected(5, 2, "tanh").build(Standard(), (6,), 3, key=jax.random.key(i)),
            optimiser,
            key=jax.random.key(i),
        )
        for i in range(3)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *states)
    stacked_optimiser = eqx.Partial(optax.sgd, learning_rate=jnp.full(3, 0.01))
    data = TrainingSet(x, y, x[:8].T, y[:8].T)
    _, found = advance_pack(
        stacked, BP("batch_mean"), stacked_optimiser, data, Training(8, 5, 10), measure, 16, jnp.asarray(20, jnp.int32)
    )
    jax.effects_barrier()
    assert int(found.n_rows) == 2
    assert len(calls) == 2 * 3
