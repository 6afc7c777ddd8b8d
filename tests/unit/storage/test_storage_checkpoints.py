"""The checkpointer works beside the writers, also while somebody reads for long."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import apsw
import pytest

from services.storage.sqlite import writer
from services.storage.sqlite.connection import BUSY_TIMEOUT_MS, connect, prepare_file
from services.storage.sqlite.writer import Checkpointer


def test_a_long_read_does_not_hold_the_writers_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emptying the WAL waits for readers while it holds the lock that writers need: a moment, not the busy timeout."""
    monkeypatch.setattr(writer, "CHECKPOINT_S", 3_600)
    monkeypatch.setattr(writer, "RESTART_BYTES", 1)
    monkeypatch.setattr(writer, "TRUNCATE_BYTES", 1)
    path = tmp_path / "item.sqlite3"
    prepare_file(path)
    with contextlib.closing(connect(path)) as writing, contextlib.closing(connect(path, read_only=True)) as reading:
        writing.execute("CREATE TABLE item (x)")
        checkpointer = Checkpointer(path)
        try:
            reading.execute("BEGIN; SELECT count(*) FROM item").fetchall()
            writing.execute("INSERT INTO item VALUES (1)")
            start_s = time.monotonic()
            with pytest.raises(apsw.BusyError):
                checkpointer._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            assert not checkpointer._checkpoint(checkpointer._connection), "it is tried again"
            assert time.monotonic() - start_s < BUSY_TIMEOUT_MS / 1_000
            reading.execute("ROLLBACK")
            assert checkpointer._checkpoint(checkpointer._connection)
            assert path.with_name("item.sqlite3-wal").stat().st_size == 0
        finally:
            checkpointer.close()


def test_the_wal_starts_over_under_writers_that_never_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its length then, and nothing that was written is lost."""
    monkeypatch.setattr(writer, "CHECKPOINT_S", 0.001)
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(writer, "RESTART_BYTES", 400_000)
    path = tmp_path / "item.sqlite3"
    prepare_file(path)
    wal = path.with_name("item.sqlite3-wal")
    with contextlib.closing(connect(path)) as writing:
        writing.execute("CREATE TABLE item (x)")
        checkpointer = Checkpointer(path)
        try:
            written = 0
            until_s = time.monotonic() + 30
            while written < 2_000 or wal.stat().st_size > 10_000 * written / 4:
                assert time.monotonic() < until_s, "the WAL only grows"
                writing.execute("INSERT INTO item VALUES (randomblob(10000))")
                written += 1
            length = wal.stat().st_size
        finally:
            checkpointer.close()
        assert length >= 400_000, "its room is kept"
        assert writing.execute("SELECT count(*), sum(length(x)) FROM item").fetchall() == [(written, 10_000 * written)]
    with contextlib.closing(apsw.Connection(str(path))) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_wal_without_changes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_S", 3_600)
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 100_000)
    path = tmp_path / "item.sqlite3"
    prepare_file(path)
    with contextlib.closing(connect(path)) as writing:
        checkpointer = Checkpointer(path)
        try:
            writing.execute("CREATE TABLE item (x)")
            assert checkpointer._checkpoint(checkpointer._connection)
            assert _copied(writing) == (2, 0), "so little is not worth a sync"
            writing.execute("INSERT INTO item VALUES (randomblob(200000))")
            assert checkpointer._checkpoint(checkpointer._connection)
            pages, copied = _copied(writing)
            assert pages == copied > 40
        finally:
            checkpointer.close()


def _copied(connection: apsw.Connection) -> tuple[int, int]:
    """Pages in the WAL, and how many of them the database has."""
    return connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
