"""A mesh of the repository's own manifest, run by the real CLI in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

REPOSITORY = Path(__file__).resolve().parents[2]
UP_SECONDS_MAX = 90
COMMAND_SECONDS_MAX = 120


PORTS = range(10_000, 20_000)
"""Below those that the runner gives to sidecars, and those of Linux's outgoing connections, which take a port before its user does."""
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, given to nobody else in this process."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def with_relay(url: str) -> str:
    """The repository's manifest, its wallets at a relay of this machine, where receipts of zaps may go, too."""
    text = (REPOSITORY / "mesh.yaml").read_text()
    before = "    run: python -m services.nip\n"
    assert text.count(before) == 1
    environment = json.dumps({"NIPMESH_WALLET_RELAYS": url, "NIPMESH_ZAP_PRIVATE_RELAYS": "true"})
    return text.replace(before, f"{before}    env: {environment}\n")


class RunningMesh:
    """`nipmesh up --detach` in `directory` on a free gateway port; `down` ends it."""

    def __init__(self, directory: Path, manifest: str | None = None) -> None:
        self.directory = directory
        self.gateway = f"127.0.0.1:{free_port()}"
        text = manifest if manifest is not None else (REPOSITORY / "mesh.yaml").read_text()
        text = text.replace("protos: [protos]", f"protos: [{json.dumps(str(REPOSITORY / 'protos'))}]")
        (directory / "mesh.yaml").write_text(text)

    def run(self, *arguments: str, timeout: float = COMMAND_SECONDS_MAX) -> subprocess.CompletedProcess[str]:
        """One `nipmesh` command in this mesh's folder; its exit code is the caller's to judge."""
        command = [sys.executable, "-m", "generator", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.run(
            command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def succeed(self, *arguments: str, timeout: float = COMMAND_SECONDS_MAX) -> str:
        """One command that must exit 0; its standard output."""
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, f"nipmesh {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self) -> None:
        """Start it and wait until every replica is ready; nothing is left when that fails, or is interrupted."""
        try:
            self.succeed("up", "--detach", "--gateway-listen", self.gateway, timeout=UP_SECONDS_MAX)
        except BaseException:
            self.run("down")
            raise

    def down(self) -> None:
        """Drain and end it."""
        self.succeed("down")

    def status(self) -> dict[str, Any]:
        """What `status --output json` says, ready or not."""
        return dict(json.loads(self.run("status", "--output", "json").stdout))

    def replicas(self, service: str) -> list[dict[str, Any]]:
        """The replicas of one service, as `status` shows them."""
        return list(self.status()["services"][service]["replicas"])

    def wait_ready(self, seconds_max: float = 40) -> None:
        """Block until `status` exits 0."""
        deadline = time.monotonic() + seconds_max
        while (done := self.run("status", "--output", "json")).returncode != 0:
            assert time.monotonic() < deadline, f"not ready after {seconds_max} s: {done.stdout}\n{done.stderr}"
            time.sleep(0.2)

    def token(self, subject: str, role: str | None = None) -> str:
        """A development token."""
        return self.succeed("token", "--subject", subject, *(("--role", role) if role else ())).strip()

    def channel(self) -> grpc.aio.Channel:
        """A plain channel to the gateway."""
        return grpc.aio.insecure_channel(self.gateway)

    def logs(self, pattern: str = "*.log") -> str:
        """Everything that its processes wrote."""
        files = sorted((self.directory / ".nipmesh" / "logs").rglob(pattern))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def stat(self, admin_socket: str, name: str) -> int:
        """The sum of one Envoy sidecar's counters whose names match a regular expression."""
        body = admin(admin_socket, f"/stats?filter={name}")
        return sum(int(number) for number in re.findall(r": (\d+)$", body, flags=re.MULTILINE))


def admin(admin_socket: str, path: str) -> str:
    """GET from an Envoy's admin interface on its Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(admin_socket.removeprefix("unix:"))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks).partition(b"\r\n\r\n")[2].decode()
