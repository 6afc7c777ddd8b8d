"""What the levels together decide: closer wins, wide settings hold where they fit, edges tighten, the rest is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from generator.analysis import Analysis, Overrides, check_manifest
from generator.cli.main import main
from generator.model import Balancer, HashKind, Mesh, MethodPolicy, RetryCondition, TrafficPolicy
from generator.model.defaults import HEALTH_CHECKS_PER_SECOND_MAX
from generator.outputs.files import default_placement
from generator.render import render
from support.orders import MANIFEST, with_piece, write_protos
from support.outside import Notary

N, R, U, P = RetryCondition.NOT_DELIVERED, RetryCondition.RESET, RetryCondition.UNAVAILABLE, RetryCondition.PUSH_BACK
Resolve = Callable[..., Mesh]


@pytest.fixture
def analysed(tmp_path: Path) -> Callable[..., Analysis]:
    """The mesh of orders with a piece of a manifest laid over it, without any error."""

    def run(piece: str = "{}", overrides: Overrides | None = None) -> Analysis:
        write_protos(tmp_path)
        (tmp_path / "mesh.yaml").write_text(with_piece(piece), encoding="utf-8")
        analysis = check_manifest(tmp_path / "mesh.yaml", overrides=overrides or Overrides())
        assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
        return analysis

    return run


@pytest.fixture
def resolve(analysed: Callable[..., Analysis]) -> Resolve:
    def run(piece: str = "{}", overrides: Overrides | None = None) -> Mesh:
        mesh = analysed(piece, overrides).mesh
        assert mesh is not None
        return mesh

    return run


def of(mesh: Mesh, method: str, caller: str = "checkout", callee: str = "orders") -> MethodPolicy:
    """How one caller's calls of one method are carried."""
    service = mesh.service(caller) if caller != "gateway" else None
    edges = (*service.calls, *service.external_calls) if service else mesh.gateway.exposes if mesh.gateway else ()
    (edge,) = [edge for edge in edges if edge.callee == callee]
    (policy,) = [policy for policy in edge.methods if policy.method.name == method]
    return policy


def towards(mesh: Mesh, version: str = "orders", caller: str = "checkout") -> TrafficPolicy:
    (edge,) = mesh.service(caller).calls
    (destination,) = [destination for destination in edge.destinations if destination.service == version]
    return destination.traffic


def orders(traffic: str) -> str:
    return f"services: {{orders: {{traffic: {{{traffic}}}}}}}"


def edge(traffic: str, methods: str = "OrderService/*") -> str:
    return f"services: {{checkout: {{calls: {{orders: {{methods: [{methods}], traffic: {{{traffic}}}}}}}}}}}"


def test_what_is_closer_wins_wherever_it_stands_in_the_file(resolve: Resolve) -> None:
    methods = "methods: {OrderService/GetOrder: {deadline: 4s}, OrderService/*: {deadline: 3s}}"
    mesh = resolve(f"{{traffic: {{deadline: 1s}}, services: {{orders: {{traffic: {{deadline: 2s, {methods}}}}}}}}}")
    assert of(mesh, "GetOrder").deadline_ms == 4_000
    assert of(mesh, "PutOrder").deadline_ms == 3_000
    assert of(mesh, "Buy", "gateway", "checkout").deadline_ms == 1_000
    assert (
        of(resolve("{traffic: {deadline: 1s}, services: {orders: {traffic: {deadline: 2s}}}}"), "PutOrder").deadline_ms
        == 2_000
    )


def test_settings_of_several_levels_are_joined_key_by_key(resolve: Resolve) -> None:
    mesh = resolve(
        "{traffic: {retries: {attempts: 2}, outlier_detection: {interval: 2s}}, services: {orders: {traffic: "
        "{retries: {backoff: {base: 50ms}}, outlier_detection: {consecutive_errors: 9}}}}}"
    )
    retry = of(mesh, "GetOrder").retry
    assert retry is not None
    assert (retry.attempts_max, retry.backoff_base_ms, retry.backoff_max_ms) == (2, 50, 500)
    assert (towards(mesh).outlier_detection.interval_ms, towards(mesh).outlier_detection.consecutive_errors) == (
        2_000,
        9,
    )


