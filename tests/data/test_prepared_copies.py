"""The whole way from records to normalised splits, on copies that the TFDS writer makes here."""

import io
import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pcexp.data import Arrangement, DataError, Published, Tfds, copies
from pcexp.data.dataset import checksum

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 5, 4, 3), dtype=np.uint8)
TEST_IMAGES = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS, TEST_LABELS = RNG.integers(0, 7, 40), RNG.integers(0, 7, 6)
PUBLISHED = Published(n_train=40, image_format="png", checksum=None)
SOURCE = Tfds(
    name="tiny",
    mean=[0.4, 0.5, 0.6],
    std=[0.2, 0.3, 0.4],
    test_split="test",
    published=PUBLISHED,
    validation_fraction=0.0,
    split_seed=0,
    limit=None,
)


@pytest.fixture
def tiny(write_copy, encoded):
    def write(image_format="PNG", **options):
        splits = {
            "train": ([encoded(image, image_format) for image in IMAGES], LABELS.tolist()),
            "test": ([encoded(image, image_format) for image in TEST_IMAGES], TEST_LABELS.tolist()),
        }
        return write_copy(splits, shape=(5, 4, 3), n_classes=7, **options)

    return write


def test_pixels_arrive_normalised_by_channel_and_labels_one_hot_in_stored_order(tiny):
    tiny()
    data = SOURCE.load()
    for split, images, labels in ((data.train, IMAGES, LABELS), (data.test, TEST_IMAGES, TEST_LABELS)):
        expected = (images / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.4])
        assert split.x == pytest.approx(expected, abs=1e-6)
        assert split.x.dtype == split.y.dtype == np.float32
        assert np.array_equal(split.y, np.eye(7)[labels])
    assert (data.input_shape, data.d_out, data.caveat, len(data.validation.x)) == ((5, 4, 3), 7, "", 0)
    assert "tensorflow" not in sys.modules


def test_flattened_images_are_channel_first(tiny):
    tiny()
    data = SOURCE.load()
    flat = data.arranged(Arrangement())
    assert flat.input_shape == (60,)
    assert np.array_equal(flat.test.x[2, 20:40].reshape(5, 4), data.test.x[2, :, :, 1])
    assert flat.checksum == data.checksum
    assert np.array_equal(flat.arranged(Arrangement()).test.x, flat.test.x)


def test_validation_and_training_examples_are_all_examples_once_whatever_the_limit(tiny):
    tiny()
    everything = SOURCE.load().train.x
    data = replace(SOURCE, validation_fraction=0.25).load()
    limited = replace(SOURCE, validation_fraction=0.25, limit=8).load()
    position = {image.tobytes(): i for i, image in enumerate(everything)}
    train = [position[image.tobytes()] for image in data.train.x]
    validation = [position[image.tobytes()] for image in data.validation.x]
    assert len(validation) == 10 and sorted(train + validation) == list(range(40))
    assert train == sorted(train)
    assert np.array_equal(limited.train.x, data.train.x[:8])
    assert np.array_equal(limited.validation.x, data.validation.x)
    other = replace(SOURCE, validation_fraction=0.25, split_seed=1).load()
    assert not np.array_equal(other.validation.x, data.validation.x)


def test_the_checksum_is_that_of_the_published_arrays_and_another_one_is_a_caveat(tiny):
    tiny()
    expected = checksum(IMAGES, LABELS.astype(np.int64), TEST_IMAGES, TEST_LABELS.astype(np.int64))
    right = replace(SOURCE, published=replace(PUBLISHED, checksum=expected)).load()
    wrong = replace(SOURCE, published=replace(PUBLISHED, checksum="0" * 64)).load()
    assert right.checksum == expected
    assert right.caveat == ""
    assert "differ from the published" in wrong.caveat and expected[:16] in wrong.caveat


def test_a_jpeg_copy_and_a_partial_one_say_so(tiny):
    tiny("JPEG")
    assert SOURCE.load().caveat == "lossy JPEG copy (46 of 46 images): not comparable with published accuracies"
    as_published = replace(PUBLISHED, image_format="jpeg")
    assert replace(SOURCE, published=as_published).load().caveat == ""
    partial = replace(SOURCE, published=replace(as_published, n_train=400)).load()
    assert partial.caveat == "40 of 400 training images: not comparable with published accuracies"


