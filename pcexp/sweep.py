"""The whole sweep of a command: lanes regrouped, a manifest written, cost estimated, then cell after cell.

Hydra composes one configuration a job (hydra_plugins/pcexp.py hands them over); jobs that differ in lane values only become
one cell here. The manifest says what was asked for at a scale, so that report and claims can count against it.
"""

import datetime
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger("pcexp")

GROUPS = ("data", "network", "parameterisation", "inference", "learning", "optimiser", "protocol", "tracker")


class Refused(SystemExit):
    """A command that cannot be run: ends the process with status 1 and a message that is all the user needs."""

    def __init__(self, message: str) -> None:
        super().__init__(f"pcexp: {message}")


def finish(code: int) -> None:
    """End the process with a status other than 0; Hydra would drop it."""
    if code:
        raise SystemExit(code)


def split_lanes(config: DictConfig, overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides that Hydra applies, and values of lane keys among them: those make lanes, not cells."""
    keys = _lane_keys(OmegaConf.select(config, "lanes"))
    kept, lanes = [], {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key.removeprefix("lanes.") in keys:
            lanes[key.removeprefix("lanes.")] = yaml.safe_load(value)
        else:
            kept.append(override)
    return kept, lanes


def _lane_keys(node: Any) -> set[str]:
    def flatten(block: Any, prefix: str) -> set[str]:
        if isinstance(block, Mapping):
            return set().union(*(flatten(value, f"{prefix}{key}.") for key, value in block.items()))
        return {prefix.removesuffix(".")}

    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    return set().union(*(flatten(block, "") for block in (plain if isinstance(plain, list) else [plain or {}])))


def resolved(config: DictConfig, choices: Mapping[str, str], lanes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers of a composed configuration, resolvers applied, with the chosen options as `choices`."""
    plain = OmegaConf.create({key: config._get_node(key) for key in config if key != "hydra"})
    plain.choices = {group: str(choices[group]) for group in GROUPS if choices.get(group) is not None}
    try:
        container = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        raise Refused(str(error).splitlines()[0]) from error
    assert isinstance(container, dict)
    for block in _blocks(container):
        for key, value in lanes.items():
            _remove_nested(block, key)
            block[key] = value if isinstance(value, list) else [value]
    return container | {"experiment": choices.get("experiment")}


def _blocks(container: dict[str, Any]) -> list[dict[str, Any]]:
    node = container.get("lanes")
    return node if isinstance(node, list) else [node or {}]


def _remove_nested(block: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        block = block.get(part, {})
    block.pop(last, None)


class Plan(NamedTuple):
    """A cell to run, with the configuration that it came from."""

    spec: Any
    config: dict[str, Any]


def plans(configs: Iterable[Mapping[str, Any]]) -> list[Plan]:
    """One plan a cell: configurations with the same science half are merged, their lanes united. Raises SpecError."""
    from pcexp.spec import spec

    import equinox as eqx

    merged: dict[str, Plan] = {}
    for config in configs:
        config = dict(config)
        config.pop("experiment", None)
        targets = (config.get("execution") or {}).get("targets") or ()
        new = spec(config, targets)
        if new.cell in merged:
            old = merged[new.cell]
            lanes = (*old.spec.lanes, *(lane for lane in new.lanes if lane not in old.spec.lanes))
            merged[new.cell] = Plan(eqx.tree_at(lambda s: s.lanes, old.spec, lanes), old.config)
        else:
            merged[new.cell] = Plan(new, config)
    return list(merged.values())


def study_name(spec: Any) -> str:
    """Name of the module that a study lives in; folders and records are called by it."""
    return type(spec.study).__module__.rpartition(".")[2]


def run_all(configs: Sequence[Mapping[str, Any]]) -> int:
    """Run the cells of a command and say what came of them; 0 when all lanes asked for are finished."""
    import jax

    from pcexp.cell import CANNOT_WRITE, Cell, CellBusy, OutputError, output_error, write_json
    from pcexp.cost import describe, estimate
    from pcexp.data import DataError
    from pcexp.progress import Progress
    from pcexp.runner import Datasets, Execution, Job, Session, Stopped
    from pcexp.spec import ALLOWED_TARGETS, SpecError, build

    experiment = configs[0].get("experiment")
    settings = configs[0]
    if bool((settings.get("execution") or {}).get("x64")):
        jax.config.update("jax_enable_x64", True)
    try:
        cells = plans(configs)
        execution_node = {"_target_": "pcexp.runner.Execution"} | dict(settings["execution"])
        dry_run = bool(execution_node.pop("dry_run", False))
        execution: Execution = build(execution_node, "execution", ALLOWED_TARGETS)
        tracker = build(settings["tracker"], "tracker", (*ALLOWED_TARGETS, *execution.targets))
        for plan in cells:
            shape = jax.eval_shape(lambda plan=plan: _abstract_network(plan.spec))
            plan.spec.learning.check(shape)
    except (SpecError, ValueError) as error:
        raise Refused(str(error)) from error
    scale = str(settings["scale"])
    folder = Path(execution.outputs) / study_name(cells[0].spec)
    handles = {plan.spec.cell: Cell(folder / plan.spec.cell, [lane.name for lane in plan.spec.lanes]) for plan in cells}
    try:
        # Data are loaded before anything is written: a missing copy is an error of the command, not of a cell.
        datasets = Datasets()
        missing = {cell: len(handle.missing) for cell, handle in handles.items()}
        costs = {p.spec.cell: estimate(p.spec, datasets, missing[p.spec.cell]) for p in cells if missing[p.spec.cell]}
        print(describe([p.spec for p in cells], costs, folder, scale, listed=dry_run), flush=True)
        if dry_run:
            return 0
        session = Session(execution, tracker, Progress({cell: cost.flops for cell, cost in costs.items()}), datasets)
        _write_manifest(folder, scale, experiment, cells, write_json)
    except DataError as error:
        raise Refused(str(error)) from error
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise Refused(str(output_error(folder, error))) from error
    code, busy = 0, []
    with session.progress, session.signals():
        try:
            for plan in cells:
                handle = handles[plan.spec.cell]
                missing = handle.missing
                if not missing:
                    continue
                about = {
                    "study": study_name(plan.spec),
                    "cell": plan.spec.cell,
                    "revision": plan.spec.study.revision,
                    "science": plan.spec.science,
                    "labels": plan.spec.labels,
                }
                session.progress.begin(plan.spec, missing)
                try:
                    with handle.open(about):
                        plan.spec.study.run(Job(plan.spec, handle, session))
                except CellBusy as error:
                    busy.append(str(error))
                    session.progress.say(f"left out: {error}")
                    continue
                session.progress.end(plan.spec)
        except Stopped:
            left = sum(len(handle.missing) for handle in handles.values())
            session.progress.say(f"stopped; {left} lanes are not finished. The same command continues.")
            code = 130
        except OutputError as error:
            raise Refused(str(error)) from error
        finally:
            tracker.close()
    if code == 0 and (busy or any(handle.missing for handle in handles.values())):
        code = 1
    if code == 0:
        _report(folder.name, scale, execution.outputs, settings)
    return code


def _abstract_network(spec: Any) -> Any:
    """Shapes of a network for the checks before anything is compiled; sizes of data do not matter to them."""
    import jax.random as jr

    shape = (8,) if spec.network.flat_inputs else (64, 64, 3)
    return spec.network.build(spec.parameterisation, shape, 2, key=jr.key(0))


def _write_manifest(folder: Path, scale: str, experiment: str | None, cells: Sequence[Plan], write_json: Any) -> None:
    """Add the cells asked for to the manifest of this scale; what was asked for before stays asked for."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"manifest-{scale}.json"
    known = json.loads(path.read_text())["cells"] if path.exists() else {}
    for plan in cells:
        lanes = {lane.name: lane.values for lane in plan.spec.lanes}
        old = known.get(plan.spec.cell, {"lanes": {}})["lanes"]
        known[plan.spec.cell] = {"labels": plan.spec.labels, "lanes": old | lanes, "revision": plan.spec.study.revision}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(path, {"scale": scale, "experiment": experiment, "command": sys.argv[1:], "written": now, "cells": known})


def _report(study: str, scale: str, outputs: str, settings: Mapping[str, Any]) -> None:
    from pcexp import report

    report.main([study, "--outputs", outputs, "--scale", scale])
