"""The whole sweep of a command: one cell a science half, a manifest, an estimate, then its cells.

Hydra composes one configuration a job (hydra_plugins/pcexp.py hands them over); jobs that differ in lane values only become
one cell here. The manifest says what was asked for at a scale, so that report and claims can count against it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from pcexp.config.composition import SCALES, Refused
from pcexp.config.spec import Spec, spec
from pcexp.config.targets import ALLOWED_TARGETS, SpecError, build
from pcexp.data import DataError
from pcexp.model.network import Network
from pcexp.records import manifest
from pcexp.records.cell import CANNOT_WRITE, Cell, CellBusy, OutputError, output_error
from pcexp.run.cost import Cost, describe, estimate
from pcexp.run.job import Job
from pcexp.run.progress import Progress
from pcexp.run.session import Datasets, Execution, Session, Stopped
from pcexp.run.tracking import AbstractTracker


def plans(configs: Iterable[Mapping[str, Any]]) -> list[Spec]:
    """One spec a cell: configurations with the same science half are merged, their lanes united. Raises SpecError.

    Those that are no part of their study are left out.
    """
    merged: dict[str, Spec] = {}
    left_out: Spec | None = None
    for config in configs:
        new = spec(config, (config.get("execution") or {}).get("targets") or ())
        part = new.study.part(new.labels)
        if part is None:
            left_out = new
            continue
        if part:
            new = replace(new, labels=new.labels | {"part": part})
        old = merged.get(new.cell)
        if old is not None:
            lanes = (*old.lanes, *(lane for lane in new.lanes if lane not in old.lanes))
            new = eqx.tree_at(lambda s: s.lanes, old, lanes)
        merged[new.cell] = new
    if left_out is not None and not merged:
        chosen = ", ".join(f"{key}={value}" for key, value in left_out.labels.items() if value)
        raise SpecError(f"{left_out.name} has no part with {chosen}")
    return list(merged.values())


@dataclass(frozen=True)
class Command:
    """The cells of one study that a command asks for, checked, and how to run them."""

    specs: tuple[Spec, ...]
    execution: Execution
    tracker: AbstractTracker
    scale: str
    dry_run: bool

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.specs[0].name

    @property
    def folder(self) -> Path:
        """Where the cells are."""
        return Path(self.execution.outputs) / self.name

    def handle(self, spec: Spec) -> Cell:
        """The folder of a cell, with the lanes asked for."""
        return Cell(self.folder / spec.cell, [lane.name for lane in spec.lanes])

    def ask(self, specs: Sequence[Spec]) -> None:
        """Write into the manifest that these cells are asked for."""
        _write_manifest(self.folder, self.scale, specs)

    def run(self, specs: Sequence[Spec], costs: Mapping[str, Cost], datasets: Datasets) -> int:
        """Run what is missing of these cells, in this order, and report the study if that ends; the status."""
        progress = Progress({spec.cell: costs[spec.cell].flops for spec in specs if spec.cell in costs})
        session = Session(self.execution, self.tracker, progress, datasets)
        code = _run_cells(specs, {spec.cell: self.handle(spec) for spec in specs}, session)
        if code == 0:
            _report(self.name, self.scale, self.execution.outputs)
        return code


def command(configs: Sequence[Mapping[str, Any]]) -> Command:
    """The command that resolved configurations of one study describe. Raises Refused."""
    settings = configs[0]
    try:
        if settings["scale"] not in SCALES:
            raise SpecError(f"scale={settings['scale']} is unknown: valid are {', '.join(SCALES)}")
        # First: its targets say which modules may be named.
        execution: Execution = build(
            {"_target_": "pcexp.run.session.Execution", **settings["execution"]}, "execution", ALLOWED_TARGETS
        )
        specs = plans(configs)
        tracker: AbstractTracker = build(settings["tracker"], "tracker", (*ALLOWED_TARGETS, *execution.targets))
        for cell in specs:
            network = _shapes(cell)
            if network.output.name not in cell.study.outputs:
                raise SpecError(f"output={network.output.name}: this study takes {', '.join(cell.study.outputs)}")
            cell.learning.check(network)
    except (SpecError, ValueError) as error:
        raise Refused(str(error)) from error
    return Command(tuple(specs), execution, tracker, str(settings["scale"]), bool(settings.get("dry_run")))


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Inside, what the user has to mend (data, folders, sizes) refuses the command."""
    try:
        yield
    except (DataError, OutputError, ValueError) as error:
        raise Refused(str(error)) from error
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise Refused(str(output_error(folder, error))) from error


def run_all(configs: Sequence[Mapping[str, Any]]) -> int:
    """Run the cells of a command and report them; 0 when all lanes asked for are finished, 130 when asked to stop."""
    asked = command(configs)
    with refusing(asked.folder):
        # Data are loaded before anything is written: a missing copy is an error of the command, not of a cell.
        datasets = Datasets()
        missing = {spec.cell: len(asked.handle(spec).missing) for spec in asked.specs}
        costs = {s.cell: estimate(s, datasets, missing[s.cell]) for s in asked.specs if missing[s.cell]}
        print(describe(asked.specs, costs, asked.folder, asked.scale, listed=asked.dry_run), flush=True)
        if asked.dry_run:
            return 0
        asked.ask(asked.specs)
    return asked.run(asked.specs, costs, datasets)


def _run_cells(specs: Sequence[Spec], handles: Mapping[str, Cell], session: Session) -> int:
    """Run what is missing, the next cell getting ready while lanes of the one before run; the status of the command."""
    with session.progress, session.signals():
        try:
            with ThreadPoolExecutor(session.cells_at_once, thread_name_prefix="cell") as pool:
                cells = [pool.submit(_run_cell, spec, handles[spec.cell], session) for spec in specs]
                wait(cells, return_when=FIRST_EXCEPTION)
                if any(cell.done() and cell.exception() for cell in cells):
                    session.stop()  # the others save what they have, and end too
            errors = [error for cell in cells if (error := cell.exception())]
            for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
                raise error
        except Stopped:
            left = sum(len(handle.missing) for handle in handles.values())
            session.progress.say(f"stopped; {left} lanes are not finished. The same command continues.")
            return 130
        except OutputError as error:
            raise Refused(str(error)) from error
        finally:
            session.tracker.close()
    return 1 if any(handle.missing for handle in handles.values()) else 0


def _run_cell(spec: Spec, handle: Cell, session: Session) -> None:
    """On a thread of the cell's own: run what is missing of it. Raises Stopped and OutputError."""
    missing = handle.missing
    if not missing:
        return
    if session.stopping:
        raise Stopped  # before networks are built and compiled
    try:
        with handle.open(_about(spec)):
            session.progress.begin(spec, missing)
            spec.study.run(Job(spec, handle, session))
            session.progress.end(spec)
    except CellBusy as error:
        session.progress.say(f"left out: {error}")


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
    new = {
        cell.cell: {
            "labels": cell.labels,
            "lanes": {lane.name: lane.values for lane in cell.lanes},
            "revision": cell.study.revision,
        }
        for cell in specs
    }
    manifest.write(folder, scale, manifest.merged(manifest.asked(folder, scale), new))


def _report(study: str, scale: str, outputs: str) -> None:
    # Imported here: a run needs no tables or figures until it has ended.
    try:
        from pcexp.report import rendering as report
    except ModuleNotFoundError as error:  # a node that only runs
        print(f"no report: {error.name} is not installed here; python -m pcexp.report {study} makes it elsewhere")
        return
    report.main([study, "--outputs", outputs, "--scale", scale])
