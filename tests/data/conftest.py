"""Prepared copies small enough to make on the spot, written by the TFDS writer."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "data: needs a prepared copy of a real data set in PCEXP_DATA_DIR")


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a copy or a cache that it did not make itself."""
    monkeypatch.setenv("PCEXP_DATA_DIR", str(tmp_path / "copies"))
    monkeypatch.setenv("PCEXP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Encode an image (height, width, channels) as the bytes of a file."""

    def encode(image: np.ndarray, image_format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, image_format)
        return buffer.getvalue()

    return encode


Splits = dict[str, tuple[list[bytes], list[int]]]


@pytest.fixture
def write_copy(tmp_path: Path) -> Callable[..., Path]:
    """Write encoded images and labels as copies/NAME/VERSION in array_record."""

    def write(
        splits: Splits, *, shape: tuple[int, ...], n_classes: int, name: str = "tiny", version: str = "1.0.0"
    ) -> Path:
        import tensorflow_datasets as tfds

        folder = tmp_path / "copies" / name / version
        folder.mkdir(parents=True)
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(name, version, str(folder), "tests"),
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=n_classes)}
            ),
        )
        writer = tfds.core.SequentialWriter(info, max_examples_per_shard=16, file_format="array_record")
        writer.initialize_splits(list(splits))
        for split, (images, labels) in splits.items():
            rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
            writer.add_examples({split: rows})
        writer.close_all()
        return folder

    return write
