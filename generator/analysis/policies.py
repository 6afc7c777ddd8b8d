"""Checks of traffic settings against the methods that they are about: what a protobuf does not allow is refused, with the line."""

from __future__ import annotations

from collections.abc import Iterable

from generator.analysis.verdicts import Misfit, Verdicts
from generator.manifest.finding import Reporter, quoted
from generator.model import Idempotency, Method, RetryCondition, StreamingKind, defaults
from generator.model.links import Layer, Level, Links, Written, is_deliberate

ONE_REQUEST = frozenset({StreamingKind.UNARY, StreamingKind.SERVER})
STREAM_OF_REQUESTS = "its client streams: a repetition would have to keep and send again all that was sent before"


def check_policies(links: Links, reporter: Reporter) -> None:
    """Report every setting that fits none of the methods that it was written for."""
    _check_layers(((method, layer) for (_, method), layer in links.layers.methods.items()), reporter)
    edges = links.layers.edge_methods.items()
    _check_layers(
        ((method, _with_leave(layer, links, callee, method)) for (_, callee, method), layer in edges), reporter
    )


def _with_leave(layer: Layer, links: Links, callee: str, method: Method) -> Layer:
    """An edge's layer without what is no misfit because of what the service says; `check_edges` sees to its limits."""
    base = links.layers.methods.get((callee, method), {})
    allowed = {"retries.on"} if is_deliberate(base, "retries.on") else set()
    if not _has_no_condition(method, base):
        allowed |= {"retries.attempts", "retries.backoff"} if method.streaming is StreamingKind.SERVER else set()
    return {path: written for path, written in layer.items() if path not in allowed}


def _check_layers(layers: Iterable[tuple[Method, Layer]], reporter: Reporter) -> None:
    verdicts = Verdicts()
    for method, layer in layers:
        for path, written in layer.items():
            verdict = misfit(path, written, method, layer)
            verdicts.add(path, written.position, verdict if _is_asked_for(written.level, verdict) else None)
    verdicts.report(reporter)


def _is_asked_for(level: Level, misfit: Misfit | None) -> bool:
    """Whether a setting that fits nothing was meant for these methods: what holds for a whole service may fit no stream."""
    if misfit is None or level is Level.MESH:
        return False
    return level in {Level.WILDCARD, Level.METHOD} or misfit.code in {"NM505", "NM506"}


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
    if path in {"retries.on", "retries.attempts", "retries.per_try_timeout", "retries.backoff"}:
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
    if path in {"retries.attempts", "retries.backoff"} and asks and _has_no_condition(method, layer):
        cause = "streams are repeated only on the conditions that their own `on` names, and there is none"
        return Misfit(code="NM508", message=f"{name} is not repeated", cause=cause, fix="add `on: [not_delivered]`")
    if path == "retries.per_try_timeout" and method.streaming is not StreamingKind.UNARY:
        cause = "it streams: the limit of an attempt would cut the stream off"
        return Misfit(code="NM503", message="a limit of an attempt on a stream", cause=cause, fix="remove it")
    if is_deliberate(layer, path) or defaults.may_run_twice(method):
        return None
    if path == "retries.per_try_timeout" or (
        path == "retries.on" and conditions(written) - defaults.repeatable(method)
    ):
        cause = "its idempotency_level is unset: an attempt that was seen may have done its work, and would do it twice"
        fix = (
            "set `option idempotency_level = IDEMPOTENT` in the .proto if it may run twice, or write `unsafe: <reason>`"
        )
        return Misfit(code="NM505", message=f"{name} must not be repeated then", cause=cause, fix=fix)
    return None


def _has_no_condition(method: Method, layer: Layer) -> bool:
    on = layer.get("retries.on")
    return method.streaming is StreamingKind.SERVER and (on is None or on.level is not Level.METHOD)


def conditions(written: Written) -> frozenset[RetryCondition]:
    """The conditions that `retries.on` names."""
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
