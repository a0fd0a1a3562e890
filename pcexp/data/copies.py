"""Prepared copies of image data sets: where they lie, and their images and labels decoded, once, and kept between runs.

A copy is what TensorFlow Datasets prepares with the file format array_record: FOLDER/NAME/VERSION with
dataset_info.json, features.json and the records. Reading one needs no TensorFlow. What is decoded is kept in the cache as an
.npz with its checksum, which is checked whenever it is read.
"""

import hashlib
import io
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64, UInt8

from pcexp.data.dataset import DataError, checksum, needing
from pcexp.files import place, replace_file

logger = logging.getLogger(__name__)

Pixels = UInt8[np.ndarray, "_ height width channels"]
DATA_DIR = "PCEXP_DATA_DIR"
MODES = {1: "L", 3: "RGB"}
"""What images of so many channels are called."""
JPEG = b"\xff\xd8"
"""First bytes of a JPEG file."""
CHUNK = 10_000
"""Records read at once: all of them at once would hold every compressed image beside every decoded one."""


@dataclass(frozen=True)
class Copy:
    """A prepared copy on disk."""

    name: str
    version: str
    folder: Path
    n_examples: dict[str, int]
    """By split."""

    def fingerprint(self) -> str:
        """Hash of the description and of the names and sizes of all files, whatever folder they lie in."""
        # No modification times: a copy moved to another disk is the same copy.
        digest = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update((self.folder / "dataset_info.json").read_bytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class RawImages:
    """Decoded images and labels of a copy, in stored order."""

    x_train: Pixels
    y_train: Int64[np.ndarray, " n_train"]
    x_test: Pixels
    y_test: Int64[np.ndarray, " n_test"]
    n_classes: int
    n_jpeg: int
    """Images stored as JPEG, of both splits."""

    def checksum(self) -> str:
        """sha256 of training images, training labels, test images, test labels: of their bytes, as types and shapes are fixed."""
        return checksum(self.x_train, self.y_train, self.x_test, self.y_test)


def data_dir() -> Path:
    """Folder of the prepared copies: PCEXP_DATA_DIR, else the folder that TensorFlow Datasets uses itself."""
    chosen = os.environ.get(DATA_DIR) or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return place(chosen).absolute()


def how_to_prepare(name: str) -> str:
    """What to run for a copy that is absent."""
    if name == "tiny_imagenet":
        return (
            "TensorFlow Datasets does not have it: unpack tiny-imagenet-200.zip from its publishers and run "
            "`python -m pcexp data tiny_imagenet --from FOLDER/tiny-imagenet-200`"
        )
    return f"on a machine with network, run `make data DATA={name}`; or set {DATA_DIR} to the folder that has it"


def find(name: str) -> Copy:
    """The newest complete array_record copy of `name`; looks at files only, so that an absent one is told at once."""
    folder = data_dir() / name
    versions = [path for path in folder.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    versions = [path for path in versions if (path / "dataset_info.json").is_file()]
    if not versions:
        raise DataError(
            f"no prepared copy of {name}: looked for {folder}/VERSION/dataset_info.json; {how_to_prepare(name)}"
        )
    described = [(path, _description(path)) for path in versions]
    readable = [(path, info) for path, info in described if info.get("fileFormat") == "array_record"]
    if not readable:
        formats = ", ".join(sorted({str(info.get("fileFormat", "tfrecord")) for _, info in described}))
        raise DataError(
            f"the copy of {name} in {folder} has the file format {formats}, and only array_record can be read without "
            f"TensorFlow; {how_to_prepare(name)}"
        )
    path, info = max(readable, key=lambda pair: tuple(map(int, pair[0].name.split("."))))
    n_examples = {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in info.get("splits", [])}
    return Copy(name, path.name, path, n_examples)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove {folder} and prepare it again") from error


def decode(copy: Copy, *, test_split: str) -> RawImages:
    """All images and labels of a copy; seconds to minutes."""
    for split in ("train", test_split):
        if not copy.n_examples.get(split):
            raise DataError(f"{copy.folder} has no split {split!r}: it has {', '.join(copy.n_examples) or 'none'}")
    x_train, y_train, n_jpeg_train, n_classes = decode_split(copy, "train")
    x_test, y_test, n_jpeg_test, _ = decode_split(copy, test_split)
    return RawImages(x_train, y_train, x_test, y_test, n_classes=n_classes, n_jpeg=n_jpeg_train + n_jpeg_test)


def decode_split(copy: Copy, split: str) -> tuple[Pixels, Int64[np.ndarray, " n"], int, int]:
    """Images and labels of one split of a copy in stored order, how many are JPEG, and how many classes there are."""
    with needing("images"):
        import tensorflow_datasets as tfds
    try:
        builder = tfds.builder_from_directory(copy.folder)
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        shape = builder.info.features["image"].shape
        if shape[-1] not in MODES or None in shape:
            raise ValueError(f"images are {shape}, and those of one size, grey or RGB, can be read")
        images = np.empty((len(source), *shape), np.uint8)
        labels = np.empty(len(source), np.int64)
        n_jpeg = 0
        for start in range(0, len(source), CHUNK):
            # In bulk: far faster than one record at a time.
            rows = source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))
            for i, row in enumerate(rows, start):
                images[i] = _pixels(row["image"], shape)
                labels[i] = row["label"]
                n_jpeg += row["image"].startswith(JPEG)
        n_classes = int(builder.info.features["label"].num_classes)
        if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
            # Unlabelled splits carry -1, which would become the last class.
            raise ValueError(f"labels from {labels.min()} to {labels.max()} with {n_classes} classes")
        return images, labels, n_jpeg, n_classes
    except Exception as error:  # array_record, TFDS and PIL raise many kinds
        raise DataError(
            f"split {split!r} of {copy.folder} cannot be read ({type(error).__name__}: {error}): remove the folder and "
            f"prepare the copy again; {how_to_prepare(copy.name)}"
        ) from error


