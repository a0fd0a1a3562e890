"""Decoded images kept between runs: one .npz beside one .json with its checksum, checked whenever they are read."""

import json
import logging
import os
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pcexp.data import copies
from pcexp.data.copies import Copy, RawImages
from pcexp.files import replace_bytes, replace_file

logger = logging.getLogger(__name__)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def cache_dir() -> Path:
    """Folder of the decoded images: PCEXP_CACHE_DIR, else ~/.cache/pcexp."""
    return Path(os.environ.get("PCEXP_CACHE_DIR") or "~/.cache/pcexp").expanduser().absolute()


def load(copy: Copy, *, test_split: str) -> tuple[RawImages, str]:
    """Images of a copy and their checksum: from the cache, or decoded once and put there."""
    # The split is in the name because the same copy read with another one has other test images.
    arrays_path = cache_dir() / f"{copy.name}-{copy.version}-{test_split}-{copy.fingerprint()}.npz"
    sums_path = arrays_path.with_suffix(".json")
    if sums_path.is_file():
        try:
            return _read(arrays_path, sums_path)
        except (BadZipFile, EOFError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("cache %s is damaged (%s): decoding %s again", arrays_path, error, copy.folder)
    logger.info("decoding %s once into %s", copy.folder, arrays_path)
    raw = copies.decode(copy, test_split=test_split)
    checksum = raw.checksum()
    try:
        _write(arrays_path, sums_path, raw, checksum)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run decodes %s again", arrays_path, error, copy.folder)
    return raw, checksum


def _read(arrays_path: Path, sums_path: Path) -> tuple[RawImages, str]:
    sums = json.loads(sums_path.read_text())
    # np.load given a path leaves the file open when the archive is damaged.
    with arrays_path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        raw = RawImages(**{name: archive[name] for name in ARRAYS}, n_classes=sums["n_classes"], n_jpeg=sums["n_jpeg"])
    checksum = raw.checksum()
    if checksum != sums["sha256"]:
        raise ValueError(f"sha256 {checksum[:16]} instead of {sums['sha256'][:16]}")
    return raw, checksum


def _write(arrays_path: Path, sums_path: Path, raw: RawImages, checksum: str) -> None:
    arrays_path.parent.mkdir(parents=True, exist_ok=True)
    sums = {"sha256": checksum, "n_classes": raw.n_classes, "n_jpeg": raw.n_jpeg}
    arrays = {name: getattr(raw, name) for name in ARRAYS}
    # The checksum comes last: arrays without one are unfinished, and are decoded again. Two writers of one copy write
    # the same arrays, so whichever comes last, arrays and checksum agree.
    replace_file(arrays_path, lambda file: np.savez(file, **arrays))
    replace_bytes(sums_path, json.dumps(sums).encode())
