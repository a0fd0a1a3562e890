"""Real data that come with a package: scikit-learn's digits and MNIST-1D. Neither needs a network."""

import random
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from pcexp.data.dataset import AbstractDivided, Dataset, Split, checksum, needing, one_hot


@final
@dataclass(frozen=True, kw_only=True)
class Digits(AbstractDivided):
    """scikit-learn's 1,797 digits, 8x8 images: pixels / 16, then standardised by the training split's mean and std.

    Mean and std are one number each, over all pixels: some pixels are never inked, and have no std of their own.
    """

    test_fraction: float
    """What it leaves is divided into training and validation examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction={self.test_fraction}: valid are above 0 to below 1")

    def load(self) -> Dataset:
        with needing("bundled"):
            from sklearn.datasets import load_digits

        bunch = load_digits()
        images = (bunch.images / 16).astype(np.float32)[..., np.newaxis]
        labels = bunch.target.astype(np.int64)
        rest, test = replace(self, validation_fraction=self.test_fraction, limit=None).divided(len(images))
        train, held_out = (rest[examples] for examples in self.divided(len(rest)))
        mean, std = images[train].mean(), images[train].std()
        x, y = (images - mean) / std, one_hot(labels, 10)
        splits = [Split(x[examples], y[examples]) for examples in (train, held_out, test)]
        digest = checksum(bunch.images.astype(np.uint8), labels)
        return Dataset("digits", splits[0], splits[1], splits[2], caveat="", checksum=digest)


@final
@dataclass(frozen=True, kw_only=True)
class Mnist1D(AbstractDivided):
    """MNIST-1D as its authors' generator makes it: 4,000 + 1,000 signals of length 40, standardised over all."""

    def load(self) -> Dataset:
        arrays = mnist1d_arrays()
        x_train, x_test = (arrays[key].astype(np.float32) for key in ("x", "x_test"))
        y_train, y_test = (one_hot(arrays[key].astype(np.int64), 10) for key in ("y", "y_test"))
        # Rounded, because the generator's last bits differ between versions of SciPy; + 0 turns -0 into 0.
        digest = checksum(*(np.round(array, 10) + 0 for array in arrays.values()))
        return self.dataset("mnist1d", Split(x_train, y_train), Split(x_test, y_test), digest)


def mnist1d_arrays() -> dict[str, np.ndarray]:
    """Signals x, x_test and labels y, y_test in float64, equal to the published file to 1e-12."""
    with needing("bundled"):
        from mnist1d.data import get_dataset_args, make_dataset

    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        arrays = make_dataset(get_dataset_args())  # not get_dataset(), which downloads
    finally:  # it seeds both global generators
        random.setstate(state)
        np.random.set_state(numpy_state)
    return {key: arrays[key] for key in ("x", "y", "x_test", "y_test")}
