"""Resolvers of study YAMLs: values by scale and by chosen option. No JAX here: `--help` stays quick."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

SCALES = ("smoke", "small", "thesis")


def by_scale(*values: Any, _root_: DictConfig) -> Any:
    """The value of (smoke, small, thesis) that belongs to the root key `scale`; two values mean thesis = small."""
    scale = _root_.scale
    if scale not in SCALES:
        raise ValueError(f"scale={scale} is unknown: valid are {', '.join(SCALES)}")
    if len(values) not in (2, 3):
        raise ValueError(f"by_scale needs 2 or 3 values, for {', '.join(SCALES)}, not {len(values)}")
    return values[min(SCALES.index(scale), len(values) - 1)]


def by_choice(group: str, options: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """The value that belongs to the chosen option of a config group; `default` stands for options that are not named."""
    chosen = OmegaConf.select(_root_, f"choices.{group}")
    if chosen in options:
        return options[chosen]
    if "default" in options:
        return options["default"]
    raise ValueError(f"{group}={chosen}: there are values for {', '.join(options)} only")
