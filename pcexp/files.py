"""Places as users write them, and files that are written whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO


def place(text: str | Path) -> Path:
    """The path that a user names, wherever it is written: ~ and $NAME in it stand for what they do in a shell. Raises OSError."""
    try:
        path = Path(os.path.expandvars(text)).expanduser()
    except RuntimeError as error:
        raise OSError(f"{text}: {error} Set HOME, or write the whole path") from error
    if "\0" in str(path) or len(os.fsencode(path.name)) > 255:
        raise OSError(f"{str(path)[:60]!r} is no name of a file")
    return path


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name and move it over `path`: a reader sees the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def replace_bytes(path: Path, content: bytes) -> None:
    """`replace_file` for content that is at hand."""
    replace_file(path, lambda file: file.write(content))
