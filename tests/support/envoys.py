"""A mesh of real Envoys around applications that live in the test: no runner, no processes but Envoy's."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from generator.analysis import check_manifest
from generator.model import GatewayPlacement, Mesh, Placement, ReplicaPlacement, SocketAddress, UnixAddress
from generator.model.placement import external_socket
from generator.outputs.files import publish
from generator.outputs.local.binary import find_envoy
from generator.pki import Authority, TokenKey, issue_leaf, publish_leaf
from generator.render import render
from support.mesh import free_port

READY_S = 15.0
LIFETIME = dt.timedelta(hours=1)
MESSAGES_MAX = 1_000
IDENTITY = bytes

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Once(Text) returns (Text);
  rpc Hidden(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Watch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service DeepService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
"""
MANIFEST = """
mesh: test
trust_domain: test.mesh
protos: [protos]
services:
  front:
    run: "true"
    serves: [echo.v1.DeepService]
    replicas: 1
    calls:
      echo: [EchoService/Say, EchoService/Once, EchoService/Watch]
    traffic:
      methods:
        DeepService/Say: {deadline: 3s}
  echo:
    run: "true"
    serves: [echo.v1.EchoService]
    replicas: 2
    traffic:
      methods:
        EchoService/Say: {deadline: 3s}
        EchoService/Once: {deadline: 3s}
"""
GATEWAY = """
gateway:
  listen: 127.0.0.1:8080
  reflection: true
  authentication:
    issuer: front
    public: [EchoService/Say]
    roles: {operator: [EchoService/Watch]}
  expose:
    echo: [EchoService/Say, EchoService/Once, EchoService/Watch]
"""

Handler = Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


@dataclass
class Application:
    """One replica's application: raw bytes in and out, behaviour by path, and what it has seen."""

    listen: str
    handlers: dict[str, Handler] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    server: grpc.aio.Server | None = None
    health: health.aio.HealthServicer = field(default_factory=health.aio.HealthServicer)
    tick_s: float = 60
    """How long streams are silent between two messages."""

    async def start(self) -> None:
        Path(self.listen.removeprefix("unix:")).unlink(missing_ok=True)
        self.server = grpc.aio.server()
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.server.add_generic_rpc_handlers((self.generic_handler(),))
        self.server.add_insecure_port(self.listen)
        await self.server.start()

    def generic_handler(self) -> grpc.GenericRpcHandler:
        return _Generic(self)

    async def stop(self, grace_s: float | None = None) -> None:
        if self.server is not None:
            await self.server.stop(grace_s)
            self.server = None

    def count(self, path: str) -> int:
        return sum(1 for seen, _ in self.seen if seen == path)

    async def answer(self, path: str, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self.seen.append((path, {**metadata, "time-remaining": str(context.time_remaining())}))
        handler = self.handlers.get(path)
        return await handler(request, context) if handler else request


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=10)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


