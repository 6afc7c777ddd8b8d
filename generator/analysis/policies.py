"""Checks of traffic settings against the methods that they are about: what a protobuf does not allow is refused, with the line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from generator.manifest.finding import Position, Reporter, quoted
from generator.manifest.kinds import format_duration
from generator.model import Edge, Idempotency, Mesh, Method, RetryCondition, StreamingKind, defaults
from generator.model.links import Layer, Level, Links, Written, is_deliberate

ONE_REQUEST = frozenset({StreamingKind.UNARY, StreamingKind.SERVER})
STREAM_OF_REQUESTS = "its client streams: a repetition would have to keep and send again all that was sent before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Why a setting is nothing for a method."""

    code: str
    message: str
    cause: str
    fix: str


def check_policies(links: Links, reporter: Reporter) -> None:
    """Report every setting that fits none of the methods that it was written for."""
    of_edges = {(callee, method): layer for (_, callee, method), layer in links.layers.edge_methods.items()}
    for layers in (links.layers.methods, of_edges):
        _check_layers(layers, reporter)


def _check_layers(layers: Mapping[tuple[str, Method], Layer], reporter: Reporter) -> None:
    verdicts: dict[tuple[str, Position], list[Misfit | None]] = {}
    levels: dict[tuple[str, Position], Level] = {}
    for (_, method), layer in layers.items():
        for path, written in layer.items():
            key = (path, written.position)
            verdicts.setdefault(key, []).append(misfit(path, written, method, layer))
            levels[key] = written.level
    for key, found in verdicts.items():
        first = next((each for each in found if each is not None), None)
        if first is None or None in found or not _is_asked_for(levels[key], first):
            continue
        reporter.report(first.code, key[1], first.message, cause=first.cause, fix=first.fix)


def _is_asked_for(level: Level, misfit: Misfit) -> bool:
    """Whether a setting that fits nothing was meant for these methods: what holds for a whole mesh may fit no stream."""
    return level in {Level.WILDCARD, Level.METHOD} or (level is Level.SERVICE and misfit.code in {"NM505", "NM506"})


def misfit(path: str, written: Written, method: Method, layer: Layer) -> Misfit | None:
    """Say why a setting is nothing for this method; None when it fits."""
    is_unary = method.streaming is StreamingKind.UNARY
    if path == "deadline" and not is_unary:
        cause = "it streams: a deadline would cut it off in the middle"
        fix = "write `idle_timeout`, the longest silence"
        return Misfit(code="NM503", message="a deadline on a stream", cause=cause, fix=fix)
    if path in {"idle_timeout", "max_stream_duration"} and is_unary:
        what = "an idle timeout" if path == "idle_timeout" else "a stream's duration"
        cause = "it is a unary call: one request, one response, no silence in between"
        return Misfit(code="NM503", message=f"{what} on a unary call", cause=cause, fix="write `deadline`")
    if path == "max_request_bytes" and method.streaming not in ONE_REQUEST:
        cause = "its client streams: the sidecar does not count single messages of a stream"
        fix = "bound the messages in the application"
        return Misfit(code="NM507", message="a limit on a stream of requests", cause=cause, fix=fix)
    if path in {"retries.on", "retries.attempts", "retries.per_try_timeout"}:
        return _retry_misfit(path, written, method, layer)
    if path in {"hedging", "routing.mirror"}:
        return _copy_misfit(path, method, layer)
    return None


def _retry_misfit(path: str, written: Written, method: Method, layer: Layer) -> Misfit | None:
    name = quoted(f"{method.service}/{method.name}")
    asks = path != "retries.attempts" or written.value > 0
    if method.streaming not in ONE_REQUEST and asks:
        return Misfit(
            code="NM507", message=f"{name} is never repeated", cause=STREAM_OF_REQUESTS, fix="remove `retries`"
        )
    if path == "retries.per_try_timeout" and method.streaming is not StreamingKind.UNARY:
        cause = "it streams: the limit of an attempt would cut the stream off"
        return Misfit(code="NM503", message="a limit of an attempt on a stream", cause=cause, fix="remove it")
    if is_deliberate(layer, path) or defaults.may_run_twice(method):
        return None
    if path == "retries.per_try_timeout" or (
        path == "retries.on" and _conditions(written) - defaults.repeatable(method)
    ):
        cause = "its idempotency_level is unset: an attempt that was seen may have done its work, and would do it twice"
        fix = (
            "set `option idempotency_level = IDEMPOTENT` in the .proto if it may run twice, or write `unsafe: <reason>`"
        )
        return Misfit(code="NM505", message=f"{name} must not be repeated then", cause=cause, fix=fix)
    return None


def _conditions(written: Written) -> frozenset[RetryCondition]:
    return frozenset(RetryCondition(word.value) for word in written.value)


