"""What Envoy itself costs: CPU of a pair with every default on against a bare pair, and memory with and without scoping.

The bare pair is the least that carries a call over mutual TLS: two listeners, two clusters, two routers; no access log, no
statistics by method, no authorization, no health check, no retry, no trace id. Both pairs run at once, in front of the same
application, and are measured in turn.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.figures import cpu_seconds
from benchmarks.mesh import free_port
from generator.analysis import check_manifest
from generator.introspection.admin import get_json, is_ready
from generator.model import Mesh, Placement, ReplicaPlacement, SocketAddress, UnixAddress
from generator.outputs.files import default_placement, publish
from generator.outputs.local.binary import find_envoy
from generator.pki import Authority, issue_leaf, publish_leaf
from generator.render import render
from generator.render.sidecar import sidecar
from generator.resources import twin

PATH = "/benchmark.v1.EchoService/Echo"
PAYLOAD = b"\x0a\x40" + b"x" * 64
ROUNDS = 12
CALLS_PER_ROUND = 400
LIFETIME = dt.timedelta(hours=1)
READY_S = 300.0
"""An Envoy with ten thousand hosts checks each of them first; nobody answers."""
SIZES = (10, 100, 1_000)
"""Services of the meshes whose sidecars' memory is compared; ten replicas each."""
REPLICAS = 10
SCOPE = 3
"""Services that the scoped sidecar calls."""
SETTLE_S = 3.0
PROTO = """
syntax = "proto3";
package benchmark.v1;
message Text { bytes payload = 1; }
service EchoService { rpc Echo(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service FrontService { rpc Front(Text) returns (Text); }
"""
MANIFEST = """
mesh: cpu
protos: [protos]
services:
  front: {run: "true", serves: [FrontService], replicas: 1, calls: {echo: [EchoService/Echo]}}
  echo: {run: "true", serves: [EchoService], replicas: 1}
"""
APPLICATION = """
import asyncio, sys
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        async def echo(request, context):
            return request
        return grpc.unary_unary_rpc_method_handler(echo) if details.method == sys.argv[2] else None

async def main():
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


def measure() -> dict[str, float]:
    """CPU of one Envoy pair per 1,000 calls, bare and with all defaults, and the memory of sidecars."""
    return asyncio.run(measure_cpu()) | asyncio.run(measure_memory())


async def measure_cpu() -> dict[str, float]:
    """Seconds of CPU of both Envoys together per 1,000 calls, in turn; the ratio is the median of the rounds' ratios."""
    with tempfile.TemporaryDirectory(prefix="nmb-") as name, ExitStack() as stack:
        folder = Path(name)
        mesh, placement = _placed(folder)
        front, echo = (replica for service in ("front", "echo") for replica in placement.of_service(service))
        bare = _write_bare(folder, front, echo)
        _issue(folder, mesh, placement)
        publish(render(mesh, placement), placement.directory)
        assert isinstance(echo.app, UnixAddress)
        stack.enter_context(_running([sys.executable, "-c", APPLICATION, f"unix:{echo.app.path}", PATH]))
        default = [_envoy(stack, placement.directory / replica.name / "bootstrap.json") for replica in (front, echo)]
        plain = [_envoy(stack, path) for path in bare]
        for admin in (front.admin.path, echo.admin.path, *(path.with_suffix(".sock") for path in bare)):
            await _until_ready(admin)
        targets = {"default": (folder / "front-0" / "egress.sock", default), "bare": (folder / "bare.sock", plain)}
        found = await _rounds(targets)
    ratios = [one / other for one, other in zip(found["default"], found["bare"], strict=True)]
    return {
        "bare_pair_cpu_s_per_1000_calls": statistics.median(found["bare"]),
        "default_pair_cpu_s_per_1000_calls": statistics.median(found["default"]),
        "default_to_bare_cpu": statistics.median(ratios),
    }


async def _rounds(targets: dict[str, tuple[Path, list[int]]]) -> dict[str, list[float]]:
    channels = {name: grpc.aio.insecure_channel(f"unix:{socket}") for name, (socket, _) in targets.items()}
    found: dict[str, list[float]] = {name: [] for name in targets}
    for channel in channels.values():
        await _until_answered(channel)
        await _calls(channel, CALLS_PER_ROUND)
    for _ in range(ROUNDS):
        for name, (_, pids) in targets.items():
            before = sum(cpu_seconds(pid) for pid in pids)
            await _calls(channels[name], CALLS_PER_ROUND)
            found[name].append((sum(cpu_seconds(pid) for pid in pids) - before) / CALLS_PER_ROUND * 1_000)
    for channel in channels.values():
        await channel.close()
    return found


