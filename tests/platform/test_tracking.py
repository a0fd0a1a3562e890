"""The W&B mirror, seen from the other end: what a server receives when the offline runs are uploaded."""

import itertools
import logging
import math
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import hydra.utils
import pytest
import wandb_stub
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pcexp.config.identity import Identity
from pcexp.run import tracking

CONF = pathlib.Path(__file__).parents[2] / "conf" / "tracker"
LABELS = {"data": "mnist", "network": "fc", "learning": "pc", "protocol": "published", "scale": "smoke"}
CONFIG = {"network": {"width": 64, "n_hidden": 8}, "lanes": {"seed": 3}, "steps": [1, 2], "nothing": None}


def lane(name: str = "a1", *, iterations: range = range(1), outcome: str = "done") -> tuple[Any, ...]:
    """A lane whose loss is 1 / (1 + iteration) and whose cosine is undefined at iteration 0 and infinite at 1."""
    odd = {0: math.nan, 1: math.inf}
    rows = [{"iteration": float(i), "loss": 1 / (1 + i), "cosine": odd.get(i, 0.5)} for i in iterations]
    summary = {"escape_iteration": 7, "escaped": True, "residual": 1e-6, "note": "a word"}
    cell = Identity("saddle_escape", 1, "c0ffee", CONFIG, LABELS, ())
    return cell, {"lane": name, "values": {"seed": 3}, "outcome": outcome, "summary": summary}, lambda: rows


@pytest.fixture(scope="module", autouse=True)
def wandb_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """No setting, login, cache or address of the person who runs the tests, and all that could be set of another run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
            patch.setenv(f"WANDB_{name}", str(tmp_path_factory.mktemp(name.lower())))
        for name in tracking.OF_ANOTHER_RUN:  # as in the shell of somebody's sweep, with W&B turned off
            patch.setenv(
                f"WANDB_{name}", {"MODE": "disabled", "DISABLED": "true", "DIR": "/dev/null"}.get(name, "other")
            )
        patch.setenv("WANDB_API_KEY", "a" * 40)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
        yield patch


class Uploaded(NamedTuple):
    server: wandb_stub.Server
    directory: pathlib.Path
    warnings: list[str]


@pytest.fixture(scope="module")
def uploaded(wandb_environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploaded]:
    """A job with three lanes, the second cut off; then the second once more, by the job that was requeued for it."""
    directory = tmp_path_factory.mktemp("mirror")
    with wandb_stub.serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        patch.setattr(handler, "emit", lambda record: warnings.append(record.getMessage()))
        logging.getLogger("pcexp.run.tracking").addHandler(handler)
        for lanes in (
            [
                lane("a1", iterations=range(301)),
                lane("b2", iterations=range(0, 200, 10), outcome="running"),
                lane("c3", iterations=range(5), outcome="failed: no memory"),
            ],
            [lane("b2", iterations=range(0, 400, 10)), lane("a1", iterations=range(301))],
        ):
            tracker = tracking.Wandb(project="pc", entity="me", directory=str(directory), sync=True, sync_timeout_s=20)
            for each in lanes:
                tracker.log(*each)
            tracker.close()
        logging.getLogger("pcexp.run.tracking").removeHandler(handler)
        yield Uploaded(server, directory, warnings)


def received(uploaded: Uploaded, name: str) -> wandb_stub.ReceivedRun:
    return uploaded.server.runs[tracking.run_id("saddle_escape", "c0ffee", name)]


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What pcexp said, without W&B's own chatter."""
    return [record for record in caplog.records if record.name == "pcexp.run.tracking"]


def test_every_lane_is_one_run_and_nothing_is_warned_about(uploaded: Uploaded) -> None:
    assert uploaded.warnings == []
    assert set(uploaded.server.runs) == {
        tracking.run_id("saddle_escape", "c0ffee", name) for name in ("a1", "b2", "c3")
    }


def test_a_run_says_which_study_cell_and_lane_it_is_and_what_it_was_given(uploaded: Uploaded) -> None:
    run = received(uploaded, "a1")
    assert (run.about["project"], run.about["entity"]) == ("pc", "me")
    assert (run.about["groupName"], run.about["jobType"]) == ("saddle_escape", "pc")
    assert set(run.about["tags"]) == {"data:mnist", "network:fc", "learning:pc", "protocol:published", "scale:smoke"}
    assert run.config == {
        **CONFIG,
        "lane": {"seed": 3},
        "pcexp": {"study": "saddle_escape", "cell": "c0ffee", "lane": "a1"},
    }


def test_a_long_history_arrives_thinned_with_its_ends_and_true_values(uploaded: Uploaded) -> None:
    history = received(uploaded, "a1").history
    iterations = [row["iteration"] for row in history]
    assert len(history) == 50 and (iterations[0], iterations[-1]) == (0, 300)
    assert iterations == sorted(set(iterations))
    assert [row["_step"] for row in history] == iterations
    assert [row["loss"] for row in history] == [1 / (1 + i) for i in iterations]


