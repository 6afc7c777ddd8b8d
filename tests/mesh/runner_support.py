"""A mesh of two small services, run by the real runner with real Envoys; and what tests ask of it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue

from support.mesh import free_port

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COMMAND_TIMEOUT_S = 60
SAY = "/echo.v1.EchoService/Say"
RELAY = "/front.v1.FrontService/Relay"

ECHO_PROTO = """
syntax = "proto3";
package echo.v1;
import "google/protobuf/wrappers.proto";
service EchoService {
  rpc Say(google.protobuf.StringValue) returns (google.protobuf.StringValue) {
    option idempotency_level = NO_SIDE_EFFECTS;
  }
  rpc Once(google.protobuf.StringValue) returns (google.protobuf.StringValue);
  rpc Count(google.protobuf.StringValue) returns (stream google.protobuf.StringValue) {
    option idempotency_level = NO_SIDE_EFFECTS;
  }
}
"""
FRONT_PROTO = """
syntax = "proto3";
package front.v1;
import "google/protobuf/wrappers.proto";
service FrontService {
  rpc Relay(google.protobuf.StringValue) returns (google.protobuf.StringValue) {
    option idempotency_level = NO_SIDE_EFFECTS;
  }
}
"""
MANIFEST = """\
mesh: parlour
trust_domain: parlour.mesh
protos: [protos]
certificates: {{lifetime: {lifetime}}}
services:
  echo:
    run: python {app}
    serves: [echo.v1.EchoService]
    replicas: {echo_replicas}
    env: {echo_env}
  front:
    run: python {app}
    serves: [front.v1.FrontService]
    replicas: 1
    calls:
      echo: [EchoService/Say]
gateway:
  listen: 127.0.0.1:{port}
  reflection: true
  expose:
    echo: [EchoService/*]
    front: [FrontService/*]
"""


@dataclass(kw_only=True)
class EchoMesh:
    """One manifest in a folder of its own, and the commands on it."""

    folder: Path
    port: int = field(default_factory=free_port)
    echo_replicas: int = 2
    lifetime: str = "1h"
    echo_env: dict[str, str] = field(default_factory=lambda: {"ECHO": "1"})

    def write(self) -> None:
        """Write the manifest and its protos."""
        for name, text in {"echo": ECHO_PROTO, "front": FRONT_PROTO}.items():
            path = self.folder / "protos" / name / "v1" / f"{name}.proto"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        values = {"app": HERE / "echo_app.py", "port": self.port, "echo_replicas": self.echo_replicas}
        text = MANIFEST.format(lifetime=self.lifetime, echo_env=json.dumps(self.echo_env), **values)
        (self.folder / "mesh.yaml").write_text(text)

    def command(self, *words: str) -> list[str]:
        """Give the command line of a subcommand."""
        return [sys.executable, "-m", "generator", "--file", str(self.folder / "mesh.yaml"), *words]

    @property
    def environment(self) -> dict[str, str]:
        """Find nipmesh in this checkout, from any folder."""
        return os.environ | {"PYTHONPATH": f"{ROOT / 'protos'}:{ROOT}"}

    def run(self, *words: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a subcommand to its end."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            env=self.environment,
            check=False,
        )
        if expect is not None:
            assert done.returncode == expect, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def status(self, expect: int | None = 0) -> dict[str, Any]:
        """Give the status document."""
        document = json.loads(self.run("status", "--output", "json", expect=expect).stdout)
        assert isinstance(document, dict)
        return document

    def replicas(self, service: str = "echo") -> list[dict[str, Any]]:
        """Give the replicas of a service, whatever state they are in."""
        replicas = self.status(expect=None)["services"][service]["replicas"]
        assert isinstance(replicas, list)
        return replicas

    def until_ready(self, timeout_s: float = 20) -> dict[str, Any]:
        """Wait until everything is ready again."""
        deadline = time.monotonic() + timeout_s
        while True:
            document = self.status(expect=None)
            if document["state"] == "ready":
                return document
            assert time.monotonic() < deadline, document
            time.sleep(0.1)

    def channel(self) -> grpc.aio.Channel:
        """Open a channel to the gateway."""
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def traces(self) -> "Traces":
        """Note everything that must be gone afterwards."""
        document = self.status(expect=None)
        pids, sockets, ports = {document["pid"]}, set(), {self.port}
        for entry in (document["gateway"], *(r for s in document["services"].values() for r in s["replicas"])):
            pids |= {entry["pid"], entry["sidecar_pid"]}
            sockets.add(Path(entry["admin_socket"]).parent.parent)
            ports |= {int(entry[name].rpartition(":")[2]) for name in ("inbound", "scrape") if name in entry}
        return Traces(pids=pids - {None}, sockets=sockets, ports=ports, folder=self.folder)


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What a run has on this machine."""

    pids: set[int]
    sockets: set[Path]
    ports: set[int]
    folder: Path

    def left(self) -> list[str]:
        """Name what is still there."""
        found = [f"process {pid}" for pid in self.pids if is_alive(pid)]
        found += [f"folder {path}" for path in self.sockets if path.exists()]
        found += [f"port {port}" for port in self.ports if is_listening(port)]
        state = self.folder / ".nipmesh"
        found += [str(path) for path in (state / "current.json", *(state / "runs").glob("*")) if path.exists()]
        return found

    def until_gone(self, timeout_s: float = 10) -> None:
        """Wait until nothing is left."""
        deadline = time.monotonic() + timeout_s
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a corpse does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_listening(port: int) -> bool:
    """Tell whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for something that happens by itself; the condition may block for a moment."""
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.05)


async def say(channel: grpc.aio.Channel, text: str, path: str = SAY, timeout_s: float = 5) -> str:
    """Make one unary call and give the answer."""
    call: Any = channel.unary_unary(path, StringValue.SerializeToString, StringValue.FromString)
    answer = await call(StringValue(value=text), timeout=timeout_s)
    return str(answer.value)


@dataclass(kw_only=True)
class Load:
    """Calls on and on from several callers, and what became of them."""

    mesh: EchoMesh
    path: str = RELAY
    text: str = "load"
    callers: int = 12
    answered: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many calls were answered."""
        return sum(self.answered.values())

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self.callers)]
        while self.count < self.callers:
            await asyncio.sleep(0.01)
            assert not self.failed, self.failed
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        async with self.mesh.channel() as channel:
            while not self._stop.is_set():
                try:
                    answer = await say(channel, self.text, self.path)
                except grpc.aio.AioRpcError as error:
                    self.failed.append(f"{time.strftime('%H:%M:%S')} {error.code().name}: {error.details()}")
                    await asyncio.sleep(0.05)
                else:
                    who = answer.rpartition("-> ")[2].split(" ")[0]
                    self.answered[who] = self.answered.get(who, 0) + 1
