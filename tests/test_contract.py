"""The import contract holds, and an import that runs upward turns it red."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def checked(folder: Path, *planted: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """The contract's answer on a copy of the package, lines added to some of its files."""
    for name in ("pcexp", "experiments"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for file, line in planted:
        path = folder / file
        path.write_text(f"{path.read_text()}\n{line}\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_package_keeps_its_contract(tmp_path: Path) -> None:
    done = checked(tmp_path)
    assert done.returncode == 0 and " 0 broken" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("pcexp/report/claims.py", "import pcexp.run.sweep", "Rooms stand on floors"),
        ("pcexp/model/activation.py", "import pcexp.learning", "Rooms stand on floors"),
        ("pcexp/model/activation.py", "import pcexp.model.network", "Floors of pcexp.model"),
        ("pcexp/records/cell.py", "def late():\n    import pcexp.records.archive", "Floors of pcexp.records"),
        ("pcexp/energy.py", "import polars", "The numerics know nothing"),
        ("pcexp/run/job.py", "import pcexp.experiments.saddle_escape", "Rooms stand on floors"),
    ],
)  # fmt: skip
def test_an_import_that_runs_upward_turns_the_contract_red(file: str, line: str, contract: str, tmp_path: Path) -> None:
    done = checked(tmp_path, (file, line))
    broken = [said for said in done.stdout.splitlines() if " BROKEN" in said]
    assert done.returncode != 0 and any(said.startswith(contract) for said in broken), done.stdout + done.stderr