class _Generic(grpc.GenericRpcHandler):
    def __init__(self, application: Application) -> None:
        self._application = application

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = str(details.method)
        if not path.startswith("/echo.v1."):
            return None
        application = self._application

        async def unary(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return await application.answer(path, request, context)

        async def stream(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            answer = await application.answer(path, request, context)
            for _ in range(MESSAGES_MAX):
                yield answer
                await asyncio.sleep(application.tick_s)

        if path.endswith("Watch"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


class Envoys:
    """`Envoys(folder)` renders, `start` runs; `stop` ends every process and removes every socket."""

    def __init__(
        self,
        folder: Path,
        manifest: str = MANIFEST,
        proto: str = PROTO,
        application: Callable[[str], Application] = Application,
    ) -> None:
        self.folder = folder
        self._application = application
        (folder / "protos").mkdir()
        (folder / "protos" / "echo.proto").write_text(proto)
        (folder / "mesh.yaml").write_text(manifest)
        analysis = check_manifest(folder / "mesh.yaml")
        assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
        self.mesh: Mesh = analysis.mesh
        self.sockets = Path(tempfile.mkdtemp(prefix="nmt-", dir="/tmp"))
        self.token_key = TokenKey.open(folder / "token" / "token.key")
        self.authority = self._open_authority(folder / "pki")
        self.placement = self._place()
        self.applications: dict[str, Application] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _open_authority(self, folder: Path) -> Authority:
        return Authority.open(folder, self.mesh.trust_domain, dt.datetime.now(dt.UTC))

    def _place(self) -> Placement:
        replicas = tuple(
            self._replica(service.name, index) for service in self.mesh.services for index in range(service.replicas)
        )
        gateway = None
        if self.mesh.gateway is not None:
            folder = self._folder("gateway")
            gateway = GatewayPlacement(
                listen=tcp(),
                introspection=UnixAddress(path=folder / "app.sock"),
                admin=UnixAddress(path=folder / "admin.sock"),
                scrape=tcp(),
                certificates=self.folder / "certificates" / "gateway",
            )
        return Placement(
            directory=self.folder / "envoy", replicas=replicas, gateway=gateway, jwks=self.token_key.key_set()
        )

    def _replica(self, service: str, index: int) -> ReplicaPlacement:
        folder = self._folder(f"{service}-{index}")
        return ReplicaPlacement(
            service=service,
            index=index,
            app=UnixAddress(path=folder / "app.sock"),
            app_metrics=UnixAddress(path=folder / "metrics.sock"),
            egress=UnixAddress(path=folder / "egress.sock"),
            admin=UnixAddress(path=folder / "admin.sock"),
            inbound=tcp(),
            scrape=tcp(),
            certificates=self.folder / "certificates" / f"{service}-{index}",
            in_rotation=True,
            external=tuple(
                (name, UnixAddress(path=folder / external_socket(name)))
                for name in self.mesh.service(service).external_connections
            ),
        )

    def _folder(self, workload: str) -> Path:
        folder = self.sockets / workload
        folder.mkdir(mode=0o700)
        return folder

    def publish(self) -> tuple[Path, ...]:
        """Write what follows from the present placement."""
        return publish(render(self.mesh, self.placement), self.placement.directory)

    def rotate(self, workload: str, *, into: bool) -> None:
        """Take a replica in or out of its callers' endpoints."""
        replicas = tuple(
            replace(replica, in_rotation=into) if replica.name == workload else replica
            for replica in self.placement.replicas
        )
        self.placement = replace(self.placement, replicas=replicas)
        self.publish()

    def issue(
        self,
        workload: str,
        identity: str | None = None,
        authority: Authority | None = None,
        at: dt.datetime | None = None,
    ) -> Path:
        """Give a workload a fresh certificate; another identity or authority makes it an impostor."""
        folder = self.folder / "certificates" / workload
        leaf = issue_leaf(
            authority or self.authority,
            identity=identity or self.identity(workload),
            lifetime=LIFETIME,
            now=at or dt.datetime.now(dt.UTC),
        )
        publish_leaf(folder, leaf)
        return folder / "..data"

    def identity(self, workload: str) -> str:
        if workload == "gateway":
            assert self.mesh.gateway is not None
            return self.mesh.gateway.identity
        return self.mesh.service(workload.rpartition("-")[0]).identity

    async def start(self) -> None:
        """Certificates, files, applications, Envoys; returns when every Envoy is ready and every replica healthy."""
        workloads = [replica.name for replica in self.placement.replicas]
        if self.placement.gateway is not None:
            workloads.append("gateway")
        for workload in workloads:
            self.issue(workload)
        self.publish()
        for replica in self.placement.replicas:
            assert isinstance(replica.app, UnixAddress)
            self.applications[replica.name] = self._application(f"unix:{replica.app.path}")
            await self.applications[replica.name].start()
        for workload in workloads:
            self.start_envoy(workload)
        for workload in workloads:
            await self.until(lambda workload=workload: self.ready(workload), f"{workload} is not ready")
        for workload in workloads:
            await self.until(lambda workload=workload: self.healthy(workload), f"{workload} sees no healthy peers")

    def start_envoy(self, workload: str) -> None:
        log = (self.folder / f"{workload}.log").open("ab")
        command = [str(find_envoy()), "-c", str(self.placement.directory / workload / "bootstrap.json")]
        command += ["--concurrency", "1", "--disable-hot-restart", "--reject-unknown-dynamic-fields"]
        command += ["--drain-time-s", "5", "--log-level", "warning"]
        self.processes[workload] = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()

    async def restart_envoy(self, workload: str) -> None:
        self.processes[workload].kill()
        self.processes[workload].wait()
        self.start_envoy(workload)
        await self.until(lambda: self.ready(workload), f"{workload} is not ready")

    def admin(self, workload: str, path: str, method: str = "GET") -> str:
        """Ask Envoy's admin interface. Raises OSError while there is none."""
        connection = UnixConnection(self.sockets / workload / "admin.sock")
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stat(self, workload: str, pattern: str) -> int:
        """The sum of one Envoy's counters and gauges whose names match."""
        body = self.admin(workload, f"/stats?filter={pattern}")
        return sum(int(number) for number in re.findall(r": (\d+)$", body, flags=re.MULTILINE))

    def ready(self, workload: str) -> bool:
        assert self.processes[workload].poll() is None, f"{workload} ended:\n{self.log(workload)}"
        try:
            return self.admin(workload, "/ready").strip() == "LIVE"
        except OSError:
            return False

    def healthy(self, workload: str) -> bool:
        """Whether an Envoy knows every replica that is in rotation, and finds all of them well."""
        clusters = json.loads(self.admin(workload, "/clusters?format=json"))["cluster_statuses"]
        found = {cluster["name"]: cluster.get("host_statuses", []) for cluster in clusters}
        rotating = Counter(f"outbound_{replica.service}" for replica in self.placement.replicas if replica.in_rotation)
        if self.stat(workload, "warming_clusters"):
            return False
        hosts = {name: found[name] for name in found if name.startswith("outbound_")}
        are_known = all(len(hosts[name]) == rotating[name] for name in hosts)
        return are_known and all(
            set(host["health_status"]) == {"eds_health_status"} for name in hosts for host in hosts[name]
        )

    def logs(self) -> str:
        return "\n".join(f"== {name}\n{self.log(name)[-1500:]}" for name in self.processes)

    def log(self, workload: str) -> str:
        return (self.folder / f"{workload}.log").read_text(errors="replace")

    async def until(self, holds: Callable[[], bool], complaint: str, seconds: float = READY_S) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, f"{complaint}\n{self.logs()}"
            await asyncio.sleep(0.05)

    def channel(self, workload: str) -> grpc.aio.Channel:
        """A channel as the application of `workload` uses it; the gateway's is a client's."""
        target = f"unix:{self.sockets / workload / 'egress.sock'}"
        if workload == "gateway":
            assert self.placement.gateway is not None
            target = f"127.0.0.1:{self.placement.gateway.listen.port}"
        return self.target(target)

    def target(self, target: str) -> grpc.aio.Channel:
        """A channel that shares no connection with another one."""
        return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])

    def inbound(self, workload: str) -> SocketAddress:
        return next(replica.inbound for replica in self.placement.replicas if replica.name == workload)

    async def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        for application in self.applications.values():
            await application.stop()
        shutil.rmtree(self.sockets)


def tcp() -> SocketAddress:
    return SocketAddress(host="127.0.0.1", port=free_port())


async def call(
    channel: grpc.aio.Channel,
    method: str,
    request: bytes = b"\x0a\x02hi",
    *,
    metadata: tuple[tuple[str, str], ...] = (),
    timeout: float | None = 10,
) -> bytes:
    """One unary call with raw bytes; `method` without `/echo.v1.`."""
    path = method if method.startswith("/") else f"/echo.v1.{method}"
    return bytes(await channel.unary_unary(path)(request, metadata=metadata, timeout=timeout))


async def failure(
    channel: grpc.aio.Channel,
    method: str,
    *,
    metadata: tuple[tuple[str, str], ...] = (),
    timeout: float | None = 10,
) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    try:
        answer = await call(channel, method, metadata=metadata, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"{method} answered {answer!r}")
