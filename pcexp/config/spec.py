"""From a composed configuration to the typed cell that it describes, with its lanes; refused before anything compiles.

The science half of a configuration (data, network, learning ... without lane values) is hashed into the cell; how it runs, its
labels and its scale are not. A study that learns nothing has no learning, optimiser and training.
"""

import copy
import itertools
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import equinox as eqx
import optax

from pcexp.config.composition import PLATFORM
from pcexp.config.identity import Identity, Lane, cell_name, lane_name
from pcexp.config.plain import holder, leaves, unknown
from pcexp.config.study import AbstractStudy
from pcexp.config.targets import ALLOWED_TARGETS, SpecError, build, check_type, located, without_defaults
from pcexp.data import AbstractData
from pcexp.learning import AbstractLearning
from pcexp.model.architecture import AbstractArchitecture
from pcexp.model.parameterisation import AbstractParameterisation
from pcexp.model.segments import Precision
from pcexp.train import Training

NEEDED = ("study", "data", "network", "parameterisation", "precision", "root_seed")
LEARNS = ("learning", "optimiser", "training")
"""Absent, all three, from a study or a block that learns nothing."""
SCIENCE = (*NEEDED, *LEARNS)
"""Root keys that numbers depend on."""
SEEDS = 2**32
"""Random keys are made of 32 bits: a larger seed would be another one's, or none."""
REFERRED = ("output", "inference", "start", "evaluation", "protocol")
"""Root keys that enter through interpolations, where what they say is used."""


class Learner(eqx.Module):
    """What makes a cell learn."""

    learning: AbstractLearning
    optimiser: Callable[[], optax.GradientTransformation]
    training: Training


@dataclass(frozen=True)
class Spec(Identity):
    """One cell, typed: everything a study needs to run it."""

    study: AbstractStudy
    data: AbstractData
    network: AbstractArchitecture
    parameterisation: AbstractParameterisation
    precision: Precision
    root_seed: int
    learner: Learner | None

    @property
    def learns(self) -> bool:
        """Whether something learns in this cell."""
        return self.learner is not None

    @property
    def learning(self) -> AbstractLearning:
        """Its learning rule. Raises SpecError where nothing learns."""
        return self._learner.learning

    @property
    def optimiser(self) -> Callable[[], optax.GradientTransformation]:
        """Makes its optimiser. Raises SpecError where nothing learns."""
        return self._learner.optimiser

    @property
    def training(self) -> Training:
        """How it trains. Raises SpecError where nothing learns."""
        return self._learner.training

    @property
    def _learner(self) -> Learner:
        if self.learner is None:
            raise SpecError(f"{self.name}: nothing learns in this cell; set {', '.join(LEARNS)} for one that trains")
        return self.learner


def identity(config: Mapping[str, Any], allowed: Sequence[str] = ALLOWED_TARGETS, *, block: str = "") -> Identity:
    """Who the cell of a composed configuration is. Raises SpecError."""
    valid = dict.fromkeys((*SCIENCE, *REFERRED, *(config.get("choices") or ()), *PLATFORM, "lanes", "choices"))
    for key in config:
        if key not in valid:
            raise SpecError(unknown(key, valid))
    learns = {key: config[key] for key in LEARNS if config.get(key) is not None}
    hints = {"study": "name an experiment, as in +experiment=saddle_escape"}
    hints |= dict.fromkeys(LEARNS, f"what learns needs {', '.join(LEARNS)}, and what does not has none of them")
    for key in (*NEEDED, *(LEARNS if learns else ())):
        if config.get(key) is None:
            raise SpecError(f"{key} is not set: {hints.get(key, 'set it')}")
    used = {"inference", "start", "evaluation"} & set(learns.get("learning") or ())
    unused = {"tracker", "inference", "start", "evaluation", *(() if learns else LEARNS)} - used
    labels = {k: str(v) for k, v in (config.get("choices") or {}).items() if k not in unused}
    labels["protocol"] = str((config.get("protocol") or {}).get("name", "none"))
    labels["activation"] = str((config.get("network") or {}).get("activation", ""))
    values = lane_values(config)
    science = copy.deepcopy({key: config[key] for key in NEEDED} | learns)
    for key in values[0].keys() - {"seed"}:
        node, last = holder(science, key)
        node.pop(last, None)
    _check_numbers([*leaves(science), *((key, value) for lane in values for key, value in lane.items())])
    target = config["study"].get("_target_") if isinstance(config["study"], Mapping) else None
    revision = located(target, "study._target_", allowed).revision
    said = without_defaults(science, "", allowed) | {"revision": revision}
    # Where a file lies says nothing of what is in it.
    if learns and not any(
        "inference" in key.split(".") for key, _ in leaves(learns["learning"])
    ):  # what a rule does not use makes no other cell
        said["training"] = {key: value for key, value in said["training"].items() if key != "regime"}
    if "_target_" in said["data"]:
        places = getattr(located(said["data"]["_target_"], "data._target_", allowed), "places", ())
        said["data"] = {key: value for key, value in said["data"].items() if key not in places}
    return Identity(
        name=str(target).rpartition(".")[0].rpartition(".")[2],
        revision=revision,
        cell=cell_name(said),
        science=science,
        labels=labels,
        lanes=tuple(Lane(lane_name(v), v, (block,) if block else ()) for v in values),
    )


