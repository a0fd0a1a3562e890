"""What is built of the project carries all of it: a wheel from a checkout, and one from a source distribution."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("pcexp", "experiments", "conf", "hydra_plugins", "pyproject.toml", "README.md", "LICENSE")


def built(kind: str, folder: Path, to: Path) -> Path:
    """A distribution of the project in a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(to)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    (path,) = to.iterdir()
    return path


@pytest.mark.parametrize("through_source", [False, True], ids=["checkout", "source distribution"])
def test_a_wheel_has_every_module_and_every_configuration(through_source: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in PARTS:
        there = ROOT / name
        if there.is_dir():
            shutil.copytree(there, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(there, folder)
    if through_source:
        shutil.unpack_archive(built("sdist", folder, tmp_path / "source"), tmp_path / "unpacked", filter="data")
        (folder,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(built("wheel", folder, tmp_path / "wheel")) as wheel:
        names = wheel.namelist()
    assert len(names) == len(set(names))
    places = {
        "pcexp": "pcexp",
        "experiments": "pcexp/experiments",
        "conf": "pcexp/conf",
        "hydra_plugins": "hydra_plugins",
    }
    for source, place in places.items():
        files = [
            path for path in (ROOT / source).rglob("*") if path.suffix in (".py", ".yaml", ".typed", ".npz", ".csv")
        ]
        wanted = {f"{place}/{path.relative_to(ROOT / source)}" for path in files}
        assert wanted and wanted <= set(names), sorted(wanted - set(names))[:5]
