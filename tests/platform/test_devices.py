"""Several devices: each has packs of its own, and the rows do not tell."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quick

Run = Callable[..., int]

SEVERAL_DEVICES = """
import os, sys
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
import jax
import pcexp.run.lanes, pcexp.run.sweep
if sys.argv.pop(1) == "as GPUs":
    jax.default_backend = lambda: "gpu"
pcexp.run.sweep._report = lambda *_: None
pcexp.run.lanes.LaneTraining._call_size = lambda *_: 20
call = pcexp.run.lanes.Pack.call

def placed(pack, data, *rest):
    found = call(pack, data, *rest)
    arrays = [leaf for leaf in jax.tree.leaves((pack.state, data)) if isinstance(leaf, jax.Array)]
    assert all(leaf.devices() == {pack.device} for leaf in arrays)
    line = " ".join(["placed", str(pack.device.id), *(lane.name for lane in pack.lanes)])
    sys.stdout.write(line + "\\n")  # in one piece: several threads write
    return found

pcexp.run.lanes.Pack.call = placed
from pcexp.__main__ import main
main()
"""


def on_two_devices(tmp_path: Path, kind: str, *asked: str) -> dict[str, set[str]]:
    """Run the quick cell on two devices; the lanes that each of them advanced."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_DEVICES, kind, *quick.QUICK, *asked],
        cwd=tmp_path, env=quick.environment(tmp_path), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("placed"):
            _, device, *names = line.split()
            places.setdefault(device, set()).update(names)
    assert places.keys() == {"0", "1"} and not places["0"] & places["1"]  # each pack stays where it began
    return places


def test_packs_go_to_all_devices_and_the_rows_are_those_of_one(outputs: Path, run: Run, tmp_path: Path) -> None:
    asked = (*quick.LONG[:2], "lanes.seed=[0,1,2,3,4,5]", "execution.pack_size=2")
    several = tmp_path / "several"
    places = on_two_devices(tmp_path, "CPUs", *asked, f"execution.outputs={several}", "execution.workers=2")
    assert sorted(map(len, places.values())) == [2, 4]
    assert run(*asked) == 0
    assert quick.differences(quick.numbers(several), quick.numbers(outputs)) == []


def test_lanes_are_shared_out_over_gpus_although_one_would_hold_them_all(
    outputs: Path, run: Run, tmp_path: Path
) -> None:
    """Two CPU devices that are called GPUs: five lanes, and memory for thousands on each."""
    asked, several = (*quick.LONG[:2], "lanes.seed=[0,1,2,3,4]"), tmp_path / "several"
    places = on_two_devices(tmp_path, "as GPUs", *asked, f"execution.outputs={several}")
    assert sorted(map(len, places.values())) == [2, 3]
    assert run(*asked) == 0
    losses, single = quick.column(several, "train_error"), quick.column(outputs, "train_error")
    assert losses.keys() == single.keys()
    np.testing.assert_allclose(list(losses.values()), [single[key] for key in losses], rtol=1e-4)
