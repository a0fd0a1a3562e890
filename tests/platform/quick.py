"""Quick configurations, composed as the command composes them, and the command itself in another process."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from pcexp.__main__ import main
from pcexp.command_line import CONF
from pcexp.config.composition import Asked, Composed, Composer
from pcexp.config.spec import Spec
from pcexp.records.cell import read_lines
from pcexp.run import sweep
from pcexp.run.session import Datasets

STUDY = "saddle_escape"
QUICK = (
    f"+experiment={STUDY}",
    "scale=smoke",
    "network.activation=linear",
    "network.width=8",
    "network.n_hidden=2",
    "learning=pc",
    "parameterisation=near_origin",
    "parameterisation.sigma=0.05",
    "protocol=corrected",
    "optimiser.learning_rate=0.008",
    "training.batch_size=64",
    "training.epochs=2",
    "training.max_iterations=null",
    "training.stop_improvement=null",
    "training.record_every=2",
    "lanes.seed=[0]",
    "inference.activity_lr=0.1",
    "inference.max_steps=5",
    "inference.max_halvings=0",
)
"""One cell, one lane, 40 iterations; the same shapes everywhere, so that one process compiles them once."""
LONG = ("training.epochs=15", "training.record_every=5", "lanes.seed=[0,1,2]")
"""300 iterations of three lanes: long enough to be cut off in the middle."""
OFTEN = "execution.checkpoint_s=0.0"
"""A checkpoint after each call."""

WITHOUT_REPORT = """
import os, sys, time
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
import pcexp.records.cell, pcexp.run.lanes, pcexp.run.sweep
pcexp.run.sweep._report = lambda *_: None
append, pause, iterations = pcexp.records.cell.Cell.append, float(sys.argv.pop(1)), int(sys.argv.pop(1))
pcexp.run.lanes.Programs.call_size = lambda *_: iterations
pcexp.records.cell.Cell.append = lambda cell, rows: (append(cell, rows), time.sleep(pause))[0]
from pcexp.__main__ import main
main()
"""
"""The command, less its figures (tested elsewhere), in short calls with a pause after each: signals meet it half way."""


PLAIN = re.compile(r"scale=\w+|execution\.outputs=/.*")
"""Overrides that choose no option: what they say is set in what Hydra has composed without them."""
_loaded: dict[tuple[str, ...], DictConfig] = {}


def _remembering(load: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Hydra's `load_configuration`, which composes equal overrides once in a process: a third of a second each time."""

    def load_configuration(name: str, overrides: list[str], **settings: Any) -> DictConfig:
        if any(override.startswith("hydra.searchpath") for override in overrides):
            return load(name, overrides, **settings)  # a folder of the test's own, whose files may change
        rest = tuple(override for override in overrides if not PLAIN.fullmatch(override))
        if rest not in _loaded:
            _loaded[rest] = load(name, list(rest), **settings)
        for override in filter(PLAIN.fullmatch, overrides):
            OmegaConf.update(_loaded[rest], *override.split("=", 1))
        return _loaded[rest]

    return load_configuration


def composer(*overrides: str, base: Sequence[str] = QUICK, folder: Path | None = None) -> Composer:
    """What `python -m pcexp` composes of these overrides; `folder` is its --config-dir."""
    search = [] if folder is None else [f"hydra.searchpath=[file://{folder}]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        loader.load_configuration = _remembering(loader.load_configuration)
        return Composer(loader, [*search, *base, *overrides])


def composed(*overrides: str, base: Sequence[str] = QUICK, folder: Path | None = None) -> dict[str, Any]:
    """The first cell of a command, as a resolved configuration."""
    return composer(*overrides, base=base, folder=folder).asked().cells[0].config


def swept(*overrides: str) -> list[Spec]:
    """All cells of a command."""
    found = composer(*overrides, base=())
    return list(sweep.sweep(found.asked(), found.settings, Datasets()).specs)


def asked(configs: Sequence[Mapping[str, Any]]) -> Asked:
    """These configurations as the study's own cells."""
    cells = [Composed(dict(config), "") for config in configs]
    return Asked(cells, cells, {}, "")


def plans(configs: Sequence[Mapping[str, Any]]) -> list[Spec]:
    """The cells of these configurations, typed and checked."""
    return list(sweep.sweep(asked(configs), configs[0], Datasets()).specs)


def run_all(configs: Sequence[Mapping[str, Any]]) -> int:
    """Run these configurations as one command does; its status."""
    return sweep.run_all(asked(configs), configs[0])


def cell(*overrides: str, base: Sequence[str] = QUICK) -> Spec:
    """The one cell of a configuration."""
    (only,) = plans([composed(*overrides, base=base)])
    return only


def experiment_file(folder: Path, text: str, defaults: str = "[]") -> Path:
    """A --config-dir with the experiment `own`."""
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "own.yaml").write_text(f"# @package _global_\ndefaults: {defaults}\n{text}")
    return folder / "mine"


