"""Arrays of a pytree in one npz file, written whole or not at all, read back with names, shapes and types checked."""

import json
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pcexp.files import replace_file

Tree = TypeVar("Tree")


class CheckpointError(Exception):
    """A file that is truncated, foreign, or of another network."""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _named_arrays(tree: Any) -> dict[str, Any]:
    """Arrays by their place in a tree, random keys as the integers that they are."""
    places = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(at): jax.random.key_data(x) if _is_key(x) else x for at, x in places}


def save(path: Path, tree: Any, **about: Any) -> None:
    """Write the arrays of `tree` and what is said `about` them; a reader sees the old file or the new one, never half."""
    host: dict[str, Any] = {name: np.asarray(array) for name, array in _named_arrays(tree).items()}
    replace_file(path, lambda file: np.savez(file, **host, __about__=np.array(json.dumps(about))))


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        # np.load given a path leaves the file open when the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            stored = {name: archive[name] for name in archive.files}
        return stored, json.loads(str(stored.pop("__about__")))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a checkpoint, or is truncated: {error}") from error


def about(path: Path) -> dict[str, Any]:
    """What was said about the tree saved at `path`. Raises CheckpointError."""
    return _read(path)[1]


def load(path: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """The tree saved at `path`, shaped like `like`, and what was said about it. Raises CheckpointError."""
    stored, said = _read(path)
    wanted = _named_arrays(like)
    if wanted.keys() != stored.keys():
        only_there, only_here = sorted(stored.keys() - wanted.keys()), sorted(wanted.keys() - stored.keys())
        raise CheckpointError(f"{path} holds another network: it has {only_there[:3]}, and lacks {only_here[:3]}")
    for name, leaf in wanted.items():
        there = stored[name]
        if there.shape != leaf.shape or there.dtype != leaf.dtype:
            raise CheckpointError(f"{path}: {name} is {there.dtype}{there.shape}, expected {leaf.dtype}{leaf.shape}")

    def restored(at: Any, leaf: Any) -> Any:
        array = jnp.asarray(stored[jax.tree_util.keystr(at)])
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

    arrays, rest = eqx.partition(like, eqx.is_array)
    return eqx.combine(jax.tree_util.tree_map_with_path(restored, arrays), rest), said
