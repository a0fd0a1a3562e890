"""Data: generated tasks, bundled data sets and image sets from prepared copies, as splits of host arrays."""

from pcexp.data.augmentation import Augment as Augment
from pcexp.data.augmentation import Augmentation as Augmentation
from pcexp.data.bundled import Digits as Digits
from pcexp.data.bundled import Mnist1D as Mnist1D
from pcexp.data.dataset import AbstractData as AbstractData
from pcexp.data.dataset import Arrangement as Arrangement
from pcexp.data.dataset import DataError as DataError
from pcexp.data.dataset import Dataset as Dataset
from pcexp.data.dataset import Split as Split
from pcexp.data.npz import Npz as Npz
from pcexp.data.published_matrix import PublishedMatrix as PublishedMatrix
from pcexp.data.synthetic import Gaussian as Gaussian
from pcexp.data.synthetic import LinearRegression as LinearRegression
from pcexp.data.synthetic import Matrix as Matrix
from pcexp.data.tfds import Published as Published
from pcexp.data.tfds import Tfds as Tfds
