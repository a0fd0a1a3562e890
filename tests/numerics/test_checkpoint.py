"""A checkpoint comes back bit for bit, or is refused by name; a write that is cut off leaves the old file."""

import io
import os
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import Standard
from pcexp.records import checkpoint
from pcexp.records.checkpoint import CheckpointError
from pcexp.train import initial_state


def state(width=4, seed=0, implementation="threefry2x32"):
    network = FullyConnected(width=width, n_hidden=3, activation="relu", biases=True, segment_size=2).build(
        Standard(), (3,), 2, key=jax.random.key(seed)
    )
    optimiser = eqx.Partial(optax.adam, learning_rate=0.01)
    return initial_state(network, optimiser, key=jax.random.key(seed, impl=implementation))


def plain(tree):
    """Leaves as numpy arrays, keys as their bits."""
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    ]


def assert_same_bits(a, b):
    for v, w in zip(plain(a), plain(b), strict=True):
        assert v.dtype == w.dtype and v.tobytes() == w.tobytes()


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_a_checkpoint_comes_back_bit_for_bit_with_its_keys_and_what_was_said_about_it(tmp_path, implementation):
    path, saved = tmp_path / "lane.npz", state(seed=1, implementation=implementation)
    odd = jnp.asarray([np.nan, -0.0, np.inf, 1e-42], jnp.float32)
    checkpoint.save(path, {"state": saved, "odd": odd}, iteration=7, lane="seed=1")
    loaded, about = checkpoint.load(path, {"state": state(implementation=implementation), "odd": jnp.zeros(4)})
    assert about == {"iteration": 7, "lane": "seed=1"}
    assert_same_bits(loaded, {"state": saved, "odd": odd})
    np.testing.assert_array_equal(jax.random.bits(loaded["state"].key, (3,)), jax.random.bits(saved.key, (3,)))
    assert jax.tree.structure(loaded["state"]) == jax.tree.structure(saved)


def test_a_checkpoint_is_arrays_that_numpy_reads_without_pickle(tmp_path):
    path = tmp_path / "lane.npz"
    checkpoint.save(path, state(), iteration=7)
    with np.load(path, allow_pickle=False) as archive:
        assert sum(archive[name].size for name in archive.files) > 100


def damaged(path, how):
    content = path.read_bytes()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "cut in half":
            path.write_bytes(content[: len(content) // 2])
        case "last byte missing":
            path.write_bytes(content[:-1])
        case "a bit flipped in a weight":
            with zipfile.ZipFile(path) as archive:
                largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            at = largest.header_offset + 200 + len(largest.filename)
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "text":
            path.write_text("iteration: 7\n")
        case "a single array":
            buffer = io.BytesIO()
            np.save(buffer, np.ones(3))
            path.write_bytes(buffer.getvalue())
        case "someone else's archive":
            np.savez(path, weight=np.ones(3))
        case "pickled objects":
            np.savez(path, __about__=np.array("{}"), weight=np.array([{}], object))
        case "absent":
            path.unlink()


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut in half",
        "last byte missing",
        "a bit flipped in a weight",
        "text",
        "a single array",
        "someone else's archive",
        "pickled objects",
        "absent",
    ],
)
def test_a_truncated_or_foreign_file_is_refused_by_name(tmp_path, how):
    path = tmp_path / "lane.npz"
    checkpoint.save(path, state(), iteration=7)
    damaged(path, how)
    with pytest.raises(CheckpointError, match=r"lane\.npz"):
        checkpoint.load(path, state())


def test_a_checkpoint_of_another_width_depth_or_precision_is_refused_by_file_and_entry(tmp_path):
    path = tmp_path / "lane.npz"
    checkpoint.save(path, state())
    with pytest.raises(CheckpointError, match=r"lane\.npz.*weight.*4.*expected.*5"):
        checkpoint.load(path, state(width=5))
    with pytest.raises(CheckpointError, match=r"lane\.npz.*another network"):
        checkpoint.load(path, {"network": state()})
    with pytest.raises(CheckpointError, match=r"lane\.npz.*float32.*expected float16"):
        checkpoint.load(path, jax.tree.map(lambda v: v.astype("float16") if eqx.is_inexact_array(v) else v, state()))


def test_a_write_that_is_interrupted_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, old = tmp_path / "lane.npz", state()
    checkpoint.save(path, old, iteration=7)
    content = path.read_bytes()

    def half_written(file, **arrays):
        file.write(b"PK half of an archive")
        raise KeyboardInterrupt

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    for target, name, replacement, error in (
        (np, "savez", half_written, KeyboardInterrupt),
        (os, "fsync", disk_full, OSError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, replacement)
            with pytest.raises(error):
                checkpoint.save(path, state(seed=2), iteration=8)
        assert path.read_bytes() == content
        loaded, about = checkpoint.load(path, state(seed=3))
        assert about == {"iteration": 7}
        assert_same_bits(loaded, old)
    checkpoint.save(path, state(seed=2), iteration=8)
    assert checkpoint.load(path, state())[1] == {"iteration": 8}
