"""Records as runs leave them, made up instead of run."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from quick import STUDY

from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.records import manifest
from pcexp.records.cell import Cell
from pcexp.run.sweep import _about

LENGTH = 2000
"""Iterations of a made-up run."""


class Fate(NamedTuple):
    """How a made-up lane of saddle escape went: the iteration at which it left the plateau, if it did, and its outcome."""

    escape: int | None
    outcome: str = "done"


def fast_pc(spec: Spec, lane: Lane) -> Fate:
    """PC escapes ten times faster than BP."""
    return Fate(100 if spec.labels["learning"] == "pc" else 1000)


def failing(spec: Spec, lane: Lane) -> Fate:
    return Fate(None, "failed: no memory")


def diverging(spec: Spec, lane: Lane) -> Fate:
    return Fate(None, "diverged")


def only(keep: Sequence[int], fates: Any = fast_pc) -> Any:
    """Fates of these seeds; the others were asked for and have not finished."""
    return lambda spec, lane: fates(spec, lane) if lane.values["seed"] in keep else None


def rows(lane: Lane, fate: Fate, n: int) -> list[dict[str, Any]]:
    """About n rows: a plateau, then a second one, with the gradient smallest where the first one ends."""
    draw = random.Random(lane.name).random
    end = LENGTH if fate.escape is None else fate.escape
    iterations = sorted({0, end, *range(0, LENGTH + 1, max(LENGTH // (n - 1), 1))})
    made = []
    for t in iterations:
        escaped, wide = fate.escape is not None and t >= end, fate.escape is not None and t >= 1.5 * end
        noise = [1 + draw() for _ in range(4)]
        norm = 64.0 * max(2 - t / end, t / end) / end
        made.append({
            "lane": lane.name, "iteration": t, "train_error": noise[0], "probe_loss": 0.4 if escaped else 1.0,
            "constant_map_loss": 0.9,
            "map_rank": 2 if wide else 1, "gradient_norm": [norm * x for x in noise[1:]], "gradient_factor": 64.0,
        })  # fmt: skip
    if fate.outcome == "diverged":
        made[-1] |= {"train_error": float("nan"), "probe_loss": float("inf")}
    return made


def entry(spec: Spec, lane: Lane, fate: Fate, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a finished lane with these rows."""
    columns = {name: np.array([row[name] for row in made]) for name in made[0] if name != "lane"}
    summary = {"iterations": LENGTH, "iterations_allowed": LENGTH, "test_loss": 0.1, "test_accuracy": 0.9}
    summary = {} if fate.outcome.startswith("failed") else summary | spec.study.summary(columns)
    provenance = {"commit": "0123456789abcdef", "dirty": False, "device_kind": "cpu", "seconds_run": 1.5}
    return {"values": lane.values, "outcome": fate.outcome, "summary": summary, "provenance": provenance}


def written(
    outputs: Path,
    cells: Sequence[Spec],
    scale: str,
    fates: Callable[[Spec, Lane], Fate | None] = fast_pc,
    n_rows: int = 5,
) -> Path:
    """Outputs as runs leave them, without running: lanes without a fate are asked for and not finished."""
    folder = outputs / STUDY
    manifest.add(folder, scale, manifest.entries(cells), {})
    for spec in cells:
        done = [
            (lane, fate, rows(lane, fate, n_rows)) for lane in spec.lanes if (fate := fates(spec, lane)) is not None
        ]
        if done:
            with Cell(folder / spec.cell, [lane.name for lane in spec.lanes]).open(_about(spec)) as cell:
                cell.append(row for _, _, made in done for row in made)
                for lane, fate, made in done:
                    cell.finish(lane.name, **entry(spec, lane, fate, made))
    return outputs
