"""Real copies against verified hashes; without copies in PCEXP_DATA_DIR there is nothing to collect here."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
import quick
from hydra.utils import instantiate

from pcexp.data import copies

# Read before any test sets it to a folder of its own.
REAL_DATA_DIR = os.environ.get("PCEXP_DATA_DIR")
pytestmark = [pytest.mark.data, pytest.mark.usefixtures("real_copies")]

# First 16 digits of sha256 of the decoded images and of the int64 labels, in the order of the records: training images,
# training labels, test images, test labels. Those of MNIST and Fashion-MNIST were verified against the original files;
# the CIFAR-10 is a JPEG copy, the Tiny-ImageNet a fifth of it.
HASHES = {
    "mnist": ("59edd5ea35c00629", "0e44ecaf2547dac7", "a85d8dffc6063fb8", "d515834c278b04a6"),
    "fashion_mnist": ("d6f7acb83157a750", "241e7920b73befd9", "a84f70bc4eaa1b2c", "b09bb91685fa2a6e"),
    "cifar10": ("a012783a2ef42bf2", "44f381ab83e32edf", "3a9a3752963dccd5", "b4616e4d20f82f6a"),
    "tiny_imagenet": ("0d9475720354c60a", "3ca575707095c5b7", "af44cf3a8e701e86", "ae4185436abcfc5e"),
}
CAVEATS = {
    "mnist": "",
    "fashion_mnist": "",
    "cifar10": "lossy JPEG copy (60000 of 60000 images): not comparable with published accuracies",
    "tiny_imagenet": "20000 of 100000 training images: not comparable with published accuracies",
}
PRESENT = [name for name in HASHES if REAL_DATA_DIR is not None and (Path(REAL_DATA_DIR) / name).is_dir()]


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real_copies(shared_cache: Path, private_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCEXP_DATA_DIR", str(REAL_DATA_DIR))
    monkeypatch.setenv("PCEXP_CACHE_DIR", str(shared_cache))


def first_digits(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


if PRESENT:

    @pytest.mark.parametrize("name", PRESENT)
    def test_decoded_arrays_have_the_verified_hashes_and_the_caveat_is_the_true_one(name):
        source = instantiate(quick.composed(f"data={name}", base=())["data"])
        raw, checksum = copies.load(copies.find(name), test_split=source.test_split)
        assert tuple(map(first_digits, (raw.x_train, raw.y_train, raw.x_test, raw.y_test))) == HASHES[name]
        assert source.published.caveat(raw, checksum) == CAVEATS[name]


if "mnist" in PRESENT:

    def test_mnist_has_the_published_statistics_and_loads_within_a_second_from_the_cache():
        source = instantiate(quick.composed("data=mnist", base=())["data"])
        data = source.load()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            source.load()
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 1
        # (.1307, .3081) are the mean and std of the training images to four digits.
        x = np.concatenate([data.train.x, data.validation.x])
        assert x.mean(dtype=np.float64) == pytest.approx(0, abs=5e-4)
        assert x.std(dtype=np.float64) == pytest.approx(1, abs=5e-4)
        counts = np.concatenate([data.train.y, data.validation.y]).sum(0)
        assert counts.astype(int).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert (len(data.train.x), len(data.validation.x), len(data.test.x)) == (54_000, 6_000, 10_000)
        assert data.caveat == ""
