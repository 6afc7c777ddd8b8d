"""What the sidecars cost: one unary call direct, through one Envoy, through the mTLS pair, through the gateway.

Through one Envoy means the gateway's own health check, which ends at a socket beside it; `health_direct` is the same call
to that socket. (gRPC's Python client cannot check a SPIFFE id, so it cannot call a sidecar's inbound side itself.)
"""

from __future__ import annotations

import grpc
import grpc.aio

from benchmarks.figures import Call, Latency, cpu_seconds, interleaved
from benchmarks.mesh import BenchmarkMesh

ECHO = "/benchmark.v1.EchoService/Echo"
HEALTH = "/grpc.health.v1.Health/Check"
PAYLOAD = b"\x0a\x40" + b"x" * 64
ROUNDS = 20
CALLS_PER_ROUND = 100
CPU_CALLS = 5_000
SUBJECT = "0" * 64


async def measure(mesh: BenchmarkMesh) -> dict[str, float]:
    """Median and 99th percentile of each way in milliseconds, what the pair adds, and Envoy's CPU per 1,000 calls."""
    echo, nest, gateway = mesh.replica("echo"), mesh.replica("nest"), mesh.status()["gateway"]
    token = (("authorization", f"Bearer {mesh.token(SUBJECT)}"),)
    channels = {
        "direct": grpc.aio.insecure_channel(echo["listen"]),
        "mtls_pair": grpc.aio.insecure_channel(nest["egress"]),
        "gateway": grpc.aio.insecure_channel(gateway["address"]),
        "health_direct": grpc.aio.insecure_channel(gateway["introspection"]),
    }
    calls = {name: _call(channels[name].unary_unary(ECHO), PAYLOAD) for name in ("direct", "mtls_pair")}
    calls["gateway"] = _call(channels["gateway"].unary_unary(ECHO), PAYLOAD, token)
    calls["health_direct"] = _call(channels["health_direct"].unary_unary(HEALTH), b"")
    calls["health_one_envoy"] = _call(channels["gateway"].unary_unary(HEALTH), b"")
    await interleaved(calls, rounds=1, per_round=200)
    found = await interleaved(calls, rounds=ROUNDS, per_round=CALLS_PER_ROUND)
    cpu = await _cpu_per_thousand(calls["mtls_pair"], [nest["sidecar_pid"], *_sidecars(mesh, "echo")])
    for channel in channels.values():
        await channel.close()
    return _flat(found) | {
        "one_envoy_adds_p50_ms": found["health_one_envoy"].p50_ms - found["health_direct"].p50_ms,
        "pair_adds_p50_ms": found["mtls_pair"].p50_ms - found["direct"].p50_ms,
        "pair_to_direct_p50": found["mtls_pair"].p50_ms / found["direct"].p50_ms,
        "envoy_cpu_s_per_1000_calls": cpu,
    }


def _call(
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], payload: bytes, metadata: tuple[tuple[str, str], ...] = ()
) -> Call:
    async def call() -> object:
        return await method(payload, metadata=metadata, timeout=10)

    return call


def _sidecars(mesh: BenchmarkMesh, service: str) -> list[int]:
    return [replica["sidecar_pid"] for replica in mesh.status()["services"][service]["replicas"]]


async def _cpu_per_thousand(call: Call, pids: list[int]) -> float:
    before = sum(cpu_seconds(pid) for pid in pids)
    for _ in range(CPU_CALLS):
        await call()
    return (sum(cpu_seconds(pid) for pid in pids) - before) / CPU_CALLS * 1000


def _flat(found: dict[str, Latency]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, times in found.items():
        flat |= {f"{name}_p50_ms": times.p50_ms, f"{name}_p99_ms": times.p99_ms}
    return flat