def test_mappings_that_mean_one_thing_replace_farther_ones_as_a_whole(resolve: Resolve) -> None:
    mesh = resolve(
        "{traffic: {faults: {delay: {duration: 1s}, headers: {a: b}}, hedging: {delay: 1s, attempts: 3}, "
        "rate_limit: {requests: 9, burst: 99, callers: {checkout: {requests: 1}}}, "
        "load_balancing: {policy: maglev, hash_on: {header: a}}}, services: {orders: {traffic: {"
        "load_balancing: {hash_on: {source: address}}, routing: {match: [{headers: {c: d}, to: orders-next}]}, "
        "methods: {OrderService/GetOrder: {faults: {abort: {code: INTERNAL}}, hedging: {delay: 2s}, "
        "rate_limit: {requests: 5}, routing: {split: {orders: 1, orders-next: 1}}}}}}}}"
    )
    policy, other = of(mesh, "GetOrder"), of(mesh, "PutOrder")
    assert policy.faults is not None
    assert (policy.faults.delay_ms, policy.faults.abort_code, policy.faults.headers) == (None, 13, ())
    assert policy.hedging is not None
    assert (policy.hedging.delay_ms, policy.hedging.attempts_max) == (2_000, 1)
    assert policy.rate_limit is not None
    assert (policy.rate_limit.default.burst, policy.rate_limit.callers) == (5, ())
    assert (policy.routing.matches, policy.routing.split) == ((), (("orders", 1), ("orders-next", 1)))
    assert policy.hash_on is not None
    assert policy.hash_on.kind is HashKind.SOURCE
    assert other.rate_limit is not None
    assert (other.rate_limit.default.burst, len(other.rate_limit.callers)) == (99, 1)
    assert len(other.routing.matches) == 1
    assert other.hedging is None, "it may not be hedged"


def test_wide_settings_hold_where_they_fit_and_are_allowed(resolve: Resolve) -> None:
    wide = "deadline: 1s, idle_timeout: 9s, max_request_bytes: 7, hedging: {delay: 10ms}, "
    mesh = resolve(orders(wide + "retries: {on: [not_delivered, reset], per_try_timeout: 300ms}"))
    get, put, place = (of(mesh, name) for name in ("GetOrder", "PutOrder", "PlaceOrder"))
    assert get.retry is not None
    assert put.retry is not None
    assert place.retry is not None
    assert (get.retry.conditions, put.retry.conditions, place.retry.conditions) == ({N, R}, {N, R}, {N})
    assert (get.retry.per_try_ms, put.retry.per_try_ms, place.retry.per_try_ms) == (300, 300, None)
    assert [policy.hedging is not None for policy in (get, put, place)] == [True, False, False]
    for stream in ("WatchOrders", "Upload", "Chat"):
        policy = of(mesh, stream)
        assert (policy.deadline_ms, policy.idle_timeout_ms, policy.retry, policy.hedging) == (None, 9_000, None, None)
    assert [of(mesh, name).request_bytes_max for name in ("GetOrder", "WatchOrders", "Upload")] == [7, 7, None]


def test_unsafe_covers_what_is_written_as_closely_or_closer(resolve: Resolve) -> None:
    on = "retries: {on: [not_delivered, reset]}"
    reason = "unsafe: it is idempotent by order_id"
    method = "methods: {OrderService/PlaceOrder: {%s}}"
    covered = [
        of(resolve(orders(text)), "PlaceOrder").retry for text in (f"{on}, {reason}", f"{reason}, {method % on}")
    ]
    assert [retry.conditions for retry in covered if retry is not None] == [{N, R}, {N, R}]
    farther = of(resolve(orders(f"{on}, {method % (reason + ', deadline: 1s')}")), "PlaceOrder").retry
    assert farther is not None
    assert farther.conditions == {N}, "the service's setting was written for all, the reason for one"
    streams = resolve(orders(f"{on}, {reason}, hedging: {{delay: 1s}}"))
    assert [of(streams, name).retry for name in ("Upload", "Chat")] == [None, None]
    assert of(streams, "PlaceOrder").hedging is not None


def test_server_streams_are_repeated_only_when_their_own_word_says_so(resolve: Resolve) -> None:
    assert of(resolve(orders("retries: {on: [not_delivered]}")), "WatchOrders").retry is None
    retry = of(
        resolve(orders("methods: {OrderService/WatchOrders: {retries: {on: [not_delivered]}}}")), "WatchOrders"
    ).retry
    assert retry is not None
    assert retry.conditions == {N}


