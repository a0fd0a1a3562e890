"""From Hydra's composition to plain configurations: the cells that a command asks for, and those of the study's own grid.

Hydra composes once per choice of options (`learning=bp`, `network=residual`); cells that chose the same options are copies of one
composition with values of their own. No JAX here: `--help` and shell completion stay quick.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from yaml import YAMLError

from pcexp.config import grid, plain
from pcexp.config.grid import Block, Refused
from pcexp.config.refusals import parsed, refusal

PLATFORM = ("execution", "tracker", "scale", "dry_run", "blocks", "hydra")
"""Root keys that say how a command runs, or which part of a study; no number depends on them."""


GRID, HOW = ("grid", "common"), ("execution", "tracker")
"""Root keys that are read before a cell is made; those that a cell's own values may not refer to."""


class Composed(NamedTuple):
    """A configuration as plain containers, with its lane axes under `lanes`, and the block that it belongs to."""

    config: dict[str, Any]
    block: str


class Asked(NamedTuple):
    """What a command asks for: its cells, those of the study's own grid at that scale, and of each data set the figures of its blocks.

    `variant` is the text of the overrides that may lead out of the grid.
    """

    cells: list[Composed]
    own: list[Composed]
    blocks: Mapping[str, Mapping[str, Sequence[str]]]
    variant: str


def composed(loader: ConfigLoader, overrides: Sequence[str]) -> Iterator[tuple[Asked, dict[str, Any]]]:
    """Of each experiment that is named what is asked for, over all data sets that are, and the settings of the command.

    Raises Refused.
    """
    read = [parsed(override) for override in overrides]
    swept = {o.get_key_element().lstrip("+"): o for o in read if o.is_sweep_override()}
    of_data = _texts(swept["data"]) if "data" in swept else [""]
    for experiment in _texts(swept["experiment"]) if "experiment" in swept else [""]:
        rest = [str(o.input_line) for o in read if o not in (swept.get("data"), swept.get("experiment"))]
        composers = [Composer(loader, [*filter(None, (experiment, data)), *rest]) for data in of_data]
        asked = [composer.asked() for composer in composers]
        own = [cell for one in asked for cell in one.own]
        cells = own if all(one.cells is one.own for one in asked) else [cell for one in asked for cell in one.cells]
        blocks = {data: figures for one in asked for data, figures in one.blocks.items()}
        yield Asked(cells, own, blocks, asked[0].variant), composers[0].settings


def _texts(override: Override) -> list[str]:
    """The overrides that a sweep stands for."""
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