def _check_numbers(said: Sequence[tuple[str, Any]]) -> None:
    """Raise SpecError of a number that cannot be right, whatever it belongs to."""
    for key, value in said:
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise SpecError(f"{key}={number}: a finite number is needed")
            if key.rpartition(".")[2] == "learning_rate" and isinstance(number, (int, float)) and number < 0:
                raise SpecError(f"{key}={number}: valid are 0 and above")
            if key in ("seed", "root_seed") and isinstance(number, int) and not 0 <= number < SEEDS:
                key = "lanes.seed" if key == "seed" else key
                raise SpecError(f"{key}={number}: seeds are whole numbers from 0 to {SEEDS - 1}")


def spec(who: Identity, allowed: Sequence[str] = ALLOWED_TARGETS) -> Spec:
    """The typed cell. Raises SpecError."""
    # A lane key has no value of its own in the cell, but the component that it belongs to is built with the first one.
    first = who.lanes[0].values
    parts = with_values(who.science, first)
    built = {key: build(part, key, allowed, partial=key == "optimiser") for key, part in parts.items()}
    hints = typing.get_type_hints(Spec) | typing.get_type_hints(Learner)
    if isinstance(built["root_seed"], bool) or not isinstance(built["root_seed"], int):
        raise SpecError(f"root_seed={built['root_seed']!r}: a whole number is needed")
    check_type(built["precision"], hints["precision"], "precision")
    for key, wanted in hints.items():
        if key in built and isinstance(wanted, type) and not isinstance(built[key], wanted):
            raise SpecError(f"{key}._target_={parts[key]['_target_']} is no {wanted.__name__.removeprefix('Abstract')}")
    for key in first:
        _varies(built, key)
        head = key.partition(".")[0]
        for value in sorted({lane.values[key] for lane in who.lanes} - {first[key]}) if key != "seed" else ():
            build(with_values(parts, {key: value})[head], head, allowed, partial=head == "optimiser")
    if built["precision"] not in built["study"].precisions:
        raise SpecError(f"precision={built['precision']}: this study takes {', '.join(built['study'].precisions)}")
    learner = Learner(*(built.pop(key) for key in LEARNS)) if "learning" in built else None
    return Spec(**vars(who), **built, learner=learner)


def with_values(science: Mapping[str, Any], values: Mapping[str, float | int]) -> dict[str, Any]:
    """A science half with the values of a lane where they belong."""
    parts = copy.deepcopy(dict(science))
    for key, value in values.items():
        if key != "seed":
            node, last = holder(parts, key)
            node[last] = value
    return parts


def lane_values(config: Mapping[str, Any]) -> list[dict[str, float | int]]:
    """Values of all lanes by key: the product of the axes under `lanes`.

    A key under `inference` means the inference of the learning rule; where the rule has none, or one of its own without
    such a key, the key is not swept.
    """
    said = dict(leaves(config))
    axes: dict[str, list[float | int]] = {}
    for key, raw in ({"seed": [0]} | dict(leaves(config.get("lanes") or {}))).items():
        values = list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SpecError(f"lanes.{key}: {value!r} is not a number; axes of other kinds are axes of cells")
        if key == "seed" and not all(isinstance(v, int) for v in values):
            raise SpecError(f"lanes.seed={values}: seeds are whole numbers")
        used = key if key == "seed" else _used_key(said, key)
        if used is not None:
            axes[used] = values if used == "seed" else [float(v) for v in values]
    found = dict.fromkeys(itertools.product(*axes.values()))
    if not found:
        raise SpecError("lanes: at least one value is needed for each key")
    return [dict(zip(axes, combination, strict=True)) for combination in found]


def _used_key(said: Mapping[str, Any], key: str) -> str | None:
    """The leaf that a lane key means, of all that a configuration says; None where nothing uses it. Raises SpecError."""
    used = f"learning.{key}" if key.startswith("inference.") else key
    if used not in said:
        if used != key and key in said:
            return None
        while "." in key and not any(leaf.startswith(key[: key.rfind(".") + 1]) for leaf in said):
            key = key.rpartition(".")[0]  # what is wrong is further up
        at = key[: key.rfind(".") + 1]
        beside = dict.fromkeys(leaf[len(at) :].partition(".")[0] for leaf in said if leaf.startswith(at))
        raise SpecError(f"lanes.{unknown(key, beside)}")
    if used.partition(".")[0] not in ("parameterisation", "learning", "optimiser") or isinstance(
        said[used], (bool, str)
    ):
        raise SpecError(
            f"lanes.{key} cannot vary inside a cell: lanes are numbers of parameterisation, learning, optimiser"
        )
    return used


def _varies(built: Mapping[str, Any], key: str) -> None:
    """Raise SpecError where a lane key is a number that is compiled in."""
    node: Any = built
    for part in key.split("."):
        static = {field.name for field in fields(node) if field.metadata.get("static")} if is_dataclass(node) else ()
        if part in static:
            raise SpecError(f"lanes.{key} cannot vary inside a cell: vary it between cells, as in {key}=VALUE,VALUE")
        node = node.get(part) if isinstance(node, Mapping) else getattr(node, part, None)
