"""The README's example of a study is complete: written down as it stands there, it runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import quick

ROOT = quick.CONF.parent


def test_the_study_of_the_readme_runs_and_is_judged_and_drawn(tmp_path: Path) -> None:
    for part in ("pcexp", "conf", "experiments", "hydra_plugins"):
        shutil.copytree(ROOT / part, tmp_path / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "README.md").read_text().split("## Adding a study")[1].split("\n## ")[0]
    written = dict(re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", section, re.DOTALL))
    assert sorted(written) == ["conf/experiment/first_epochs.yaml", "experiments/first_epochs.py"]
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    (command,) = re.findall(r"`(python -m pcexp \+experiment=first_epochs)`", section)
    done = subprocess.run(
        [sys.executable, *command.split()[1:], "scale=smoke"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PCEXP_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "BP has the lower test loss after the first epochs" in done.stdout
    assert "2 lanes, 2 to run" in done.stdout
    assert list((tmp_path / "outputs").rglob("fig_1_digits.png"))


COMMANDS = sorted(
    set(
        re.findall(
            r"^python -m pcexp (\+experiment=[^#\n]*?)\s*(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE
        )
    )
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_asks_for_cells(command: str) -> None:
    first, *others = command.split()
    assert quick.composer(*others, base=(first,)).asked().cells


def test_every_study_is_in_the_readmes_table() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {path.stem for path in (quick.CONF / "experiment").glob("*.yaml")} <= rows
