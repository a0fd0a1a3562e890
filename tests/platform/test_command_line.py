"""The command as a user meets it: help, plans, sweeps, what it imports and what it leaves behind."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.__main__ import main
from pcexp.records.cell import read_lines
from pcexp.report import rendering as report
from pcexp.run import tracking

Run = Callable[..., int]

IMPORTED = """
import sys
names = sys.argv.pop(1).split(",")
import runpy
try:
    runpy.run_module("pcexp", run_name="__main__", alter_sys=True)
except SystemExit as status:
    print("status", status.code)
print("imported", *[name for name in names if name in sys.modules])
"""

HEAVY = "pyarrow,polars,matplotlib,wandb,tensorflow_datasets,tensorflow,pandas"

OWN_STUDY = '''
"""How far a study outside the repository gets. It gets all the way."""

from matplotlib.figure import Figure

from pcexp.report.claims import Claim, Verdict
from pcexp.config.study import AbstractStudy


class Halving(AbstractStudy):
    """Halves a number, without a network."""

    start: float

    def run(self, job):
        for lane in job.lanes():
            job.cell.append({"lane": lane.name, "iteration": i, "value": self.start / 2**i} for i in range(5))
            job.finish(lane, "done", self.summary(job.cell.rows(lane.name)))

    def summary(self, rows):
        return {"last": float(rows["value"][-1])}


def rule(records):
    last = records.runs["last"].to_list()
    return Verdict("reproduced", str(last), "", "0.5", len(last), records.scale)


def figure(records):
    """Nothing to see."""
    return Figure()


CLAIMS = (Claim("1", "eight halves to a half", rule),)
FIGURES = {"1": figure}
'''


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_help_imports_no_jax(tmp_path: Path) -> None:
    code = [sys.executable, "-c", IMPORTED, f"jax,jaxlib,numpy,equinox,optax,sklearn,{HEAVY}", "--help"]
    done = subprocess.run(
        code, cwd=tmp_path, env=quick.environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert "python -m pcexp +experiment=NAME" in done.stdout
    assert "experiment: " in done.stdout and "saddle_escape" in done.stdout and "data: " in done.stdout
    assert done.stdout.rstrip().endswith("imported"), done.stdout[-200:]
    assert everything(tmp_path) == []


@pytest.mark.parametrize("name", ["experiments", "data"])
def test_a_folder_of_the_users_own_shadows_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the folder of the user')")
    done = quick.command(*quick.QUICK, "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0 and "1 lanes, 1 to run" in done.stdout, done.stderr


def test_the_settings_that_help_names_exist() -> None:
    text = (quick.CONF / "config.yaml").read_text()
    help_text = text[text.index("template:") : text.index("== Options ==")]
    config = quick.composed()
    for line in help_text.splitlines():
        key = line.split("=")[0].strip()
        if "=" in line and " " not in key and key and not key.startswith(("-", "python")):
            node: Any = config
            for part in key.split("."):
                assert part in node, key
                node = node[part]


def test_a_dry_run_prints_the_grid_and_its_cost_and_writes_nothing(tmp_path: Path) -> None:
    base = [override for override in quick.QUICK if not override.startswith(("learning", "network.activation"))]
    arguments = (*base, "learning=pc,bp", "network.activation=linear,tanh", "lanes.seed=[0,1,2]", "dry_run=true")
    done = quick.command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *cells = done.stdout.splitlines()
    assert "4 cells, 12 lanes, 12 to run" in first and "scale smoke" in first and "about" in first and "GB" in first
    assert len(cells) == 4
    assert all("3 lanes" in line and "TFLOP" in line for line in cells)
    said = " ".join(cells)
    assert all(axis in said for axis in ("network.activation=tanh", "network.activation=linear"))
    assert "bp" in said.lower() and "pc" in said.lower()
    assert "network.width" not in said  # what all cells share is not repeated
    assert everything(tmp_path) == []


def test_several_experiments_of_one_command_each_have_a_grid_and_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", f"+experiment={quick.STUDY},forward_pass", "scale=smoke", "dry_run=true"]
    monkeypatch.setattr(sys, "argv", ["pcexp", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    heads = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("outputs/")]
    alone = {name: len(quick.swept(f"+experiment={name}", "scale=smoke")) for name in (quick.STUDY, "forward_pass")}
    assert heads == [f"outputs/{name} at scale smoke: {n} cells" for name, n in alone.items()]


def test_the_estimate_grows_with_the_work_and_counts_only_what_is_missing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def estimated(*overrides: str) -> float:
        assert run("dry_run=true", *overrides) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "TFLOP" in line]
        return float(line.split("lanes, ")[1].split(" TFLOP")[0])

    wide = ("network.width=2048", "training.epochs=10")
    one = estimated(*wide)
    assert estimated(*wide, "lanes.seed=[0,1,2]") == pytest.approx(3 * one, rel=0.01)
    assert estimated("network.width=2048", "training.epochs=20") == pytest.approx(2 * one, rel=0.01)
    assert estimated(*wide, "inference.max_steps=50") > 5 * one
    assert run() == 0
    capsys.readouterr()
    assert run("dry_run=true", "lanes.seed=[0,1]") == 0
    assert "1 cells, 2 lanes, 1 to run" in capsys.readouterr().out


def test_a_sweep_on_the_command_line_runs_all_cells_and_leaves_records_claims_figures_and_a_page(
    tmp_path: Path,
) -> None:
    base = [override for override in quick.QUICK if not override.startswith("learning=")]
    done = quick.command(*base, "learning=pc,bp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outputs = tmp_path / "outputs"
    cells = list((outputs / quick.STUDY).glob("*/DONE"))
    assert len(cells) == 2
    assert {json.loads((c.parent / "config.json").read_text())["labels"]["learning"] for c in cells} == {"pc", "bp"}
    assert "0 to run" not in done.stdout and "claim" in done.stdout
    folder = outputs / "report" / quick.STUDY / "smoke"
    assert (folder / "claims.csv").exists() and (outputs / "report" / "index.html").exists()
    study = importlib.import_module(f"pcexp.experiments.{quick.STUDY}")
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.pdf"))) == len(study.FIGURES)
    assert {path.relative_to(tmp_path).parts[0] for path in everything(tmp_path)} == {"outputs"}


def test_a_run_needs_neither_tables_nor_figures_nor_a_tracker_until_it_has_ended(tmp_path: Path) -> None:
    """Stopped by its budget, a command has run all but the report."""
    code = [sys.executable, "-c", IMPORTED, f"jax,{HEAVY}", *quick.QUICK, *quick.LONG, "execution.max_minutes=0.0001"]
    done = subprocess.run(
        code, cwd=tmp_path, env=quick.environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert "status 130" in done.stdout, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "imported jax"


def test_a_study_outside_the_repository_runs_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "halving.py").write_text(OWN_STUDY)
    text = "study: {_target_: halving.Halving, start: 8.0}\ngrid: [{block: all, lanes: {seed: [0, 1]}}]\n"
    folder = quick.experiment_file(tmp_path, text)
    arguments = ("--config-dir", str(folder), "+experiment=own", "scale=smoke")
    refused = quick.command(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path / "lab"))
    assert refused.returncode == 1 and "study._target_" in refused.stderr and "execution.targets" in refused.stderr
    assert not (tmp_path / "outputs").exists()

    done = quick.command(*arguments, "execution.targets=[halving.]", cwd=tmp_path, PYTHONPATH=str(tmp_path / "lab"))
    assert done.returncode == 0, done.stderr
    (lanes,) = (tmp_path / "outputs" / "halving").glob("*/lanes.jsonl")
    assert [entry["summary"] for entry in read_lines(lanes)] == [{"last": 0.5}, {"last": 0.5}]
    assert "eight halves to a half" in done.stdout and "1 reproduced" in done.stdout
    (claims,) = (tmp_path / "outputs" / "report").rglob("claims.csv")
    assert "eight halves to a half,reproduced" in claims.read_text()

    claims.unlink()  # and later, on its own
    monkeypatch.syspath_prepend(tmp_path / "lab")
    report.main(["halving", "--outputs", str(tmp_path / "outputs")])
    assert "eight halves to a half,reproduced" in claims.read_text()


def test_a_run_is_mirrored_to_an_offline_tracker_and_its_own_records_are_the_same(
    outputs: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    assert run("tracker=wandb", f"tracker.directory={tmp_path / 'mirror'}") == 0
    (lane,) = quick.cell().lanes
    identity = tracking.run_id(quick.STUDY, quick.cell().cell, lane.name)
    (segment,) = (tmp_path / "mirror" / "wandb").glob(f"offline-run-*-{identity}*")
    assert list(segment.glob("*.wandb")) and (segment / "logged-to-38").exists()
    mirrored = quick.numbers(outputs)
    plain = tmp_path / "plain"
    assert quick.run_all([quick.composed(f"execution.outputs={plain}")]) == 0
    assert quick.numbers(plain) == mirrored
