"""Lanes, mirrored to W&B or to nothing. Our own records stay the source of truth: a mirror never stops a run."""

import abc
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from pcexp.config.identity import Identity
from pcexp.files import place

MAX_POINTS = 50  # a curve on a dashboard needs no more, and a study has tens of thousands of lanes
TAG_LENGTH = 64  # W&B refuses longer ones

OF_ANOTHER_RUN = (
    "DIR",
    "DISABLED",
    "JOB_TYPE",
    "MODE",
    "NAME",
    "NOTES",
    "RESUME",
    "RUN_GROUP",
    "RUN_ID",
    "SWEEP_ID",
    "TAGS",
)
"""What a shell says of some other run: W&B would take its id before the lane's, and mirror all lanes as one run."""

_log = logging.getLogger(__name__)


class AbstractTracker(abc.ABC):
    """Somewhere that lanes are shown. Both methods answer trouble with a logged warning, never with an exception."""

    @abc.abstractmethod
    def log(self, cell: Identity, lane: Mapping[str, Any], rows: Callable[[], list[dict[str, Any]]]) -> None:
        """Show a lane that has ended: its line of lanes.jsonl, and its rows by iteration, even if it was shown before."""

    @abc.abstractmethod
    def close(self) -> None:
        """Nothing more will be shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoTracker(AbstractTracker):
    """Nothing: the records alone."""

    def log(self, cell: Identity, lane: Mapping[str, Any], rows: Callable[[], list[dict[str, Any]]]) -> None:
        pass

    def close(self) -> None:
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wandb(AbstractTracker):
    """One W&B run for each lane, written offline under `directory`/wandb and, if `sync`, uploaded at the end."""

    project: str
    entity: str | None = None  # None: the account's default
    directory: str | None = None  # None: outputs/wandb
    sync: bool = False
    sync_timeout_s: float = 60.0
    _segments: list[pathlib.Path] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def log(self, cell: Identity, lane: Mapping[str, Any], rows: Callable[[], list[dict[str, Any]]]) -> None:
        try:
            shown = [{k: float(v) for k, v in row.items() if isinstance(v, (int, float))} for row in rows()]
            self._segments.append(self._written(cell, lane, shown))
        except Exception as trouble:  # noqa: BLE001 (whatever W&B raises, in any version: the run goes on)
            _log.warning("W&B: lane %s of cell %s is not mirrored: %r", lane["lane"], cell.cell, trouble)

    def close(self) -> None:
        segments = list(self._segments)
        self._segments.clear()
        if not segments:
            return
        folder = segments[0].parent
        later = f"wandb sync {shlex.quote(str(folder))}"
        if not self.sync:
            _log.info("W&B: %d runs are in %s; to upload them: %s", len(segments), folder, later)
            return
        reason = self._uploaded(segments)
        # W&B's marks beside the files tell, not the exit status: some may have been uploaded before the time was up.
        if missing := sum(not any(segment.glob("*.wandb.synced")) for segment in segments):
            arguments = (missing, len(segments), reason, folder, later)
            _log.warning("W&B: %d of %d runs are not uploaded (%s). They are kept in %s; to try again: %s", *arguments)

    def _written(self, cell: Identity, lane: Mapping[str, Any], rows: list[dict[str, float]]) -> pathlib.Path:
        """The folder of a new offline segment of the lane's run."""
        for name in OF_ANOTHER_RUN:
            os.environ.pop(f"WANDB_{name}", None)
        try:
            import wandb  # here, because a run without a tracker must not need it
        except ModuleNotFoundError as error:
            raise RuntimeError("wandb is not installed: run `pip install 'pcexp[tracking]'`") from error

        # W&B writes to a temporary folder, with no more than a message, if this one does not exist.
        root = place(self.directory or "outputs/wandb").absolute()
        root.mkdir(parents=True, exist_ok=True)
        who = {"study": cell.name, "cell": cell.cell, "lane": lane["lane"]}
        identity = run_id(**who)
        # Two segments of one id sync as one run, but W&B shifts the second one's steps behind the first one's: rows
        # that both have would come twice, at iterations that never were. So a segment says how far it went.
        marks = (root / "wandb").glob(f"offline-run-*-{identity}*/logged-to-*")
        last = max((int(mark.name.removeprefix("logged-to-")) for mark in marks), default=-1)
        run = wandb.init(
            mode="offline",
            project=self.project,
            entity=self.entity,
            dir=str(root),
            id=identity,
            resume="allow",
            reinit="create_new",  # leaves a run that the user may have open alone
            group=cell.name,
            job_type=cell.labels.get("learning", cell.name),
            name=" ".join([*cell.labels.values(), lane["lane"][:8]])[:128],
            tags=[f"{key}:{value}"[:TAG_LENGTH] for key, value in sorted(cell.labels.items())],
            config=cell.science | {"lane": lane["values"], "pcexp": who},
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                host="",  # no machine, user or path leaves with the numbers
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        try:
            run.define_metric("iteration")
            run.define_metric("*", step_metric="iteration")  # true even where the steps were shifted (see above)
            for row in evenly_spaced([row for row in rows if row["iteration"] > last]):
                run.log(row, step=int(row["iteration"]))
            # The last row too: a second segment without new rows would leave the summary without it.
            run.summary.update({**(rows[-1] if rows else {}), **lane["summary"], "outcome": lane["outcome"]})
        finally:
            run.finish(exit_code=1 if lane["outcome"].startswith("failed") else 0)
        segment = pathlib.Path(run.dir).parent
        if rows:
            (segment / f"logged-to-{int(rows[-1]['iteration'])}").touch()
        return segment

    def _uploaded(self, segments: list[pathlib.Path]) -> str:
        """What `wandb sync` says; it retries an unreachable server for minutes, and so has a time limit."""
        command = [sys.executable, "-m", "wandb", "sync", *map(str, segments)]
        # Not a pipe: its service process would hold that open, beyond the time limit.
        with tempfile.TemporaryFile() as said:
            try:
                # Where the segments are, because it may leave a log; without input, because it must not wait for a login.
                subprocess.run(
                    command, cwd=segments[0].parent.parent, timeout=self.sync_timeout_s, check=False,
                    stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"no end within {self.sync_timeout_s:g} s"
            except OSError as error:
                return repr(error)
            said.seek(0)
            return " ".join(said.read().decode(errors="replace").split())[-200:] or "it said nothing"


def run_id(study: str, cell: str, lane: str) -> str:
    """The W&B id of a lane: 16 hexadecimal digits that never change, so that a requeued lane finds its run."""
    return hashlib.sha256(json.dumps([study, cell, lane]).encode()).hexdigest()[:16]


def evenly_spaced(rows: list[dict[str, float]], *, points: int = MAX_POINTS) -> list[dict[str, float]]:
    """At most `points` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= points:
        return rows
    return [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]
