"""A user's own arrays."""

from dataclasses import dataclass
from pathlib import Path
from typing import final
from zipfile import BadZipFile, is_zipfile

import numpy as np

from pcexp.data.dataset import AbstractDivided, DataError, Dataset, Split, checksum, one_hot
from pcexp.files import place

KEYS = ("x_train", "y_train", "x_test", "y_test")
CHANNELS = (1, 3, 4)
"""Numbers of channels of images: grey, colours, colours with transparency."""


@final
@dataclass(frozen=True, kw_only=True)
class Npz(AbstractDivided):
    """Arrays x_train, y_train, x_test, y_test of an .npz file, taken as they are: nothing is normalised.

    Inputs are (n, d), or (n, height, width, channels). Targets are (n, d_out), or integer labels (n,) from 0, which become
    one-hot with as many classes as the largest label needs. What could be read in two ways is refused.
    """

    of_files = True
    places = ("path",)

    path: str
    """Relative paths count from the folder that the command is started in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path == "???":
            raise ValueError("path is not set: name the file, as in data.path=FILE.npz")

    def load(self) -> Dataset:
        path = place(self.path).absolute()
        arrays = _read(path)
        y_train, y_test = _targets(path, arrays)
        x_train, x_test = (arrays[key].astype(np.float32) for key in ("x_train", "x_test"))
        _check(path, {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test})
        digest = checksum(
            x_train, y_train, x_test, y_test, described=True
        )  # equal numbers of other types are equal data
        return self.dataset(path.stem, Split(x_train, y_train), Split(x_test, y_test), digest, content=digest)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"no file {path}: set data.path to an .npz file with the arrays {', '.join(KEYS)}")
    if not is_zipfile(path):
        raise DataError(f"{path} is no .npz file: numpy.savez writes one, with the arrays {', '.join(KEYS)}")
    try:
        # np.load given a path leaves the file open when the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in KEYS if key not in archive]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}: it has {', '.join(archive.files) or 'nothing'}")
            arrays = {key: archive[key] for key in KEYS}
    except (BadZipFile, EOFError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an .npz file of plain numbers: {error}") from error
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"{path}: {key} holds {array.dtype}, and real numbers are needed")
    return arrays


def _targets(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Training and test targets, integer labels of both made one-hot together."""
    y_train, y_test = arrays["y_train"], arrays["y_test"]
    if any(y.ndim == 1 and np.issubdtype(y.dtype, np.integer) for y in (y_train, y_test)):
        if y_train.ndim != 1 or y_test.ndim != 1 or not np.issubdtype(np.result_type(y_train, y_test), np.integer):
            raise DataError(f"{path}: y_train and y_test must both be integer labels, or neither")
        both = np.concatenate([y_train, y_test]).astype(np.int64)
        if both.size == 0 or both.min() != 0:
            found = f"the smallest is {both.min()}: shift them" if both.size else "there are none"
            raise DataError(f"{path}: integer labels start at 0, and {found}, or give targets (n, d_out)")
        n_classes = int(both.max()) + 1
        if absent := sorted(set(range(min(n_classes, 1000))) - set(both.tolist())):
            raise DataError(
                f"{path}: no example has the label {absent[0]}, and the largest is {n_classes - 1}: number the classes from 0 "
                "without gaps, or give targets (n, d_out)"
            )
        return one_hot(y_train.astype(np.int64), n_classes), one_hot(y_test.astype(np.int64), n_classes)
    if any(y.shape[1:] == (1,) and y.dtype.kind in "iu" for y in (y_train, y_test)):
        raise DataError(
            f"{path}: integer targets (n, 1) may be labels or numbers: give labels (n,), or targets as floats"
        )
    return y_train.astype(np.float32), y_test.astype(np.float32)


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def refuse(reason: str) -> None:
        shapes = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
        raise DataError(f"{path}: {reason} ({shapes})")

    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.ndim not in (2, 4):
            refuse(f"x_{split} must be (n, d) or (n, height, width, channels)")
        if y.ndim != 2:
            refuse(f"y_{split} must be (n, d_out), or integer labels (n,)")
        if x.ndim == 4 and x.shape[-1] not in CHANNELS and x.shape[1] in CHANNELS:
            refuse(f"x_{split} has its channels first; images must be (n, height, width, channels)")
        if len(x) != len(y) or len(x) == 0:
            refuse(f"x_{split} and y_{split} must have the same number of examples, one at least")
    for letter in ("x", "y"):
        if arrays[f"{letter}_train"].shape[1:] != arrays[f"{letter}_test"].shape[1:]:
            refuse(f"{letter}_train and {letter}_test must agree but for the number of examples")
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            refuse(f"{key} has values that are not finite")