class Composer:
    """The configurations of one experiment, composed from overrides as they stand on a command line."""

    def __init__(self, loader: ConfigLoader, overrides: Sequence[str]) -> None:
        self._loader = loader
        self._templates: dict[tuple[str, ...], dict[str, Any]] = {}
        self._base: list[str] = []
        self._lanes: dict[str, list[float | int]] = {}
        self._axes: list[tuple[str, list[Any], str]] = []
        for override in map(parsed, overrides):
            self._sort(override)
        self._groups: set[str] = set()
        self.settings = self._loaded(self._base)
        self.settings |= plain.parts_of({k: v for k, v in self.settings.items() if k not in GRID}, HOW)
        # What a data set needs to be told (`data.path=FILE`) says which data they are: it leads to no variant.
        needed = {k for k, v in (self.settings.get("data") or {}).items() if v == "???"}
        told = [axis for axis in self._axes if axis[0].partition(".")[2] in needed and axis[0].startswith("data.")]
        self._axes = [axis for axis in self._axes if axis not in told]
        for key, values, text in told:
            if len(values) > 1:
                raise Refused(f"{key}: one value is needed here: {text}")
        self._given = {key: values[0] for key, values, _ in told}

    def _sort(self, override: Override) -> None:
        """An override's place: of the base, of the lanes, or an axis of the cells."""
        key, text = override.get_key_element().lstrip("+~"), str(override.input_line)
        if key.startswith("lanes."):
            values = _values(override)
            for value in values:
                if not isinstance(value, (int, float)):
                    raise Refused(f"{key}: {value!r} is not a number")
            self._lanes[key.removeprefix("lanes.")] = values
        elif override.type is not OverrideType.CHANGE or override.package is not None or _platform(text):
            if override.is_sweep_override():
                raise Refused(f"{key}: one value is needed here: {override.input_line}")
            self._base.append(text)
        elif isinstance(value := override.value(), dict):
            self._axes += [(leaf, [one], text) for leaf, one in plain.leaves(value, f"{key}.")]
        elif any(isinstance(one, dict) for one in _values(override)):
            raise Refused(f"{key}: mappings are no axis; give one of them, or values of their keys")
        else:
            self._axes.append((key, _values(override), text))

    def asked(self) -> Asked:
        """The cells asked for. Raises Refused."""
        said, scale, data = self.settings, str(self.settings["scale"]), str(self.settings["choices"].get("data", ""))
        if said["lanes"]:
            raise Refused(f"lanes={said['lanes']}: in a file, lanes stand in a block of `grid` or in `common`")
        own = grid.blocks(said["grid"], said["common"], scale, data)
        wanted, names = own, said["blocks"]
        if names is not None:
            wanted = grid.chosen(own, [names] if isinstance(names, str) else names)
        if not said["grid"]:
            wanted = [Block("")]
        texts = [text for text in self._base if not _platform(text)]
        lane_keys = {key for block in wanted for keys in block.axes for key in keys if key.startswith(grid.LANES)}
        for key, values, text in self._axes:
            if grid.LANES + key in lane_keys:
                wanted, beyond = grid.with_lanes(wanted, key, values), True
            else:
                wanted, beyond = grid.asked(wanted, key, values), not grid.inside(wanted, key, values)
            texts += [_variant(key, values, text)] * beyond
        for key, values in self._lanes.items():
            wanted = grid.with_lanes(wanted, key, values)
            if key != "seed":
                texts.append(f"lanes.{key}=[{','.join(map(_number, values))}]")
        if not wanted:
            named = [text.partition("=")[2] for text in self._base if text.startswith("+experiment=")]
            study, chosen = " ".join(named) or "this command", " ".join(texts) or "these settings"
            there = "" if own else f"; its grid runs on {', '.join(grid.data_sets(said['grid'])) or 'none'}"
            raise Refused(f"{study} at scale={scale} on data={data} has no cells with {chosen}{there}")
        own_cells = list(self._cells(own, base=False))
        cells = list(self._cells(wanted, base=True)) if texts or wanted != own else own_cells
        figures = {data: {block.name: block.figures for block in own}}
        return Asked(cells, own_cells, figures, " ".join(sorted(texts)))

    def _cells(self, blocks: Iterable[Block], *, base: bool) -> Iterable[Composed]:
        said = {key for key, _, _ in self._axes} if base else set()
        for block in blocks:
            for values, lanes in block.configurations():
                chosen = {key: value for key, value in values.items() if key in self._groups}
                options = [f"~{key}" if value is None else f"{key}={value}" for key, value in chosen.items()]
                config = copy.deepcopy(self._template(options, base=base))
                for key, value in (self._given | values).items():
                    if key not in chosen:
                        try:
                            plain.put(config, key, value)
                        except Refused:
                            # Of an option that the command chose, what the grid says of the study's own may be no key.
                            if key in said or key.partition(".")[0] not in said:
                                raise
                    elif value is None:
                        config[key] = None  # what the experiment itself says of an option that is taken away goes too
                science = plain.resolved({k: v for k, v in config.items() if k not in HOW})
                yield Composed(science | {k: self.settings[k] for k in HOW} | {"lanes": lanes}, block.name)

    def _template(self, options: Sequence[str], *, base: bool) -> dict[str, Any]:
        """What Hydra composes with these options; `base`: with the command's additions."""
        overrides = (*(text for text in self._base if base or _platform(text)), *options)
        if overrides not in self._templates:
            # The grid is read of the settings; it would be copied with every cell.
            found = self.settings if overrides == tuple(self._base) else self._loaded(overrides)
            self._templates[overrides] = {k: v for k, v in found.items() if k not in GRID}
        return self._templates[overrides]

    def _loaded(self, overrides: Sequence[str]) -> dict[str, Any]:
        """What Hydra composes, its interpolations left as they are, with the options that were chosen. Raises Refused."""
        try:
            config = self._loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN, from_shell=False)
        except (HydraException, YAMLError) as error:
            raise Refused(refusal(error)) from error
        choices = config.hydra.runtime.choices
        self._groups |= choices.keys()
        rest = OmegaConf.create({str(k): config._get_node(k) for k in config if k != "hydra"})
        chosen = {str(k): str(choices[k]) for k in config if choices.get(k) is not None and k != "execution"}
        found: Any = OmegaConf.to_container(rest, resolve=False)
        if isinstance(found.get("experiment"), dict):
            raise Refused(
                f"experiment/{choices['experiment']}.yaml, line 1: `# @package _global_` has to stand there, with nothing before "
                "it, not even the invisible mark (BOM) that some editors write"
            )
        plain.public({k: v for k, v in found.items() if k not in (*HOW, *GRID)})
        return found | {"choices": chosen}


def _variant(key: str, values: Sequence[Any], text: str) -> str:
    """An override as a variant is named: equal numbers are written alike."""
    numbers = all(type(value) in (int, float) for value in values)
    return f"{key}={','.join(map(_number, values))}" if numbers else text


def _number(value: float | int) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _platform(text: str) -> bool:
    key = text.partition("=")[0].lstrip("+~")
    return key in ("experiment", "data") or key.partition(".")[0] in PLATFORM


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return list(override.sweep_iterator())
    value = override.value()
    of_lanes = override.get_key_element().lstrip("+").startswith("lanes.")
    return list(value) if isinstance(value, list) and of_lanes else [value]
