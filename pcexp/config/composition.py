"""From Hydra's composition to plain containers: resolvers of study YAMLs, lane keys among overrides, the chosen options.

No JAX here: `--help` and shell completion stay quick.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SCALES = ("smoke", "small", "thesis")


def by_scale(*values: Any, _root_: DictConfig) -> Any:
    """The value of (smoke, small, thesis) that belongs to the root key `scale`; two values mean thesis = small."""
    scale = _root_.scale
    if scale not in SCALES:
        raise ValueError(f"scale={scale} is unknown: valid are {', '.join(SCALES)}")
    if len(values) not in (2, 3):
        raise ValueError(f"by_scale needs 2 or 3 values, for {', '.join(SCALES)}, not {len(values)}")
    return values[min(SCALES.index(scale), len(values) - 1)]


def by_choice(group: str, options: Mapping[Any, Any], *, _root_: DictConfig) -> Any:
    """The value that belongs to the chosen option of a config group, or to the value of a dotted key (`study.arm`).

    `default` stands for options that are not named. Under `hydra.sweeper.params` too, where the choices are Hydra's own.
    """
    keys = (group,) if "." in group else (f"choices.{group}", f"hydra.runtime.choices.{group}")
    chosen: Any = next((found for key in keys if (found := OmegaConf.select(_root_, key)) is not None), None)
    if chosen in options:
        return options[chosen]
    if "default" in options:
        return options["default"]
    raise ValueError(f"{group}={chosen}: there are values for {', '.join(map(str, options))} only")


GROUPS = ("data", "network", "output", "parameterisation", "inference", "learning", "optimiser", "protocol", "tracker")


class Refused(SystemExit):
    """A command that cannot be run: ends the process with status 1 and a message that is all the user needs."""

    def __init__(self, message: str) -> None:
        super().__init__(f"pcexp: {message}")


def variant(hydra: Any, lane_keys: set[str]) -> str:
    """Overrides that make a run another experiment than the study's own: not its axes, lanes, options or how it is run."""
    free = {"experiment", "scale", "dry_run", *GROUPS, *(hydra.sweeper.get("params") or {})}
    changed = []
    for override in hydra.overrides.task:
        key = override.partition("=")[0].lstrip("+~")
        if override.startswith("+lanes.") and key != "lanes.seed":
            changed.append(override)  # a lane key that the study does not have makes other cells
        elif (
            key not in free and key.partition(".")[0] not in ("lanes", "execution", "tracker") and key not in lane_keys
        ):
            changed.append(override)
    return " ".join(sorted(changed))


@functools.cache
def parsed(override: str) -> Override:
    """An override as Hydra reads it. Raises HydraException."""
    return OverridesParser.create().parse_overrides([override])[0]


def of_values(overrides: Sequence[str], groups: Collection[str]) -> dict[str, tuple[str, Any]]:
    """Overrides that give a value to a key and could come in any order, with key and value; no option of `groups`."""
    keys = {override: parsed(override).key_or_group for override in overrides}

    def alone(override: str) -> bool:
        own = keys[override] + "."
        return not any(
            own.startswith(key + ".") or key.startswith(own) for other, key in keys.items() if other != override
        )

    return {
        override: (key, parsed(override).value())
        for override, key in keys.items()
        if parsed(override).type is OverrideType.CHANGE
        and parsed(override).package is None
        and key not in groups
        and not parsed(override).is_hydra_override()
        and alone(override)
    }


def split_lanes(config: DictConfig, overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides that Hydra applies, and values of lane keys among them: those make lanes, not cells."""
    keys = _lane_keys(OmegaConf.select(config, "lanes"))
    kept: list[str] = []
    lanes: dict[str, Any] = {}
    for override in map(parsed, overrides):
        key = override.get_key_element().lstrip("+").removeprefix("lanes.")
        if key in keys and not override.is_delete():
            values = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
            lanes[key] = values
        if key not in lanes or override.is_add():
            kept.append(str(override.input_line))
    return kept, lanes


def _lane_keys(node: Any) -> set[str]:
    def flatten(block: Any, prefix: str) -> set[str]:
        if isinstance(block, Mapping):
            return set().union(*(flatten(value, f"{prefix}{key}.") for key, value in block.items()))
        return {prefix.removesuffix(".")}

    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    return set().union(*(flatten(block, "") for block in (plain if isinstance(plain, list) else [plain or {}])))


def resolved(config: DictConfig, hydra: Any, lanes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers of a composed configuration, resolvers applied, with the chosen options as `choices`."""
    choices = hydra.runtime.choices
    plain = OmegaConf.create({key: config._get_node(key) for key in config if key != "hydra"})
    plain.choices = {group: str(choices[group]) for group in GROUPS if choices.get(group) is not None}
    try:
        resolved_config = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        raise Refused(str(error).splitlines()[0]) from error
    assert isinstance(resolved_config, dict)
    container = {str(key): value for key, value in resolved_config.items()}
    for block in _blocks(container):
        for key, value in lanes.items():
            _remove_nested(block, key)
            block[key] = value if isinstance(value, list) else [value]
    return container | {"variant": variant(hydra, _lane_keys(config.get("lanes")))}


def _blocks(container: dict[str, Any]) -> list[dict[str, Any]]:
    node = container.get("lanes")
    return node if isinstance(node, list) else [node or {}]


def _remove_nested(block: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        block = block.get(part, {})
    block.pop(last, None)
