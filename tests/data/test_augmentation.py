"""Augmentation: each change alone against numpy, their combination against the geometry that it must have."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from pcexp.data import Augment, Augmentation
from pcexp.learning import BP
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import Standard
from pcexp.train import Training, TrainingSet, advance, initial_state

SHAPE, BLACK = (9, 11, 2), (-0.5, -2.0)
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def changed(settings, n=300, image=IMAGE, seed=0, **layout):
    augment = Augment(settings, SHAPE, BLACK, **layout)
    return np.asarray(eqx.filter_jit(augment)(jnp.asarray(np.stack([image] * n)), key=jr.key(seed)))


def test_without_settings_nothing_changes():
    np.testing.assert_array_equal(changed(Augmentation(), n=5), np.stack([IMAGE] * 5))


def test_a_crop_is_a_window_of_the_image_padded_with_black_and_every_window_comes():
    padded = np.broadcast_to(np.asarray(BLACK, np.float32), (9 + 4, 11 + 4, 2)).copy()
    padded[2:-2, 2:-2] = IMAGE
    windows = {padded[i : i + 9, j : j + 11].tobytes() for i in range(5) for j in range(5)}
    assert len(windows) == 25
    assert {found.tobytes() for found in changed(Augmentation(crop=2))} == windows


def test_a_flip_mirrors_left_and_right_half_of_the_time():
    found = changed(Augmentation(flip=True))
    mirrored = np.all(found == IMAGE[:, ::-1], axis=(1, 2, 3))
    assert np.all(np.all(found == IMAGE, axis=(1, 2, 3)) | mirrored)
    assert 0.4 < mirrored.mean() < 0.6


def test_rotations_turn_about_the_centre_by_at_most_the_limit_and_take_the_nearest_pixel():
    row, column = np.meshgrid(np.arange(9) - 4.0, np.arange(11) - 5.0, indexing="ij")
    here = np.stack([row, column], axis=-1)
    tried = np.deg2rad(np.linspace(-45, 45, 1801))
    angles = []
    for found in changed(Augmentation(rotation_degrees=30), image=here.astype(np.float32)):
        inside = ~np.all(found == np.asarray(BLACK, np.float32), axis=-1)
        assert inside.mean() > 0.8
        (source_row, source_column), (y, x) = found[inside].T, here[inside].T
        cos, sin = np.cos(tried)[:, None], np.sin(tried)[:, None]
        distance = np.maximum(np.abs(cos * y - sin * x - source_row), np.abs(sin * y + cos * x - source_column))
        possible = tried[distance.max(axis=1) < 0.5 + 0.01]
        assert len(possible)  # one rotation, from which every pixel is the nearest one
        angles.append(np.rad2deg(possible.mean()))
    assert np.max(np.abs(angles)) < 31
    assert np.std(angles) == pytest.approx(30 / np.sqrt(3), rel=0.15)


def test_flat_images_are_changed_as_those_with_channels_last_are():
    settings = Augmentation(crop=2, flip=True, rotation_degrees=20)
    images = changed(settings, n=8)
    flat = np.moveaxis(IMAGE, -1, 0).reshape(-1)
    found = changed(settings, n=8, image=flat, flat=True)
    np.testing.assert_array_equal(found, np.moveaxis(images, -1, 1).reshape(8, -1))
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize("wrong", [{"crop": -1}, {"rotation_degrees": 181.0}, {"rotation_degrees": -5.0}])
def test_impossible_settings_are_refused_with_what_is_valid(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_training_sees_other_images_in_every_iteration_and_the_same_ones_when_it_is_cut_in_two():
    settings = Augment(Augmentation(crop=2, flip=True), SHAPE, BLACK, flat=True)
    x = jnp.asarray(np.stack([np.moveaxis(IMAGE, -1, 0).reshape(-1)] * 4))
    y = jnp.ones((4, 3))
    network = FullyConnected(5, 2, "tanh").build(Standard(), x.shape[1:], 3, key=jr.key(0))
    optimiser = eqx.Partial(optax.sgd, learning_rate=jnp.float32(0.1))

    def run(calls, augment):
        state = initial_state(network, optimiser, key=jr.key(1))
        losses = []
        for n in calls:
            data = TrainingSet(x, y, x.T, y.T, augment)
            state, rows = advance(
                state,
                BP("batch_mean"),
                optimiser,
                data,
                Training(4, 9, 1),
                lambda s: {"loss": s.loss},
                16,
                jnp.int32(n),
            )
            losses += np.asarray(rows.values["loss"])[: int(rows.n_rows)].tolist()
        return losses, jax.tree.leaves(state.network)

    (whole, weights), (parts, again) = run([9], settings), run([4, 5], settings)
    assert whole == parts
    for one, other in zip(weights, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole[0] != run([9], None)[0][0]