def test_an_edge_tightens_for_its_caller_alone(resolve: Resolve) -> None:
    mesh = resolve(
        edge("deadline: 2s, retries: {attempts: 1, backoff: {base: 100ms}}, circuit_breaker: {max_requests: 7}")
    )
    mine, others = of(mesh, "GetOrder"), of(mesh, "GetOrder", "gateway")
    assert (mine.deadline_ms, others.deadline_ms) == (2_000, 10_000)
    assert mine.retry is not None
    assert others.retry is not None
    assert (mine.retry.attempts_max, others.retry.attempts_max) == (1, 3)
    assert (mine.retry.backoff_base_ms, mine.retry.backoff_max_ms) == (100, 250)
    assert towards(mesh).circuit_breaker.requests_max == 7
    assert mesh.gateway is not None
    exposed = next(found for found in mesh.gateway.exposes if found.callee == "orders")
    assert exposed.destinations[0].traffic.circuit_breaker.requests_max == 2_048


def test_an_edge_never_loosens(resolve: Resolve) -> None:
    mesh = resolve(
        "services: {orders: {traffic: {retries: {on: [not_delivered]}, methods: {OrderService/GetOrder: {deadline: 1s}, "
        "OrderService/PutOrder: {retries: {attempts: 0}}}}}, checkout: {calls: {orders: {methods: [OrderService/*], "
        "traffic: {deadline: 3s, retries: {on: [not_delivered], attempts: 2}}}}}}"
    )
    assert (of(mesh, "GetOrder").deadline_ms, of(mesh, "PutOrder").deadline_ms) == (1_000, 3_000)
    assert of(mesh, "PutOrder").retry is None
    assert of(mesh, "PlaceOrder").retry is not None


@pytest.mark.parametrize(
    ("replicas", "attempts", "budget", "panic", "ejected", "one", "rate", "requests"),
    [
        (1, 2, 50, 50, 0, False, False, 1_024),
        (2, 3, 50, 25, 50, True, False, 2_048),
        (3, 4, 34, 16, 67, True, False, 3_072),
        (5, 4, 20, 10, 80, True, False, 5_120),
        (10, 4, 20, 25, 90, True, False, 10_240),
    ],
)
def test_defaults_follow_the_replica_count(
    resolve: Resolve,
    replicas: int,
    attempts: int,
    budget: int,
    panic: int,
    ejected: int,
    one: bool,
    rate: bool,
    requests: int,
) -> None:
    mesh = resolve(overrides=Overrides(replicas={"orders": replicas}))
    traffic, retry = towards(mesh), of(mesh, "GetOrder").retry
    assert retry is not None
    breaker, outlier = traffic.circuit_breaker, traffic.outlier_detection
    assert (retry.attempts_max, breaker.retry_budget_percent) == (attempts, budget)
    assert traffic.load_balancing.panic_threshold_percent == panic
    assert (outlier.ejection_percent_max, outlier.always_eject_one) == (ejected, one)
    assert (outlier.success_rate is not None) is rate
    assert (breaker.requests_max, breaker.streams_max, breaker.connections_max) == (
        requests,
        requests // 2,
        32 * replicas,
    )


def test_defaults_follow_the_kind_of_the_method(resolve: Resolve) -> None:
    mesh = resolve()
    expected = {
        "GetOrder": (10_000, None, None, {N, R, U, P}),
        "PutOrder": (10_000, None, None, {N, R, U, P}),
        "PlaceOrder": (10_000, None, None, {N}),
        "WatchOrders": (None, 300_000, 900_000, None),
        "Upload": (None, 300_000, 900_000, None),
        "Chat": (None, 300_000, 900_000, None),
    }
    for name, (deadline, idle, life, conditions) in expected.items():
        policy = of(mesh, name)
        assert (policy.deadline_ms, policy.idle_timeout_ms, policy.duration_ms_max) == (deadline, idle, life)
        assert (policy.retry.conditions if policy.retry is not None else None) == conditions
    short = of(resolve("certificates: {lifetime: 10m}"), "WatchOrders")
    assert short.duration_ms_max == 150_000


def test_defaults_follow_the_call_graph(resolve: Resolve) -> None:
    few, many = resolve(), resolve(overrides=Overrides(replicas={"checkout": 100}))
    checks = [towards(mesh).health_check for mesh in (few, many)]
    assert [check.interval_ms for check in checks if check is not None] == [
        1_000,
        101 * 1_000 // HEALTH_CHECKS_PER_SECOND_MAX,
    ]


