"""Method policies as views: limits, retries, routes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import reduce

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from generator.catalog.fields import files_of
from generator.manifest.kinds import format_duration
from generator.model import (
    Edge,
    HashKind,
    HashOn,
    HeaderChanges,
    Mesh,
    Method,
    MethodPolicy,
    Placement,
    RateLimit,
    RoleRule,
    Routing,
    Service,
    Session,
    StreamingKind,
)
from generator.model.mesh import GATEWAY
from generator.render.names import (
    HASH_HEADER,
    HEALTH_PATH,
    authority,
    cluster_name,
    external_name,
)
from generator.render.retries import retry_of
from generator.render.sessions import session_pattern
from generator.render.views import (
    ArrivingCall,
    CallView,
    CountedService,
    ExtractedMethod,
    ExtractionView,
    FiltersView,
    HashView,
    HeaderMatch,
    HeadersView,
    HeaderView,
    Limits,
    MirrorView,
    RateReply,
    RateView,
    TargetView,
    WeightView,
)

GRPC_TIMEOUT_MS_MAX = 99_999_999
"""The header `grpc-timeout` has at most 8 digits (gRPC over HTTP/2, `TimeoutValue`)."""
HEALTH_LIMITS = Limits(duration_ms=5_000, idle_ms=0, follows_caller=True)
FAREWELL_MS_MAX = 1_000
FAREWELL_DIVISOR = 10
"""How long before a sidecar resets a stream the service is told to end it: it can say why, a sidecar no more."""

MESSAGE_PREFIX_BYTES = 5
"""Compressed or not, and the length (gRPC over HTTP/2, `Length-Prefixed-Message`)."""
RESOURCE_EXHAUSTED = 8
RATE_LIMITED_EXPRESSION = "response.code_details == 'local_rate_limited'"
"""Envoy's word for a call that found no token."""
HTTPS_PORT = 443


def outgoing_calls(
    mesh: Mesh,
    placement: Placement,
    edges: Iterable[Edge],
    public: Iterable[Method] = (),
    roles: Iterable[RoleRule] = (),
) -> tuple[CallView, ...]:
    """Every method of these edges as a route, sorted by path."""
    free = {method.path for method in public}
    needed = roles_by_path(roles)
    calls = (_call(mesh, placement, edge, policy, free, needed) for edge in edges for policy in edge.methods)
    return tuple(sorted(calls, key=lambda call: call.path))


def roles_by_path(rules: Iterable[RoleRule]) -> dict[str, tuple[str, ...]]:
    """Turn the rules round: the roles that open each method, in the order of the manifest."""
    found: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        for method in rule.methods:
            found[method.path] = (*found.get(method.path, ()), rule.role)
    return found


def external_calls(mesh: Mesh, edges: Iterable[Edge]) -> tuple[CallView, ...]:
    """The same for hosts outside."""
    calls = (_external_call(mesh, edge, policy) for edge in edges for policy in edge.methods)
    return tuple(sorted(calls, key=lambda call: call.path))


def filters_of(mesh: Mesh, calls: Iterable[CallView]) -> FiltersView:
    """Which filters these calls need besides the usual ones."""
    views = tuple(calls)
    return FiltersView(
        has_faults=any(call.faults is not None for call in views),
        has_sessions=any(call.session is not None for call in views),
        has_mutations=any(call.has_mutations for call in views),
        extraction=_extraction(mesh, views),
    )


def _extraction(mesh: Mesh, calls: tuple[CallView, ...]) -> ExtractionView | None:
    methods = tuple(
        ExtractedMethod(method=call.path[1:].replace("/", "."), field=call.hash_on.field)
        for call in calls
        if call.hash_on is not None and call.hash_on.field is not None
    )
    if not methods:
        return None
    services = {each.method.rpartition(".")[0] for each in methods}
    part = files_of(mesh.descriptor_set, services)
    return ExtractionView(descriptor_set=base64.b64encode(part).decode(), methods=methods)


def arriving_calls(mesh: Mesh, callers: Iterable[Edge]) -> tuple[ArrivingCall, ...]:
    """Every method that somebody may call, with the most generous of the callers' limits; health checks, too."""
    edges = tuple(callers)
    found: dict[str, list[tuple[Edge, MethodPolicy]]] = {}
    for edge in edges:
        for policy in edge.methods:
            found.setdefault(policy.method.path, []).append((edge, policy))
    arriving = [_arriving(mesh, path, found[path]) for path in found]
    health = ArrivingCall(
        path=HEALTH_PATH,
        limits=HEALTH_LIMITS,
        is_stream=False,
        body_bytes_max=None,
        rates=(),
        callers=peers_of(mesh, edges),
    )
    return tuple(sorted([*arriving, health], key=lambda call: call.path))


