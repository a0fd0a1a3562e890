"""Data: generated tasks, bundled data sets and image sets from prepared copies, as splits of host arrays."""

from pcexp.data.augmentation import Augment, Augmentation
from pcexp.data.batches import batch_indices, epoch_permutation, n_batches
from pcexp.data.bundled import Digits, Mnist1D
from pcexp.data.dataset import AbstractData, Arrangement, DataError, Dataset, Split
from pcexp.data.npz import Npz
from pcexp.data.published_matrix import PublishedMatrix
from pcexp.data.synthetic import Gaussian, LinearRegression, Matrix
from pcexp.data.tfds import Published, Tfds

__all__ = [
    "AbstractData",
    "Arrangement",
    "Augment",
    "Augmentation",
    "DataError",
    "Dataset",
    "Digits",
    "Gaussian",
    "LinearRegression",
    "Matrix",
    "Mnist1D",
    "Npz",
    "Published",
    "PublishedMatrix",
    "Split",
    "Tfds",
    "batch_indices",
    "epoch_permutation",
    "n_batches",
]
