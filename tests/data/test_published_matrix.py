"""The published matrix, against numbers that PyTorch's documentation and the published run printed."""

import numpy as np
import pytest

from pcexp.data import PublishedMatrix
from pcexp.data.published_matrix import TorchGenerator, entries


def test_uniform_numbers_are_those_that_pytorch_draws_from_seed_zero():
    assert TorchGenerator(0).uniform(5) == pytest.approx([0.4963, 0.7682, 0.0885, 0.1320, 0.3074], abs=5e-5)


def test_the_mean_square_of_the_observed_entries_is_the_loss_that_the_published_run_printed_first():
    """Printed 3.4457870 for linear and tanh networks, 3.4457850 for relu, all of outputs below 1e-6."""
    train = PublishedMatrix().load().train
    assert np.mean(train.x.astype(np.float64) ** 2) == pytest.approx(3.445786, abs=3e-6)


def test_the_matrix_has_rank_three_and_a_sixth_of_it_is_hidden():
    y, observed = entries()
    singular = np.linalg.svd(y)[1]
    assert singular[2] > 4 and singular[3] < 1e-5
    assert observed.sum() == 84
    data = PublishedMatrix().load()
    assert np.array_equal(data.train.x, np.where(observed, y, 0)) and np.array_equal(data.train.y, y)
    assert np.array_equal(data.test.mask, 1 - data.train.mask)


def test_normal_numbers_are_standard_and_fewer_than_sixteen_are_refused():
    draw = TorchGenerator(1).normal(20_008)
    assert abs(draw.mean()) < 5 / 20_000**0.5 and draw.std() == pytest.approx(1, abs=5 / 40_000**0.5)
    with pytest.raises(ValueError, match="n=15"):
        TorchGenerator(0).normal(15)
