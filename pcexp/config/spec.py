"""From a resolved configuration to the typed cell that it describes, with its lanes; refused before anything compiles.

The science half of a configuration (data,
network, learning ... without lane values) is hashed into the cell; `execution.*`, tracker and scale are not.
"""

import hashlib
import itertools
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import optax

from pcexp.config.study import AbstractStudy
from pcexp.config.targets import ALLOWED_TARGETS, SpecError, build, known, suggestion, without_defaults
from pcexp.data import AbstractData
from pcexp.learning import AbstractLearning
from pcexp.model.architecture import AbstractArchitecture
from pcexp.model.parameterisation import AbstractParameterisation
from pcexp.train import Training

SCIENCE = ("study", "data", "network", "parameterisation", "learning", "optimiser", "training", "root_seed")
"""Root keys that numbers depend on; `output`, `inference` and the leaves of `protocol` enter through interpolations."""
PLATFORM = (
    "execution",
    "tracker",
    "lanes",
    "scale",
    "dry_run",
    "choices",
    "variant",
    "output",
    "inference",
    "protocol",
    "precision",
)


class Lane(NamedTuple):
    """One run inside a cell: its name in files and the values of its lane keys."""

    name: str
    values: dict[str, float | int]


class Spec(eqx.Module):
    """One cell, typed: everything a study needs to run it."""

    study: AbstractStudy
    data: AbstractData
    network: AbstractArchitecture
    parameterisation: AbstractParameterisation
    learning: AbstractLearning
    optimiser: Callable[[], optax.GradientTransformation]
    training: Training
    root_seed: int
    science: dict[str, Any]
    labels: dict[str, str]
    cell: str
    lanes: tuple[Lane, ...]

    @property
    def name(self) -> str:
        """Name of the study: the module that it lives in; folders and records are called by it."""
        return type(self.study).__module__.rpartition(".")[2]


def spec(config: Mapping[str, Any], prefixes: Sequence[str] = ()) -> Spec:
    """The typed cell of a resolved configuration. Raises SpecError."""
    known(config, (*SCIENCE, *PLATFORM), "")
    missing = [key for key in SCIENCE if config.get(key) is None]
    if missing:
        hint = "name an experiment, as in +experiment=saddle_escape" if "study" in missing else "set it"
        raise SpecError(f"{missing[0]} is not set: {hint}")
    unused = {"tracker"} if "inference" in config["learning"] else {"tracker", "inference"}
    labels = {k: str(v) for k, v in (config.get("choices") or {}).items() if k not in unused}
    labels["protocol"] = str((config.get("protocol") or {}).get("name", "none"))
    labels["activation"] = str((config.get("network") or {}).get("activation", ""))
    labels["variant"] = str(config.get("variant") or "")
    keys, values = lane_values(config)
    science = {key: config[key] for key in SCIENCE} | {"protocol": labels["protocol"]}
    science = json.loads(json.dumps(science))  # plain containers, detached from the caller's
    for key in keys - {"seed"}:
        _remove(science, key)
    allowed = (*ALLOWED_TARGETS, *prefixes)
    # A lane key has no value of its own in the cell, but the component that it belongs to is built with the first one.
    filled = json.loads(json.dumps(science))
    for key, value in values[0].items():
        if key != "seed":
            insert(filled, key, value)
    parts = {key: filled[key] for key in SCIENCE}
    built = {key: build(parts[key], key, allowed) for key in SCIENCE if key not in ("optimiser", "root_seed")}
    for key, hint in typing.get_type_hints(Spec).items():
        if key in built and not isinstance(built[key], hint):
            raise SpecError(f"{key}._target_={parts[key]['_target_']} is no {hint.__name__.removeprefix('Abstract')}")
    if isinstance(parts["root_seed"], bool) or not isinstance(parts["root_seed"], int):
        raise SpecError(f"root_seed={parts['root_seed']!r}: a whole number is needed")
    study = built["study"]
    if built["training"].precision not in study.precisions:
        raise SpecError(f"precision={built['training'].precision}: this study takes {', '.join(study.precisions)}")
    identity = json.dumps(without_defaults(science) | {"revision": study.revision}, sort_keys=True)
    return Spec(
        **built,
        optimiser=build(parts["optimiser"], "optimiser", allowed, partial=True),
        root_seed=parts["root_seed"],
        science=science,
        labels=labels,
        cell=hashlib.sha256(identity.encode()).hexdigest()[:12],
        lanes=tuple(Lane(lane_name(v), v) for v in values),
    )


def lane_values(config: Mapping[str, Any]) -> tuple[set[str], list[dict[str, float | int]]]:
    """Keys and values of all lanes: a product of lists, or a union of such products when `lanes` is a list of blocks.

    A key under `inference` means the inference of the learning rule; where the rule has none, or one of its own without
    such a key, the key is not swept.
    """
    node = config.get("lanes") or {"seed": [0]}
    blocks = [_flatten(block) for block in (node if isinstance(node, Sequence) else [node])]
    found: list[dict[str, float | int]] = []
    for block in blocks:
        axes: dict[str, list[float | int]] = {}
        for key, raw in ({"seed": [0]} | block).items():
            values = list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
            for value in values:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise SpecError(
                        f"lanes.{key}: {value!r} is not a number; axes of other kinds go to hydra.sweeper.params"
                    )
            if key == "seed" and not all(isinstance(v, int) for v in values):
                raise SpecError(f"lanes.seed={values}: seeds are whole numbers")
            used = _used_key(config, key)
            if used is not None:
                axes[used] = values if used == "seed" else [float(v) for v in values]
        for combination in itertools.product(*axes.values()):
            lane = dict(zip(axes, combination, strict=True))
            if lane not in found:
                found.append(lane)
    if not found:
        raise SpecError("lanes: at least one value is needed for each key")
    # A key that another block varies keeps the value of the configuration here: the cell has none.
    keys = set().union(*found)
    filled = [lane | {key: _value(config, key) for key in sorted(keys - lane.keys())} for lane in found]
    return keys, [lane for i, lane in enumerate(filled) if lane not in filled[:i]]


def _value(config: Mapping[str, Any], key: str) -> float:
    node: Any = config
    for part in key.split("."):
        node = node[part]
    if node is None:
        raise SpecError(f"lanes.{key}: a block that leaves it out needs a value of {key}, which is not set")
    return float(node)


def lane_name(values: Mapping[str, float | int]) -> str:
    """Name of a lane in files and records: a hash of its values."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:8]


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested configuration with dotted keys; lists are leaves, as JSON."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), json.dumps(node) if isinstance(node, list) else node


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
        own = config["learning"].get("inference")
        if own is None or (rest not in own and rest in (config.get("inference") or {})):
            return None
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
