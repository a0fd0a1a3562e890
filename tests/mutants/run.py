"""Plants known defects in copies of the package, one at a time in each, and expects the tests to fail.

    python tests/mutants/run.py                    all of them
    python tests/mutants/run.py halving manifest   those whose name contains one of the words
    python tests/mutants/run.py --list             their names
    python tests/mutants/run.py --workers 8        so many at once (default: a worker a core)

A defect is killed when a named test fails by its assertion. One that survives, that no longer applies, or that crashes a
test instead makes the exit status 1. The working tree is never touched.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from defects import DEFECTS, Defect

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("pcexp", "conf", "experiments", "hydra_plugins", "pyproject.toml"),
    *(
        "tests/conftest.py",
        "tests/test_origin_hessian.py",
        "tests/data",
        "tests/numerics",
        "tests/platform",
        "tests/theory",
    ),
)
TESTS_FAILED, NO_TESTS = 1, 5  # pytest's exit status; anything above the first says that no test ran


class Outcome(NamedTuple):
    """What became of a defect: `killed`, `SURVIVED` or `BROKEN`, by which test or why, and how long it took."""

    verdict: str
    by: str
    seconds: float


def copy_of_the_project(folder: Path) -> Path:
    """The files under test, in a folder of their own."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Imports from the copy only, and nothing compiled twice."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))),
        # Files change within the second that a cached bytecode's time stamp resolves.
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "500",  # pytest leaves out why a test failed where the line is full
    }


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the copy as its working directory."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def tested(folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The named tests, up to the first that fails."""
    return python(folder, "-m", "pytest", "-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *tests)


def outcome(folder: Path, defect: Defect) -> Outcome:
    """Plant a defect, run its tests, take it out again."""
    path, start = folder / "pcexp" / defect.file, time.monotonic()
    sound = path.read_text()
    n_matches = sound.count(defect.sound)
    if n_matches != 1:
        return Outcome("BROKEN", f"its text occurs {n_matches} times in pcexp/{defect.file}", 0.0)
    path.write_text(sound.replace(defect.sound, defect.planted))
    try:
        result = tested(folder, defect.tests)
    finally:
        path.write_text(sound)
    seconds = time.monotonic() - start
    failed = re.search(
        r"^FAILED (?:\S*/)?(\S+?\.py::.*?) - (AssertionError|assert |Failed: )", result.stdout, re.MULTILINE
    )
    if result.returncode == TESTS_FAILED and failed:
        return Outcome("killed", failed.group(1), seconds)
    if result.returncode == 0:
        return Outcome("SURVIVED", " ".join(defect.tests), seconds)
    return Outcome("BROKEN", "\n".join((result.stdout + result.stderr).splitlines()[-12:]), seconds)


def main() -> int:
    """Exit status: 0 if every defect was killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", default=[""], help="only defects whose name contains one of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="defects tried at once")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    arguments = parser.parse_args()
    chosen = [defect for defect in DEFECTS if any(word in defect.name for word in arguments.words)]
    if arguments.list or not chosen:
        print("\n".join(defect.name for defect in DEFECTS))
        return 0 if chosen else 2

    with tempfile.TemporaryDirectory(prefix="pcexp-mutants-") as name:
        n = min(arguments.workers, len(chosen))
        copies = [copy_of_the_project(Path(name) / str(i)) for i in range(n)]
        where = python(copies[0], "-c", "import pcexp; print(pcexp.__file__)").stdout.strip()
        if Path(where).parent != copies[0] / "pcexp":
            print(f"the tests would import {where or 'nothing'}, not the copy in {copies[0]}")
            return 2
        # A test that fails anyway kills nothing.
        tests, start = list(dict.fromkeys(test for defect in chosen for test in defect.tests)), time.monotonic()
        with ThreadPoolExecutor(n) as pool:
            for sound in pool.map(tested, copies, (tuple(tests[i::n]) for i in range(min(n, len(tests))))):
                if sound.returncode not in (0, NO_TESTS):
                    print(sound.stdout + sound.stderr)
                    return 2
            print(f"without a defect: {len(tests)} selections in {time.monotonic() - start:.0f} s", flush=True)
            free, width, lost = SimpleQueue[Path](), max(len(defect.name) for defect in chosen), 0
            for folder in copies:
                free.put(folder)

            def planted(defect: Defect) -> tuple[Defect, Outcome]:
                folder = free.get()
                try:
                    return defect, outcome(folder, defect)
                finally:
                    free.put(folder)

            for one in as_completed([pool.submit(planted, defect) for defect in chosen]):
                defect, (verdict, by, seconds) = one.result()
                lost += verdict != "killed"
                print(f"{defect.name:{width}}  {verdict:8}  {seconds:4.0f} s  {by}", flush=True)
    print(f"{len(chosen) - lost} of {len(chosen)} defects killed in {time.monotonic() - start:.0f} s")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
