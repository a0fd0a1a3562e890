"""Where a number comes from, held against git itself, /proc and the interpreter."""

import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys

import jax
import pytest

from pcexp.run import provenance as module
from pcexp.run.provenance import checkout, cores, cpu_quota, other_than, peak_memory_bytes, provenance


def git(folder: pathlib.Path, *arguments: str) -> str:
    names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    nowhere = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env={**plain, **names, **nowhere}, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkout with one commit of pcexp/provenance.py, conf/a.yaml and results/claims.csv."""
    folder = tmp_path / "checkout"
    for name in ("pcexp/provenance.py", "conf/a.yaml", "results/claims.csv"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("1\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


def test_the_commit_is_the_one_that_git_names(repository: pathlib.Path) -> None:
    assert checkout(repository / "pcexp/provenance.py") == (git(repository, "rev-parse", "HEAD").strip(), False)


@pytest.mark.parametrize("name", ["conf/a.yaml", "pcexp/provenance.py"])
def test_a_changed_tracked_file_makes_it_dirty_staged_or_not(repository: pathlib.Path, name: str) -> None:
    commit, _ = checkout(repository / "pcexp/provenance.py")
    (repository / name).write_text("2\n")
    assert checkout(repository / "pcexp/provenance.py") == (commit, True)
    git(repository, "add", ".")
    assert checkout(repository / "pcexp/provenance.py") == (commit, True)


def test_untracked_files_and_committed_results_do_not_make_it_dirty(repository: pathlib.Path) -> None:
    (repository / "notes.txt").write_text("2\n")
    (repository / "results/claims.csv").write_text("2\n")
    assert checkout(repository / "pcexp/provenance.py")[1] is False


def test_a_study_that_is_in_no_commit_makes_it_dirty(repository: pathlib.Path) -> None:
    (repository / "conf/untracked.yaml").write_text("2\n")
    assert checkout(repository / "pcexp/provenance.py")[1] is True


def test_outside_a_checkout_the_commit_is_unknown_and_not_called_clean(tmp_path: pathlib.Path) -> None:
    (tmp_path / "provenance.py").touch()
    assert checkout(tmp_path / "provenance.py") == ("unknown", True)


def test_before_the_first_commit_the_commit_is_unknown(tmp_path: pathlib.Path) -> None:
    (tmp_path / "provenance.py").touch()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    assert checkout(tmp_path / "provenance.py") == ("unknown", True)


def test_a_package_installed_inside_another_checkout_does_not_take_its_commit(repository: pathlib.Path) -> None:
    installed = repository / ".venv/lib/pcexp/provenance.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert checkout(installed) == ("unknown", True)


def test_a_git_hook_does_not_lead_to_the_wrong_repository(
    repository: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere/index"))
    assert checkout(repository / "pcexp/provenance.py")[0] == git(repository, "rev-parse", "HEAD").strip()


def test_a_machine_without_git_is_no_error(repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert checkout(repository / "pcexp/provenance.py") == ("unknown", True)


def test_versions_and_devices_are_those_of_this_process() -> None:
    record = provenance()
    assert record["python_version"] == platform.python_version()
    assert record["jax_version"] == jax.__version__
    assert record["optax_version"] == importlib.metadata.version("optax")
    assert (record["device_platform"], record["device_count"]) == (jax.default_backend(), jax.device_count())
    assert record["cpu_count"] == int(subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout)


QUOTAS = {
    "version 2": ("0::/job", {"job/cpu.max": "250000 100000"}, 2.5),
    "version 2, of a parent": ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
    "version 2, its own root": ("0::/", {"cpu.max": "400000 100000\n"}, 4.0),
    "version 1": (
        "3:cpuacct,cpu:/job",
        {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "50000"},
        3.0,
    ),
    "version 1 in a container": (
        "1:cpu:/gone",
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
        1.0,
    ),
    "no quota": ("0::/job\n1:cpu:/job", {"job/cpu.max": "max 100000", "cpu/cpu.cfs_quota_us": "-1"}, math.inf),
    "nonsense": ("x\n0:/\n0::/../..", {"cpu.max": "many 0"}, math.inf),
    "another controller's": ("2:memory:/job", {"memory/job/cpu.max": "1 100"}, math.inf),
    "no control groups": ("", {}, math.inf),
}


@pytest.mark.parametrize("machine", QUOTAS)
def test_a_quota_of_processor_time_is_seen(
    machine: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, files, quota = QUOTAS[machine]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path, groups) == quota
    monkeypatch.setattr("pcexp.run.provenance.cpu_quota", lambda *_: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert cores() == min(8, math.ceil(min(quota, 8)))  # one at least, and of half a core more all


def test_precision_and_flags_are_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=1")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        record = provenance()
    assert record["jax_enable_x64"] is True
    assert record["jax_default_matmul_precision"] == "highest"
    assert record["xla_flags"] == "--xla_some_flag=1"
    with jax.enable_x64(False):
        assert provenance()["jax_enable_x64"] is False


def test_a_run_with_other_versions_or_flags_is_told_from_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    before = provenance() | {"date": "2020-01-01", "commit": "another"}
    assert other_than(before) == ""
    assert other_than(before | {"jax_version": "0.9", "xla_flags": ""}) == "xla_flags=none, jax_version=0.9"
    assert other_than({"commit": "another"}) == ""


def test_the_date_is_now_in_utc() -> None:
    date = datetime.datetime.fromisoformat(str(provenance()["date"]))
    assert date.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - date) < datetime.timedelta(seconds=5)


def test_the_record_is_flat_has_column_names_and_names_no_machine() -> None:
    record = provenance()
    assert all(type(value) in (str, int, bool) for value in record.values())
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for key in record)
    assert socket.gethostname() not in record.values()
    record["commit"] = "spoilt"
    assert provenance()["commit"] != "spoilt"


def test_peak_memory_sees_what_was_held_and_let_go() -> None:
    code = (
        "from pcexp.run.provenance import peak_memory_bytes as peak; a = peak(); b'x' * 300_000_000; print(a, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    assert 250_000_000 < after - before < 400_000_000


def test_peak_memory_is_not_that_of_the_process_which_started_this_one() -> None:
    large = b"x" * 600_000_000
    code = "from pcexp.run.provenance import peak_memory_bytes as peak; print(peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < len(large)


def test_peak_memory_is_the_fullest_accelerators_where_one_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, peak: int) -> None:
            self.peak = peak

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_in_use": 1, "peak_bytes_in_use": self.peak}

    monkeypatch.setattr(module.jax, "local_devices", lambda: [Device(5), Device(7)])
    assert peak_memory_bytes() == 7
