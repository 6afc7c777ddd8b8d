"""`python -m services.storage backup FROM TO`: SQLite databases copied while their services write.

FROM is a file, or a folder: then all databases below it are copied as they were at **one moment**, which is what keeps the services'
promises to each other. For that every writer is held up while a snapshot of each database is opened (milliseconds); the copies are made
from the snapshots afterwards. What a restored backup shows is what a power cut at that moment would have left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import apsw

from services.chassis.errors import StartError
from services.storage.sqlite.connection import busy_handler

HEADER: Final = b"SQLite format 3\x00"
BESIDE: Final = ("-wal", "-shm", "-journal")
"""Ends of the names of files that belong to a database and are no database."""
DATABASES_MAX: Final = 1_000
"""More below one folder means the wrong folder."""
BUSY_MS: Final = 15_000
"""How long to wait for a service's transaction, which takes milliseconds."""


class BackupError(StartError):
    """There is no sound backup; the text says why. Nothing was left under the name that was asked for."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 when the backup is whole and on disk, 2 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m services.storage backup", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FROM", help="a database, or a folder with databases")
    parser.add_argument("target", type=Path, metavar="TO", help="file or folder to make; it must not exist")
    options = parser.parse_args(arguments)
    try:
        names = backup(options.source, options.target)
    except (BackupError, OSError, apsw.Error) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for name in names:
        sys.stdout.write(f"{name}: copied and checked\n")
    return 0


def backup(source: Path, target: Path) -> list[Path]:
    """Copy a database, or all below a folder as of one moment, to `target`; return what was copied.

    Files are 0600, folders 0700. Raises BackupError, OSError, apsw.Error.
    """
    if os.path.lexists(target):
        raise BackupError(f"{target} exists already; a backup is never written over")
    names = _databases(source)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))  # 0700
    try:
        with _one_moment([source / name for name in names]) as snapshots:
            for name, snapshot in zip(names, snapshots, strict=True):
                _copy(snapshot, building / "copy" / name)
        _sync_folders(building)
        (building / "copy").rename(target)
        _sync(target.absolute().parent)
    finally:
        shutil.rmtree(building)
    return [source / name for name in names]


def _databases(source: Path) -> list[Path]:
    """The databases, relative to `source`; the empty path for `source` itself. Raises BackupError."""
    if source.is_dir():
        found = sorted(path.relative_to(source) for path in source.rglob("*") if _is_database(path))
    else:
        found = [Path()] if _is_database(source) else []
    if not found:
        raise BackupError(f"there is no SQLite database in {source}")
    if len(found) > DATABASES_MAX:
        raise BackupError(f"there are more than {DATABASES_MAX} databases in {source}: is it the right folder?")
    return found


def _is_database(path: Path) -> bool:
    if path.name.endswith(BESIDE) or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER


@contextlib.contextmanager
def _one_moment(paths: Sequence[Path]) -> Iterator[list[apsw.Connection]]:
    """A connection to each database with a read transaction; no commit to any of them lies between two of these."""
    with contextlib.ExitStack() as open_snapshots:
        snapshots = []
        with contextlib.ExitStack() as held_writers:
            for path in paths:
                writer = held_writers.enter_context(contextlib.closing(_connect(path)))
                writer.execute("BEGIN IMMEDIATE")
            for path in paths:
                snapshot = open_snapshots.enter_context(contextlib.closing(_connect(path)))
                snapshot.execute("BEGIN")
                snapshot.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # the first read opens the snapshot
                snapshots.append(snapshot)
        yield snapshots


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX)
    connection.set_busy_handler(busy_handler(BUSY_MS))
    return connection


def _copy(snapshot: apsw.Connection, path: Path) -> None:
    """Copy a snapshot into a new file that needs no other beside it, check it and sync it. Raises BackupError."""
    _make_private(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(_connect(path)) as copy:
        with copy.backup("main", snapshot, "main") as run:
            run.step()  # all pages: a snapshot does not change, so that there is nothing to start over
        copy.pragma("journal_mode", "delete")
        _check(copy, path)
    _sync(path)


def _make_private(folder: Path) -> None:
    """Make a folder and those above it, 0700 each: `parents=True` would make those for everybody."""
    if not folder.exists():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700)


def _check(copy: apsw.Connection, path: Path) -> None:
    try:
        problems = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
        lost = copy.execute("PRAGMA foreign_key_check").fetchall()
    except apsw.CorruptError as error:
        raise BackupError(f"{path.name} is damaged: {error}") from error
    problems += [f"a row of {row[0]} refers to none of {row[2]}" for row in lost[:5]]
    if problems:
        raise BackupError(f"{path.name} is damaged: {'; '.join(problems)}")


def _sync_folders(top: Path) -> None:
    for folder in (top, *(path for path in top.rglob("*") if path.is_dir())):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