def test_palette_and_grey_images_give_the_colours_that_they_show(write_copy, encoded):
    grey, buffer = IMAGES[1, :, :, 0], io.BytesIO()
    palette = Image.fromarray(IMAGES[0]).quantize(colors=20)
    palette.save(buffer, "PNG")
    splits = {"train": ([buffer.getvalue(), encoded(grey[..., None])], [0, 1]), "test": ([encoded(IMAGES[2])], [0])}
    write_copy(splits, shape=(5, 4, 3), n_classes=2)
    raw = copies.decode(copies.find("tiny"), test_split="test")
    assert np.array_equal(raw.x_train[0], np.asarray(palette.convert("RGB")))
    assert np.array_equal(raw.x_train[1], np.stack([grey] * 3, axis=-1))


def test_images_of_more_than_8_bits_are_refused_and_not_cut_off(write_copy):
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 4), 700, np.uint16)).save(buffer, "PNG")
    splits = {split: ([buffer.getvalue()], [0]) for split in ("train", "test")}
    write_copy(splits, shape=(5, 4, 1), n_classes=2)
    with pytest.raises(DataError, match="more than 8 bits"):
        copies.decode(copies.find("tiny"), test_split="test")


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 4, 2), (None, None, 3)])
def test_images_of_another_kind_are_refused_with_what_can_be_read(write_copy, encoded, shape):
    splits = {split: ([encoded(IMAGES[0])], [0]) for split in ("train", "test")}
    write_copy(splits, shape=shape, n_classes=2)
    with pytest.raises(DataError, match="those of one size, grey or RGB, can be read"):
        copies.decode(copies.find("tiny"), test_split="test")


@pytest.mark.parametrize("published", [True, False])
def test_a_copy_that_is_not_the_published_one_says_what_it_is_by_its_content(tiny, published):
    tiny()
    checksum = SOURCE.load().checksum
    source = replace(SOURCE, published=replace(PUBLISHED, checksum=checksum if published else None))
    assert source.load().content == ("" if published else checksum)


def test_the_second_load_reads_the_cache_and_gives_the_same_arrays(tiny, monkeypatch):
    tiny()
    first = SOURCE.load()
    monkeypatch.setattr(copies, "decode", lambda *_, **__: pytest.fail("decoded again"))
    second = SOURCE.load()
    assert np.array_equal(first.train.x, second.train.x) and np.array_equal(first.test.y, second.test.y)
    assert first.checksum == second.checksum


def flip_a_byte(path):
    damaged = bytearray(path.read_bytes())
    used = [i for i, byte in enumerate(damaged) if byte]  # record files are mostly padding, which nothing reads
    damaged[used[len(used) // 2]] ^= 1
    path.write_bytes(damaged)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_labels(path):
    # A sound archive of other numbers: only the checksum can tell.
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "y_train": arrays["y_train"][::-1]})


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, replace_labels, remove])
def test_a_damaged_cache_is_rebuilt_and_said_so(tiny, tmp_path, caplog, damage):
    tiny()
    first = SOURCE.load()
    (path,) = (tmp_path / "cache").glob("*.npz")
    sound = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING):
        second = SOURCE.load()
    said = "damaged" in caplog.text and str(path) in caplog.text
    assert said == (damage is not remove)
    assert np.array_equal(first.train.x, second.train.x) and np.array_equal(first.train.y, second.train.y)
    assert path.read_bytes() == sound


def test_a_cache_without_its_checksum_or_with_another_is_rebuilt_and_said_so(tiny, tmp_path, caplog):
    tiny()
    first = SOURCE.load()
    (path,) = (tmp_path / "cache").glob("*.npz")
    with np.load(path) as archive:
        sound = dict(archive)
    without = {name: array for name, array in sound.items() if name != "sha256"}
    for content in ({}, without, without | {"sha256": "1"}, {"sha256": first.checksum}):
        np.savez(path, **content)
        caplog.clear()
        assert SOURCE.load().checksum == first.checksum
        assert "damaged" in caplog.text


