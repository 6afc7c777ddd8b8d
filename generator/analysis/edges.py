"""Checks of what single callers ask for: an edge may be stricter than its service, never looser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from generator.analysis.policies import conditions, misfit
from generator.analysis.verdicts import Misfit, Verdicts
from generator.manifest.finding import Position, Reporter
from generator.manifest.kinds import format_duration
from generator.model import Edge, Mesh, MethodPolicy, RetryPolicy
from generator.model.links import Layer, Links
from generator.model.resolve import Resolution

Excess = tuple[str, Position, str | None]
"""(path, place, what is allowed) of a setting of an edge; None where the setting is within its limit."""
BREAKERS = {
    "circuit_breaker.max_connections": "connections_max",
    "circuit_breaker.max_pending_requests": "pending_requests_max",
    "circuit_breaker.max_requests": "requests_max",
    "circuit_breaker.max_streams": "streams_max",
}


def check_edges(resolution: Resolution, links: Links, reporter: Reporter) -> None:
    """Report what a caller asks for beyond what the service (or the host outside) allows."""
    verdicts = Verdicts()
    for edge in _edges(resolution.mesh):
        for path, position, allowed in _excesses(edge, resolution, links):
            verdicts.add(path, position, None if allowed is None else _looser(path, allowed))
    verdicts.report(reporter)


def _edges(mesh: Mesh) -> Iterable[Edge]:
    for service in mesh.services:
        yield from (*service.calls, *service.external_calls)
    yield from mesh.gateway.exposes if mesh.gateway is not None else ()


def _looser(path: str, allowed: str) -> Misfit:
    cause = f"the service allows {allowed}; a caller may be stricter, never looser"
    fix = "stay within it, or change the `traffic` of the service"
    return Misfit(code="NM510", message=f"`{path}` is looser than the service allows", cause=cause, fix=fix)


def _excesses(edge: Edge, resolution: Resolution, links: Links) -> Iterator[Excess]:
    for policy in edge.methods:
        layer = links.layers.edge_methods.get((edge.caller, edge.callee, policy.method), {})
        base = resolution.methods[edge.callee, policy.method]
        fitting = {
            path: written for path, written in layer.items() if misfit(path, written, policy.method, layer) is None
        }
        yield from _time_excesses(fitting, base)
        yield from _retry_excesses(layer, base.retry)
    layer = links.layers.edges.get((edge.caller, edge.callee), {})
    breaker = resolution.services[edge.callee].circuit_breaker
    for path, name in BREAKERS.items():
        yield from _above(layer, path, getattr(breaker, name), str(getattr(breaker, name)))


def _time_excesses(layer: Layer, base: MethodPolicy) -> Iterator[Excess]:
    limits = {
        "deadline": base.deadline_ms,
        "idle_timeout": base.idle_timeout_ms,
        "max_stream_duration": base.duration_ms_max,
        "retries.per_try_timeout": base.retry.per_try_ms if base.retry is not None else None,
    }
    for path, limit in limits.items():
        if limit is not None:
            yield from _above(layer, path, limit, format_duration(limit))


def _retry_excesses(layer: Layer, retry: RetryPolicy | None) -> Iterator[Excess]:
    if "retries.on" in layer:
        allowed = retry.conditions if retry is not None else frozenset()
        words = ", ".join(sorted(condition.value for condition in allowed)) or "no repetition"
        more = conditions(layer["retries.on"]) - allowed
        yield "retries.on", layer["retries.on"].position, words if more else None
    attempts = retry.attempts_max if retry is not None else 0
    yield from _above(layer, "retries.attempts", attempts, f"{attempts} more attempts")
    if retry is not None:
        pauses = {"retries.backoff.base": retry.backoff_base_ms, "retries.backoff.max": retry.backoff_max_ms}
        for path, shortest in pauses.items():
            if path in layer:
                is_shorter = layer[path].value < shortest
                yield path, layer[path].position, f"{format_duration(shortest)} or longer" if is_shorter else None


def _above(layer: Layer, path: str, limit: int, shown: str) -> Iterator[Excess]:
    if path in layer:
        yield path, layer[path].position, shown if layer[path].value > limit else None
