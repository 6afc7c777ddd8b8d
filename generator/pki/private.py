"""Bytes that never reach a log, and files that only their owner reads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class PrivateBytes:
    """Secret bytes: printing, formatting or pickling shows nothing; `reveal` is the one way to them."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def reveal(self) -> bytes:
        """Give the bytes themselves, for the place that uses them."""
        return self._content

    def __repr__(self) -> str:
        return "[redacted]"

    def __reduce__(self) -> str:
        raise TypeError("private bytes are not serialized")


def private_directory(path: Path) -> Path:
    """Make the folder, and those above it that are missing, and close it to everybody else. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    path.chmod(DIRECTORY_MODE)
    return path


def write_private(path: Path, content: PrivateBytes | bytes, mode: int = FILE_MODE) -> None:
    """Write a 0600 file in one step: a reader sees the old content or the new, never a part. Raises OSError."""
    data = content.reveal() if isinstance(content, PrivateBytes) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
