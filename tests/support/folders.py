"""Temporary folders whose names are short enough for sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """Gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="nm-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
