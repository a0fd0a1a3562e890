"""From a composed configuration to the typed cell that it describes, with its lanes; refused before anything compiles.

The science half of a configuration (data, network, learning ... without lane values) is hashed into the cell; how it runs, its
labels and its scale are not. A study that learns nothing has no learning, optimiser and training.
"""

import hashlib
import itertools
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import equinox as eqx
import optax

from pcexp.config.identity import Identity, Lane, lane_name
from pcexp.config.study import AbstractStudy
from pcexp.config.targets import ALLOWED_TARGETS, SpecError, allow, build, known, located, suggestion, without_defaults
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
"""Root keys that numbers depend on; `output`, `inference` and the leaves of `protocol` enter through interpolations."""
PLATFORM = (
    "execution",
    "tracker",
    "lanes",
    "scale",
    "dry_run",
    "blocks",
    "choices",
    "output",
    "inference",
    "start",
    "evaluation",
    "protocol",
)


class Learner(eqx.Module):
    """What makes a cell learn."""

    learning: AbstractLearning
    optimiser: Callable[[], optax.GradientTransformation]
    training: Training


class Spec(eqx.Module):
    """One cell, typed: everything a study needs to run it."""

    study: AbstractStudy
    data: AbstractData
    network: AbstractArchitecture
    parameterisation: AbstractParameterisation
    precision: Precision
    root_seed: int
    learner: Learner | None
    identity: Identity

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

    @property
    def name(self) -> str:
        """Name of the study; folders and records are called by it."""
        return self.identity.name

    @property
    def cell(self) -> str:
        """Name of the cell."""
        return self.identity.cell

    @property
    def science(self) -> dict[str, Any]:
        """The science half of its configuration."""
        return self.identity.science

    @property
    def labels(self) -> dict[str, str]:
        """The options that were chosen, protocol and activation."""
        return self.identity.labels

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that are asked for."""
        return self.identity.lanes


def identity(config: Mapping[str, Any], prefixes: Sequence[str] = (), *, block: str = "") -> Identity:
    """Who the cell of a composed configuration is. Raises SpecError."""
    known(config, (*SCIENCE, *PLATFORM), "")
    missing = [key for key in NEEDED if config.get(key) is None]
    if missing:
        hint = "name an experiment, as in +experiment=saddle_escape" if "study" in missing else "set it"
        raise SpecError(f"{missing[0]} is not set: {hint}")
    learns = {key: config[key] for key in LEARNS if config.get(key) is not None}
    if learns and len(learns) < len(LEARNS):
        lacking = next(key for key in LEARNS if key not in learns)
        raise SpecError(
            f"{lacking} is not set: what learns needs {', '.join(LEARNS)}, and what does not has none of them"
        )
    used = [key for key in ("inference", "start", "evaluation") if key in (learns.get("learning") or {})]
    unused = {"tracker", "inference", "start", "evaluation"} - set(used)
    choices = {k: str(v) for k, v in (config.get("choices") or {}).items() if k not in unused}
    labels = {k: v for k, v in choices.items() if learns or k not in LEARNS}
    labels["protocol"] = str((config.get("protocol") or {}).get("name", "none"))
    labels["activation"] = str((config.get("network") or {}).get("activation", ""))
    keys, values = lane_values(config)
    science = json.loads(json.dumps({key: config[key] for key in NEEDED} | learns))  # detached from the caller's
    for key in keys - {"seed"}:
        _remove(science, key)
    target = config["study"].get("_target_") if isinstance(config["study"], Mapping) else None
    revision = located(target, "study._target_", (*ALLOWED_TARGETS, *prefixes)).revision
    allow(science, "", (*ALLOWED_TARGETS, *prefixes))
    said = json.dumps(without_defaults(science) | {"revision": revision}, sort_keys=True)
    return Identity(
        name=str(target).rpartition(".")[0].rpartition(".")[2],
        revision=revision,
        cell=hashlib.sha256(said.encode()).hexdigest()[:12],
        science=science,
        labels=labels,
        lanes=tuple(Lane(lane_name(v), v, (block,) if block else ()) for v in values),
    )


def spec(config: Mapping[str, Any], prefixes: Sequence[str] = (), who: Identity | None = None) -> Spec:
    """The typed cell of a composed configuration. Raises SpecError."""
    who = who or identity(config, prefixes)
    allowed = (*ALLOWED_TARGETS, *prefixes)
    # A lane key has no value of its own in the cell, but the component that it belongs to is built with the first one.
    parts = json.loads(json.dumps(who.science))
    for key, value in who.lanes[0].values.items():
        if key != "seed":
            insert(parts, key, value)
    built: dict[str, Any] = {key: parts[key] for key in ("precision", "root_seed")}
    built |= {
        key: build(parts[key], key, allowed) for key in parts if key not in ("optimiser", "precision", "root_seed")
    }
    for key, wanted in (typing.get_type_hints(Spec) | typing.get_type_hints(Learner)).items():
        if key in built and isinstance(wanted, type) and not isinstance(built[key], wanted):
            if key == "root_seed":
                raise SpecError(f"root_seed={parts['root_seed']!r}: a whole number is needed")
            raise SpecError(f"{key}._target_={parts[key]['_target_']} is no {wanted.__name__.removeprefix('Abstract')}")
    if isinstance(parts["root_seed"], bool):
        raise SpecError(f"root_seed={parts['root_seed']!r}: a whole number is needed")
    valid = typing.get_args(Precision)
    if parts["precision"] not in valid:
        raise SpecError(f"precision={parts['precision']!r}: valid is one of {', '.join(valid)}")
    for key in who.lanes[0].values:
        _varies(built, key)
        if key == "seed":
            continue
        for value in sorted({lane.values[key] for lane in who.lanes} - {who.lanes[0].values[key]}):
            node, head = json.loads(json.dumps(parts)), key.partition(".")[0]
            insert(node, key, value)
            build(node[head], head, allowed, partial=head == "optimiser")
    study = built["study"]
    if parts["precision"] not in study.precisions:
        raise SpecError(f"precision={parts['precision']}: this study takes {', '.join(study.precisions)}")
    learner = None
    if "learning" in parts:
        optimiser = build(parts["optimiser"], "optimiser", allowed, partial=True)
        learner = Learner(built.pop("learning"), optimiser, built.pop("training"))
    return Spec(**built, learner=learner, identity=who)


def lane_values(config: Mapping[str, Any]) -> tuple[set[str], list[dict[str, float | int]]]:
    """Keys and values of all lanes: the product of the axes under `lanes`.

    A key under `inference` means the inference of the learning rule; where the rule has none, or one of its own without
    such a key, the key is not swept.
    """
    axes: dict[str, list[float | int]] = {}
    for key, raw in ({"seed": [0]} | _flatten(config.get("lanes") or {})).items():
        values = list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SpecError(f"lanes.{key}: {value!r} is not a number; axes of other kinds are axes of cells")
        if key == "seed" and not all(isinstance(v, int) for v in values):
            raise SpecError(f"lanes.seed={values}: seeds are whole numbers")
        used = _used_key(config, key)
        if used is not None:
            axes[used] = values if used == "seed" else [float(v) for v in values]
    found: list[dict[str, float | int]] = []
    for combination in itertools.product(*axes.values()):
        lane = dict(zip(axes, combination, strict=True))
        if lane not in found:
            found.append(lane)
    if not found:
        raise SpecError("lanes: at least one value is needed for each key")
    return set(axes), found


def _flatten(block: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(block, Mapping):
        raise SpecError(f"lanes must be a mapping of keys to lists, or a list of such mappings, not {block!r}")
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _used_key(config: Mapping[str, Any], key: str) -> str | None:
    if key == "seed":
        return key
    head, _, rest = key.partition(".")
    if head == "inference":
        key = f"learning.inference.{rest}"
        own, chosen = (config.get("learning") or {}).get("inference"), config.get("inference") or {}
        if rest in chosen and (own is None or rest not in own):
            return None
        if own is None:
            raise SpecError(
                f"lanes.inference.{rest}: there is no key {rest}{suggestion(rest, chosen)}; valid there are "
                + ", ".join(name for name in chosen if name != "_target_")
            )
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            valid = [k for k in node if k != "_target_"] if isinstance(node, Mapping) else []
            raise SpecError(
                f"lanes.{key}: there is no key {part}{suggestion(part, valid)}; valid there are {', '.join(valid)}"
            )
        node = node[part]
    if key.partition(".")[0] not in ("parameterisation", "learning", "optimiser") or isinstance(node, (bool, str)):
        raise SpecError(
            f"lanes.{key} cannot vary inside a cell: lanes are numbers of parameterisation, learning, optimiser"
        )
    return key


def _varies(built: Mapping[str, Any], key: str) -> None:
    """Raise SpecError where a lane key is a number that is compiled in."""
    node: Any = built
    for part in key.split("."):
        static = {field.name for field in fields(node) if field.metadata.get("static")} if is_dataclass(node) else ()
        if part in static:
            raise SpecError(f"lanes.{key} cannot vary inside a cell: vary it between cells, as in {key}=VALUE,VALUE")
        node = node.get(part) if isinstance(node, Mapping) else getattr(node, part, None)


def _remove(tree: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree[part]
    tree.pop(last, None)


def insert(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree[part]
    tree[last] = value
