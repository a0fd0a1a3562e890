"""A user's own arrays, and what is said of unusable ones."""

import numpy as np
import pytest

from pcexp.data import Arrangement, DataError, Npz

RNG = np.random.default_rng(0)
GOOD = {
    "x_train": RNG.normal(size=(20, 3)),
    "y_train": RNG.integers(0, 3, 20),
    "x_test": RNG.normal(size=(5, 3)),
    "y_test": np.array([0, 1, 2, 3, 0]),
}


@pytest.fixture
def source(tmp_path):
    def make(validation_fraction=0.0, limit=None, **changes):
        arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        np.savez(tmp_path / "mine.npz", **arrays)
        return Npz(path=str(tmp_path / "mine.npz"), validation_fraction=validation_fraction, split_seed=0, limit=limit)

    return make


def test_inputs_arrive_as_they_are_and_integer_labels_become_one_hot_over_both_splits(source):
    data = source().load()
    assert np.array_equal(data.train.x, GOOD["x_train"].astype(np.float32))
    assert np.array_equal(data.train.y.argmax(1), GOOD["y_train"])
    assert np.array_equal(data.test.y, np.eye(4, dtype=np.float32)[GOOD["y_test"]])
    assert (data.name, data.d_out, data.input_shape) == ("mine", 4, (3,))


def test_targets_of_a_regression_arrive_as_they_are(source):
    targets = {"y_train": RNG.normal(size=(20, 2)), "y_test": RNG.normal(size=(5, 2))}
    data = source(**targets).load()
    assert np.array_equal(data.train.y, targets["y_train"].astype(np.float32))
    assert np.array_equal(data.test.y, targets["y_test"].astype(np.float32))


def test_images_flatten_channel_first(source):
    images = np.arange(2 * 2 * 3 * 4, dtype=np.uint8).reshape(2, 2, 3, 4)
    data = source(x_train=images, y_train=np.array([0, 1]), x_test=images, y_test=np.array([0, 1])).load()
    assert data.input_shape == (2, 3, 4)
    flat = data.arranged(Arrangement())
    for channel in range(4):
        assert np.array_equal(flat.train.x[1, 6 * channel : 6 * channel + 6], images[1, :, :, channel].ravel())


def test_validation_examples_come_out_of_the_training_examples(source):
    data = source(validation_fraction=0.25).load()
    assert (len(data.train.x), len(data.validation.x)) == (15, 5)
    together = np.concatenate([data.train.x, data.validation.x])
    assert np.array_equal(np.sort(together, axis=0), np.sort(GOOD["x_train"].astype(np.float32), axis=0))
    assert len(source(validation_fraction=0.25, limit=4).load().train.x) == 4


def test_the_checksum_tells_other_numbers(source):
    assert source().load().checksum == source().load().checksum != source(x_test=GOOD["x_test"] + 1).load().checksum


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_test": None}, "lacks y_test: it has x_train"),
        ({"x_train": None, "y_train": None}, "lacks x_train, y_train"),
        ({"x_train": GOOD["x_train"][:-1]}, r"x_train and y_train must have the same number.*x_train \(19, 3\)"),
        ({"x_test": GOOD["x_test"][:, :2]}, r"x_train and x_test must agree.*x_test \(5, 2\)"),
        ({"x_train": GOOD["x_train"][:, 0], "x_test": GOOD["x_test"][:, 0]}, "x_train must be"),
        ({"x_train": np.zeros((20, 4, 4)), "x_test": np.zeros((5, 4, 4))}, "height, width, channels"),
        ({"y_train": np.zeros((20, 3))}, "both be integer labels, or neither"),
        ({"y_train": GOOD["y_train"] - 1}, "start at 0, and the smallest is -1"),
        (
            {"y_train": GOOD["y_train"] + 1, "y_test": GOOD["y_test"] + 1},
            "start at 0, and the smallest is 1: shift them",
        ),
        ({"y_train": GOOD["y_train"][:, None], "y_test": GOOD["y_test"][:, None]}, "may be labels or numbers"),
        ({"x_train": np.zeros((20, 3, 8, 8)), "x_test": np.zeros((5, 3, 8, 8))}, "x_train has its channels first"),
        ({"y_train": 10 * GOOD["y_train"]}, "no example has the label 4, and the largest is 20: number the classes"),
        ({"x_train": np.zeros((20, 3), complex)}, "x_train holds complex128, and real numbers are needed"),
        ({"y_train": np.full(20, "cat"), "y_test": np.full(5, "dog")}, "y_train holds <U3, and real numbers"),
        ({"y_train": np.zeros(20), "y_test": np.zeros(5)}, "y_train must be"),
        ({"x_train": np.full((20, 3), np.nan)}, "x_train has values that are not finite"),
        ({"x_train": np.array([None] * 20, dtype=object)}, "plain numbers"),
    ],
)
def test_unusable_arrays_are_refused_by_name(source, changes, said, tmp_path):
    with pytest.raises(DataError, match=said) as caught:
        source(**changes).load()
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_a_file_that_is_absent_or_no_archive_is_named(tmp_path):
    path = tmp_path / "absent.npz"
    source = Npz(path=str(path), validation_fraction=0.0, split_seed=0, limit=None)
    with pytest.raises(DataError, match=f"no file {path}.*x_train, y_train, x_test, y_test"):
        source.load()
    path.write_text("not an archive")
    with pytest.raises(DataError, match=f"{path} is no .npz file: numpy.savez writes one"):
        source.load()
