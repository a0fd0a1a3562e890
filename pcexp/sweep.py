"""The whole sweep of a command: one cell a science half, a manifest, an estimate, then cell after cell.

Hydra composes one configuration a job (hydra_plugins/pcexp.py hands them over); jobs that differ in lane values only become
one cell here. The manifest says what was asked for at a scale, so that report and claims can count against it.
"""

import datetime
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from pcexp.cell import CANNOT_WRITE, Cell, CellBusy, OutputError, output_error, write_json
from pcexp.configuration import SCALES, Refused
from pcexp.cost import describe, estimate
from pcexp.data import DataError
from pcexp.network import Network
from pcexp.progress import Progress
from pcexp.runner import Datasets, Execution, Job, Session, Stopped
from pcexp.spec import Spec, spec
from pcexp.targets import ALLOWED_TARGETS, SpecError, build
from pcexp.tracking import AbstractTracker


def plans(configs: Iterable[Mapping[str, Any]]) -> list[Spec]:
    """One spec a cell: configurations with the same science half are merged, their lanes united. Raises SpecError."""
    merged: dict[str, Spec] = {}
    for config in configs:
        new = spec(config, (config.get("execution") or {}).get("targets") or ())
        old = merged.get(new.cell)
        if old is not None:
            lanes = (*old.lanes, *(lane for lane in new.lanes if lane not in old.lanes))
            new = eqx.tree_at(lambda s: s.lanes, old, lanes)
        merged[new.cell] = new
    return list(merged.values())


def run_all(configs: Sequence[Mapping[str, Any]]) -> int:
    """Run the cells of a command and report them; 0 when all lanes asked for are finished, 130 when asked to stop."""
    settings = configs[0]
    try:
        if settings["scale"] not in SCALES:
            raise SpecError(f"scale={settings['scale']} is unknown: valid are {', '.join(SCALES)}")
        # First: its targets say which modules may be named.
        execution: Execution = build(
            {"_target_": "pcexp.runner.Execution", **settings["execution"]}, "execution", ALLOWED_TARGETS
        )
        specs = plans(configs)
        tracker: AbstractTracker = build(settings["tracker"], "tracker", (*ALLOWED_TARGETS, *execution.targets))
        for cell in specs:
            cell.learning.check(_shapes(cell))
    except (SpecError, ValueError) as error:
        raise Refused(str(error)) from error
    scale, dry_run = str(settings["scale"]), bool(settings.get("dry_run"))
    folder = Path(execution.outputs) / specs[0].name
    handles = {s.cell: Cell(folder / s.cell, [lane.name for lane in s.lanes]) for s in specs}
    try:
        # Data are loaded before anything is written: a missing copy is an error of the command, not of a cell.
        datasets = Datasets()
        missing = {cell: len(handle.missing) for cell, handle in handles.items()}
        costs = {s.cell: estimate(s, datasets, missing[s.cell]) for s in specs if missing[s.cell]}
        print(describe(specs, costs, folder, scale, listed=dry_run), flush=True)
        if dry_run:
            return 0
        _write_manifest(folder, scale, specs)
    except (DataError, OutputError, ValueError) as error:
        raise Refused(str(error)) from error
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise Refused(str(output_error(folder, error))) from error
    progress = Progress({cell: cost.flops for cell, cost in costs.items()})
    code = _run_cells(specs, handles, Session(execution, tracker, progress, datasets))
    if code == 0:
        _report(folder.name, scale, execution.outputs)
    return code


def _run_cells(specs: Sequence[Spec], handles: Mapping[str, Cell], session: Session) -> int:
    """Run what is missing, cell after cell; the status of the command."""
    progress = session.progress
    with progress, session.signals():
        try:
            for cell in specs:
                handle = handles[cell.cell]
                if not handle.missing:
                    continue
                progress.begin(cell, handle.missing)
                try:
                    with handle.open(_about(cell)):
                        cell.study.run(Job(cell, handle, session))
                except CellBusy as error:
                    progress.say(f"left out: {error}")
                    continue
                progress.end(cell)
        except Stopped:
            left = sum(len(handle.missing) for handle in handles.values())
            progress.say(f"stopped; {left} lanes are not finished. The same command continues.")
            return 130
        except OutputError as error:
            raise Refused(str(error)) from error
        finally:
            session.tracker.close()
    return 1 if any(handle.missing for handle in handles.values()) else 0


def _about(cell: Spec) -> dict[str, Any]:
    return {
        "study": cell.name,
        "cell": cell.cell,
        "revision": cell.study.revision,
        "science": cell.science,
        "labels": cell.labels,
    }


def _shapes(cell: Spec) -> Network:
    """Shapes of a network for the checks before anything is compiled; sizes of data do not matter to them."""
    shape = (8,) if cell.network.flat_inputs else (64, 64, 3)
    return jax.eval_shape(lambda: cell.network.build(cell.parameterisation, shape, 2, key=jr.key(0)))


def _write_manifest(folder: Path, scale: str, specs: Sequence[Spec]) -> None:
    """Add the cells asked for to the manifest of this scale; what was asked for at the same revision stays asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"manifest-{scale}.json"
    known = json.loads(path.read_text())["cells"] if path.exists() else {}
    newest = max(cell.study.revision for cell in specs)
    cells = {cell: entry for cell, entry in known.items() if entry["revision"] >= newest}
    for cell in specs:
        before = cells.get(cell.cell, {"labels": cell.labels, "lanes": {}})
        lanes = before["lanes"] | {lane.name: lane.values for lane in cell.lanes}
        # The study's own cell stays that, though a command may also have reached it by spelling out an override.
        variant = cell.labels["variant"] and before["labels"]["variant"]
        cells[cell.cell] = {
            "labels": cell.labels | {"variant": variant},
            "lanes": lanes,
            "revision": cell.study.revision,
        }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(path, {"scale": scale, "command": sys.argv[1:], "written": now, "cells": cells})


def _report(study: str, scale: str, outputs: str) -> None:
    # Imported here: a run needs no tables or figures until it has ended.
    try:
        from pcexp import report
    except ModuleNotFoundError as error:  # a node that only runs
        print(f"no report: {error.name} is not installed here; python -m pcexp.report {study} makes it elsewhere")
        return
    report.main([study, "--outputs", outputs, "--scale", scale])