def _pixels(encoded: bytes, shape: tuple[int, ...]) -> UInt8[np.ndarray, "height width channels"]:
    from PIL import Image

    mode = MODES[shape[-1]]
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode.startswith(("I", "F")):  # converted, they would be cut off at 255
            raise ValueError(f"an image of more than 8 bits (mode {image.mode})")
        # Palette and grey images would otherwise give indices, or one channel of three.
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(shape)


def cache_dir() -> Path:
    """Folder of the decoded images: PCEXP_CACHE_DIR, else ~/.cache/pcexp."""
    return place(os.environ.get("PCEXP_CACHE_DIR") or "~/.cache/pcexp").absolute()


def load(copy: Copy, *, test_split: str) -> tuple[RawImages, str]:
    """Images of a copy and their checksum: from the cache, or decoded once and put there."""
    # The split is in the name because the same copy read with another one has other test images.
    path = cache_dir() / f"{copy.name}-{copy.version}-{test_split}-{copy.fingerprint()}.checked.npz"
    if path.is_file():
        try:
            return _read_cached(path)
        except (BadZipFile, EOFError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("cache %s is damaged (%s): decoding %s again", path, error, copy.folder)
    logger.info("decoding %s once into %s", copy.folder, path)
    raw = decode(copy, test_split=test_split)
    digest = raw.checksum()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: np.savez(file, sha256=digest, **vars(raw)))
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run decodes %s again", path, error, copy.folder)
    return raw, digest


def _read_cached(path: Path) -> tuple[RawImages, str]:
    # np.load given a path leaves the file open when the archive is damaged.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    stored, n_classes, n_jpeg = (arrays.pop(name).item() for name in ("sha256", "n_classes", "n_jpeg"))
    raw = RawImages(**arrays, n_classes=n_classes, n_jpeg=n_jpeg)
    digest = raw.checksum()
    if digest != stored:
        raise ValueError(f"sha256 {digest[:16]} instead of {stored[:16]}")
    return raw, digest
