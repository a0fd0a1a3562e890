"""What only a part of the platform needs may be missing: everything imports and runs, and who needs it is told what to install."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.data import DataError, Digits, Mnist1D, copies
from pcexp.data.prepare import pack_tiny_imagenet

PARTS = {
    "tracking": ["wandb"],
    "images": ["tensorflow_datasets", "array_record", "importlib_resources"],
    "bundled": ["sklearn", "mnist1d"],
}
"""Modules of each extra that the platform itself does without."""

BARE = f"""
import sys, importlib, pkgutil, runpy
sys.modules |= dict.fromkeys({[name for names in PARTS.values() for name in names]})
import pcexp, hydra_plugins
for module in pkgutil.walk_packages(pcexp.__path__, "pcexp."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
runpy.run_module("pcexp", run_name="__main__", alter_sys=True)
"""


def test_without_any_extra_every_module_imports_and_a_study_runs_on_a_generated_task(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, *quick.QUICK, "data=linear_regression"],
        cwd=tmp_path, env=quick.environment(tmp_path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / quick.STUDY).glob("*/DONE"))) == 1


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("sklearn.datasets", "bundled", Digits(test_fraction=0.2, validation_fraction=0.1, split_seed=0, limit=1).load),
        ("mnist1d.data", "bundled", Mnist1D(validation_fraction=0.1, split_seed=0, limit=1).load),
        ("tensorflow_datasets", "images", lambda: copies.decode(copies.Copy("mnist", "1.0.0", Path(), {"train": 1}), test_split="train")),
        ("tensorflow_datasets", "images", lambda: pack_tiny_imagenet(Path())),
    ],
)  # fmt: skip
def test_who_needs_a_part_that_is_missing_is_told_how_to_install_it(
    module: str, extra: str, use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{module} is not installed: run `pip install 'pcexp\[{extra}\]'`"):
        use()


def test_the_lock_has_every_extra_that_a_run_may_use() -> None:
    root = quick.CONF.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert PARTS.keys() <= extras.keys()
    locked = (root / "requirements" / "cpu.txt").read_text()
    for requirement in [requirement for part in PARTS for requirement in extras[part]]:
        assert f"\n{requirement.partition('>')[0].replace('_', '-')}==" in locked
