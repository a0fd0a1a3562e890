"""Objects from configuration: `_target_` names a Python object, and its annotations are the schema of its arguments.

What is wrong is said in the user's words: the key, its value, and what would be valid.
"""

import collections.abc
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
from beartype import BeartypeConf
from beartype.door import is_bearable

from pcexp.config.plain import suggestion, unknown

ALLOWED_TARGETS = ("pcexp.", "optax.", "diffrax.")

_TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a valid float


class SpecError(ValueError):
    """A configuration that cannot be run; the message names the key and what would be valid."""


def build(node: Any, path: str, allowed: Sequence[str], partial: bool = False) -> Any:
    """The object that a configuration node describes; nodes inside it are built first. Raises SpecError."""
    if not isinstance(node, Mapping):
        return [build(item, f"{path}.{i}", allowed) for i, item in enumerate(node)] if isinstance(node, list) else node
    if "_target_" not in node:
        raise SpecError(f"{path} has no _target_: choose an option, as in {path}=NAME")
    name = node["_target_"]
    target = located(name, f"{path}._target_", allowed)
    given = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    parameters, hints = _parameters(target), _hints(target)
    for key in given:
        if key not in parameters:
            raise SpecError(unknown(f"{path}.{key}", parameters))
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind == parameter.POSITIONAL_OR_KEYWORD
        if needed and key not in given:
            raise SpecError(f"{path}.{key} is not set, and {name} needs it")
    arguments = {key: build(value, f"{path}.{key}", allowed) for key, value in given.items()}
    for key, value in arguments.items():
        if key in hints:
            check_type(value, hints[key], f"{path}.{key}")
    try:
        return eqx.Partial(target, **arguments) if partial else target(**arguments)
    except (ValueError, TypeError) as error:
        raise SpecError(f"{path}: {error}") from error


def without_defaults(node: Any, path: str, allowed: Sequence[str]) -> Any:
    """A configuration less the arguments that equal their defaults: a new option with a default renames no old cell.

    Raises SpecError of a `_target_` that is not allowed, and imports none such to read its defaults.
    """
    if not isinstance(node, Mapping):
        return node
    defaults: dict[str, Any] = {}
    if "_target_" in node:
        parameters = _parameters(located(node["_target_"], f"{path}._target_", allowed))
        defaults = {key: parameter.default for key, parameter in parameters.items()}
    return {
        key: without_defaults(value, f"{path}.{key}".lstrip("."), allowed)
        for key, value in node.items()
        if not (key in defaults and (defaults[key] == value or _describes(value, defaults[key], allowed)))
    }


@functools.cache
def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters


@functools.cache
def _hints(target: Any) -> dict[str, Any]:
    """Annotations of the arguments of a function or a class."""
    hints = typing.get_type_hints(target if inspect.isfunction(target) else target.__init__)
    hints.pop("return", None)
    return (typing.get_type_hints(target) if inspect.isclass(target) else {}) | hints


def _describes(node: Any, default: Any, allowed: Sequence[str]) -> bool:
    """Whether a node is the configuration of an object that is a default."""
    if not isinstance(default, eqx.Module) or not isinstance(node, Mapping):
        return False
    try:
        return bool(build(node, "", allowed) == default)
    except SpecError:
        return False


def located(name: Any, path: str, allowed: Sequence[str]) -> Any:
    """The object that a `_target_` names. Raises SpecError."""
    if not isinstance(name, str) or not name.startswith(tuple(allowed)):
        raise SpecError(
            f"{path}={name!r} is outside the allowed prefixes {', '.join(allowed)} (execution.targets adds one)"
        )
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise SpecError(f"{path}={name}: {error}") from error
    except AttributeError as error:
        names = [n for n in vars(importlib.import_module(module)) if not n.startswith("_")]
        raise SpecError(f"{path}: {module} has no {attribute}{suggestion(attribute, names)}") from error
    if not callable(found):
        raise SpecError(f"{path}={name} is nothing that can be built")
    return found


def check_type(value: Any, hint: Any, path: str) -> None:
    """Raise SpecError of a value that is not what an annotation asks for."""
    if not _conforms(value, hint):
        raise SpecError(f"{path}={value!r} has the wrong type: valid is {_written(hint)}")


def _conforms(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration is what an annotation asks for; true and false are no numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_conforms(value, argument) for argument in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple:
        # Element by element: is_bearable looks at one of them, drawn at random. A word is no list of words.
        return isinstance(value, (list, tuple)) and all(_conforms(item, a) for item in value for a in arguments[:1])
    if isinstance(value, bool) and hint is not bool and hint is not Any:
        return False
    return is_bearable(value, hint, conf=_TOWER)


def _written(hint: Any) -> str:
    """An annotation in words for whoever writes YAML, where only plain values can be written."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in arguments if a in (int, float, str, bool, type(None)) or typing.get_origin(a) is not None]
        plain = [a for a in plain if typing.get_origin(a) is not collections.abc.Callable] or list(arguments)
        return " or ".join("null" if a is type(None) else _written(a) for a in plain)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_written(arguments[0])}"
    return getattr(hint, "__name__", None) or str(hint)
