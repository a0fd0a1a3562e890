"""What Hydra and its YAML refuse, in the user's words: the key or the file, what is wrong, and a line that works."""

import functools
import shlex
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from pcexp.config.plain import suggestion, unknown

KEPT = ("hydra.searchpath", "hydra.callbacks", "hydra.verbose")
"""What a command may say to Hydra; nothing else of it would do anything."""


@functools.cache
def parsed(override: str) -> Override:
    """An override as Hydra reads it. Raises HydraException."""
    return OverridesParser.create().parse_overrides([override])[0]


def refusal(error: Exception, folders: Iterable[Path] = ()) -> str:
    """What is wrong with an override, or with a file of these folders: of a key that does not exist, the close one and the valid ones too."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        if str(cause.full_key).startswith("hydra."):
            return unused(str(cause.full_key))
        return unknown(str(cause.full_key), cause.parent_node)
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override)
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/"):
        return unused("=".join(str(error.missing_cfg_file).rsplit("/", 1)))
    if isinstance(error, MissingConfigException) and error.options:
        name = str(error.missing_cfg_file).rpartition("/")[2]
        return f"{error.missing_cfg_file}: there is none{suggestion(name, error.options)}; there are {', '.join(error.options)}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    if isinstance(error, UnicodeError):
        return f"a file is not text in UTF-8: {_foreign(folders) or error}"
    return str(error)


def unused(override: str) -> str:
    """What to say of a launcher, a sweeper or a folder that Hydra would use."""
    return (
        f"{override}: Hydra's launchers, sweepers, modes and folders are not used here, and no plugin has to be installed. A command "
        "runs its cells itself, execution.workers=N lanes at once, below execution.outputs=FOLDER; started several times, "
        "as tasks of a SLURM array or on several machines, it shares its cells out"
    )


def _unparsed(override: str) -> str:
    """What to say of a word that Hydra cannot read: how it would be read as plain text."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        return f"{override!r} is no KEY=VALUE"
    if value[:1] in ("[", "{") and value.count("[") + value.count("{") > value.count("]") + value.count("}"):
        return f"{key}: {value} is not closed; a list is written '{key}=[1,2]', and a mapping '{key}={{a: 1}}'"
    plain = value.removeprefix('"').removeprefix("'")
    for inner in ('"', "'"):
        line = f"{key}={inner}{plain}{inner}"
        try:
            if parsed(line).value() == plain:
                break
        except HydraException:
            pass
    else:
        return f"{override!r} cannot be read: of {value!r} there are characters that no value may have"
    return (
        f"{value!r} cannot be read as the value of {key}; in quotes within quotes it is plain text: {shlex.quote(line)}"
    )


def _foreign(folders: Iterable[Path]) -> str:
    """The first configuration file that is not UTF-8."""
    for path in (path for folder in folders for path in folder.rglob("*.yaml")):
        try:
            path.read_text("utf-8")
        except UnicodeError as error:
            return f"{path}: {error}"
    return ""
