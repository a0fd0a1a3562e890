"""`python -m pcexp.data`: what is there, and where it looks. `python -m pcexp.data NAME`: prepare a copy."""

import argparse
import sys

from pcexp.data import copies, prepare
from pcexp.data.dataset import DataError
from pcexp.files import place

NAMES = ("mnist", "fashion_mnist", "cifar10", "svhn_cropped", "tiny_imagenet")
"""Image sets that come with a configuration; any other image set of TensorFlow Datasets can be prepared too."""


def listing() -> str:
    """Every image set, whether a copy is present, and the folders that are looked in."""
    lines = [f"copies in {copies.data_dir()} ({copies.DATA_DIR}), decoded images in {copies.cache_dir()}"]
    for name in NAMES:
        try:
            copy = copies.find(name)
        except DataError as error:
            lines.append(f"{name:15} absent   {error}")
        else:
            sizes = ", ".join(f"{split} {n}" for split, n in copy.n_examples.items())
            lines.append(f"{name:15} present  {copy.folder} ({sizes})")
    return "\n".join([*lines, "all other data sets are bundled or generated, and need no copy"])


def main(arguments: list[str] | None = None) -> int:
    """List the data sets, or prepare one; 1 where that fails."""
    parser = argparse.ArgumentParser(prog="python -m pcexp data", description=__doc__)
    parser.add_argument("name", nargs="?", help=f"data set to prepare: {', '.join(NAMES)}, or another of TFDS")
    parser.add_argument("--from", dest="source", type=place, help="unzipped tiny-imagenet-200, for tiny_imagenet")
    options = parser.parse_args(arguments)
    if options.name is None:
        print(listing())
        return 0
    if not options.name:
        parser.error("a data set without a name")
    if options.source is not None and options.name != "tiny_imagenet":
        parser.error("--from is for tiny_imagenet only")
    try:
        copy = _copy(options.name) if options.source is None else prepare.pack_tiny_imagenet(options.source)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.name}: present in {copy.folder}")
    return 0


def _copy(name: str) -> copies.Copy:
    """The copy that is there, or that a download makes."""
    try:
        return copies.find(name)
    except DataError:
        print(f"preparing {name} in {copies.data_dir()}; without network this fails after some minutes", flush=True)
        return prepare.download(name)


if __name__ == "__main__":
    sys.exit(main())
