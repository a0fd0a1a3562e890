"""Configurations as plain containers, with dotted keys: what is in them, set in a copy, references followed."""

import difflib
import functools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pcexp.config.grid import Refused


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All that a nested configuration says, by dotted key."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`leaves` as a table has them: lists as JSON."""
    return ((key, json.dumps(value) if isinstance(value, list) else value) for key, value in leaves(node))


def holder(tree: Any, key: str) -> tuple[Any, str]:
    """The mapping that holds a dotted key, and what the key is called there. Raises KeyError."""
    *parents, last = key.split(".")
    return functools.reduce(operator.getitem, parents, tree), last


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that is there. Raises Refused, which names the close one and the valid ones."""
    node: Any = config
    parts = key.split(".")
    for at, part in enumerate(parts):
        if isinstance(node, str):  # an interpolation (`inference: ${inference}`): its own keys are set where they stand
            raise Refused(f"{key}: set it where {'.'.join(parts[:at])}={node} points to")
        if not isinstance(node, Mapping) or part not in node:
            raise Refused(unknown(".".join(parts[: at + 1]), node if isinstance(node, Mapping) else ()))
        if at + 1 < len(parts):
            node = node[part]
    node[parts[-1]] = value


def unknown(key: str, node: Iterable[Any]) -> str:
    """What to say of a key that is not there: the close one, and the valid ones."""
    hidden = ("_target_", "hydra", "choices", "grid", "common", "args", "kwargs")
    valid = [str(k) for k in node if k not in hidden]
    return f"{key} is no key{suggestion(key.rpartition('.')[2], valid)}; valid there are {', '.join(valid)}"


def suggestion(word: str, words: Iterable[str]) -> str:
    """What to ask of a word that is not known, where one that is known is close."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


SECRET = r"(?:^|[._\W])(?i:token|password|passwd|secret|credentials?|(?:api|access|auth|private)_?key)"
"""Keys whose values are nobody else's: they stand in no record."""


def discreet(word: str) -> str:
    """A word of a command line, without the value that a key of a secret has."""
    return re.sub(rf"({SECRET}['\"]?\s*[:=]).*", r"\1***", word)


def public(config: Mapping[str, Any]) -> None:
    """Raise Refused where a configuration that is to be recorded has a key of a secret."""
    for key, _ in leaves(config):
        if re.search(rf"{SECRET}$", key):
            raise Refused(
                f"{key}: what a number depends on is recorded, and a secret must not be; let your code read it"
            )


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Plain containers with interpolations resolved: of what is recorded, where nothing of the environment may stand."""
    try:
        return _followed(config, config)
    except (KeyError, TypeError, RecursionError):
        pass  # resolvers, relative paths, mistakes: OmegaConf's to resolve or to name
    for key, value in leaves(config):
        if "oc.env" in str(value):
            raise Refused(
                f"{key}={value}: what a number depends on is recorded, the environment is not; write the value itself"
            )
    return parts_of(config, tuple(config))


def parts_of(config: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Parts of a configuration with interpolations resolved, those of the environment too. Raises Refused."""

    def plain(node: Any) -> Any:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node

    try:
        whole = OmegaConf.create(config)
        return {key: config[key] if config[key] == "???" else plain(whole[key]) for key in keys}
    except OmegaConfBaseException as error:
        raise Refused(str(error).splitlines()[0]) from error


def _followed(node: Any, root: Mapping[str, Any]) -> Any:
    """A node with its references `${a.b}` followed. Of thousands of cells OmegaConf would take most of a start's time."""
    if isinstance(node, dict):
        return {key: _followed(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_followed(value, root) for value in node]
    if not isinstance(node, str) or "${" not in node:
        return node
    path = re.fullmatch(r"\$\{([a-z_]\w*(?:\.\w+)*)\}", node)
    if path is None:
        raise KeyError(node)
    at: Any = root
    for part in path[1].split("."):
        at = _followed(at, root)[part] if isinstance(at, str) else at[part]
    return _followed(at, root)
