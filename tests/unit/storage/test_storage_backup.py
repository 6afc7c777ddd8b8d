"""Backups of live databases: whole, of one moment, private, never written over."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from services.storage import backup as command
from services.storage.backup import BackupError, backup
from services.storage.sqlite.connection import connect, prepare_file
from support.mesh import REPOSITORY

ROUNDS = 12
PROGRAM = """
    import contextlib, itertools, sys
    from pathlib import Path
    from services.storage.sqlite.connection import connect
    first, second = (connect(Path(name)) for name in sys.argv[1:])
    for number in itertools.count(1):
        for connection in (first, second):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO item (id, filling) VALUES (?, zeroblob(3000))", (number,))
            connection.execute("COMMIT")
        if number == 1:
            print("writes", flush=True)
"""


def _make(path: Path, rows: int = 0) -> Path:
    prepare_file(path)
    with contextlib.closing(connect(path)) as connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, filling BLOB NOT NULL) STRICT")
        for number in range(1, rows + 1):
            connection.execute("INSERT INTO item (id, filling) VALUES (?, zeroblob(3000))", (number,))
    return path


def _newest(path: Path) -> int:
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        (row,) = connection.execute("SELECT coalesce(max(id), 0), count(*) FROM item")
    newest, count = row
    assert newest == count, "no row is missing in between"
    return int(newest)


@contextlib.contextmanager
def _writing(first: Path, second: Path) -> Iterator[None]:
    """A process that writes each number to the first database, then to the second."""
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(first), str(second)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "writes\n"
            yield
            assert process.poll() is None, "it wrote to the end"
        finally:
            process.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    _make(tmp_path / "data" / "one" / "a.db")
    _make(tmp_path / "data" / "two" / "b.sqlite3")
    return tmp_path / "data"


def test_a_folder_is_copied_as_it_was_at_one_moment(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path) -> apsw.Connection:  # time enough for a commit between two snapshots, if that were possible
        time.sleep(0.03)
        return connect_at_once(path)

    connect_at_once = command._connect
    monkeypatch.setattr(command, "_connect", slow)
    first, second = data / "one" / "a.db", data / "two" / "b.sqlite3"
    newest = 0
    with _writing(first, second):
        for number in range(ROUNDS):
            copy = tmp_path / f"copy-{number}"
            assert backup(data, copy) == [first, second]
            one, two = _newest(copy / "one" / "a.db"), _newest(copy / "two" / "b.sqlite3")
            assert two <= one <= two + 1, "the second was written after the first, before its next"
            assert one >= newest
            newest = one
    assert newest > ROUNDS, "it wrote meanwhile"


def test_a_database_is_copied_while_another_process_writes(data: Path, tmp_path: Path) -> None:
    first, second = data / "one" / "a.db", data / "two" / "b.sqlite3"
    with _writing(first, second):
        before = _newest(first)
        backup(first, tmp_path / "a.db")
    assert before <= _newest(tmp_path / "a.db") <= _newest(first)


def test_a_copy_is_private_and_needs_no_file_beside_it(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "copy")
    modes = {path.relative_to(tmp_path): path.stat().st_mode & 0o777 for path in (tmp_path / "copy").rglob("*")}
    assert modes == {
        Path("copy/one"): 0o700,
        Path("copy/two"): 0o700,
        Path("copy/one/a.db"): 0o600,
        Path("copy/two/b.sqlite3"): 0o600,
    }
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {"data", "copy"}, "nothing else is left"


def test_what_is_committed_but_not_checkpointed_is_in_the_copy(tmp_path: Path) -> None:
    path = _make(tmp_path / "a.db")
    with contextlib.closing(connect(path)) as connection:
        connection.execute("INSERT INTO item (id, filling) VALUES (1, zeroblob(9))")
        assert path.with_name("a.db-wal").stat().st_size > 0
        backup(path, tmp_path / "copy.db")
    assert _newest(tmp_path / "copy.db") == 1


def test_a_copy_of_a_copy(tmp_path: Path) -> None:
    backup(_make(tmp_path / "a.db", 3), tmp_path / "b.db")
    backup(tmp_path / "b.db", tmp_path / "c.db")
    assert _newest(tmp_path / "c.db") == 3


# What is refused


@pytest.mark.parametrize("present", ["file", "folder", "link"])
def test_a_backup_is_not_written_over(data: Path, tmp_path: Path, present: str) -> None:
    target = tmp_path / "copy"
    {"file": target.touch, "folder": target.mkdir, "link": lambda: target.symlink_to("nowhere")}[present]()
    with pytest.raises(BackupError, match="exists already"):
        backup(data, target)


def test_a_folder_without_databases(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note.db").write_text("no database")
    with pytest.raises(BackupError, match="no SQLite database"):
        backup(tmp_path / "data", tmp_path / "copy")


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5 * 4096 : 6 * 4096] = b"\xff" * 4096
    path.write_bytes(content)


def _orphan(path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE part (item_id INTEGER REFERENCES item (id)) STRICT")
        connection.execute("INSERT INTO part VALUES (99)")


@pytest.mark.parametrize("spoil", [_damage, _orphan])
def test_a_damaged_database_gives_no_backup(tmp_path: Path, capsys: Any, spoil: Any) -> None:
    path = _make(tmp_path / "a.db", 20)
    spoil(path)
    assert command.main([str(path), str(tmp_path / "copy.db")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert {each.name for each in tmp_path.iterdir()} == {"a.db"}


def test_the_command(data: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "services.storage", "backup", str(data), str(tmp_path / "copy")]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("copied and checked") == 2
    again = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: ")
    unknown = subprocess.run(program[:3], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (unknown.returncode, "usage" in unknown.stderr) == (2, True)