def test_defaults_follow_other_settings(resolve: Resolve) -> None:
    mesh = resolve(
        orders(
            "circuit_breaker: {max_requests: 10}, outlier_detection: {base_ejection_time: 5m}, "
            "adaptive_concurrency: {min_concurrency: 2000}"
        )
    )
    traffic = towards(mesh)
    assert traffic.circuit_breaker.streams_max == 5
    assert traffic.outlier_detection.ejection_ms_max == 300_000
    assert traffic.adaptive_concurrency is not None
    assert traffic.adaptive_concurrency.concurrency_max == 2_000
    small = towards(resolve(orders("adaptive_concurrency: {max_concurrency: 2}"))).adaptive_concurrency
    assert small is not None
    assert (small.concurrency_min, small.concurrency_max) == (2, 2)


def test_a_version_is_treated_as_its_service_with_numbers_of_its_own(resolve: Resolve) -> None:
    mesh = resolve(
        "services: {orders: {replicas: 5, env: {A: one, B: two}, traffic: {load_balancing: {policy: round_robin}, "
        "adaptive_concurrency: {}, routing: {split: {orders: 9, orders-next: 1}}}}, orders-next: {env: {A: other}}}"
    )
    service, version = mesh.service("orders"), mesh.service("orders-next")
    assert (version.identity, version.methods, version.callers, version.role) == (
        service.identity,
        service.methods,
        service.callers,
        "orders",
    )
    assert version.environment == (("A", "other"), ("B", "two"))
    assert version.traffic.load_balancing.balancer is Balancer.ROUND_ROBIN
    assert version.traffic.adaptive_concurrency == service.traffic.adaptive_concurrency
    assert towards(mesh, "orders-next").circuit_breaker.requests_max == 1_024
    assert towards(mesh, "orders").circuit_breaker.requests_max == 5_120


def test_a_version_of_a_caller_calls_as_its_service(resolve: Resolve) -> None:
    piece = edge("deadline: 2s").replace("services: {", "services: {checkout-next: {run: next, version_of: checkout}, ")
    mesh = resolve(piece)
    assert of(mesh, "GetOrder", "checkout-next").deadline_ms == 2_000
    assert [caller.caller for caller in mesh.service("orders").callers] == ["checkout", "gateway"]


EXTERNAL = """
external:
  rates:
    address: "{address}"
    serves: [shop.v1.RateService]
    {more}
services:
  checkout: {{calls: {{rates: [RateService/GetRate]}}}}
"""


def test_a_host_outside_has_the_defaults_of_one_replica(resolve: Resolve) -> None:
    mesh = resolve(EXTERNAL.format(address="rates.example.org:443", more="traffic: {deadline: 1s}"))
    policy = of(mesh, "GetRate", callee="rates")
    assert policy.deadline_ms == 1_000
    assert policy.retry is not None
    assert (policy.retry.attempts_max, policy.retry.conditions) == (2, {N, R, U, P})
    external = mesh.external("rates")
    assert external.tls is not None
    assert (external.host, external.port, external.tls.server_name) == ("rates.example.org", 443, "rates.example.org")
    assert external.variable == "NIPMESH_EXTERNAL_RATES"
    (found,) = mesh.service("checkout").external_calls
    assert found.destinations[0].traffic.health_check is None


def test_a_host_outside_does_not_take_the_meshs_settings(resolve: Resolve) -> None:
    piece = (
        EXTERNAL.format(address="rates.example.org:443", more="") + "traffic: {deadline: 1s, retries: {attempts: 1}}\n"
    )
    policy = of(resolve(piece), "GetRate", callee="rates")
    assert policy.deadline_ms == 10_000


