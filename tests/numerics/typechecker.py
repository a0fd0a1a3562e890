"""The type checker that the import hook applies to pcexp: beartype with the PEP 484 numeric tower (an int is a float)."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_decorate: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(decorated: Any, *_: Any, **__: Any) -> Any:
    """The function or class with its annotations enforced."""
    return _decorate(decorated)
