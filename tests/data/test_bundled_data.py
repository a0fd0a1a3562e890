"""Digits against scikit-learn, MNIST-1D against the published file."""

import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from pcexp.data import Arrangement, Digits, Mnist1D, Split, bundled
from pcexp.data.bundled import mnist1d_arrays

DIGITS = Digits(test_fraction=0.2, validation_fraction=0.1, split_seed=0, limit=None)
MNIST1D = Mnist1D(validation_fraction=0.1, split_seed=0, limit=None)


@pytest.fixture(scope="module")
def signals() -> dict[str, np.ndarray]:
    return mnist1d_arrays()


def ink(split: Split, train: Split) -> list[tuple[float, ...]]:
    """Every example as its pixels, 0 to 16, and its label."""
    # White and black both occur in training images: they undo the standardisation, whatever it was.
    white, black = train.x.min(), train.x.max()
    pixels = np.rint(16 * (split.x - white) / (black - white)).reshape(len(split.x), -1)
    return list(map(tuple, np.column_stack([pixels, split.y.argmax(1)]).tolist()))


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    data, bunch = DIGITS.load(), load_digits()
    found = [row for split in (data.train, data.validation, data.test) for row in ink(split, data.train)]
    assert sorted(found) == sorted(map(tuple, np.column_stack([bunch.data, bunch.target]).tolist()))
    assert [len(split.x) for split in (data.train, data.validation, data.test)] == [1294, 144, 359]
    assert (data.input_shape, data.d_out, data.caveat) == ((8, 8, 1), 10, "")


def test_digits_keep_the_order_of_scikit_learn_within_a_split():
    data, bunch = DIGITS.load(), load_digits()
    stored = {row: i for i, row in enumerate(map(tuple, np.column_stack([bunch.data, bunch.target]).tolist()))}
    assert len(stored) == 1797
    for split in (data.train, data.validation, data.test):
        assert np.all(np.diff([stored[row] for row in ink(split, data.train)]) > 0)


def test_digits_are_standardised_by_the_training_split_alone():
    data = DIGITS.load()
    assert data.train.x.mean() == pytest.approx(0, abs=1e-5)
    assert data.train.x.std() == pytest.approx(1, abs=1e-5)
    assert abs(data.test.x.mean()) > 1e-4
    limited = replace(DIGITS, limit=100).load()
    assert limited.train.x.mean() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("source", "lowest", "highest"),
    # Greydanus and Kobak report 32 % for logistic regression on MNIST-1D; on the digits it is well above 90 %.
    [(DIGITS, 0.93, 1.0), (MNIST1D, 0.28, 0.36)],
)
def test_logistic_regression_is_as_accurate_as_published(source, lowest, highest):
    data = source.load().arranged(Arrangement())
    model = LogisticRegression(max_iter=50, tol=1e-2).fit(data.train.x, data.train.y.argmax(1))
    assert lowest < model.score(data.test.x, data.test.y.argmax(1)) < highest


def test_mnist1d_is_the_published_set_to_1e_12(signals):
    """Signals and labels of mnist1d_data.pkl, read in the JSON copy of that file in mdcfrancis/gomnist1d (8f4c99e).

    Every signal is divided by the standard deviation of all of them, and the labels are the whole shuffle: a difference
    anywhere in the generation would show in the first, the last and the test signals.
    """
    published = {
        ("x", 0, 0): [-0.3320056673693902, -0.4719103656557236, -0.778697076293495, -1.0097408265367047],
        ("x", 0, 36): [-0.3282141545404554, -0.7167304978134463, -0.9619582524619624, -0.8901663884753127],
        ("x", 1, 0): [1.9654808817629648, 2.300212537472408, 2.213392782800504, 1.9891737610617297],
        ("x", 3999, 0): [-0.6939948035971022, -0.2753216930481869, 0.29267967864361694, 0.5559517810657288],
        ("x", 3999, 36): [-0.8137443925814231, -1.2162451343416705, -1.4649417006350856, -1.6509928567520655],
        ("x_test", 0, 0): [-0.07877078047732886, -0.21073170588642925, -0.09175138109239452, 0.28267111736736455],
        ("x_test", 9, 36): [-0.4929976097246592, -0.5318942582435873, -0.3164734225198058, -0.5073705032291533],
    }
    for (key, row, column), values in published.items():
        assert signals[key][row, column : column + 4] == pytest.approx(values, rel=0, abs=1e-12)
    labels = {key: "".join(map(str, signals[key])) for key in ("y", "y_test")}
    assert labels["y"].endswith("9946346382388203268548")
    assert labels["y_test"].startswith("2639431952077146143997507176978043894110157481012969398846539893")
    assert labels["y_test"].endswith("336125964")
    assert [signals[key].shape for key in ("x", "y", "x_test", "y_test")] == [(4000, 40), (4000,), (1000, 40), (1000,)]


def test_mnist1d_signals_reach_the_data_set_unchanged_and_in_order(signals):
    data = replace(MNIST1D, validation_fraction=0.0).load()
    for split, suffix in ((data.train, ""), (data.test, "_test")):
        assert np.array_equal(split.x, signals[f"x{suffix}"].astype(np.float32))
        assert np.array_equal(split.y.argmax(1), signals[f"y{suffix}"])
        assert np.array_equal(np.sort(split.y, axis=1), np.eye(10)[[9]].repeat(len(split.y), 0))
    assert len(data.validation.x) == 0


def test_generating_mnist1d_leaves_the_global_generators_as_they_were():
    random.seed(5)
    np.random.seed(5)
    expected = (random.random(), np.random.rand())
    random.seed(5)
    np.random.seed(5)
    MNIST1D.load()
    assert (random.random(), np.random.rand()) == expected


def test_a_tenth_is_held_out_by_the_split_seed_and_the_limit_keeps_the_first_of_the_rest(signals, monkeypatch):
    monkeypatch.setattr(bundled, "mnist1d_arrays", lambda: signals)
    data, other = MNIST1D.load(), replace(MNIST1D, split_seed=1).load()
    limited = replace(MNIST1D, limit=7).load()
    assert (len(data.train.x), len(data.validation.x)) == (3600, 400)
    together = np.concatenate([data.train.x, data.validation.x])
    assert np.array_equal(np.sort(together[:, 0]), np.sort(signals["x"][:, 0].astype(np.float32)))
    assert not np.array_equal(data.validation.x, other.validation.x)
    assert np.array_equal(limited.train.x, data.train.x[:7])
    assert np.array_equal(limited.validation.x, data.validation.x)
    assert data.checksum == other.checksum == limited.checksum


@pytest.mark.parametrize("source", [DIGITS, MNIST1D])
@pytest.mark.parametrize(
    ("change", "named"), [({"validation_fraction": 1.0}, "validation_fraction=1"), ({"limit": 0}, "limit=0")]
)
def test_splits_that_leave_nothing_to_train_on_are_refused_by_name(source, change, named):
    with pytest.raises(ValueError, match=named):
        replace(source, **change)