def _arriving(mesh: Mesh, path: str, policies: list[tuple[Edge, MethodPolicy]]) -> ArrivingCall:
    first = policies[0][1]
    limits = [limits_of(policy) for _, policy in policies]
    limit = first.rate_limit
    callers = sorted({edge.caller for edge, _ in policies})
    rates = () if limit is None else tuple(_rate(mesh, caller, limit) for caller in callers)
    return ArrivingCall(
        path=path,
        limits=reduce(_most_generous, limits),
        is_stream=first.method.streaming is not StreamingKind.UNARY,
        body_bytes_max=None if first.request_bytes_max is None else first.request_bytes_max + MESSAGE_PREFIX_BYTES,
        rates=rates,
        callers=peers_of(mesh, (edge for edge, _ in policies)),
    )


def _rate(mesh: Mesh, caller: str, limit: RateLimit) -> RateView:
    rate = limit.of(caller)
    return RateView(
        caller=caller,
        identity=identity_of(mesh, caller),
        requests=rate.requests,
        period_ms=rate.period_ms,
        burst=rate.burst,
    )


def rate_replies(calls: Iterable[ArrivingCall]) -> tuple[RateReply, ...]:
    """What callers beyond their rate are told: one answer for each rate, as an expression that says whom it is for."""
    found: dict[tuple[int, int], dict[str, set[str]]] = {}
    for call in calls:
        for rate in call.rates:
            callers = found.setdefault((rate.requests, rate.period_ms), {})
            callers.setdefault(rate.identity, set()).add(call.path)
    return tuple(_rate_reply(requests, period_ms, found[requests, period_ms]) for requests, period_ms in sorted(found))


