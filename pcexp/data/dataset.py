"""What a data set is: three splits of host arrays, a caveat and a checksum."""

import abc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from pcexp.data.augmentation import Augment

ALIGNMENT_BYTES = 64
Indices = Int[np.ndarray, " _"]


class DataError(Exception):
    """Data that are absent or unusable: what was looked for, where, and what to run."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Inside, a package that is not installed is a DataError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(f"{error.name} is not installed: run `pip install 'pcexp[{extra}]'`") from error


class Split(NamedTuple):
    """Examples of one split, on the host."""

    x: Float32[np.ndarray, "n ..."]
    """Inputs: (n, d), or (n, height, width, channels) for images."""
    y: Float32[np.ndarray, "n d_out"]
    """Targets: one-hot for classes."""
    mask: Float32[np.ndarray, "n d_out"] | None = None
    """1 where the target counts, 0 where it does not; None where all of it does."""
    x_mask: Float32[np.ndarray, "n ..."] | None = None
    """1 where the input is clamped, 0 where it is free; None where all of it is clamped."""

    def flattened(self) -> "Split":
        """The same split with inputs (n, channels * height * width), channel first as in PyTorch."""

        def flat(array: np.ndarray) -> np.ndarray:
            first = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
            return np.ascontiguousarray(first).reshape(len(array), int(np.prod(array.shape[1:])))

        return self._replace(x=flat(self.x), x_mask=None if self.x_mask is None else flat(self.x_mask))


class Arrangement(NamedTuple):
    """What of an example stands below a network (x) and what above it (y): inputs and targets, as vectors where `flat`.

    A `generative` network has targets below and inputs above; with `latents` n it has n free inputs of mean 0 below them.
    """

    flat: bool = True
    generative: bool = False
    latents: int | None = None

    def of(self, split: Split) -> Split:
        """A split, so arranged."""
        split = split.flattened() if self.flat else split
        if not self.generative:
            return split
        if self.latents is not None:
            free = np.zeros((len(split.x), self.latents), np.float32)
            return Split(free, split.x, split.x_mask, free)
        # A target that counts for nothing is one that is not known: below, it is free, and nothing is told of it.
        below = split.y if split.mask is None else np.where(split.mask == 1, split.y, np.float32(1 / split.y.shape[1]))
        return Split(below, split.x, split.x_mask, split.mask)


def aligned(array: np.ndarray) -> np.ndarray:
    """The same array where XLA reads it in place on a CPU, at a multiple of 64 bytes; elsewhere each use copies it."""
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT_BYTES == 0:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    found = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test splits, normalised and ready for the device."""

    name: str
    train: Split
    validation: Split
    test: Split
    caveat: str
    """Why results are not comparable with published ones; empty where they are."""
    checksum: str
    """sha256 of the raw arrays (training images, labels, test images, labels): of the source, whatever the split."""
    content: str = ""
    """What the configuration does not say of the arrays: their checksum, where they are a file's; empty where it says all."""
    augment: Augment | None = None
    """What happens to the images of a training batch; the splits hold them unchanged."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split: Split = getattr(self, name)
            if len(split.x) != len(split.y) or split.x.shape[1:] != self.train.x.shape[1:]:
                raise ValueError(f"{self.name}: splits disagree, {split.x.shape} with {split.y.shape}")
            object.__setattr__(self, name, split._replace(x=aligned(split.x), y=aligned(split.y)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.x.shape[1:]

    @property
    def d_out(self) -> int:
        return self.train.y.shape[1]

    def arranged(self, arrangement: Arrangement) -> "Dataset":
        """The same data with what stands below a network as x and what stands above it as y. Raises ValueError."""
        if arrangement == Arrangement(flat=False):
            return self
        if arrangement.generative and self.augment:
            raise ValueError(
                "data.augmentation changes inputs, and a generative network has them above: set it to null"
            )
        train, validation, test = map(arrangement.of, (self.train, self.validation, self.test))
        augment = self.augment and replace(self.augment, flat=arrangement.flat)
        return replace(self, train=train, validation=validation, test=test, augment=augment)


class AbstractData(abc.ABC):
    """A data source: hyperparameters only. Constructing one reads nothing."""

    of_files: ClassVar[bool] = False
    """Whether the arrays are read from files whose content the configuration does not say."""
    places: ClassVar[tuple[str, ...]] = ()
    """Arguments that say where such files lie, not what is in them."""

    @abc.abstractmethod
    def load(self) -> Dataset:
        """Read or generate the arrays."""


def one_hot(labels: Int[np.ndarray, " n"], n_classes: int) -> Float32[np.ndarray, "n {n_classes}"]:
    """Targets y_bk = 1 where k is the label of example b, else 0."""
    return np.eye(n_classes, dtype=np.float32)[labels]


def checksum(*arrays: np.ndarray, described: bool = False) -> str:
    """sha256 of the arrays' C-order bytes, one after the other; each behind its type and shape if `described`."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape} ".encode() if described else b"")
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class AbstractDivided(AbstractData):
    """A source of examples of which a random part is held out."""

    validation_fraction: float
    split_seed: int
    limit: int | None
    """Training examples kept, the first after the split; null keeps all."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction}: valid are 0 (no validation split) to below 1"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: valid are null (all training examples) and 1 or more")

    def divided(self, n: int) -> tuple[Indices, Indices]:
        """Examples of n that are trained on (the first `limit`) and that are held out, drawn at random, each in stored order."""
        order = np.random.default_rng(self.split_seed).permutation(n)
        n_validation = round(self.validation_fraction * n)
        return np.sort(order[n_validation:])[: self.limit], np.sort(order[:n_validation])

    def dataset(self, name: str, train: Split, test: Split, digest: str, content: str = "") -> Dataset:
        """The data set of these examples."""
        kept, validation = (Split(train.x[i], train.y[i]) for i in self.divided(len(train.x)))
        return Dataset(name, kept, validation, test, caveat="", checksum=digest, content=content)


def check_positive(**values: float) -> None:
    """Refuse values that are not above 0, by name."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: valid are values above 0")
