"""Envoys whose manifest changes while they run, around applications that answer who they are."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from generator.analysis import check_manifest
from support.envoys import Envoys, Handler, call

SIGMAS = 4.5
"""A right share is outside of this once in 150,000 times."""
NEVER = {"consecutive_errors": 1_000_000, "consecutive_gateway_errors": 1_000_000}
"""Outlier detection that ejects nobody."""
SAY, ONCE, WATCH = (f"/echo.v1.EchoService/{name}" for name in ("Say", "Once", "Watch"))
PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; Owner owner = 2; }
message Owner { string id = 1; int64 number = 2; }
message Empty {}
service EchoService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Once(Text) returns (Text);
  rpc Watch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Bare(Empty) returns (Text);
}
service DeepService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
"""


def manifest(echo: dict[str, Any], *, front: dict[str, Any] | None = None, **others: Any) -> str:
    """A mesh of front, which calls echo, and a gateway that exposes echo; `others` at the top, or as further services."""
    calls = {"echo": ["EchoService/*"]}
    services = {
        "front": {"run": "true", "serves": ["echo.v1.DeepService"], "replicas": 1, "calls": calls, **(front or {})},
        "echo": {"run": "true", "serves": ["echo.v1.EchoService"], "replicas": 3, **echo},
        **others.pop("services", {}),
    }
    gateway = {"listen": "127.0.0.1:8080", "expose": calls, **others.pop("gateway", {})}
    document = {"mesh": "test", "trust_domain": "test.mesh", "protos": ["protos"], **others}
    return json.dumps({**document, "services": services, "gateway": gateway}, indent=1)


class ChangingEnvoys(Envoys):
    """Adds `change` to Envoys, and questions about who answers."""

    def __init__(self, folder: Path, manifest: str, proto: str = PROTO) -> None:
        super().__init__(folder, manifest, proto)

    async def start(self) -> None:
        await super().start()
        self.forget()

    async def change(self, manifest: str) -> None:
        """Another manifest with the same services and replicas, all alive; returns when every Envoy has it."""
        (self.folder / "mesh.yaml").write_text(manifest)
        analysis = check_manifest(self.folder / "mesh.yaml")
        assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
        self.mesh = analysis.mesh
        self.publish()
        await self.start_applications(*(name for name, each in self.applications.items() if each.server is None))
        await self.settle()
        self.forget()

    async def settle(self) -> None:
        """Return when every Envoy has taken what was published, and sees its peers healthy."""
        for workload in self.processes:
            await self.until(lambda workload=workload: self.has_taken(workload), f"{workload} has not taken its files")
            await self.until(lambda workload=workload: self.healthy(workload), f"{workload} sees no healthy peers")

    def has_taken(self, workload: str) -> bool:
        stats = self.admin(workload, "/stats?filter=version_text|warming")
        assert self.stat(workload, "update_rejected") == 0, self.log(workload)
        files = (self.placement.directory / workload).glob("[lcre]ds/*.json")
        wanted = {json.loads(file.read_bytes())["version_info"] for file in files}
        warming = [line for line in stats.splitlines() if "warming" in line and not line.endswith(": 0")]
        return not warming and all(f'"{version}"' in stats for version in wanted)

    def forget(self) -> None:
        """Every application answers its own name again, and has seen nothing."""
        for name, application in self.applications.items():
            application.seen.clear()
            application.handlers.clear()
            application.handlers.update(dict.fromkeys((SAY, ONCE, WATCH), named(name)))

    async def bring(self, workload: str, *, into: bool) -> None:
        """Take a replica in or out of its callers' endpoints; returns when these know."""
        self.rotate(workload, into=into)
        await self.settle()

    async def start_applications(self, *workloads: str) -> None:
        """Start applications again; returns when every caller knows that they are healthy."""
        for workload in workloads:
            await self.applications[workload].start()
        for name in self.processes:
            await self.until(
                lambda name=name: not any(self.is_out(name, workload) for workload in workloads),
                f"{name} does not see {workloads} back",
                20,
            )

    async def stop_applications(self, *workloads: str, caller: str) -> None:
        """Stop applications; returns when the sidecar of this caller knows that they are not healthy."""
        for workload in workloads:
            await self.applications[workload].stop()
        for workload in workloads:
            await self.until(lambda workload=workload: self.is_out(caller, workload), f"{workload} still healthy", 20)

    def is_out(self, caller: str, workload: str) -> bool:
        """Whether a caller's active health checks have found a replica dead."""
        address = self.inbound(workload)
        lines = self.admin(caller, "/clusters").splitlines()
        flags = [line for line in lines if f"::{address.host}:{address.port}::health_flags::" in line]
        return bool(flags) and all("/failed_active_hc" in line for line in flags)

    def counts(self, path: str = SAY) -> dict[str, int]:
        """How many calls each replica has seen."""
        return {name: application.count(path) for name, application in self.applications.items()}


def named(name: str) -> Handler:
    """Answer a name, as the bytes of `Text.text`."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return text(name)

    return answer


def text(value: str) -> bytes:
    """`Text{text: value}`."""
    return b"\x0a" + bytes([len(value)]) + value.encode()


def owned(value: str) -> bytes:
    """`Text{owner: {id: value}}`."""
    inner = text(value)
    return b"\x12" + bytes([len(inner)]) + inner


async def where(channel: grpc.aio.Channel, method: str = "EchoService/Say", **options: Any) -> str:
    """Which replica answers a call."""
    return (await call(channel, method, **options))[2:].decode()


async def first(channel: grpc.aio.Channel, request: bytes = b"", **options: Any) -> str:
    """Which replica begins a stream; it is ended then."""
    stream = channel.unary_stream(WATCH)(request, timeout=10, **options)
    message = bytes(await stream.read())
    stream.cancel()
    return message[2:].decode()


async def tally(channel: grpc.aio.Channel, calls: int, *, callers: int = 16, **options: Any) -> Counter[str]:
    """How many of these calls each replica answers; every caller makes one call after the other."""
    found: Counter[str] = Counter()
    numbers = iter(range(calls))

    async def make() -> None:
        for _ in numbers:
            found[await where(channel, **options)] += 1

    await asyncio.gather(*(make() for _ in range(callers)))
    return found


def assert_shares(found: Counter[str], shares: dict[str, float]) -> None:
    """Each count is what a share of independent random choices gives, within `SIGMAS` of them."""
    calls, whole = sum(found.values()), sum(shares.values())
    assert set(found) <= set(shares), found
    for name, share in shares.items():
        expected = calls * share / whole
        deviation = sqrt(expected * (1 - share / whole))
        assert abs(found[name] - expected) <= SIGMAS * deviation, (name, expected, found)
