"""Every experiment runs at smoke scale, and its claims and figures answer on what it wrote."""

import importlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick

from pcexp.config.spec import spec
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


def star(axes: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Jobs in which every option of every axis occurs, each with all learning rules, and not their whole product."""
    rules = axes.get("learning", [])
    others = {axis: options for axis, options in axes.items() if axis != "learning"}
    first = {axis: options[0] for axis, options in others.items()}
    points = [first, *({**first, axis: option} for axis, options in others.items() for option in options[1:])]
    with_rule = itertools.product(points, [[f"learning={rule}"] for rule in rules] or [[]])
    return [[*(f"{axis}={option}" for axis, option in point.items()), *rule] for point, rule in with_rule]


def composed(outputs: Path, jobs: Sequence[Sequence[str]], *base: str) -> list[Mapping[str, Any]]:
    """Configurations of these jobs at smoke scale."""
    base = (*base, "scale=smoke", f"execution.outputs={outputs}")
    return [quick.composed(*job, base=base) for job in jobs]


def cells(configs: Sequence[Mapping[str, Any]]) -> int:
    """How many of these jobs are cells: a study of several parts has no use for some corners."""
    specs = [spec(config) for config in configs]
    return sum(one.study.part(one.labels) is not None for one in specs)


def ran(outputs: Path, configs: Sequence[Mapping[str, Any]]) -> tuple[Any, Records]:
    """The study and the records of these jobs, run."""
    assert sweep.run_all(configs) == 0
    name = sweep.plans(configs)[0].name
    return importlib.import_module(f"experiments.{name}"), read_outputs(outputs, name, "smoke")


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
    spoken_of = [claim for group in records.groups() for claim in study.CLAIMS if claim.data in (None, group["data"])]
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
    jobs = star(quick.axes(f"+experiment={experiment}", "scale=smoke"))
    configs = composed(outputs, jobs, f"+experiment={experiment}")
    study, records = ran(outputs, configs)
    check(study, records, n_runs=len(records.asked), shown=study.FIGURES)
    assert len(set(records.runs["cell"])) == cells(configs) >= len(jobs) // 2
    assert study.__doc__ and all(make.__doc__ for make in study.FIGURES.values())


def test_saddle_escape_runs_on_images_of_the_users_own_with_convolutions(outputs: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {f"x_{split}": draw.random((n, 8, 8, 3)) for split, n in (("train", 160), ("test", 20))}
    labels = {f"y_{split}": np.arange(n) % 10 for split, n in (("train", 160), ("test", 20))}
    np.savez(tmp_path / "mine.npz", **arrays, **labels)
    chosen = ["network.activation=tanh", "protocol=corrected", "parameterisation=near_origin", "learning=pc"]
    base = ("+experiment=saddle_escape", "data=npz", f"data.path={tmp_path / 'mine.npz'}", "network=saddle_conv")
    study, records = ran(outputs, composed(outputs, [[*chosen, "network.channels=[4,4]"]], *base))
    check(study, records, n_runs=1, shown=["4.5", "B.5"])
    assert records.runs["network"].unique().to_list() == ["saddle_conv"]