def _rate_reply(requests: int, period_ms: int, callers: Mapping[str, set[str]]) -> RateReply:
    retry_ms = max(1, -(-period_ms // requests))
    message = f"more than {requests} calls of this method in {format_duration(period_ms)}"
    whose = " || ".join(
        f"connection.uri_san_peer_certificate == '{caller}' && request.path in {sorted(paths)}"
        for caller, paths in sorted(callers.items())
    )
    return RateReply(
        expression=f"{RATE_LIMITED_EXPRESSION} && ({whose})",
        retry_ms=retry_ms,
        message=message,
        details=exhausted_details(message, retry_ms),
    )


def exhausted_details(message: str, retry_ms: int) -> str:
    """`grpc-status-details-bin` of RESOURCE_EXHAUSTED with RetryInfo (google/rpc/error_details.proto), as base64."""
    delay = Duration()
    delay.FromMilliseconds(retry_ms)
    status = status_pb2.Status(code=RESOURCE_EXHAUSTED, message=message)
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")


def identity_of(mesh: Mesh, caller: str) -> str:
    """The SPIFFE id of a service or of the gateway."""
    if caller == GATEWAY and mesh.gateway is not None:
        return mesh.gateway.identity
    return mesh.service(caller).identity


def peers_of(mesh: Mesh, edges: Iterable[Edge]) -> tuple[str, ...]:
    """Who calls, by SPIFFE id, sorted."""
    return tuple(sorted({identity_of(mesh, edge.caller) for edge in edges}))


def counted(methods: Iterable[Method]) -> tuple[CountedService, ...]:
    """The methods grouped by protobuf service."""
    grouped: dict[str, set[str]] = {}
    for method in methods:
        grouped.setdefault(method.service, set()).add(method.name)
    return tuple(CountedService(name=name, methods=tuple(sorted(grouped[name]))) for name in sorted(grouped))


def limits_of(policy: MethodPolicy) -> Limits:
    """Unary calls are bounded by their deadline alone, streams by their longest life and longest silence."""
    if policy.deadline_ms is not None:
        return Limits(duration_ms=policy.deadline_ms, idle_ms=0, follows_caller=True)
    return Limits(duration_ms=policy.duration_ms_max, idle_ms=policy.idle_timeout_ms or 0, follows_caller=False)


def _call(
    mesh: Mesh,
    placement: Placement,
    edge: Edge,
    policy: MethodPolicy,
    public: set[str],
    roles: Mapping[str, tuple[str, ...]],
) -> CallView:
    method, routing = policy.method, policy.routing
    callee = mesh.service(edge.callee)
    mirror = None
    if routing.mirror_to is not None:
        mirror = MirrorView(cluster=cluster_name(routing.mirror_to), percent=routing.mirror_percent)
    return CallView(
        path=method.path,
        targets=_targets(placement, callee, method, routing),
        authority=authority(edge.callee, mesh.trust_domain),
        limits=limits_of(policy),
        grpc_timeout=_grpc_timeout(limits_of(policy)),
        retry=retry_of(
            policy.retry,
            policy.hedging,
            deadline_ms=policy.deadline_ms,
            is_edge=edge.caller == GATEWAY,
            avoids_zones=len(set(callee.zones)) > 1,
        )
        if _may_repeat(method)
        else None,
        is_public=method.path in public,
        is_stream=method.streaming is not StreamingKind.UNARY,
        mirror=mirror,
        faults=policy.faults,
        session=callee.traffic.session,
        hash_on=_hash_on(policy.hash_on, edge.caller),
        request_headers=headers_view(policy.request_headers),
        response_headers=headers_view(policy.response_headers),
        roles=roles.get(method.path, ()),
    )


def _external_call(mesh: Mesh, edge: Edge, policy: MethodPolicy) -> CallView:
    external, method = mesh.external(edge.callee), policy.method
    host = external.tls.server_name if external.tls is not None else external.host
    cluster = external_name(external.name)
    target = TargetView(name=method.path, clusters=(WeightView(cluster=cluster, weight=1),))
    return CallView(
        path=method.path,
        targets=(target,),
        authority=_authority(host, external.port),
        limits=limits_of(policy),
        grpc_timeout=_grpc_timeout(limits_of(policy)),
        retry=retry_of(policy.retry, policy.hedging, deadline_ms=policy.deadline_ms, is_external=True)
        if _may_repeat(method)
        else None,
        is_public=False,
        is_stream=method.streaming is not StreamingKind.UNARY,
        mirror=None,
        faults=policy.faults,
        session=None,
        hash_on=None,
        request_headers=headers_view(policy.request_headers),
        response_headers=headers_view(policy.response_headers),
        roles=(),
    )


def _authority(host: str, port: int) -> str:
    """Name a host as URLs do: IPv6 in brackets, and no usual port."""
    spelled = f"[{host}]" if ":" in host else host
    return spelled if port == HTTPS_PORT else f"{spelled}:{port}"


def _may_repeat(method: Method) -> bool:
    """A policy on a stream of requests would make the sidecar keep it all for a second attempt."""
    return method.streaming in {StreamingKind.UNARY, StreamingKind.SERVER}


def _targets(placement: Placement, callee: Service, method: Method, routing: Routing) -> tuple[TargetView, ...]:
    """Routes in the order in which they are tried: what a header asks for, then a session, then the split."""
    matched = tuple(
        TargetView(
            name=f"{method.path} to {match.to} ({number})",
            headers=tuple(HeaderMatch(name=name, value=value) for name, value in match.headers),
            clusters=(WeightView(cluster=cluster_name(match.to), weight=1),),
        )
        for number, match in enumerate(routing.matches)
    )
    split = routing.split or ((callee.name, 1),)
    if len(split) == 1:
        clusters = (WeightView(cluster=cluster_name(split[0][0]), weight=1),)
        return (*matched, TargetView(name=method.path, clusters=clusters))
    return (*matched, *_split(placement, callee.traffic.session, method, split))


def _split(
    placement: Placement, session: Session | None, method: Method, split: tuple[tuple[str, int], ...]
) -> tuple[TargetView, ...]:
    """A version of which no replica is in rotation has no share: its calls go to the others."""
    running = {
        name: tuple(replica.inbound for replica in placement.of_service(name) if replica.in_rotation)
        for name, _ in split
    }
    is_up = any(running.values())
    clusters = tuple(
        WeightView(cluster=cluster_name(name), weight=weight if running[name] or not is_up else 0)
        for name, weight in split
    )
    sessions = tuple(
        TargetView(
            name=f"{method.path} in a session of {name}",
            session=session_pattern(session, addresses),
            clusters=(WeightView(cluster=cluster_name(name), weight=1),),
        )
        for name, addresses in running.items()
        if session is not None and addresses
    )
    return (*sessions, TargetView(name=method.path, clusters=clusters))


def _hash_on(hash_on: HashOn | None, caller: str) -> HashView | None:
    if hash_on is None:
        return None
    match hash_on.kind:
        case HashKind.HEADER:
            return HashView(header=hash_on.name)
        case HashKind.FIELD:
            return HashView(header=HASH_HEADER, field=hash_on.name)
        case HashKind.COOKIE:
            # Envoy makes a cookie of the client's address. All calls of an application have the same one, and would all go to
            # one replica.
            return HashView(cookie=hash_on.name, ttl_ms=hash_on.ttl_ms if caller == GATEWAY else None)
        case HashKind.SOURCE:
            return HashView(source=True)


def headers_view(changes: HeaderChanges) -> HeadersView:
    """Translate header changes; Envoy's formatter reads `%` as the begin of a variable."""
    actions = ((changes.set, "OVERWRITE_IF_EXISTS_OR_ADD"), (changes.add, "APPEND_IF_EXISTS_OR_ADD"))
    written = tuple(
        HeaderView(name=name, value=value.replace("%", "%%"), action=action)
        for headers, action in actions
        for name, value in headers
    )
    return HeadersView(written=written, removed=changes.remove)


def _grpc_timeout(limits: Limits) -> str | None:
    """When the service should end a stream; of unary calls Envoy itself tells it the deadline."""
    if limits.follows_caller or limits.duration_ms is None:
        return None
    farewell_ms = min(FAREWELL_MS_MAX, limits.duration_ms // FAREWELL_DIVISOR)
    return f"{min(limits.duration_ms - farewell_ms, GRPC_TIMEOUT_MS_MAX)}m"


def _most_generous(one: Limits, other: Limits) -> Limits:
    """None and 0 mean no bound."""
    durations = (one.duration_ms, other.duration_ms)
    idles = (one.idle_ms, other.idle_ms)
    return Limits(
        duration_ms=None if None in durations else max(value for value in durations if value is not None),
        idle_ms=0 if 0 in idles else max(idles),
        follows_caller=one.follows_caller,
    )
