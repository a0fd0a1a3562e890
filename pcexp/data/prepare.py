"""Making the copies that `pcexp.data.copies` reads: downloaded by TensorFlow Datasets, or packed from a folder."""

import difflib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcexp.data import copies
from pcexp.data.copies import Copy
from pcexp.data.dataset import DataError, needing

SIDE, CHUNK = 64, 1000


def download(name: str) -> Copy:
    """Download and prepare a data set of TensorFlow Datasets; the one step that needs network and TensorFlow."""
    if name == "tiny_imagenet":
        raise DataError(f"tiny_imagenet cannot be downloaded: {copies.how_to_prepare(name)}")
    with needing("images"):
        import tensorflow_datasets as tfds

    if name not in (known := tfds.list_builders(with_community_datasets=False)):
        close = difflib.get_close_matches(name, known, n=1)
        raise DataError(
            f"{name} is no data set of TensorFlow Datasets" + (f" (did you mean {close[0]}?)" if close else "")
        )
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"preparing {name} needs TensorFlow once, reading it never does: run `make data DATA={name}`, which "
            "installs it, or `pip install 'pcexp[prepare]'` and this command again"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=copies.data_dir(), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # network, disk and unknown names all end here
        raise DataError(f"{name} could not be prepared in {copies.data_dir()}: {error}") from error
    return copies.find(name)


def pack_tiny_imagenet(source: Path) -> Copy:
    """Pack the unzipped folder tiny-imagenet-200 as a copy: training images and the labelled validation images."""
    with needing("images"):
        import tensorflow_datasets as tfds

    names = sorted(path.name for path in (source / "train").glob("n*"))
    annotations = source / "val" / "val_annotations.txt"
    if not names or not annotations.is_file():
        raise DataError(f"{source} is not tiny-imagenet-200: looked for train/n*/images and val/val_annotations.txt")
    folders = [source / "train" / name / "images" for name in names]
    train = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.JPEG"))]
    rows = [line.split("\t") for line in annotations.read_text().splitlines()]
    validation = [(source / "val" / "images" / row[0], names.index(row[1])) for row in rows]

    target = copies.data_dir() / "tiny_imagenet" / "1.0.0"
    unfinished = target.with_name("1.0.0.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity("tiny_imagenet", "1.0.0", str(unfinished), "pcexp.data"),
        description="Tiny-ImageNet-200: training images and labelled validation images.",
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(SIDE, SIDE, 3)), "label": tfds.features.ClassLabel(names=names)}
        ),
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100_000, file_format="array_record")
    writer.initialize_splits(["train", "validation"])
    for split, examples in (("train", train), ("validation", validation)):
        for chunk in _chunks(examples):
            writer.add_examples({split: chunk})
    writer.close_all()
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return copies.find("tiny_imagenet")


def _chunks(examples: list[tuple[Path, int]]) -> Iterator[list[dict[str, object]]]:
    # Shuffled like the copies that TFDS makes: the folder's order is by class, and `limit` would keep a few classes.
    order = np.random.default_rng(0).permutation(len(examples))
    for start in range(0, len(order), CHUNK):
        chunk = [examples[i] for i in order[start : start + CHUNK]]
        yield [{"image": _encoded(path), "label": label} for path, label in chunk]


def _encoded(path: Path) -> bytes:
    """The file's own bytes; grey images as PNG of the same pixels in three channels, which the format asks for."""
    from PIL import Image

    encoded = path.read_bytes()
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode == "RGB":
            return encoded
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