@pytest.mark.parametrize(
    ("address", "authority", "sni"),
    [
        ("rates.example.org:443", "rates.example.org", "rates.example.org"),
        ("rates.example.org:8443", "rates.example.org:8443", "rates.example.org"),
        ("10.0.0.1:443", "10.0.0.1", None),
        ("[2001:db8::1]:443", "[2001:db8::1]", None),
        ("[2001:db8::1]:8443", "[2001:db8::1]:8443", None),
    ],
)
def test_a_host_outside_is_named_as_urls_name_it(
    resolve: Resolve, address: str, authority: str, sni: str | None
) -> None:
    mesh = resolve(EXTERNAL.format(address=address, more=""))
    checkout = render(mesh, default_placement(mesh, Path("/mesh"))).workload("checkout-0")
    routes = checkout.routes[0].body["virtual_hosts"][0]["routes"]
    (route,) = [found for found in routes if found["name"].endswith("GetRate")]
    assert route["route"]["host_rewrite_literal"] == authority
    (cluster,) = [found.body for found in checkout.clusters if found.name == "external_rates"]
    assert cluster["transport_socket"]["typed_config"].get("sni") == sni
    assert cluster["type"] == ("LOGICAL_DNS" if sni else "STATIC")


def test_certificates_of_a_host_outside_are_read(resolve: Resolve, tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    notary.issue("one", "a.org")
    notary.issue("two", "b.org")
    tls = "tls: {ca: notary.crt, certificate: one.crt, private_key: one.key}"
    external = resolve(EXTERNAL.format(address="rates.example.org:443", more=tls)).external("rates")
    assert external.tls is not None
    assert external.tls.ca == tmp_path / "notary.crt"
    for broken, code in (
        (tls.replace("one.key", "two.key"), "NM606"),
        (tls.replace("notary.crt", "one.key"), "NM606"),
        (tls.replace(", private_key: one.key", ""), "NM509"),
    ):
        text = with_piece(EXTERNAL.format(address="rates.example.org:443", more=broken))
        (tmp_path / "mesh.yaml").write_text(text, encoding="utf-8")
        found = [finding.code for finding in check_manifest(tmp_path / "mesh.yaml").findings if finding.code != "NM406"]
        assert found == [code]


def test_explain_prints_each_setting_with_its_line_or_reason(tmp_path: Path) -> None:
    write_protos(tmp_path)
    text = MANIFEST.replace(
        "    serves: [shop.v1.OrderService]\n",
        "    serves: [shop.v1.OrderService]\n    traffic:\n      retries: {on: [not_delivered, reset]}\n"
        "      methods:\n        OrderService/PlaceOrder:\n          retries: {on: [reset]}\n"
        "          unsafe: it is idempotent by order_id\n          rate_limit: {requests: 5}\n",
    )
    (tmp_path / "mesh.yaml").write_text(text, encoding="utf-8")
    lines = text.splitlines()
    result = CliRunner().invoke(main, ["-f", str(tmp_path / "mesh.yaml"), "explain", "orders"])
    assert result.exit_code == 0, result.output
    rows = [" ".join(row.split()) for row in result.output.splitlines()]
    on = lines.index("          retries: {on: [reset]}") + 1
    assert f"retry.conditions reset line {on} of the manifest, deliberately: it is idempotent by order_id" in rows
    wide = lines.index("      retries: {on: [not_delivered, reset]}") + 1
    assert f"retry.conditions not_delivered, reset line {wide} of the manifest" in rows
    limit = lines.index("          rate_limit: {requests: 5}") + 1
    reason = f"line {limit} of the manifest: each caller, at each replica"
    assert f"rate_limit 5 in 1000 ms, 5 at once {reason}" in rows
    assert "retry.attempts_max 3 2 replicas: every replica once, and one more; at most 4" in rows


def test_explain_of_a_service_shows_its_edges_too(analysed: Callable[..., Analysis], tmp_path: Path) -> None:
    analysed(edge("deadline: 2s", "OrderService/GetOrder"))
    for subject in ("orders", "checkout", "orders/GetOrder"):
        result = CliRunner().invoke(main, ["-f", str(tmp_path / "mesh.yaml"), "explain", subject])
        assert "checkout -> orders/shop.v1.OrderService/GetOrder" in result.output


def test_explain_prints_what_an_edge_tightens(analysed: Callable[..., Analysis]) -> None:
    analysis = analysed(edge("deadline: 2s, circuit_breaker: {max_streams: 3}, retries: {backoff: {base: 100ms}}"))
    found = {(each.subject, each.setting): each for each in analysis.decisions}
    tightened = found["checkout -> orders/shop.v1.OrderService/GetOrder", "deadline_ms"]
    assert tightened.value == "2s"
    assert tightened.reason.startswith("line ")
    assert found["checkout -> orders", "circuit_breaker.streams_max"].value == "3"
    assert found["checkout -> orders/shop.v1.OrderService/GetOrder", "retry.backoff_base_ms"].value == "100ms"
