"""The whole sweep of a command: one cell a science half, a manifest, an estimate, then its cells.

Configurations that differ in lane values only are one cell. The manifest says what was asked for at a scale, so that report and claims can count against it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.random as jr

from pcexp.config.composition import Asked, Composed, Refused
from pcexp.config.identity import Identity, Lane, under
from pcexp.config.spec import Spec, identity, spec
from pcexp.config.targets import ALLOWED_TARGETS, SpecError, build
from pcexp.data import DataError
from pcexp.records import manifest
from pcexp.records.cell import Cell, OutputError, writing
from pcexp.records.lock import CellBusy
from pcexp.records.manifest import Blocks
from pcexp.run.cost import Cost, describe, estimate, listed, too_large
from pcexp.run.job import Job
from pcexp.run.progress import Progress
from pcexp.run.provenance import number_flags, other_than
from pcexp.run.session import Datasets, Execution, Session, Stopped
from pcexp.run.tracking import AbstractTracker


def identities(composed: Iterable[Composed], allowed: Sequence[str]) -> dict[str, Identity]:
    """Who the cells of these configurations are; of those that are one cell the lanes are united. Raises SpecError."""
    found: dict[str, Identity] = {}
    for one in composed:
        new = identity(one.config, allowed, block=one.block)
        lanes = {lane.name: lane for lane in found[new.cell].lanes} if new.cell in found else {}
        for lane in new.lanes:
            blocks = dict.fromkeys((*lanes.get(lane.name, lane).blocks, *lane.blocks))
            lanes[lane.name] = lane._replace(blocks=tuple(blocks))
        found[new.cell] = replace(found.get(new.cell, new), lanes=tuple(lanes.values()))
    return found


def placed(cell: Identity, own: Mapping[str, Identity], variant: str) -> Identity:
    """The cell with its lanes in the blocks of the study's own grid; those that are not in it are a variant.

    A lane that differs from one of the study's in its seed alone is the study's too: more seeds make a verdict firmer.
    """

    def rest(lane: Lane) -> frozenset[tuple[str, float]]:
        return frozenset((key, value) for key, value in lane.values.items() if key != "seed")

    blocks = {rest(lane): lane.blocks for lane in own[cell.cell].lanes} if cell.cell in own else {}
    lanes = []
    for lane in cell.lanes:
        mine = blocks.get(rest(lane))
        lanes.append(lane._replace(variant=variant) if mine is None else lane._replace(blocks=mine))
    return replace(cell, lanes=tuple(lanes))


@dataclass(frozen=True)
class Sweep:
    """The cells of one study that a command asks for, checked, and how to run them."""

    specs: tuple[Spec, ...]
    execution: Execution
    tracker: AbstractTracker
    scale: str
    dry_run: bool
    grid: tuple[Identity, ...]
    blocks: Blocks

    @property
    def name(self) -> str:
        return self.specs[0].name

    @property
    def folder(self) -> Path:
        """Where the cells are."""
        return self.execution.folder / self.name

    def handle(self, spec: Spec) -> Cell:
        """The folder of a cell, with the lanes asked for."""
        return Cell(self.folder / spec.cell, [lane.name for lane in spec.lanes])

    def ask(self, specs: Sequence[Spec]) -> None:
        """Write into the manifest what is asked for: the study's grid on these data, and these cells."""
        data = {spec.labels["data"] for spec in specs}  # others may have no copy here: of those nothing is asked
        grid = [one for one in self.grid if one.labels["data"] in data]
        cells = manifest.entries([*grid, *specs])
        blocks = {name: b for name, b in self.blocks.items() if name in data}
        if other := manifest.add(self.folder, self.scale, cells, blocks):
            print(
                f"data={', '.join(sorted(data))}: their content is not what it was for {len(other)} cells asked for before. "
                f"Those are no longer asked for, and their runs stay in {self.folder}",
                flush=True,
            )

    def run(self, specs: Sequence[Spec], costs: Mapping[str, Cost], datasets: Datasets) -> int:
        """Run what is missing of these cells, in this order, and report the study if that ends; the status."""
        progress = Progress({spec.cell: costs[spec.cell].seconds for spec in specs if spec.cell in costs})
        session = Session(self.execution, self.tracker, progress, datasets)
        code = _run_cells(specs, {spec.cell: self.handle(spec) for spec in specs}, session)
        if code == 0:
            code = _report(self.name, self.scale, self.execution.folder) or 0
        return code