def test_undefined_and_infinite_values_arrive_as_such(uploaded: Uploaded) -> None:
    history = received(uploaded, "c3").history
    assert math.isnan(history[0]["cosine"]) and history[1]["cosine"] == math.inf


def test_the_summary_carries_the_outcome_and_the_last_row(uploaded: Uploaded) -> None:
    for name, loss in (("a1", 1 / 301), ("b2", 1 / 391)):
        summary = received(uploaded, name).summary
        assert summary["outcome"] == "done" and summary["loss"] == loss
        assert summary["escape_iteration"] == 7 and summary["escaped"] is True and summary["note"] == "a word"


def test_only_a_failed_lane_is_shown_as_crashed(uploaded: Uploaded) -> None:
    assert [received(uploaded, name).exit_code for name in ("a1", "b2", "c3")] == [0, 0, 1]


def test_a_requeued_lane_continues_its_run_without_a_row_twice(uploaded: Uploaded) -> None:
    run = received(uploaded, "b2")
    assert run.starts == 2
    assert [row["iteration"] for row in run.history] == list(range(0, 400, 10))
    assert [row["_step"] for row in run.history] == list(range(0, 400, 10))
    assert received(uploaded, "a1").starts == 2 and len(received(uploaded, "a1").history) == 50


def test_no_machine_user_or_path_leaves_with_the_numbers(uploaded: Uploaded) -> None:
    said = [run.about for run in uploaded.server.runs.values()]
    assert not any(about.get("host") for about in said)
    for segment in (uploaded.directory / "wandb").glob("offline-run-*"):
        written = next(segment.glob("*.wandb")).read_bytes()
        assert sys.executable.encode() not in written and str(uploaded.directory).encode() not in written


def test_a_server_that_never_answers_costs_the_time_limit_and_a_warning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker = tracking.Wandb(project="pc", directory=str(tmp_path), sync=True, sync_timeout_s=2)
        tracker.log(*lane(iterations=range(3)))
        start = time.monotonic()
        tracker.close()
    assert time.monotonic() - start < 5
    (record,) = ours(caplog)
    assert record.levelno == logging.WARNING
    assert "1 of 1 runs" in record.getMessage() and f"wandb sync {tmp_path}/wandb" in record.getMessage()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_without_a_login_the_runs_are_kept_and_the_warning_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = tracking.Wandb(project="pc", directory=str(tmp_path / "mirror"), sync=True, sync_timeout_s=20)
    tracker.log(*lane())
    tracker.close()
    assert "API key" in caplog.text and "wandb sync" in caplog.text


def test_trouble_inside_wandb_is_a_warning_that_names_the_lane(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    in_the_way = tracking.Wandb(project="pc", directory=str(tmp_path / "file"), sync=True)
    in_the_way.log(*lane("b2"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    absent = tracking.Wandb(project="pc", directory=str(tmp_path), sync=True)
    absent.log(*lane("c3"))
    in_the_way.close()
    absent.close()
    messages = [record.getMessage() for record in ours(caplog)]
    assert len(messages) == 2 and "lane b2" in messages[0] and "lane c3" in messages[1]
    assert "pcexp[tracking]" in messages[1]


def test_a_run_without_a_tracker_does_not_import_wandb() -> None:
    code = """
import sys, pcexp.run.tracking as tracking
tracker = tracking.NoTracker()
tracker.log(tracking.Identity("s", 1, "c", {}, {}, ()), {"lane": "l", "outcome": "done"}, list)
tracker.close()
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ids_differ_where_any_part_differs_and_never_change() -> None:
    ids = {tracking.run_id(*parts) for parts in (("s", "c", "l"), ("t", "c", "l"), ("s", "d", "l"), ("s", "c", "m"))}
    assert len(ids | {tracking.run_id("sc", "", "l"), tracking.run_id("s", "cl", "")}) == 6
    # python -c 'import hashlib; print(hashlib.sha256(b"[\"s\", \"c\", \"l\"]").hexdigest()[:16])'
    assert tracking.run_id("s", "c", "l") == "d7726daed120e013"


@given(n=st.integers(0, 2000), points=st.integers(2, 60))
def test_thinning_keeps_both_ends_and_even_distances(n: int, points: int) -> None:
    kept = [
        row["iteration"] for row in tracking.evenly_spaced([{"iteration": float(i)} for i in range(n)], points=points)
    ]
    assert len(kept) == min(n, points)
    if n:
        assert (kept[0], kept[-1]) == (0, n - 1)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert all(gap >= 1 for gap in gaps) and (not gaps or max(gaps) - min(gaps) <= 1)


@pytest.mark.parametrize("name", ["none", "wandb"])
def test_each_option_file_builds_its_tracker_from_plain_values(name: str) -> None:
    tracker = hydra.utils.instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(tracker, tracking.AbstractTracker)
    written = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert {key: getattr(tracker, key) for key in written if key != "_target_"} == {
        key: value for key, value in written.items() if key != "_target_"
    }
