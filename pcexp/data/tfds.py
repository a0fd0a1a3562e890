"""Image data sets from prepared copies: normalised, one-hot, with a caveat where the copy is not the published set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float32

from pcexp.data import copies
from pcexp.data.augmentation import Augment, Augmentation
from pcexp.data.copies import Pixels, RawImages
from pcexp.data.dataset import AbstractDivided, Dataset, Indices, Split, one_hot

BLOCK = 64
"""Images normalised at once."""


@final
@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of the published set, to tell a copy that is not the same."""

    n_train: int
    image_format: Literal["png", "jpeg"]
    """`png` where the published pixels are exact: JPEG images are then a lossy copy."""
    checksum: str | None
    """`Dataset.checksum` of the published images and labels; null where no verified copy was at hand."""

    def caveat(self, raw: RawImages, checksum: str) -> str:
        """Why results on these images are not comparable with published ones; empty where they are."""
        reasons = []
        n_train, n_images = len(raw.x_train), len(raw.x_train) + len(raw.x_test)
        if n_train != self.n_train:
            reasons.append(f"{n_train} of {self.n_train} training images")
        if self.image_format == "png" and raw.n_jpeg:
            reasons.append(f"lossy JPEG copy ({raw.n_jpeg} of {n_images} images)")
        if self.checksum is not None and checksum != self.checksum:
            reasons.append(f"pixels or labels differ from the published ones (sha256 {checksum[:16]})")
        return f"{'; '.join(reasons)}: not comparable with published accuracies" if reasons else ""


@final
@dataclass(frozen=True, kw_only=True)
class Tfds(AbstractDivided):
    """A TensorFlow Datasets image set, (pixels / 255 - mean) / std by channel, read without TensorFlow.

    Copies are looked for in PCEXP_DATA_DIR (else TFDS_DATA_DIR, else ~/tensorflow_datasets); decoded images are kept in
    PCEXP_CACHE_DIR (else ~/.cache/pcexp).
    """

    of_files = True

    name: str
    mean: Sequence[float]
    """One number a channel."""
    std: Sequence[float]
    """One number a channel."""
    test_split: str
    published: Published
    augmentation: Augmentation | None = None
    """Of training batches; null changes nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"mean={list(self.mean)}, std={list(self.std)}: one of each a channel, std above 0")

    def load(self) -> Dataset:
        raw, checksum = copies.load(copies.find(self.name), test_split=self.test_split)
        n_channels = raw.x_train.shape[-1]
        if n_channels != len(self.mean):
            raise ValueError(f"mean={list(self.mean)}: {self.name} has {n_channels} channels")
        train, held_out = self.divided(len(raw.x_train))
        y_train, y_test = (one_hot(labels, raw.n_classes) for labels in (raw.y_train, raw.y_test))
        augment = None
        if self.augmentation is not None:
            black = tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
            augment = Augment(self.augmentation, (*raw.x_train.shape[1:3], n_channels), black)
        return Dataset(
            self.name,
            train=Split(self.normalised(raw.x_train, train), y_train[train]),
            validation=Split(self.normalised(raw.x_train, held_out), y_train[held_out]),
            test=Split(self.normalised(raw.x_test, np.arange(len(raw.x_test))), y_test),
            caveat=self.published.caveat(raw, checksum),
            checksum=checksum,
            content="" if checksum == self.published.checksum else checksum,
            augment=augment,
        )

    def normalised(self, images: Pixels, examples: Indices) -> Float32[np.ndarray, "_ height width channels"]:
        """(pixels / 255 - mean) / std of some examples, in the order and precision of torchvision."""
        n_pixels = images.shape[1] * images.shape[2]
        mean, std = (np.tile(np.asarray(values, np.float32), n_pixels) for values in (self.mean, self.std))
        x = np.empty((len(examples), mean.size), np.float32)
        for start in range(0, len(x), BLOCK):
            # In place and a block at a time: fresh memory, not arithmetic, is what loading spends its time on.
            block = x[start : start + BLOCK]
            block[:] = images[examples[start : start + BLOCK]].reshape(block.shape)
            block /= 255
            block -= mean
            block /= std
        return x.reshape(len(x), *images.shape[1:])
