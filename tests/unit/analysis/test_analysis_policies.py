"""Every finding about traffic, at its place: what does not fit, does not go together, or means nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from generator.analysis import Analysis, Overrides
from generator.manifest import Finding, Severity

Checker = Callable[..., Analysis]
MARK = "«"
"""Stands before what the finding must point at."""
USUAL = {"NM406", "NM410", "NM502"}
"""What this manifest has anyway."""
TEXT = """\
mesh: shop
protos: [protos]
{top}
services:
  stock:
    run: stock
    serves: [StockService]
    calls: {{orders: {{methods: [shop.v1.OrderService/GetOrder, shop.v1.OrderService/BuyOrder,
      shop.v1.OrderService/WatchOrders], traffic: {{{edge}}}}}}}
    {stock}
  orders:
    run: orders
    serves: [shop.v1.OrderService{served}]
    {orders}
    traffic: {{{traffic}}}
  orders-next: {{run: next, version_of: orders, replicas: 1{next}}}
gateway:
  expose: {{stock: [StockService/Reserve], orders: {{methods: [shop.v1.OrderService/*], traffic: {{{exposed}}}}}{more}}}
"""
S, ADMIN = "shop.v1.OrderService", "AdminService"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is written where, and what is said about it."""

    code: str
    cause: str
    fix: str = ""
    severity: Severity = Severity.ERROR
    at: dict[str, str] = field(default_factory=dict)


def case(code: str, cause: str, fix: str = "", **at: str) -> Case:
    return Case(code=code, cause=cause, fix=fix, at=at)


def warning(code: str, cause: str, fix: str = "", **at: str) -> Case:
    return Case(code=code, cause=cause, fix=fix, severity=Severity.WARNING, at=at)


def method(name: str, settings: str) -> str:
    return f"methods: {{{S}/{name}: {{{settings}}}}}"


EXTERNAL = "external: {{rates: {{address: '{address}'{more}}}}}"


def external(more: str = ", serves: [other.v1.OrderService]", address: str = "rates.example.org:443") -> str:
    return EXTERNAL.format(address=address, more=more)


CASES: dict[str, Case] = {
    "version-that-is-none": case("NM317", "it is neither `orders` nor a service with `version_of: orders`",
        "did you mean `orders-next`?", traffic="routing: {split: {orders: 1, «orders-nex: 1}}"),
    "version-of-nothing": case("NM317", "no service of this name", "`orders`",
        stock="traffic: {deadline: 9s}\n  lost: {run: lost, version_of: «orderz}"),
    "version-of-a-version": case("NM317", "it is a version itself", "orders",
        stock="traffic: {deadline: 9s}\n  lost: {run: lost, version_of: «orders-next}"),
    "version-that-serves": case("NM317", "a version has the `serves` of `orders`", "remove", next=", serves: [«StockService]"),
    "version-that-calls": case("NM317", "a version has the `calls` of `orders`", "remove",
        next=", calls: {«stock: [StockService/Count]}"),
    "version-with-traffic": case("NM317", "callers treat all versions of `orders` alike", "`traffic` of `orders`",
        next=", traffic: «{deadline: 1s}"),
    "version-that-is-exposed": case("NM317", "it is a version of `orders`", "write `orders`",
        more=", «orders-next: [shop.v1.OrderService/GetOrder]"),
    "version-that-is-called": case("NM317", "it is a version of `orders`", "write `orders`",
        orders="calls: {«orders-next: [shop.v1.OrderService/GetOrder]}"),
    "mirror-to-a-stranger": case("NM317", "neither `orders`", traffic=method("GetOrder", "routing: {mirror: {to: «stock}}")),
    "routing-without-versions": case("NM317", "neither `stock`",
        stock="traffic: {methods: {StockService/Count: {routing: {split: {«nobody: 1}}}}}"),
    "repeating-what-is-not-idempotent": case("NM505", "idempotency_level is unset", "unsafe: <reason>",
        traffic=method("BuyOrder", "retries: {on: [«reset]}")),
    "limiting-attempts-of-it": case("NM505", "idempotency_level is unset", "IDEMPOTENT",
        traffic=method("BuyOrder", "retries: {per_try_timeout: «1s}")),
    "repeating-on-an-edge": case("NM505", "idempotency_level is unset", "",
        edge=method("BuyOrder", "retries: {on: [«unavailable]}")),
    "unsafe-closer-than-the-setting": case("NM505", "idempotency_level is unset", "",
        traffic=f"methods: {{{S}/*: {{retries: {{on: [not_delivered]}}}}, {ADMIN}/*: {{retries: {{on: [«reset]}}}}, "
        f"{ADMIN}/Purge: {{unsafe: it is idempotent}}}}", served=", AdminService"),
    "hedging-what-writes": case("NM506", "is IDEMPOTENT", "NO_SIDE_EFFECTS", traffic=method("PutOrder", "hedging: «{delay: 100ms}")),
    "mirroring-what-writes": case("NM506", "is unset", "unsafe: <reason>",
        traffic=method("BuyOrder", "routing: {mirror: «{to: orders-next}}")),
    "repeating-a-stream-of-requests": case("NM507", "its client streams", "remove", traffic=method("Upload", "retries: {attempts: «2}")),
    "pauses-of-a-stream-of-requests": case("NM507", "its client streams", "remove",
        traffic=method("Chat", "retries: {backoff: «{base: 1s}}")),
    "mirroring-a-stream-of-requests": case("NM507", "its client streams", "remove",
        traffic=method("Chat", "routing: {mirror: «{to: orders-next}}")),
    "size-of-a-stream-of-requests": case("NM507", "its client streams", "application",
        traffic=method("Upload", "max_request_bytes: «10")),
    "hedging-a-stream": case("NM503", "it streams", "remove", traffic=method("WatchOrders", "hedging: «{delay: 1s}")),
    "attempts-of-a-stream-without-condition": case("NM508", "only on the conditions", "not_delivered",
        traffic=method("WatchOrders", "retries: {attempts: «2}")),
    "attempt-longer-than-the-call": case("NM508", "the whole call ends after 1s (line 15)", "longer `deadline`",
        traffic="deadline: 1s, " + method("GetOrder", "retries: {per_try_timeout: «1s}")),
    "attempt-longer-than-the-default": case("NM508", "the whole call ends after 10s: no attempt", "",
        traffic=method("GetOrder", "retries: {per_try_timeout: «15s}")),
    "hedging-after-the-end": case("NM508", "no second attempt ever begins", "",
        traffic="deadline: 1s, " + method("GetOrder", "hedging: {delay: «2s}")),
    "pause-longer-than-the-call": case("NM508", "no other attempt ever begins", "",
        traffic="deadline: 1s, retries: {backoff: {base: «1m}}"),
    "attempt-of-an-edge-longer-than-the-call": case("NM508", "the whole call ends after 1s", "",
        edge="deadline: 1s, " + method("GetOrder", "retries: {per_try_timeout: «2s}")),
    "longest-pause-of-the-mesh-below-the-first": case("NM509", "the first pause is 5s, the longest 100ms", "",
        top="traffic: {retries: {backoff: {max: 100ms}}}", traffic="retries: {backoff: {base: «5s}}"),
    "longest-pause-of-a-method-below-the-first": case("NM509", "the first pause is 5s, the longest 1s", "longer `max`",
        traffic="retries: {backoff: {base: 5s}}, " + method("GetOrder", "retries: {backoff: {max: «1s}}")),
    "longest-pause-below-the-default": case("NM509", "the first pause is 25ms", "", traffic="retries: {backoff: {max: «10ms}}"),
    "limit-beside-hedging": case("NM509", "the first answer wins", "keep one",
        traffic=method("GetOrder", "hedging: {delay: 10ms}, retries: {per_try_timeout: «1s}")),
    "faults-without-a-fault": case("NM508", "neither `delay` nor `abort`", "remove", traffic="faults: «{headers: {a: b}}"),
    "faults-of-an-edge-without-a-fault": case("NM508", "neither `delay` nor `abort`", "", edge="faults: «{}"),
    "rule-that-never-fits": case("NM508", "the first one wins", "move it up",
        traffic="routing: {match: [{headers: {a: b}, to: orders-next}, «{headers: {a: b, c: d}, to: orders}]}"),
    "more-weights-than-replicas": warning("NM508", "there are 2 replicas", "nipmesh scale",
        traffic="load_balancing: {weights: [1, 2, «3, 4]}"),
    "weights-of-random": case("NM508", "random does not look at them", "another `policy`",
        top="traffic: {load_balancing: {policy: random}}", traffic="load_balancing: {weights: [«1, 2]}"),
    "zone-twice": case("NM508", "taken already", "keep one", top="zones: [east, west]",
        traffic="load_balancing: {failover: [west, «west]}"),
    "zone-of-others": case("NM508", "no replica of `orders` is in it", "east", top="zones: [east]", stock="zones: [west]",
        traffic="load_balancing: {failover: [«west]}"),
    "unknown-zone": case("NM512", "neither the mesh nor a service", "did you mean `east`?", top="zones: [east]",
        traffic="load_balancing: {failover: [«eas]}"),
    "unsafe-without-need": warning("NM508", "nothing as close", "remove it",
        traffic=method("GetOrder", "hedging: {delay: 10ms}, unsafe: «it only reads")),
    "unsafe-alone": warning("NM508", "nothing as close", "", traffic=method("BuyOrder", "unsafe: «it is idempotent")),
    "method-not-of-the-edge": case("NM508", "`stock` may not call it at all", "GetOrder",
        edge=f"methods: {{«{S}/PutOrder: {{deadline: 1s}}}}"),
    "traffic-of-bytes": case("NM508", "bytes pass as they are", "serves",
        top=external(", traffic: «{deadline: 1s}"), stock="external: [rates]"),
    "nothing-to-hash": case("NM509", "nothing says what is compared", "hash_on", traffic="load_balancing: {policy: «maglev}"),
    "hash-without-a-hashing-policy": case("NM509", "least_request hashes nothing", "maglev",
        traffic="load_balancing: {hash_on: «{header: a}}"),
    "two-things-to-hash": case("NM509", "it names header and field", "keep one",
        traffic="load_balancing: {policy: maglev, hash_on: «{header: a, field: id}}"),
    "slow-start-of-maglev": case("NM509", "least_request and round_robin only", "",
        traffic="load_balancing: {policy: maglev, hash_on: {header: a}, slow_start: «10s}"),
    "session-of-nothing": case("NM509", "by exactly one of them", "", traffic="session_persistence: «{}"),
    "session-beside-hashing": warning("NM509", "whatever the hash says", "keep one",
        traffic="load_balancing: {policy: maglev, hash_on: {header: a}}, session_persistence: «{header: b}"),
    "split-of-nothing": case("NM509", "all weights are 0", "weight", traffic="routing: {split: {«orders: 0}}"),
    "mirror-of-itself": case("NM509", "`orders` has the call itself", "orders-next",
        traffic=method("GetOrder", "routing: {mirror: {to: «orders}}")),
    "streams-beyond-certificates": case("NM509", "a quarter of the certificates' lifetime is 15m", "certificates.lifetime",
        traffic="max_stream_duration: «1h"),
    "concurrency-upside-down": case("NM509", "at least as large as `min_concurrency`", "",
        traffic="adaptive_concurrency: {min_concurrency: 10, max_concurrency: «5}"),
    "ejection-upside-down": case("NM509", "the first ejection lasts 1m", "",
        traffic="outlier_detection: {base_ejection_time: 1m, max_ejection_time: «5s}"),
    "header-set-and-removed": case("NM509", "`set` names it, too", "", traffic="headers: {request: {set: {a: b}, remove: [«a]}}"),
    "header-set-and-added": case("NM509", "`set` names it, too", "", traffic="headers: {response: {set: {a: b}, add: {«a: c}}}"),
    "deadline-of-an-edge": case("NM510", "the service allows 2s", "stay within", traffic="deadline: 2s", edge="deadline: «3s"),
    "deadline-of-the-gateway": case("NM510", "the service allows 10s", "", exposed="deadline: «11s"),
    "silence-of-an-edge": case("NM510", "the service allows 5m", "", edge=method("WatchOrders", "idle_timeout: «6m")),
    "attempts-of-an-edge": case("NM510", "the service allows 3 more attempts", "", edge="retries: {attempts: «4}"),
    "conditions-of-an-edge": case("NM510", "the service allows not_delivered", "",
        traffic="retries: {on: [not_delivered]}", edge=method("GetOrder", "retries: {on: [«not_delivered, reset]}")),
    "limit-of-attempts-of-an-edge": case("NM510", "the service allows 1s", "",
        traffic=method("GetOrder", "retries: {per_try_timeout: 1s}"), edge=method("GetOrder", "retries: {per_try_timeout: «2s}")),
    "pause-of-an-edge": case("NM510", "25ms or longer", "", edge="retries: {backoff: {base: «5ms, max: 1s}}"),
    "bulkhead-of-an-edge": case("NM510", "the service allows 2048", "", edge="circuit_breaker: {max_requests: «4000}"),
    "bulkhead-towards-a-host": case("NM510", "the service allows 1024", "", top=external(),
        orders="calls: {rates: {methods: [other.v1.OrderService/Another], traffic: {circuit_breaker: {max_requests: «2000}}}}"),
    "no-such-field": case("NM511", "no request of a unary or server-streaming method", "protobuf name",
        traffic="load_balancing: {policy: maglev, hash_on: {field: «nothing}}"),
    "no-such-field-in-the-whole-mesh": case("NM511", "no request of", "",
        top="traffic: {load_balancing: {policy: maglev, hash_on: {field: «nothing}}}"),
    "reserved-header": case("NM513", "identities are forged", "another header",
        traffic="headers: {request: {set: {«x-nipmesh-subject: eve}}}"),
    "reserved-header-of-grpc": case("NM513", "calls break", "", traffic="headers: {response: {remove: [«grpc-status]}}"),
    "rule-on-a-header-that-never-arrives": case("NM513", "take it away", "",
        traffic="routing: {match: [{headers: {«x-envoy-original-path: a}, to: orders-next}]}"),
    "faults-on-a-header-that-never-arrives": case("NM513", "take it away", "",
        edge="faults: {abort: {code: INTERNAL}, headers: {«x-nipmesh-a: b}}"),
    "hash-of-a-header-that-never-arrives": case("NM513", "take it away", "",
        traffic="load_balancing: {policy: maglev, hash_on: {header: «x-nipmesh-hash}}"),
    "session-in-a-reserved-header": case("NM513", "identities are forged", "", traffic="session_persistence: {header: «x-envoy-a}"),
    "unknown-caller": case("NM514", "does not call `orders`", "did you mean `stock`?",
        traffic="rate_limit: {requests: 1, callers: {«stok: {requests: 2}}}"),
    "caller-of-other-methods": case("NM514", "not such a method of it", "gateway",
        traffic=method("PutOrder", "rate_limit: {requests: 1, callers: {«stock: {requests: 2}}}")),
    "caller-of-nothing-in-the-mesh": case("NM514", "does not call", "",
        top="traffic: {rate_limit: {requests: 1, callers: {«nobody: {requests: 2}}}}"),
    "host-with-the-name-of-a-service": case("NM316", "a service has this name", "another name",
        top="external: {«stock: {address: 'stock.example.org:443'}}"),
    "host-that-is-not-there": case("NM318", "`external` has no such host", "", top=external(""),
        stock="external: [rates, «rate]"),
    "host-that-speaks-grpc": case("NM318", "its methods belong into `calls`", "", top=external(),
        stock="external: [«rates]", orders="calls: {rates: [other.v1.OrderService/Another]}"),
    "host-that-speaks-no-grpc": case("NM318", "it speaks something else than gRPC", "", top=external(""),
        orders="calls: {«rates: [OrderService/Another]}", stock="external: [rates]"),
    "host-in-the-clear": warning("NM318", "whoever is on the way", "", top=external(", plaintext: «it is on this machine"),
        stock="external: [rates]"),
    "host-twice": case("NM309", "the list has it already", "keep one", top=external(""), stock="external: [rates, «rates]"),
    "host-of-nobody": warning("NM310", "every connection to it is denied", "remove it",
        top="external: {«rates: {address: 'rates.example.org:443'}}"),
    "tls-and-plaintext": case("NM509", "no TLS is spoken", "keep one",
        top=external(", plaintext: it is on this machine, tls: «{server_name: a.org}"), stock="external: [rates]"),
    "authorities-that-are-missing": case("NM601", "No such file", "", top=external(", tls: {ca: «none.crt}"), stock="external: [rates]"),
    "port-out-of-range": case("NM107", "not between 1 and 65535", "", top="external: {rates: {address: «'a.org:99999'}}",
        stock="external: [rates]"),
}  # fmt: skip


def manifest(at: dict[str, str]) -> str:
    slots = dict.fromkeys(("top", "edge", "stock", "orders", "traffic", "next", "exposed", "more", "served"), "")
    assert set(at) <= set(slots)
    return TEXT.format(**slots | at)


def place(text: str) -> tuple[int, int]:
    """Line and column of the mark."""
    before, _, _ = text.partition(MARK)
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def unusual(analysis: Analysis) -> list[Finding]:
    return [finding for finding in analysis.findings if finding.code not in USUAL]


@pytest.mark.parametrize("name", CASES)
def test_a_finding_stands_at_its_place_with_cause_and_fix(check: Checker, name: str) -> None:
    expected = CASES[name]
    text = manifest(expected.at)
    assert text.count(MARK) == 1
    analysis = check(text=text.replace(MARK, ""))
    found = [finding for finding in unusual(analysis) if (finding.line, finding.column) == place(text)]
    assert [finding.code for finding in found] == [expected.code], [str(each) for each in analysis.findings]
    assert expected.cause in found[0].cause
    assert expected.fix in found[0].fix
    assert found[0].severity is expected.severity
    assert (analysis.mesh is None) is (expected.severity is Severity.ERROR)


def test_the_manifest_itself_has_none_of_them(check: Checker) -> None:
    assert unusual(check(text=manifest({}))) == []


FINE: dict[str, dict[str, str]] = {
    "session-across-versions": {"traffic": "session_persistence: {header: b}, routing: {split: {orders: 1, orders-next: 1}}"},
    "wide-deadline-beside-streams": {"traffic": "deadline: 1s, idle_timeout: 1m"},
    "wide-retries-beside-what-must-not-run-twice": {"traffic": "retries: {on: [not_delivered, reset], per_try_timeout: 1s}"},
    "wide-hedging-of-the-mesh": {"top": "traffic: {hedging: {delay: 50ms}}"},
    "attempts-of-the-mesh-longer-than-one-deadline": {
        "top": "traffic: {retries: {per_try_timeout: 2s}}", "traffic": method("GetOrder", "deadline: 1s")},
    "hedging-of-one-method-over-wide-limits": {
        "traffic": "retries: {per_try_timeout: 1s}, " + method("GetOrder", "hedging: {delay: 100ms}")},
    "policy-of-the-mesh-overruled": {
        "top": "traffic: {load_balancing: {policy: maglev, hash_on: {header: a}, weights: [1, 2, 3, 4]}}",
        "traffic": "load_balancing: {policy: round_robin}"},
    "field-that-only-some-services-have": {
        "top": "traffic: {load_balancing: {policy: maglev, hash_on: {field: id}}}"},
    "slow-start-of-the-mesh-overruled": {
        "top": "traffic: {load_balancing: {slow_start: 10s}}",
        "traffic": "load_balancing: {policy: maglev, hash_on: {header: a}}"},
    "callers-of-the-mesh-where-they-call": {
        "top": "traffic: {rate_limit: {requests: 5, callers: {stock: {requests: 2}}}}"},
    "unsafe-that-is-needed": {"traffic": method("BuyOrder", "retries: {on: [reset]}, unsafe: it is idempotent by id")},
    "unsafe-of-a-service-covers-its-methods": {
        "traffic": "unsafe: everything here is idempotent, " + method("BuyOrder", "hedging: {delay: 1s}")},
    "edge-within-what-a-service-does-deliberately": {
        "traffic": method("BuyOrder", "retries: {on: [not_delivered, reset]}, unsafe: it is idempotent by id"),
        "edge": method("BuyOrder", "retries: {on: [reset]}")},
    "edge-of-a-stream-that-its-service-repeats": {
        "traffic": method("WatchOrders", "retries: {on: [not_delivered]}"),
        "edge": method("WatchOrders", "retries: {attempts: 1}")},
    "edge-wider-than-one-of-its-methods": {
        "traffic": "deadline: 5s, " + method("GetOrder", "deadline: 1s"), "edge": "deadline: 3s"},
    "edge-that-waits-longer": {"edge": "retries: {backoff: {base: 100ms, max: 5s}}"},
    "mirror-beside-the-version": {
        "traffic": method("GetOrder", "routing: {split: {orders-next: 1}, mirror: {to: orders}}")},
    "user-as-the-hash": {"traffic": "load_balancing: {policy: maglev, hash_on: {header: x-nipmesh-subject}}"},
    "zones-that-stand-twice-hold-more-replicas": {"top": "zones: [east, east, west]"},
    "wildcard-over-methods-that-differ": {"traffic": method("*", "deadline: 1s, idle_timeout: 1m, retries: {on: [reset]}")},
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_is_sound_is_not_complained_about(check: Checker, name: str) -> None:
    analysis = check(text=manifest(FINE[name]))
    assert unusual(analysis) == []
    assert analysis.mesh is not None


def test_two_callers_misfits_are_both_found(check: Checker) -> None:
    """The settings of one caller hid those of another one for the same method."""
    bad = method("BuyOrder", "retries: {on: [unavailable]}")
    found = unusual(check(text=manifest({"edge": bad, "exposed": bad})))
    assert [(finding.code, finding.line) for finding in found] == [("NM505", 9), ("NM505", 18)]


def test_more_replicas_by_the_command_line_may_have_the_weights(check: Checker) -> None:
    text = manifest({"traffic": "load_balancing: {weights: [1, 2, 3]}"})
    assert [finding.code for finding in unusual(check(text=text))] == ["NM508"]
    assert unusual(check(text=text, overrides=Overrides(replicas={"orders": 3}))) == []
