"""The versions that stand in a workload's files: what its Envoy is meant to run with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from generator.render.names import XDS_FOLDERS

Key = tuple[str, str]
"""Kind of resource (a key of `XDS_FOLDERS`) and name; listeners and clusters, which share a file, have no name."""
HEAD = re.compile(rb'\{"version_info":"([0-9a-f]+)"')
HEAD_BYTES = 64
"""The version is what a file begins with."""
SHARED = frozenset({"listeners", "clusters"})


def published_versions(directory: Path, workload: str) -> dict[Key, str]:
    """Read the version of every xDS file of a workload; none when it has no files. Raises OSError."""
    return dict(_versions(directory / workload))


def _versions(folder: Path) -> Iterator[tuple[Key, str]]:
    for kind, name in XDS_FOLDERS.items():
        for path in sorted((folder / name).glob("*.json")):
            version = _version(path)
            if version is not None:
                yield (kind, "" if kind in SHARED else path.stem), version


def _version(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            found = HEAD.match(file.read(HEAD_BYTES))
    except FileNotFoundError:
        return None  # removed since the folder was listed
    return found[1].decode("ascii") if found else None