async def _until_answered(channel: grpc.aio.Channel) -> None:
    """Wait for the application and the health checks. Raises the last call's error."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            return await _calls(channel, 1)
        except grpc.aio.AioRpcError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def _calls(channel: grpc.aio.Channel, count: int) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PATH)
    for _ in range(count):
        await method(PAYLOAD, timeout=20, wait_for_ready=True)


def _placed(folder: Path) -> tuple[Mesh, Placement]:
    """The mesh of two, on sockets and ports that are free."""
    (folder / "protos").mkdir()
    (folder / "protos" / "echo.proto").write_text(PROTO)
    (folder / "mesh.yaml").write_text(MANIFEST)
    mesh = check_manifest(folder / "mesh.yaml").mesh
    assert mesh is not None
    placement = default_placement(mesh, folder / "envoy")
    return mesh, replace(placement, replicas=tuple(_moved(folder, replica) for replica in placement.replicas))


def _moved(folder: Path, replica: ReplicaPlacement) -> ReplicaPlacement:
    own = folder / replica.name
    own.mkdir(mode=0o700)
    return replace(
        replica,
        app=UnixAddress(path=own / "app.sock"),
        app_metrics=UnixAddress(path=own / "metrics.sock"),
        egress=UnixAddress(path=own / "egress.sock"),
        admin=UnixAddress(path=own / "admin.sock"),
        inbound=SocketAddress(host="127.0.0.1", port=free_port()),
        scrape=SocketAddress(host="127.0.0.1", port=free_port()),
    )


def _issue(folder: Path, mesh: Mesh, placement: Placement) -> None:
    now = dt.datetime.now(dt.UTC)
    authority = Authority.open(folder / "pki", mesh.trust_domain, now)
    for replica in placement.replicas:
        identity = mesh.service(replica.service).identity
        publish_leaf(replica.certificates, issue_leaf(authority, identity=identity, lifetime=LIFETIME, now=now))


def _write_bare(folder: Path, front: ReplicaPlacement, echo: ReplicaPlacement) -> tuple[Path, Path]:
    """The bootstraps of the bare pair."""
    between: dict[str, Any] = {"socket_address": {"address": "127.0.0.1", "port_value": free_port()}}
    assert isinstance(echo.app, UnixAddress)
    begin, end = ({"pipe": {"path": str(path)}} for path in (folder / "bare.sock", echo.app.path))
    one, other = folder / "bare-front.json", folder / "bare-echo.json"
    one.write_text(json.dumps(_bare(one.with_suffix(".sock"), begin, between, connects=front)))
    other.write_text(json.dumps(_bare(other.with_suffix(".sock"), between, end, accepts=echo)))
    return one, other


def _bare(
    admin: Path,
    listen: dict[str, Any],
    target: dict[str, Any],
    *,
    accepts: ReplicaPlacement | None = None,
    connects: ReplicaPlacement | None = None,
) -> dict[str, Any]:
    http = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "next", "timeout": "0s"}}
    manager = {
        "@type": http,
        "stat_prefix": "bare",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if accepts is not None:
        chain["transport_socket"] = _tls("Downstream", accepts)
    cluster: dict[str, Any] = {
        "name": "next",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": target}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    if connects is not None:
        cluster["transport_socket"] = _tls("Upstream", connects)
    return {
        "admin": {"address": {"pipe": {"path": str(admin)}}},
        "static_resources": {
            "listeners": [{"name": "in", "address": listen, "filter_chains": [chain]}],
            "clusters": [cluster],
        },
    }


def _tls(side: str, replica: ReplicaPlacement) -> dict[str, Any]:
    data = replica.certificates / "..data"
    body: dict[str, Any] = {
        "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext",
        "common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(data / "tls.crt")},
                    "private_key": {"filename": str(data / "tls.key")},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": str(data / "ca.crt")}},
        },
    }
    if side == "Downstream":
        body["require_client_certificate"] = True
    return {"name": "tls", "typed_config": body}


async def measure_memory() -> dict[str, float]:
    """MiB that one sidecar has allocated, in meshes of several sizes: scoped to what it calls, and knowing all."""
    figures = {}
    for size in SIZES:
        for name, calls in (("scoped", SCOPE), ("full", size - 1)):
            figures[f"{name}_{size}_services_mib"] = await _allocated_mib(size, calls)
        figures[f"full_to_scoped_{size}_services"] = (
            figures[f"full_{size}_services_mib"] / figures[f"scoped_{size}_services_mib"]
        )
    return figures


async def _allocated_mib(size: int, calls: int) -> float:
    with tempfile.TemporaryDirectory(prefix="nmb-") as name, ExitStack() as stack:
        folder = Path(name)
        mesh, placement = _large(folder, size, calls)
        workload = sidecar(mesh, placement, placement.of_service("s0")[0], zone=None)
        path = folder / "envoy.json"
        # Every file that an Envoy follows takes one of the user's inotify instances: a thousand would be too many here.
        path.write_text(json.dumps(twin(workload)))
        _envoy(stack, path)
        admin = placement.of_service("s0")[0].admin.path
        await _until_ready(admin)
        await asyncio.sleep(SETTLE_S)
        memory = await get_json(admin, "/memory")
        return int(memory["allocated"]) / 2**20


def _large(folder: Path, size: int, calls: int) -> tuple[Mesh, Placement]:
    """A mesh of `size` services, of which the first calls `calls` others; only its first replica is placed for real."""
    services = "".join(
        f"service Service{number} {{ rpc Get(Echo) returns (Echo) {{ option idempotency_level = NO_SIDE_EFFECTS; }} }}\n"
        for number in range(size)
    )
    (folder / "protos").mkdir()
    (folder / "protos" / "large.proto").write_text(
        f'syntax = "proto3";\npackage large.v1;\nmessage Echo {{ bytes payload = 1; }}\n{services}'
    )
    lines = ["mesh: large", "protos: [protos]", "services:"]
    for number in range(size):
        lines.append(f'  s{number}: {{run: "true", serves: [Service{number}], replicas: {REPLICAS}')
        called = ", ".join(f"s{callee}: [Service{callee}/Get]" for callee in range(1, calls + 1))
        lines[-1] += f", calls: {{{called}}}}}" if number == 0 else "}"
    (folder / "mesh.yaml").write_text("\n".join(lines) + "\n")
    mesh = check_manifest(folder / "mesh.yaml").mesh
    assert mesh is not None
    first = _moved(folder, _replica(folder, "s0", 0, 0))
    others = [_replica(folder, f"s{number}", index, number) for number in range(1, size) for index in range(REPLICAS)]
    placement = Placement(directory=folder / "envoy", replicas=(first, *others), gateway=None, jwks=None)
    _issue(folder, replace(mesh, services=(mesh.service("s0"),)), replace(placement, replicas=(first,)))
    return mesh, placement


def _replica(folder: Path, service: str, index: int, number: int) -> ReplicaPlacement:
    """A replica at a loopback address of its own, where nobody listens."""
    address = SocketAddress(host=f"127.2.{number // 250}.{number % 250 + 1}", port=20_000 + index)
    socket = UnixAddress(path=folder / "nobody.sock")
    return ReplicaPlacement(
        service=service,
        index=index,
        app=socket,
        app_metrics=socket,
        egress=socket,
        admin=socket,
        inbound=address,
        scrape=address,
        certificates=folder / "certificates" / f"{service}-{index}",
        in_rotation=True,
    )


def _envoy(stack: ExitStack, bootstrap: Path) -> int:
    command = [str(find_envoy()), "-c", str(bootstrap), "--concurrency", "1", "--disable-hot-restart"]
    return stack.enter_context(_running([*command, "--log-level", "critical"]))


@contextmanager
def _running(command: list[str]) -> Iterator[int]:
    """Run a process; its id."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.kill()


async def _until_ready(admin: Path) -> None:
    """Wait for an Envoy. Raises TimeoutError."""
    deadline = time.monotonic() + READY_S
    while not await is_ready(admin):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no Envoy is ready at {admin}")
        await asyncio.sleep(0.05)
