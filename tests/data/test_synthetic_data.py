"""Generated data against the statistics that they were asked for."""

from dataclasses import replace

import numpy as np
import pytest

from pcexp.data import Gaussian, LinearRegression, Matrix

REGRESSION = LinearRegression(
    d_in=2, slope=-1.0, x_mean=1.0, x_std=0.1, noise_std=0.0, n_train=20_000, n_test=5_000, data_seed=0
)
GAUSSIAN = Gaussian(d_in=3, mean=1.0, std=0.1, second_target="minus_x", n_train=20_000, n_test=5_000, data_seed=0)
MATRIX = Matrix(n_rows=10, n_columns=10, rank=3, hidden_fraction=0.2, data_seed=0)


def assert_normal(sample: np.ndarray, mean: float, std: float) -> None:
    """Mean, standard deviation and the mass within one standard deviation, each within five standard errors."""
    n = sample.size
    assert abs(sample.mean() - mean) < 5 * std / n**0.5
    assert abs(sample.std() - std) < 5 * std / (2 * n) ** 0.5
    assert abs((np.abs(sample - mean) < std).mean() - 0.6827) < 5 * (0.6827 * 0.3173 / n) ** 0.5


def test_regression_inputs_are_normal_in_every_split():
    data = REGRESSION.load()
    for split in (data.train, data.validation, data.test):
        assert_normal(split.x.astype(np.float64), 1.0, 0.1)
    assert (len(data.train.x), len(data.validation.x), len(data.test.x)) == (20_000, 5_000, 5_000)
    assert (data.input_shape, data.d_out) == ((2,), 2)


@pytest.mark.parametrize("slope", [-1.0, 2.0])
def test_least_squares_finds_the_slope_and_no_residual(slope):
    train = replace(REGRESSION, slope=slope).load().train
    for x, y in zip(train.x.T, train.y.T, strict=True):
        assert np.polyfit(x.astype(np.float64), y, 1) == pytest.approx([slope, 0], abs=1e-6)


def test_least_squares_leaves_the_noise_that_was_asked_for():
    train = replace(REGRESSION, x_std=1.0, noise_std=0.5).load().train
    x, y = train.x[:, 0].astype(np.float64), train.y[:, 0]
    slope, intercept = np.polyfit(x, y, 1)
    assert slope == pytest.approx(-1, abs=5 * 0.5 / 20_000**0.5)
    assert_normal(y - slope * x - intercept, 0, 0.5)


def test_the_splits_and_the_columns_are_independent_draws():
    data = REGRESSION.load()
    columns = [data.train.x[:5_000, 0], data.train.x[:5_000, 1], data.validation.x[:, 0], data.test.x[:, 0]]
    off_diagonal = np.corrcoef(columns)[np.triu_indices(4, 1)]
    assert np.abs(off_diagonal).max() < 5 / 5_000**0.5


@pytest.mark.parametrize("source", [REGRESSION, GAUSSIAN])
def test_a_larger_training_set_leaves_the_test_set_as_it_was(source):
    small, large = source.load(), replace(source, n_train=30_000).load()
    assert np.array_equal(small.test.x, large.test.x)
    assert np.array_equal(small.train.x, large.train.x[:20_000])


@pytest.mark.parametrize("source", [REGRESSION, GAUSSIAN, MATRIX])
def test_the_data_seed_alone_decides_the_numbers(source):
    first, again, other = source.load(), source.load(), replace(source, data_seed=1).load()
    assert first.checksum == again.checksum != other.checksum
    assert not np.array_equal(first.train.x, other.train.x)
    assert first.train.x.dtype == first.train.y.dtype == np.float32


@pytest.mark.parametrize(("second", "correlation"), [("minus_x", -1), ("x", 1), ("independent", 0)])
def test_the_second_gaussian_target_is_the_one_asked_for_and_the_others_are_minus_x(second, correlation):
    train = replace(GAUSSIAN, second_target=second).load().train
    assert_normal(train.x.astype(np.float64), 1.0, 0.1)
    assert np.array_equal(train.y[:, [0, 2]], -train.x[:, [0, 2]])
    assert np.corrcoef(train.x[:, 1], train.y[:, 1])[0, 1] == pytest.approx(correlation, abs=5 / 20_000**0.5)
    if second != "minus_x":
        assert_normal(train.y[:, 1].astype(np.float64), 1.0, 0.1)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_the_matrix_has_the_rank_asked_for(rank):
    assert np.linalg.matrix_rank(replace(MATRIX, rank=rank).load().train.y) == rank


def test_the_matrix_is_a_product_of_standard_normal_factors():
    y = Matrix(n_rows=400, n_columns=400, rank=3, hidden_fraction=0.2, data_seed=0).load().train.y.astype(np.float64)
    # An entry is a sum of three products of two standard normals: variance 3. Its singular values fluctuate by about
    # 400^-1/2 each, hence the tolerance.
    assert y.var() == pytest.approx(3, rel=0.25)
    assert np.linalg.svd(y)[1][:3] == pytest.approx(400, rel=0.25)


def test_a_fifth_of_the_matrix_is_hidden_independently_of_its_values():
    train = Matrix(n_rows=200, n_columns=200, rank=3, hidden_fraction=0.2, data_seed=0).load().train
    assert train.mask is not None
    assert abs((train.mask == 0).mean() - 0.2) < 5 * (0.2 * 0.8 / 40_000) ** 0.5
    assert abs(np.corrcoef(train.mask.ravel(), np.abs(train.y).ravel())[0, 1]) < 5 / 200


def test_inputs_are_the_observed_entries_targets_are_whole_and_the_other_splits_score_the_hidden_ones():
    data = MATRIX.load()
    mask = data.train.mask
    assert mask is not None and set(np.unique(mask)) == {0, 1}
    assert np.array_equal(data.train.x, np.where(mask == 1, data.train.y, 0))
    assert np.count_nonzero(data.train.y) == 100
    for split in (data.validation, data.test):
        assert np.array_equal(split.x, data.train.x) and np.array_equal(split.y, data.train.y)
        assert np.array_equal(split.mask == 1, mask == 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: replace(REGRESSION, d_in=0), "d_in=0"),
        (lambda: replace(REGRESSION, n_train=0), "n_train=0"),
        (lambda: replace(GAUSSIAN, d_in=1, second_target="x"), "second_target=x"),
        (lambda: replace(MATRIX, rank=11), "rank=11.*10"),
        (lambda: replace(MATRIX, hidden_fraction=1.0), "hidden_fraction=1"),
    ],
)
def test_impossible_values_are_refused_by_name_before_anything_is_generated(change, named):
    with pytest.raises(ValueError, match=named):
        change()