def changed(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with one dotted key at another value."""
    new = copy.deepcopy(dict(config))
    node: Any = new
    *parents, last = key.split(".")
    for part in parents:
        node = node[part]
    node[last] = value
    return new


def environment(cwd: Path, **more: str) -> dict[str, str]:
    """This process's environment, with nothing of the person who runs the tests in Hydra's way."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "SLURM_"))}
    scratch = cwd.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return plain | {"TMPDIR": str(scratch)} | more


def command(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`python -m pcexp ARGUMENTS`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pcexp", *arguments],
        cwd=cwd, env=environment(cwd, **more), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def refused(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `python -m pcexp ARGUMENTS` says on its end with status 1, in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["pcexp", *arguments])
        patch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, str)  # printed by Python, with status 1 and no traceback
    return ended.value.code


def started(*arguments: str, cwd: Path, pause: float, iterations: int = 20) -> subprocess.Popen[str]:
    """The command without its report, in calls of so many iterations, started and left to run."""
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_REPORT, str(pause), str(iterations), *arguments],
        cwd=cwd, env=environment(cwd), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def cell_folder(outputs: Path) -> Path:
    """The folder of the only cell."""
    (config,) = outputs.glob("*/*/config.json")
    return config.parent


def numbers(outputs: Path) -> dict[str, Any]:
    """All that a run is asked for: of each lane its values, outcome, summary and rows, in the order of iterations."""
    found: dict[str, Any] = {}
    for path in outputs.glob("*/*/lanes.jsonl"):
        rows = list(read_lines(path.parent / "rows.jsonl"))
        for entry in read_lines(path):
            mine = sorted((row for row in rows if row["lane"] == entry["lane"]), key=lambda row: row["iteration"])
            # repr, because NaN is not equal to itself and every other float is written in full.
            found[f"{path.parent.name}/{entry['lane']}"] = (
                repr((entry["values"], entry["outcome"], entry["summary"])),
                [repr({name: value for name, value in row.items() if name != "lane"}) for row in mine],
            )
    return found


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Where two `numbers` differ: lanes that one lacks, summaries, and of each lane the first row."""
    said = [f"{name} is in one only" for name in sorted(found.keys() ^ expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        (summary, rows), (other, others) = found[name], expected[name]
        if len(rows) != len(others):
            said.append(f"{name}: {len(rows)} rows, not {len(others)}")
        pairs = [(row, wanted) for row, wanted in zip(rows, others, strict=False) if row != wanted]
        said += [f"{name}: {len(pairs)} rows, first {row}, not {wanted}" for row, wanted in pairs[:1]]
        if summary != other:
            said.append(f"{name}: {summary}, not {other}")
    return said


def grid(*overrides: str, activations: Sequence[str] = ("linear", "tanh", "relu")) -> list[Spec]:
    """The cells of saddle escape, at the given scale and seeds."""
    chosen = f"network.activation={','.join(activations)}"
    found = composer(*overrides, chosen, base=(f"+experiment={STUDY}",))
    return list(sweep.sweep(found.asked(), found.settings, Datasets()).specs)


def manifest(outputs: Path, scale: str = "smoke") -> dict[str, Any]:
    """Cells asked for at a scale."""
    return json.loads((outputs / STUDY / f"manifest-{scale}.json").read_text())["cells"]


def entries(outputs: Path) -> dict[str, dict[str, Any]]:
    """Records of the finished lanes of the quick cell."""
    return {entry["lane"]: entry for entry in read_lines(cell_folder(outputs) / "lanes.jsonl")}


def column(outputs: Path, name: str) -> dict[tuple[str, int], Any]:
    """Values of a column of the quick cell by lane and iteration; none is there twice."""
    lines = [row for row in read_lines(cell_folder(outputs) / "rows.jsonl") if name in row]
    found = {(row["lane"], row["iteration"]): row[name] for row in lines}
    assert len(found) == len(lines)
    return found