def _copy_misfit(path: str, method: Method, layer: Layer) -> Misfit | None:
    name, doing = quoted(f"{method.service}/{method.name}"), "hedged" if path == "hedging" else "mirrored"
    if method.streaming not in ONE_REQUEST:
        return Misfit(
            code="NM507", message=f"{name} is never {doing}", cause=STREAM_OF_REQUESTS, fix=f"remove `{path}`"
        )
    if method.streaming is StreamingKind.SERVER:
        cause = "it streams: its answer begins and does not end, and the slower copy cannot be told from the faster"
        if path == "routing.mirror":
            cause = "it streams: when the caller leaves nobody ends the copy, which holds its place at the version"
        message = "hedging of a stream" if path == "hedging" else "a mirrored stream"
        return Misfit(code="NM503", message=message, cause=cause, fix=f"remove `{path}`")
    if is_deliberate(layer, path) or defaults.may_run_beside(method):
        return None
    level = "is unset" if method.idempotency is Idempotency.UNKNOWN else f"is {method.idempotency.value}"
    cause = f"its idempotency_level {level}: two copies that run at the same time may both leave something behind"
    fix = "set `option idempotency_level = NO_SIDE_EFFECTS` in the .proto if it only reads, or write `unsafe: <reason>`"
    return Misfit(code="NM506", message=f"{name} must not be {doing}", cause=cause, fix=fix)


LOOSER = {
    "deadline": "deadline_ms",
    "idle_timeout": "idle_timeout_ms",
    "max_stream_duration": "duration_ms_max",
}
BREAKERS = {
    "circuit_breaker.max_connections": "connections_max",
    "circuit_breaker.max_pending_requests": "pending_requests_max",
    "circuit_breaker.max_requests": "requests_max",
    "circuit_breaker.max_streams": "streams_max",
}


def check_edges(mesh: Mesh, links: Links, reporter: Reporter) -> None:
    """Report what a caller asks for beyond what the service allows; it may only be stricter."""
    edges = [edge for service in mesh.services for edge in (*service.calls, *service.external_calls)]
    edges += list(mesh.gateway.exposes) if mesh.gateway is not None else []
    loose: dict[tuple[str, Position], list[str | None]] = {}
    for edge in edges:
        for path, position, allowed in _excesses(edge, mesh, links):
            loose.setdefault((path, position), []).append(allowed)
    for (path, position), found in loose.items():
        if None in found:
            continue
        cause = f"the service allows {found[0]}; a caller may be stricter, never looser"
        fix = "write a smaller value, or raise it in the `traffic` of the service"
        reporter.report("NM510", position, f"`{path}` is looser than the service allows", cause=cause, fix=fix)


def _excesses(edge: Edge, mesh: Mesh, links: Links) -> Iterator[tuple[str, Position, str | None]]:
    """(path, place, what is allowed) of each setting of an edge; None where the setting is within its limit."""
    for policy in edge.methods:
        layer = links.layers.edge_methods.get((edge.caller, edge.callee, policy.method), {})
        yield from _method_excesses(layer, policy.method, links, edge.callee, mesh)
    layer = links.layers.edges.get((edge.caller, edge.callee), {})
    limit = _limits_of(mesh, edge.callee)
    for path, name in BREAKERS.items():
        if path in layer and limit is not None:
            allowed: int = getattr(limit, name)
            yield path, layer[path].position, str(allowed) if layer[path].value > allowed else None


def _limits_of(mesh: Mesh, callee: str) -> object | None:
    """The circuit breaker of a service; hosts outside have none but their callers'."""
    try:
        return mesh.service(callee).traffic.circuit_breaker
    except KeyError:
        return None


def _method_excesses(
    layer: Layer, method: Method, links: Links, callee: str, mesh: Mesh
) -> Iterator[tuple[str, Position, str | None]]:
    base = links.layers.methods.get((callee, method), {})
    for path in LOOSER.keys() & layer.keys():
        if misfit(path, layer[path], method, layer) is not None:
            continue
        allowed = _allowed_ms(path, base, method, mesh)
        too_long = allowed is not None and layer[path].value > allowed
        yield path, layer[path].position, format_duration(allowed) if too_long and allowed is not None else None
    yield from _retry_excesses(layer, base, method)


def _allowed_ms(path: str, base: Layer, method: Method, mesh: Mesh) -> int | None:
    if path in base:
        return int(base[path].value)
    if path == "deadline":
        return defaults.deadline_ms(method).value
    if path == "idle_timeout":
        return defaults.idle_timeout_ms(method).value
    return defaults.stream_duration_ms_max(method, mesh.certificate_lifetime_ms).value


def _retry_excesses(layer: Layer, base: Layer, method: Method) -> Iterator[tuple[str, Position, str | None]]:
    if "retries.on" not in layer:
        return
    allowed = _conditions(base["retries.on"]) if "retries.on" in base else defaults.retry_conditions(method).value
    if not is_deliberate(base, "retries.on"):
        allowed = allowed & defaults.repeatable(method)
    more = _conditions(layer["retries.on"]) - allowed
    words = ", ".join(sorted(condition.value for condition in allowed)) or "no repetition"
    yield "retries.on", layer["retries.on"].position, words if more else None
