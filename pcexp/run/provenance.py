"""What a number depends on beside its configuration: code, versions, machine, flags. Flat: each is a column."""

import datetime
import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from pcexp import __version__

UNKNOWN = "unknown"
CODE = ("pcexp", "experiments", "conf", "hydra_plugins")
"""Folders of a checkout that say what runs."""
NUMBER_FLAGS = re.compile(
    r"fast_math|fast_min_max|excess_precision|disable_hlo_passes|tf32|bf16|f8|approx|denormal|unsafe"
)
"""Words in names of XLA's flags that may change numbers by more than the round-off that another processor or version brings.

Others are recorded, and no more: paths and schedules, which differ from machine to machine.
"""
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "diffrax", "numpy")


def provenance() -> dict[str, str | int | bool]:
    """Commit, versions, device, processor, flags, precision and date (UTC). Names no host and no user."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return {
        **_constant(),
        # Read at each call: configuration may set them between two cells of one process.
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_enable_x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "jax_default_matmul_precision": precision or "default",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def number_flags() -> str:
    """The flags of XLA that are set and may change numbers by more than round-off; they make a run a variant."""
    words = sorted(os.environ.get("XLA_FLAGS", "").split())
    counted = [word for word in words if NUMBER_FLAGS.search(word.partition("=")[0]) or not word.startswith("--")]
    return f"XLA_FLAGS={','.join(counted)}" if counted else ""


def other_than(before: Mapping[str, Any]) -> str:
    """What a run with the provenance `before` was made with that this one is not: versions, processor, flags."""
    now = provenance()
    named = ("device_kind", "xla_flags", *(f"{package}_version" for package in PACKAGES))
    return ", ".join(f"{name}={before[name] or 'none'}" for name in named if before.get(name, now[name]) != now[name])


def checkout(file: pathlib.Path) -> tuple[str, bool]:
    """Commit of the checkout that tracks `file`, and whether it fails to say what ran (tracked files differ, or there is new code).

    Files in results/ do not count: the platform writes them, and no number depends on them. Without git, or where
    `file` is not tracked, ("unknown", True).
    """
    # A package installed in a virtual environment inside somebody's checkout is not that checkout's code.
    tracked = _git(file.parent, "ls-files", "--error-unmatch", "--", file.name)
    commit = _git(file.parent, "rev-parse", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    # A study that was added and not committed yet is in no commit.
    new = _git(file.parent, "ls-files", "--others", "--exclude-standard", "--", *(f":(top){name}" for name in CODE))
    if tracked is None or commit is None or changes is None or new is None:
        return UNKNOWN, True
    return commit, bool(changes or new)


def peak_memory_bytes() -> int:
    """Most memory held so far by this process: on the fullest accelerator where one reports it, else resident."""
    reports = [device.memory_stats() or {} for device in jax.local_devices()]  # None on a CPU
    peaks = [int(report["peak_bytes_in_use"]) for report in reports if "peak_bytes_in_use" in report]
    return max(peaks, default=0) or _peak_resident_bytes()


@functools.cache
def _constant() -> dict[str, str | int | bool]:
    """What does not change while the process lives; the commit too, because the code was imported once."""
    commit, dirty = checkout(pathlib.Path(__file__).resolve())
    devices = jax.devices()
    return {
        "commit": commit,
        "dirty": dirty,
        "python_version": platform.python_version(),
        "pcexp_version": __version__,  # of the code that runs: the metadata are those of the last install
        **{f"{package}_version": importlib.metadata.version(package) for package in PACKAGES},
        "device_platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "cpu_model": _cpu_model(),
        "cpu_count": cores(),
    }


def cores() -> int:
    """Cores that this process may use: a SLURM job sees all of its node's in os.cpu_count(), which is all that macOS knows."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = pathlib.Path("/proc/self/cgroup")
    share = cpu_quota(pathlib.Path("/sys/fs/cgroup"), groups.read_text() if groups.exists() else "")
    return max(1, min(seen, math.ceil(share))) if share < seen else seen


def cpu_quota(root: pathlib.Path, groups: str) -> float:
    """Cores' worth of time that control groups leave a process: `groups` is its /proc/self/cgroup, `root` where they are mounted.

    A container may have half a core or two and a half, and still see all cores of its machine.
    """

    def text(file: pathlib.Path) -> str:
        try:
            return file.read_text().strip()
        except (OSError, ValueError):
            return ""

    limits = [math.inf]
    for controllers, path in re.findall(r"^\d+:([^:\n]*):/(.*)$", groups, re.MULTILINE):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / ("cpu" if controllers else "")  # version 1 has a tree a controller, version 2 one for all
        for at in (top / path, *(top / path).parents):
            said = text(at / "cpu.max") or f"{text(at / 'cpu.cfs_quota_us')} {text(at / 'cpu.cfs_period_us')}"
            if numbers := re.fullmatch(r"(\d+) ([1-9]\d*)", said):  # not "max 100000", and not "-1 100000"
                limits.append(int(numbers[1]) / int(numbers[2]))
    return min(limits)


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """What git prints, or None where it cannot answer."""
    # Inside a hook git exports these, and they would point it at the wrong repository.
    misleading = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in misleading}
    # Without --no-optional-locks, jobs that share a checkout fight over its index.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    named = re.search(r"^model name\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine() or UNKNOWN


def _peak_resident_bytes() -> int:
    # Not ru_maxrss where there is another way: it is handed down through fork and exec, so a small job that a large
    # process started would report its parent.
    status = pathlib.Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    kib = int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == "darwin" else 1024 * kib  # ru_maxrss is in bytes there
