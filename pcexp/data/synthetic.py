"""Generated data: linear regression, Gaussian targets, matrix completion. `data_seed` is not a run's seed."""

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np

from pcexp.data.dataset import AbstractData, Dataset, Split, check_positive, checksum


def _dataset(name: str, train: Split, validation: Split, test: Split) -> Dataset:
    digest = checksum(train.x, train.y, validation.x, validation.y, test.x, test.y)
    return Dataset(name, train, validation, test, caveat="", checksum=digest)


def _normal(generator: np.random.Generator, mean: float, std: float, shape: tuple[int, ...]) -> np.ndarray:
    return generator.normal(mean, std, shape).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AbstractToy(AbstractData):
    """Examples drawn one by one, x and y of one dimension."""

    d_in: int
    """Dimension of x and of y."""
    n_train: int
    n_test: int
    """Size of the validation split and of the test split."""
    data_seed: int
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_positive(d_in=self.d_in, n_train=self.n_train, n_test=self.n_test)

    @abc.abstractmethod
    def _split(self, generator: np.random.Generator, n: int) -> Split: ...

    def load(self) -> Dataset:
        # One stream a split: a larger training set leaves the test set as it was.
        streams = map(np.random.default_rng, np.random.SeedSequence(self.data_seed).spawn(3))
        return _dataset(self.name, *map(self._split, streams, (self.n_train, self.n_test, self.n_test)))


@final
@dataclass(frozen=True, kw_only=True)
class LinearRegression(AbstractToy):
    """Toy regression y = slope x + noise, element by element, with x ~ N(x_mean, x_std^2) (thesis chapters 3 and 4)."""

    slope: float
    x_mean: float
    x_std: float
    noise_std: float
    name = "linear_regression"

    def _split(self, generator: np.random.Generator, n: int) -> Split:
        x = _normal(generator, self.x_mean, self.x_std, (n, self.d_in))
        noise = _normal(generator, 0.0, self.noise_std, (n, self.d_in))
        return Split(x, np.float32(self.slope) * x + noise)


@final
@dataclass(frozen=True, kw_only=True)
class Gaussian(AbstractToy):
    """Toy Gaussian data x ~ N(mean, std^2), y = -x, with a second target of its own (thesis figures 4.2, 4.3, B.2)."""

    mean: float
    std: float
    second_target: Literal["minus_x", "x", "independent"]
    """y_2: -x_2 like the others; x_2 (the text of figure 4.3, right); N(mean, std^2) of its own (its code)."""
    name = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.second_target != "minus_x" and self.d_in < 2:
            raise ValueError(f"second_target={self.second_target}: needs d_in of 2 or more, not {self.d_in}")

    def _split(self, generator: np.random.Generator, n: int) -> Split:
        x = _normal(generator, self.mean, self.std, (n, self.d_in))
        y = -x
        if self.second_target == "x":
            y[:, 1] = x[:, 1]
        elif self.second_target == "independent":
            y[:, 1] = _normal(generator, self.mean, self.std, (n,))
        return Split(x, y)


@final
@dataclass(frozen=True, kw_only=True)
class Matrix(AbstractData):
    """Matrix completion Y = A B with standard normal A (rows x rank), B (rank x columns) (thesis figure 4.6).

    A row is an example. Inputs are the rows with hidden entries at 0; targets are the *whole* rows, and `mask` is 1
    where an entry was observed: multiply by it where the loss must not see the hidden ones. There is one matrix, so
    the validation and test splits are the same rows with the mask turned round: they score the hidden entries.
    """

    n_rows: int
    n_columns: int
    rank: int
    hidden_fraction: float
    """Probability that an entry is hidden, independently of the others, as in the published code."""
    data_seed: int

    def __post_init__(self) -> None:
        check_positive(n_rows=self.n_rows, n_columns=self.n_columns)
        if not 1 <= self.rank <= min(self.n_rows, self.n_columns):
            raise ValueError(f"rank={self.rank}: valid are 1 to {min(self.n_rows, self.n_columns)}")
        if not 0 <= self.hidden_fraction < 1:
            raise ValueError(f"hidden_fraction={self.hidden_fraction}: valid are 0 to below 1")

    def load(self) -> Dataset:
        generator = np.random.default_rng(self.data_seed)
        left = generator.standard_normal((self.n_rows, self.rank))
        right = generator.standard_normal((self.rank, self.n_columns))
        y = (left @ right).astype(np.float32)
        mask = (generator.random(y.shape) >= self.hidden_fraction).astype(np.float32)
        observed, hidden = Split(y * mask, y, mask), Split(y * mask, y, 1 - mask)
        return _dataset("matrix", observed, hidden, hidden)
