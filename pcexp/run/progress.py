"""Progress of a command: one bar with rate and time left on a terminal, plain lines in a log file."""

import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from pcexp.config.spec import Spec

LINE_EVERY_S = 15.0


@dataclass
class _Cell:
    """A cell that has begun: what is done of each of its lanes, and the iterations that it has gained since."""

    spec: Spec
    done: dict[str, float]
    began: float
    gained: float = 0.0
    diverged: set[str] = field(default_factory=set)
    ended: bool = False


class Progress:
    """Work done and left over all cells of a command, weighted by the estimated cost of each cell.

    Of cells that run at once the one that began first is named.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self._costs = dict(costs)  # estimated work of each cell that is not finished
        self._cells: dict[str, _Cell] = {}
        self._start = self._last_line = time.monotonic()
        self._lock = threading.RLock()  # a signal may come while the thread that hears it holds this
        # Not what FORCE_COLOR says: a log file has plain lines.
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True, force_terminal=sys.stdout.isatty())
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            said, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            self._bar = Bar(said, BarColumn(), note, TimeElapsedColumn(), console=self.console)
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
            self._cells[spec.cell] = _Cell(spec, dict.fromkeys(lanes, 0.0), time.monotonic())
            self._show()

    def advance(self, spec: Spec, iterations: Mapping[str, int], total: int, diverged: Collection[str] = ()) -> None:
        """Lanes of a cell have reached these iterations of `total`; those that diverged go no further."""
        with self._lock:
            cell = self._cells[spec.cell]
            before = sum(cell.done.values())
            cell.done |= {lane: 1.0 if lane in diverged else n / max(total, 1) for lane, n in iterations.items()}
            cell.diverged |= set(diverged)
            cell.gained += (sum(cell.done.values()) - before) * total
            self._show()

    def end(self, spec: Spec) -> None:
        with self._lock:
            cell = self._cells[spec.cell]
            cell.done = dict.fromkeys(cell.done, 1.0)
            self._show()
            cell.ended = True

    def _show(self) -> None:
        cells, now = self._cells, time.monotonic()
        work = sum(self._costs.get(name, 0) * sum(cell.done.values()) / len(cell.done) for name, cell in cells.items())
        total = sum(self._costs.values()) or 1.0
        named = next(cell for cell in cells.values() if not cell.ended)
        rate = f"{named.gained / max(now - named.began, 1e-3):,.0f} iterations/s" if named.gained else ""
        left = "" if work <= 0 else f"{duration((now - self._start) * (total - work) / work)} left"
        labels = named.spec.labels
        said = " ".join(labels[k] for k in ("data", "network", "learning", "protocol") if k in labels)
        lanes = f"{sum(share >= 1 for share in named.done.values())}/{len(named.done)} lanes done"
        if named.diverged:
            lanes += f", {len(named.diverged)} diverged"
        number = min(sum(cell.ended for cell in cells.values()) + 1, len(self._costs))
        text = f"cell {number}/{len(self._costs)} {said}: {lanes}"
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
