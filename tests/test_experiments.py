"""Every experiment runs at smoke scale, and its claims and figures answer on what it wrote."""

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick

from pcexp.config.composition import Asked, Composer
from pcexp.config.plain import flat
from pcexp.config.spec import SCIENCE
from pcexp.records.tables import Records, read_outputs
from pcexp.report import plotting
from pcexp.report import rendering as report
from pcexp.run import sweep

EXPERIMENTS = sorted(path.stem for path in (quick.CONF / "experiment").glob("*.yaml"))


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_report", lambda *_: None)
    return tmp_path / "outputs"


def star(found: Asked) -> Asked:
    """Few cells in which every value of every axis of every block occurs with all rules, every size with all activations, and not their whole product."""
    values = []
    for one in found.cells:
        leaves = {key: str(value) for key, value in flat({k: v for k, v in one.config.items() if k in SCIENCE})}
        rule, activation = one.config["choices"].get("learning"), one.config["network"].get("activation")
        drawn = {key: activation if key in ("network.width", "network.n_hidden") else None for key in leaves}
        values.append({(one.block, rule, drawn[key], key, value) for key, value in leaves.items()})
    missing, kept = set[tuple[Any, ...]]().union(*values), []
    while missing:
        most = max(range(len(values)), key=lambda i: len(values[i] & missing))
        kept.append(found.cells[most])
        missing -= values[most]
    return Asked(kept, kept, found.blocks, "")


def ran(outputs: Path, composer: Composer, asked: Asked) -> tuple[Any, Records]:
    """The study and the records of these cells, run."""
    assert sweep.run_all(asked, composer.settings) == 0
    (name,) = {path.parent.name for path in outputs.glob("*/manifest-smoke.json")}
    return importlib.import_module(f"pcexp.experiments.{name}"), read_outputs(outputs, name, "smoke")


def check(study: Any, records: Records, n_runs: int, shown: Collection[str]) -> None:
    """Runs are complete, claims answer, all figures are drawn, and these show something."""
    assert len(records.runs) == len(records.asked) == n_runs and records.strays == ()
    assert set(records.runs["outcome"]) <= {"done", "diverged", "no_learning"}
    assert set(records.rows["lane"]) == set(records.runs["lane"])
    done = records.runs.filter(records.runs["outcome"] == "done")
    assert len(done)
    if "test_loss" in done.columns:  # of a study that trains; a part of it may not be tested
        assert np.isfinite(done["test_loss"].drop_nulls().to_numpy()).all()

    judged = report.judge(study, records)
    spoken_of = [claim for group in records.apart() for claim in study.CLAIMS if claim.data in (None, group["data"])]
    assert [claim for _, claim, _ in judged] == spoken_of and spoken_of
    for _, claim, verdict in judged:
        assert verdict.scale == "smoke" and verdict.status in report.STATUS_MARK
        assert claim.figure in study.FIGURES
    for name, make in study.FIGURES.items():
        figure = make(records)
        if name in shown:
            assert any(axis.lines or axis.collections or axis.images or axis.patches for axis in figure.axes)
        assert plotting.rendered(figure, "png").startswith(b"\x89PNG")
        plotting.pyplot().close(figure)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_runs_and_its_claims_and_figures_answer(experiment: str, outputs: Path) -> None:
    composer = quick.composer(base=(f"+experiment={experiment}", "scale=smoke", f"execution.outputs={outputs}"))
    asked = star(composer.asked())
    study, records = ran(outputs, composer, asked)
    check(study, records, n_runs=len(records.asked), shown=study.FIGURES)
    assert set(records.runs["blocks"].str.split(" ").explode()) == {one.block for one in asked.cells}
    assert study.__doc__ and all(make.__doc__ for make in study.FIGURES.values())


def test_saddle_escape_runs_on_images_of_the_users_own_with_convolutions(outputs: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {f"x_{split}": draw.random((n, 8, 8, 3)) for split, n in (("train", 160), ("test", 20))}
    labels = {f"y_{split}": np.arange(n) % 10 for split, n in (("train", 160), ("test", 20))}
    np.savez(tmp_path / "mine.npz", **arrays, **labels)
    chosen = ["network.activation=tanh", "protocol=corrected", "parameterisation=near_origin", "learning=pc"]
    base = ("+experiment=saddle_escape", "scale=smoke", "data=npz", f"data.path={tmp_path / 'mine.npz'}")
    net = ("network=convolutional", "network.channels=[4,4]", "network.widths=[32]", f"execution.outputs={outputs}")
    composer = quick.composer(*chosen, *net, base=base)
    asked = composer.asked()
    study, records = ran(outputs, composer, Asked(asked.cells, asked.cells, asked.blocks, ""))
    check(study, records, n_runs=1, shown=["4.5", "B.5"])
    assert records.runs["network"].unique().to_list() == ["convolutional"]
