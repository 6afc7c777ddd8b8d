"""The program of health checks: 0 when the socket says 200 at /ready, else 1 and why."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mesh import REPOSITORY


@contextlib.contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """One connection at a time is read once and answered."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):  # who only connects is gone by then
                connection.recv(4096)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def ready(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "nipmesh_home.ready", *words]
    kept = {name: value for name, value in os.environ.items() if name != "NIPMESH_METRICS_LISTEN"}
    return subprocess.run(
        command, env=kept | environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", 0), (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1), (b"HTTP/1.1", 1), (b"", 1)],
    ids=["ready", "unready", "cut-off", "silent"],
)
def test_the_answer_decides(tmp_path: Path, answer: bytes, code: int) -> None:
    with answering(tmp_path / "s", answer):
        done = ready(f"unix:{tmp_path}/s")
        assert (done.returncode, bool(done.stderr)) == (code, bool(code))
        assert ready(NIPMESH_METRICS_LISTEN=f"unix:{tmp_path}/s").returncode == code
        assert ready(f"connect:{tmp_path}/s").returncode == 0


def test_nobody_there_is_not_ready(tmp_path: Path) -> None:
    for target in (f"unix:{tmp_path}/s", f"connect:{tmp_path}/s", ""):
        done = ready(target)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
