"""Progress of a command: one bar with rate and time left on a terminal, plain lines in a log file."""

import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from pcexp.config.spec import Spec

LINE_EVERY_S = 15.0


class Progress:
    """Work done and left over all cells of a command, weighted by the estimated cost of each cell.

    Of cells that run at once the one that began first is named.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self._costs = dict(costs)  # estimated work of each cell that is not finished
        self._done: dict[str, dict[str, float]] = {}
        self._lanes: dict[str, int] = {}
        self._diverged: dict[str, set[str]] = {}
        self._start = time.monotonic()
        self._last_line = self._start
        self._cells_done = 0
        self._running: list[Spec] = []
        self._began, self._gained = self._start, 0.0  # of the cell that is named
        self._lock = threading.Lock()
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, console=self.console)
            self._task = self._bar.add_task("starting", total=sum(self._costs.values()) or 1, note="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def begin(self, spec: Spec, lanes: Sequence[str]) -> None:
        """A cell starts with these unfinished lanes."""
        with self._lock:
            self._done[spec.cell], self._lanes[spec.cell] = {}, len(lanes)
            self._diverged[spec.cell] = set()
            self._running.append(spec)
            if self._running[0] is spec:
                self._began, self._gained = time.monotonic(), 0.0
            self._show(self._running[0])

    def advance(self, spec: Spec, iterations: Mapping[str, int], total: int, diverged: Collection[str] = ()) -> None:
        """Lanes of a cell have reached these iterations of `total`; those that diverged go no further."""
        with self._lock:
            before = sum(self._done[spec.cell].values())
            self._done[spec.cell] |= {
                lane: 1.0 if lane in diverged else n / max(total, 1) for lane, n in iterations.items()
            }
            self._diverged[spec.cell] |= set(diverged)
            if self._running[0] is spec:
                self._gained += (sum(self._done[spec.cell].values()) - before) * total
            self._show(self._running[0])

    def end(self, spec: Spec) -> None:
        with self._lock:
            self._cells_done += 1
            self._done[spec.cell] = {str(i): 1.0 for i in range(self._lanes[spec.cell])}
            self._show(self._running[0])
            first = self._running[0] is spec
            self._running = [other for other in self._running if other is not spec]
            if first:
                self._began, self._gained = time.monotonic(), 0.0

    def _show(self, spec: Spec) -> None:
        work = sum(
            self._costs.get(cell, 0) * sum(done.values()) / max(self._lanes[cell], 1)
            for cell, done in self._done.items()
        )
        total = sum(self._costs.values()) or 1.0
        now = time.monotonic()
        rate = f"{self._gained / max(now - self._began, 1e-3):,.0f} iterations/s" if self._gained else ""
        left = "" if work <= 0 else f"{duration((now - self._start) * (total - work) / work)} left"
        labels = " ".join(spec.labels[k] for k in ("data", "network", "learning", "protocol") if k in spec.labels)
        finished = sum(share >= 1 for share in self._done[spec.cell].values())
        lanes = f"{finished}/{self._lanes[spec.cell]} lanes done"
        if failed := len(self._diverged[spec.cell]):
            lanes += f", {failed} diverged"
        text = f"cell {min(self._cells_done + 1, len(self._costs))}/{len(self._costs)} {labels}: {lanes}"
        if self._bar is not None:
            note = " ".join(part for part in (rate, left) if part)
            self._bar.update(self._task, description=text, completed=work, total=total, note=note)
        elif now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            self.say(f"{100 * work / total:3.0f} %  {text}  {rate}  {left}")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds / 3600:.1f} h"