def test_another_copy_of_the_same_version_is_not_taken_from_the_cache(tiny, write_copy, encoded, tmp_path):
    folder = tiny()
    SOURCE.load()
    folder.rename(tmp_path / "old")
    splits = {"train": ([encoded(image) for image in IMAGES[:10]], [0] * 10), "test": ([encoded(IMAGES[0])], [0])}
    write_copy(splits, shape=(5, 4, 3), n_classes=7)
    assert len(SOURCE.load().train.x) == 10


def test_concurrent_first_loads_all_succeed_and_leave_one_sound_cache(tiny, tmp_path):
    tiny()
    checksums = []
    threads = [threading.Thread(target=lambda: checksums.append(SOURCE.load().checksum)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(checksums) == 8 and len(set(checksums)) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_a_cache_folder_that_cannot_be_written_is_said_and_the_data_still_load(tiny, tmp_path, caplog):
    tiny()
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(SOURCE.load().train.x) == 40
    assert "cannot be written" in caplog.text


def test_an_absent_copy_is_told_within_a_second_with_the_folder_and_the_command(tmp_path):
    script = f"""
import sys, time
from pcexp.data import DataError, Published, Tfds
source = {replace(SOURCE, name="mnist")!r}
start = time.perf_counter()
try:
    source.load()
except DataError as error:
    print(time.perf_counter() - start, "tensorflow_datasets" in sys.modules, error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, imported, message = result.stdout.split(" ", 2)
    assert float(seconds) < 1 and imported == "False"
    assert str(tmp_path / "copies" / "mnist") in message
    assert "make data DATA=mnist" in message and "PCEXP_DATA_DIR" in message


def test_an_absent_tiny_imagenet_says_how_to_bring_it():
    with pytest.raises(DataError, match=r"python -m pcexp data tiny_imagenet --from") as caught:
        replace(SOURCE, name="tiny_imagenet").load()
    assert "make data" not in str(caught.value)


def test_copies_are_looked_for_where_tfds_keeps_them_unless_told_otherwise(monkeypatch, tmp_path):
    assert copies.data_dir() == tmp_path / "copies"
    monkeypatch.delenv("PCEXP_DATA_DIR")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert copies.data_dir() == tmp_path / "tfds"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert copies.data_dir() == tmp_path / "home" / "tensorflow_datasets"


def test_the_newest_version_is_read_and_an_unfinished_one_is_not(tiny):
    for version in ("3.0.9", "3.0.10", "2.9.99"):
        tiny(version=version)
    (copies.data_dir() / "tiny" / "4.0.0.incomplete7").mkdir()
    (copies.data_dir() / "tiny" / "5.0.0").mkdir()
    assert copies.find("tiny").version == "3.0.10"


def test_a_copy_in_another_file_format_or_without_the_split_is_refused_by_name(tiny):
    folder = tiny()
    with pytest.raises(DataError, match="no split 'validation': it has train, test"):
        replace(SOURCE, test_split="validation").load()
    description = folder / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="has the file format tfrecord"):
        SOURCE.load()
    description.write_text("{")
    with pytest.raises(DataError, match=f"{description} cannot be read"):
        SOURCE.load()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, remove])
def test_damaged_records_are_refused_with_their_folder(tiny, damage):
    folder = tiny()
    damage(next(folder.glob("*test*array_record*")))
    with pytest.raises(DataError, match=rf"(?s)'test' of {folder}.*prepare the copy again"):
        SOURCE.load()


def test_an_unlabelled_split_is_refused(write_copy, encoded):
    image = encoded(IMAGES[0])
    write_copy({"train": ([image], [0]), "test": ([image], [-1])}, shape=(5, 4, 3), n_classes=7)
    with pytest.raises(DataError, match="labels from -1 to -1 with 7 classes"):
        SOURCE.load()


def test_means_that_do_not_fit_the_channels_are_refused(tiny):
    tiny()
    with pytest.raises(ValueError, match="tiny has 3 channels"):
        replace(SOURCE, mean=[0.5], std=[0.5]).load()
    with pytest.raises(ValueError, match="std above 0"):
        replace(SOURCE, std=[0.5, 0.5, 0.0])


def test_constructing_a_source_reads_nothing(tmp_path):
    start = time.perf_counter()
    replace(SOURCE, name="mnist")
    assert time.perf_counter() - start < 0.1
    assert not (tmp_path / "cache").exists() and copies.cache_dir() == tmp_path / "cache"
