"""The matrix of figure 4.6: the published run's own, from the generator that drew it."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float32

from pcexp.data.dataset import AbstractData, Dataset, Split, checksum

ROWS = COLUMNS = 10
RANK = 3
HIDDEN_FRACTION = 0.2
SEED = 0
DRAWN_BEFORE = 2 * 10 * 100 + 2 * 100 * 100
"""Numbers that the published run had drawn before the matrix: the weights of its 10-3x100-10 network, one each."""


class TorchGenerator:
    """float32 numbers of PyTorch's CPU generator (2.x): Mersenne Twister, 24 bits a number, Box-Muller in blocks of 16."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed)

    def uniform(self, n: int) -> Float32[np.ndarray, " {n}"]:
        """The next n uniform numbers in [0, 1): `torch.rand(n)`."""
        raw = np.asarray(self._bits.random_raw(n))
        return ((raw & (2**24 - 1)) * 2.0**-24).astype(np.float32)

    def normal(self, n: int) -> Float32[np.ndarray, " {n}"]:
        """The next n normal numbers, for n of 16 or more: `torch.randn(n)`. The last 16 are drawn again if 16 does not divide n."""
        if n < 16:
            raise ValueError(f"n={n}: from 16 up; fewer numbers are drawn in another way")
        found = self.uniform(n)
        for start in range(0, n - 15, 16):
            found[start : start + 16] = _box_muller(found[start : start + 16])
        if n % 16:
            found[-16:] = _box_muller(self.uniform(16))
        return found


def _box_muller(uniform: Float32[np.ndarray, " 16"]) -> Float32[np.ndarray, " 16"]:
    # In float64 and rounded once: float32 sines differ between processors.
    first, second = uniform.astype(np.float64).reshape(2, 8)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)


def entries() -> tuple[Float32[np.ndarray, "10 10"], Bool[np.ndarray, "10 10"]]:
    """The matrix A B and which of its entries were observed."""
    generator = TorchGenerator(SEED)
    generator.uniform(DRAWN_BEFORE)
    left = generator.normal(ROWS * RANK).reshape(ROWS, RANK)
    right = generator.normal(RANK * COLUMNS).reshape(RANK, COLUMNS)
    observed = generator.uniform(ROWS * COLUMNS).reshape(ROWS, COLUMNS) > HIDDEN_FRACTION
    return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.float32), observed


@final
@dataclass(frozen=True, kw_only=True)
class PublishedMatrix(AbstractData):
    """The 10x10 matrix of rank 3 of figure 4.6, 16 entries hidden, in the splits of `Matrix`.

    The mean square of its observed entries, hidden ones counted as zero, is the published loss at the start, 3.44578.
    """

    def load(self) -> Dataset:
        y, observed = entries()
        mask = observed.astype(np.float32)
        seen, hidden = Split(y * mask, y, mask), Split(y * mask, y, 1 - mask)
        return Dataset("published_matrix", seen, hidden, hidden, caveat="", checksum=checksum(y * mask, y, mask))
