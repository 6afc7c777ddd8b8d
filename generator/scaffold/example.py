"""A small project for a folder that holds nothing yet: one .proto file and a server in Python."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "example"
SKIPPED = "__pycache__"


class ExampleInTheWayError(Exception):
    """A file of the example exists already; `str()` is its path. Nothing was written."""


def write_example(base: Path) -> tuple[str, ...]:
    """Write it and give the names of its files. Raises ExampleInTheWayError, OSError."""
    names = sorted(
        path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file() and SKIPPED not in path.parts
    )
    for name in names:
        if (base / name).exists():
            raise ExampleInTheWayError(str(name))
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        with (base / name).open("xb") as file:
            file.write((FOLDER / name).read_bytes())
    return tuple(str(name) for name in names)
