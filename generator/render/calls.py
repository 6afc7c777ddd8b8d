"""Method policies as views: limits, retries, routes."""

from __future__ import annotations

from collections.abc import Iterable

from generator.model import Edge, Mesh, Method, MethodPolicy, RetryCondition, RetryPolicy, StreamingKind
from generator.render.names import (
    HEALTH_PATH,
    NOT_DELIVERED_HEADER,
    RESET_HEADER,
    STATUS_HEADER,
    authority,
    cluster_name,
)
from generator.render.views import ArrivingCall, CallerView, CallView, CountedService, HeaderMatch, Limits, RetryView

GRPC_TIMEOUT_MS_MAX = 99_999_999
"""The header `grpc-timeout` has at most 8 digits (gRPC over HTTP/2, `TimeoutValue`)."""
UNAVAILABLE = "14"
HOST_CHOICES_PER_ATTEMPT = 32
"""How often the balancer may be asked again for a replica that this call has not tried. With two replicas a dead one, which
has no calls, wins three picks of four: 32 picks miss the other once in 10,000 times."""
HEALTH_LIMITS = Limits(duration_ms=5_000, idle_ms=0)

CONDITIONS: dict[RetryCondition, tuple[tuple[str, ...], tuple[HeaderMatch, ...]]] = {
    # The peer's sidecar was not reached or refused the stream, or it says that its application saw nothing.
    RetryCondition.NOT_DELIVERED: (
        ("connect-failure", "refused-stream", "reset-before-request"),
        (HeaderMatch(name=NOT_DELIVERED_HEADER, value="true"),),
    ),
    # The connection broke in the middle, at this sidecar or at the peer's.
    RetryCondition.RESET: (("reset",), (HeaderMatch(name=RESET_HEADER, value="true"),)),
    # Not Envoy's own `unavailable`: that would also repeat what failed because of a dependency.
    RetryCondition.UNAVAILABLE: ((), (HeaderMatch(name=STATUS_HEADER, value=UNAVAILABLE),)),
}


def outgoing_calls(mesh: Mesh, edges: Iterable[Edge], public: Iterable[Method] = ()) -> tuple[CallView, ...]:
    """Every method of these edges as a route, sorted by path."""
    free = {method.path for method in public}
    calls = (_call(mesh, edge, policy, free) for edge in edges for policy in edge.methods)
    return tuple(sorted(calls, key=lambda call: call.path))


def arriving_calls(callers: Iterable[Edge]) -> tuple[ArrivingCall, ...]:
    """Every method that somebody may call, with the most generous of the callers' limits; health checks, too."""
    found: dict[str, Limits] = {HEALTH_PATH: HEALTH_LIMITS}
    for edge in callers:
        for policy in edge.methods:
            limits, path = limits_of(policy), policy.method.path
            found[path] = _most_generous(limits, found[path]) if path in found else limits
    return tuple(ArrivingCall(path=path, limits=found[path]) for path in sorted(found))


def callers_of(mesh: Mesh, edges: Iterable[Edge]) -> tuple[CallerView, ...]:
    """Who may call what; every caller may ask for health."""
    identities = {service.name: service.identity for service in mesh.services}
    if mesh.gateway is not None:
        identities["gateway"] = mesh.gateway.identity
    return tuple(
        CallerView(
            name=edge.caller,
            identity=identities[edge.caller],
            paths=(*sorted(policy.method.path for policy in edge.methods), HEALTH_PATH),
        )
        for edge in sorted(edges, key=lambda edge: edge.caller)
    )


def counted(methods: Iterable[Method]) -> tuple[CountedService, ...]:
    """The methods grouped by protobuf service."""
    grouped: dict[str, set[str]] = {}
    for method in methods:
        grouped.setdefault(method.service, set()).add(method.name)
    return tuple(CountedService(name=name, methods=tuple(sorted(grouped[name]))) for name in sorted(grouped))


def limits_of(policy: MethodPolicy) -> Limits:
    """Unary calls are bounded by their deadline alone, streams by their longest life and longest silence."""
    if policy.deadline_ms is not None:
        return Limits(duration_ms=policy.deadline_ms, idle_ms=0)
    return Limits(duration_ms=policy.duration_ms_max, idle_ms=policy.idle_timeout_ms or 0)


def retry_of(policy: RetryPolicy) -> RetryView:
    """Translate the conditions."""
    found = [CONDITIONS[condition] for condition in RetryCondition if condition in policy.conditions]
    words = [word for condition_words, _ in found for word in condition_words]
    return RetryView(
        retry_on=",".join([*words, "retriable-headers"]),
        headers=tuple(header for _, headers in found for header in headers),
        attempts_max=policy.attempts_max,
        host_choices_max=HOST_CHOICES_PER_ATTEMPT,
        backoff_base_ms=policy.backoff_base_ms,
        backoff_ms_max=policy.backoff_max_ms,
    )


def _call(mesh: Mesh, edge: Edge, policy: MethodPolicy, public: set[str]) -> CallView:
    method, retry = policy.method, policy.retry
    may_repeat = method.streaming in {StreamingKind.UNARY, StreamingKind.SERVER}
    return CallView(
        path=method.path,
        cluster=cluster_name(edge.callee),
        authority=authority(edge.callee, mesh.trust_domain),
        limits=limits_of(policy),
        grpc_timeout=_grpc_timeout(policy.deadline_ms),
        # A policy would make the sidecar keep a client's whole stream for a second attempt.
        retry=retry_of(retry) if retry is not None and retry.conditions and may_repeat else None,
        is_public=method.path in public,
        is_stream=method.streaming is not StreamingKind.UNARY,
    )


def _grpc_timeout(deadline_ms: int | None) -> str | None:
    return None if deadline_ms is None else f"{min(deadline_ms, GRPC_TIMEOUT_MS_MAX)}m"


def _most_generous(one: Limits, other: Limits) -> Limits:
    """None and 0 mean no bound."""
    durations = (one.duration_ms, other.duration_ms)
    idles = (one.idle_ms, other.idle_ms)
    return Limits(
        duration_ms=None if None in durations else max(value for value in durations if value is not None),
        idle_ms=0 if 0 in idles else max(idles),
    )