def sweep(asked: Asked, settings: Mapping[str, Any], datasets: Datasets) -> Sweep:
    """What a command asks for, typed and checked; cells are named after the content of their data too. Raises Refused."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX says so in one way or the other
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise Refused(f"JAX_PLATFORMS={platforms}: JAX finds no such device here; unset it, or set cpu") from error
    try:
        # First: its targets say which modules may be named.
        how = {"_target_": "pcexp.run.session.Execution", **settings["execution"]}
        execution: Execution = build(how, "execution", ALLOWED_TARGETS)
        allowed = (*ALLOWED_TARGETS, *execution.targets)
        own = identities(asked.own, allowed)
        wanted = own if asked.cells is asked.own else identities(asked.cells, allowed)
        specs = _checked([placed(who, own, asked.variant) for who in wanted.values()], allowed)
        tracker: AbstractTracker = build(settings["tracker"], "tracker", allowed)
    except ValueError as error:
        raise Refused(str(error)) from error
    scale, dry_run = str(settings["scale"]), bool(settings.get("dry_run"))
    contents = {cell.labels["data"]: datasets.content(cell) for cell in reversed(specs)}
    flags = number_flags()
    specs = [under(cell, contents[cell.labels["data"]], flags) for cell in specs]
    grid = [under(cell, contents.get(cell.labels["data"], ""), "") for cell in own.values()]
    return Sweep(tuple(specs), execution, tracker, scale, dry_run, tuple(grid), asked.blocks)


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Inside, what the user has to mend (data, folders, sizes) refuses the command."""
    try:
        with writing(folder):
            yield
    except (DataError, OutputError, ValueError) as error:
        raise Refused(str(error)) from error


def run_all(composed: Asked, settings: Mapping[str, Any]) -> int:
    """Run the cells of a command and report them; 0 when all lanes asked for are finished, 130 when asked to stop."""
    datasets = Datasets()
    asked = sweep(composed, settings, datasets)
    with refusing(asked.folder):
        # Data are loaded before anything is written: a missing copy is an error of the command, not of a cell.
        missing = {spec.cell: len(asked.handle(spec).missing) for spec in asked.specs}
        workers = asked.execution.workers
        costs = {s.cell: estimate(s, datasets, missing[s.cell], workers) for s in asked.specs if missing[s.cell]}
        print(describe(asked.specs, costs, asked.folder, asked.scale), flush=True)
        if asked.dry_run:
            print(*listed(asked.specs, costs), sep="\n", flush=True)
        if excess := too_large(asked.specs, costs):
            raise Refused(excess)
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
            others = {other_than(entry["provenance"]) for entry in handle.finished.values()} - {""}
            for other in sorted(others):
                session.progress.say(f"{spec.cell} has lanes that were run with {other}: last digits may differ")
            session.progress.begin(spec, missing)
            spec.study.run(Job(spec, handle, session))
            session.progress.end(spec)
    except CellBusy as error:
        session.progress.say(f"left out: {error}")


def _about(cell: Spec) -> dict[str, Any]:
    return {"study": cell.name} | {key: getattr(cell, key) for key in ("cell", "revision", "science", "labels")}


def _checked(cells: Sequence[Identity], allowed: Sequence[str]) -> list[Spec]:
    """The typed cells. Raises SpecError of the first that cannot be run, which says how many others cannot."""
    specs, models, wrong = [], dict[str, Any](), list[tuple[Identity, ValueError]]()
    for who in cells:
        try:
            cell = spec(who, allowed)
            shape = json.dumps([cell.science["network"], cell.science["parameterisation"]], sort_keys=True)
            models[shape] = models[shape] if shape in models else _model(cell)
            _check(cell, models[shape])
        except ValueError as error:
            wrong.append((who, error))
        else:
            specs.append(cell)
    if not wrong:
        return specs
    (first, reason), *_ = wrong
    if not specs:
        raise reason
    rest = f", and {len(wrong) - 1} more" if wrong[1:] else ""
    raise SpecError(
        f"{reason} (cell {' '.join(first.labels.values())}{rest}; the other {len(specs)} of {len(cells)} could run: name in one command "
        "the values that go together)"
    ) from reason


def _model(cell: Spec) -> Any:
    """Shapes of a cell's model, on data of made-up sizes: they do not matter to what is checked."""
    shape = (8,) if cell.network.arrangement.flat else (64, 64, 3)
    return jax.eval_shape(lambda: cell.network.build(cell.parameterisation, shape, 2, key=jr.key(0)))


def _check(cell: Spec, model: Any) -> None:
    """Raise SpecError or ValueError where parts of a cell do not go together: before anything is compiled."""
    arrangement = cell.network.arrangement
    output = model.generator.output.name
    if output not in cell.study.outputs:
        raise SpecError(f"output={output}: this study takes {', '.join(cell.study.outputs)}")
    if not cell.learns:
        return
    own = getattr(cell.learning, "precision", cell.precision)
    if (own == "float64") != (cell.precision == "float64"):
        raise SpecError(f"learning.precision={own} and precision={cell.precision}: set precision alone")
    cell.learning.check(model)
    if cell.training.regime:
        cell.learning.check_regime(model)
    if arrangement.latents is not None and not cell.learning.infers_inputs:
        raise SpecError("network.latents are free inputs, and this rule infers none: choose learning=pc")
    cell.learning.evaluation.check(model, generative=arrangement.generative)


def _report(study: str, scale: str, outputs: Path) -> int:
    # Imported here: a run needs no tables or figures until it has ended.
    try:
        from pcexp.report import rendering as report
    except ModuleNotFoundError as error:  # a node that only runs
        print(f"no report: {error.name} is not installed here; python -m pcexp report {study} makes it elsewhere")
        return 0
    return report.main([study, "--outputs", str(outputs), "--scale", scale])
