"""`python -m pcexp.data`: what it lists, what it prepares, what it says when it cannot."""

import sys
from dataclasses import replace

import numpy as np
from PIL import Image

from pcexp.data import Published, Tfds, copies
from pcexp.data.__main__ import NAMES, main

TINY_IMAGENET = Tfds(
    name="tiny_imagenet",
    mean=[0.0] * 3,
    std=[1.0] * 3,
    test_split="validation",
    published=Published(n_train=15, image_format="jpeg", checksum=None),
    validation_fraction=0.0,
    split_seed=0,
    limit=None,
)


def test_the_listing_says_what_is_present_and_where_it_looks(write_copy, encoded, capsys):
    image = encoded(np.zeros((4, 4, 1), np.uint8))
    folder = write_copy({"train": ([image], [0]), "test": ([image], [0])}, shape=(4, 4, 1), n_classes=1, name="mnist")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(copies.data_dir()) in lines[0]
    told = {line.split()[0]: line for line in lines[1:]}
    assert "present" in told["mnist"] and str(folder) in told["mnist"] and "train 1, test 1" in told["mnist"]
    for name in set(NAMES) - {"mnist"}:
        assert "absent" in told[name] and str(copies.data_dir() / name) in told[name]


def test_a_copy_that_is_present_is_not_prepared_again(write_copy, encoded, capsys):
    image = encoded(np.zeros((4, 4, 1), np.uint8))
    folder = write_copy({"train": ([image], [0])}, shape=(4, 4, 1), n_classes=1, name="mnist")
    assert main(["mnist"]) == 0
    assert str(folder) in capsys.readouterr().out


def test_preparing_without_tensorflow_says_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert main(["mnist"]) == 1
    said = capsys.readouterr().err
    assert "make data DATA=mnist" in said and "pcexp[prepare]" in said


def test_preparing_hands_tfds_the_folder_and_the_file_format(monkeypatch, write_copy, encoded, capsys):
    """TFDS itself is replaced: downloading needs a network and TensorFlow, which no test has."""
    import tensorflow_datasets as tfds

    class Builder:
        def __init__(self, name, data_dir, file_format):
            assert (name, data_dir, file_format) == ("mnist", copies.data_dir(), "array_record")

        def download_and_prepare(self):
            image = encoded(np.zeros((4, 4, 1), np.uint8))
            write_copy({"train": ([image], [0])}, shape=(4, 4, 1), n_classes=1, name="mnist")

    monkeypatch.setitem(sys.modules, "tensorflow", tfds)
    monkeypatch.setattr(tfds, "builder", Builder)
    assert main(["mnist"]) == 0
    assert str(copies.data_dir() / "mnist" / "1.0.0") in capsys.readouterr().out


def test_a_failure_to_download_names_the_folder_and_the_cause(monkeypatch, capsys):
    import tensorflow_datasets as tfds

    def builder(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "tensorflow", tfds)
    monkeypatch.setattr(tfds, "builder", builder)
    assert main(["cifar10"]) == 1
    said = capsys.readouterr().err
    assert str(copies.data_dir()) in said and "no route to host" in said


def test_tiny_imagenet_is_packed_from_its_unzipped_folder_and_loads(tmp_path, capsys):
    """The folder has the layout of tiny-imagenet-200: JPEG images, one of them grey, and a label table."""
    source, rng = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)
    names = ["n01443537", "n01629819", "n02917067"]
    shown = {}
    for label, name in enumerate(names):
        (source / "train" / name / "images").mkdir(parents=True)
        for i in range(5):
            path = source / "train" / name / "images" / f"{name}_{i}.JPEG"
            colours = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            (Image.fromarray(colours).convert("L") if label == i == 0 else Image.fromarray(colours)).save(path)
            with Image.open(path) as image:
                shown[np.asarray(image.convert("RGB")).tobytes()] = label
    (source / "val" / "images").mkdir(parents=True)
    rows = []
    for i, name in enumerate(reversed(names)):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            source / "val" / "images" / f"val_{i}.JPEG"
        )
        rows.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62\n")
    (source / "val" / "val_annotations.txt").write_text("".join(rows))

    assert main(["tiny_imagenet", "--from", str(source)]) == 0
    data = TINY_IMAGENET.load()
    found = {np.rint(x * 255).astype(np.uint8).tobytes(): int(y.argmax()) for x, y in zip(*data.train[:2], strict=True)}
    assert found == shown
    assert sorted(data.test.y.argmax(1).tolist()) == [0, 1, 2]
    assert data.caveat == "" and data.d_out == 3
    assert len(np.unique(data.train.y[:5].argmax(1))) > 1, "the first examples are of several classes"
    assert (
        replace(TINY_IMAGENET, published=Published(n_train=100_000, image_format="jpeg", checksum=None)).load().caveat
    )


def test_a_folder_that_is_not_tiny_imagenet_is_refused(tmp_path, capsys):
    assert main(["tiny_imagenet", "--from", str(tmp_path)]) == 1
    assert "val_annotations.txt" in capsys.readouterr().err
    assert main(["tiny_imagenet"]) == 1
    assert "--from" in capsys.readouterr().err
