"""The mesh that comes out: policies by kind and idempotency, numbers by replica count, each with a reason."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from generator.analysis import Analysis, Overrides, check_manifest
from generator.model import (
    GeneratedSecret,
    Idempotency,
    Mesh,
    Method,
    MethodPolicy,
    RetryCondition,
    StreamingKind,
    defaults,
)

ROOT = Path(__file__).resolve().parents[3]
Checker = Callable[..., Analysis]
ALL = frozenset(RetryCondition)
STOCK = "    serves: [stock.v1.StockService]\n"


@pytest.fixture
def mesh(check: Checker) -> Mesh:
    return mesh_of(check())


def mesh_of(analysis: Analysis) -> Mesh:
    assert analysis.mesh is not None, "\n".join(map(str, analysis.findings))
    return analysis.mesh


def policies(mesh: Mesh) -> dict[str, MethodPolicy]:
    assert mesh.gateway is not None
    return {policy.method.name: policy for edge in mesh.gateway.exposes for policy in edge.methods}


def test_names_and_identities(mesh: Mesh) -> None:
    assert (mesh.name, mesh.trust_domain) == ("shop", "shop.mesh")
    assert [service.name for service in mesh.services] == ["orders", "stock"]
    assert mesh.service("stock").identity == "spiffe://shop.mesh/service/stock"
    assert mesh.gateway is not None
    assert mesh.gateway.identity == "spiffe://shop.mesh/gateway"
    assert mesh.gateway.authentication is not None
    assert mesh.gateway.authentication.issuer == "spiffe://shop.mesh/service/orders"
    assert mesh.gateway.authentication.issuer_service == "orders"
    assert mesh.gateway.authentication.audience == "shop"
    with pytest.raises(KeyError):
        mesh.service("nobody")


def test_edges_are_the_same_seen_from_both_ends(mesh: Mesh) -> None:
    assert mesh.service("orders").calls == mesh.service("stock").callers
    (edge,) = mesh.service("orders").callers
    assert (edge.caller, edge.callee) == ("gateway", "orders")
    assert mesh.gateway is not None
    assert mesh.gateway.exposes == (edge,)


def test_retries_follow_kind_and_idempotency(mesh: Mesh) -> None:
    found = {name: policy.retry.conditions if policy.retry else None for name, policy in policies(mesh).items()}
    assert found == {
        "GetOrder": ALL,
        "PutOrder": ALL,
        "BuyOrder": frozenset({RetryCondition.NOT_DELIVERED}),
        "Purge": frozenset({RetryCondition.NOT_DELIVERED}),
        "WatchOrders": None,
        "Upload": None,
        "Chat": None,
    }


def test_unary_calls_have_a_deadline_and_streams_the_other_two(mesh: Mesh) -> None:
    for policy in policies(mesh).values():
        times = (policy.deadline_ms, policy.idle_timeout_ms, policy.duration_ms_max)
        if policy.method.streaming is StreamingKind.UNARY:
            assert times == (10_000, None, None)
        else:
            assert times == (None, 300_000, 900_000)


def test_what_the_manifest_says_wins_and_the_nearest_says_most(check: Checker) -> None:
    traffic = "    traffic:\n      deadline: 3s\n      methods:\n        OrderService/PutOrder: {deadline: 7s}\n"
    traffic += (
        "        OrderService/*: {deadline: 4s, idle_timeout: 1m}\n        OrderService/Chat: {idle_timeout: 2m}\n"
    )
    found = policies(mesh_of(check(("    run: python -m orders\n", "    run: python -m orders\n" + traffic))))
    deadlines = {name: policy.deadline_ms for name, policy in found.items()}
    assert deadlines["Purge"] == 3_000
    assert deadlines["GetOrder"] == 4_000
    assert deadlines["PutOrder"] == 7_000
    assert deadlines["Chat"] is None
    assert found["WatchOrders"].idle_timeout_ms == 60_000
    assert found["Chat"].idle_timeout_ms == 120_000


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 10, 100])
def test_numbers_by_replica_count(check: Checker, replicas: int) -> None:
    traffic = mesh_of(check(overrides=Overrides(replicas={"stock": replicas}))).service("stock").traffic
    panic, outlier = traffic.load_balancing.panic_threshold_percent, traffic.outlier_detection
    ejectable = replicas - 1
    assert 0 < panic <= 50
    if replicas > 1:
        one_out = 100 * (replicas - 1) / replicas
        assert one_out > panic, "an ejection must not cause panic"
        assert outlier.always_eject_one
        assert 100 * ejectable <= outlier.ejection_percent_max * replicas < 100 * replicas, "all but one, never all"
    else:
        assert outlier.ejection_percent_max == 0
        assert not outlier.always_eject_one
    assert outlier.success_rate is None, "it would eject whoever failed one call more than the others"
    breaker = traffic.circuit_breaker
    assert breaker.retry_budget_percent >= min(50, 100 // replicas)
    assert breaker.retry_budget_percent <= 50
    assert breaker.requests_max >= breaker.pending_requests_max > 0


@pytest.mark.parametrize(("replicas", "alike"), [(2, 2), (3, 3), (4, 4), (5, 5), (50, 5)])
def test_a_success_rate_can_be_missed_with_any_number_of_replicas(check: Checker, replicas: int, alike: int) -> None:
    traffic = "    traffic: {outlier_detection: {success_rate: {min_requests: 10}, base_ejection_time: 2m}}\n"
    analysis = check((STOCK, STOCK + traffic), overrides=Overrides(replicas={"stock": replicas}))
    outlier = mesh_of(analysis).service("stock").traffic.outlier_detection
    assert outlier.success_rate is not None
    assert outlier.success_rate.replicas_min == alike
    assert 900 <= outlier.success_rate.stdev_factor < 1_000 * (replicas - 1) ** 0.5, "farther away none of them can be"
    assert outlier.ejection_ms_max == outlier.base_ejection_ms == 120_000


def test_two_replicas_have_the_numbers_that_were_measured(mesh: Mesh) -> None:
    traffic = mesh.service("stock").traffic
    assert traffic.load_balancing.panic_threshold_percent == 25
    assert traffic.outlier_detection.ejection_percent_max == 50
    assert traffic.circuit_breaker.retry_budget_percent == 50
    assert traffic.circuit_breaker.retry_concurrency_min == 32


def test_health_checks_slow_down_with_many_callers() -> None:
    assert defaults.health_interval_ms(3).value == 1_000
    assert defaults.health_interval_ms(200).value == 10_000


def test_times_follow_the_certificates(check: Checker) -> None:
    mesh = mesh_of(check(("mesh: shop", "mesh: shop\ncertificates: {lifetime: 40s}")))
    assert mesh.certificate_lifetime_ms == 40_000
    assert mesh.service("stock").traffic.connection_duration_ms_max == 10_000
    assert policies(mesh)["Chat"].duration_ms_max == 10_000
    day = mesh_of(check(("mesh: shop", "mesh: shop\ncertificates: {lifetime: 24h}")))
    assert policies(day)["Chat"].duration_ms_max == 3_600_000


def test_files_and_variables(check: Checker, tmp_path: Path) -> None:
    for name in ("a.key", "x.env"):
        (tmp_path / name).write_text("A=b\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "work").mkdir()
    lines = "    env: {B: 2, A: x}\n    secrets: {KEY_B: {generate: 32}, KEY_A: ./work/../a.key}\n"
    lines += "    env_file: x.env\n    cwd: work\n    image: registry.example.org/stock:1\n"
    stock = mesh_of(check((STOCK, STOCK + lines))).service("stock")
    assert stock.environment == (("A", "x"), ("B", "2"))
    assert [secret.variable for secret in stock.secrets] == ["KEY_A", "KEY_B"]
    assert stock.secrets[0].source == tmp_path / "a.key"
    assert stock.secrets[1].source == GeneratedSecret(bytes_count=32)
    assert stock.environment_file == tmp_path / "x.env"
    assert stock.working_directory == tmp_path / "work"
    assert stock.image == "registry.example.org/stock:1"
    assert stock.command == ("python", "-m", "stock")


def test_telemetry_and_listen(check: Checker) -> None:
    mesh = mesh_of(
        check(
            ("mesh: shop", "mesh: shop\ntelemetry: {otlp: 127.0.0.1:4317}"),
            (STOCK, STOCK + "    listen: 127.0.0.1:9000\n"),
        )
    )
    assert (mesh.telemetry.otlp_host, mesh.telemetry.otlp_port) == ("127.0.0.1", 4317)
    assert mesh.service("stock").listen_port == 9000


def test_ipv6_and_wildcard_gateways_have_a_url(check: Checker) -> None:
    for listen, host, url in (
        ("'[::1]:80'", "::1", "http://[::1]:80"),
        ("'[0:0::1]:80'", "::1", "http://[::1]:80"),
        ("0.0.0.0:80", "0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104  (nothing listens)
        ("'[::]:80'", "::", "http://[::1]:80"),
    ):
        gateway = mesh_of(check(("gateway:\n", f"gateway:\n  listen: {listen}\n"))).gateway
        assert gateway is not None
        assert (gateway.listen_host, gateway.public_url) == (host, url)


def test_a_mesh_without_a_gateway(check: Checker) -> None:
    text = "mesh: m\nprotos: [protos]\nservices:\n  a: {run: x, serves: [AdminService], calls: {b: [StockService/*]}}\n"
    text += "  b: {run: x, serves: [StockService], calls: {a: [AdminService/*]}}\n"
    mesh = mesh_of(check(text=text))
    assert mesh.gateway is None
    assert [edge.caller for edge in mesh.service("a").callers] == ["b"]


def test_every_decision_has_a_reason_and_holds_in_the_mesh(check: Checker) -> None:
    analysis = check()
    mesh = mesh_of(analysis)
    assert all(decision.reason for decision in analysis.decisions)
    shown = {(decision.subject, decision.setting): decision.value for decision in analysis.decisions}
    assert len(shown) == len(analysis.decisions), "nothing is decided twice"
    traffic = mesh.service("stock").traffic
    for name in (field.name for field in dataclasses.fields(traffic.outlier_detection)):
        assert ("stock", f"outlier_detection.{name}") in shown
    assert shown["stock", "circuit_breaker.requests_max"] == str(traffic.circuit_breaker.requests_max)
    assert (
        shown["orders/shop.v1.OrderService/GetOrder", "retry.conditions"]
        == "not_delivered, push_back, reset, unavailable"
    )
    assert shown["orders/shop.v1.OrderService/Chat", "idle_timeout_ms"] == "5m"
    assert shown["orders/shop.v1.OrderService/Chat", "deadline_ms"] == "-"


def test_no_method_of_unknown_idempotency_is_ever_repeated_after_delivery() -> None:
    for kind in StreamingKind:
        method = Method(
            service="a.B", name="C", streaming=kind, idempotency=Idempotency.UNKNOWN, request="a.D", response="a.D"
        )
        assert defaults.retry_conditions(method).value <= {RetryCondition.NOT_DELIVERED}


def test_the_same_files_give_the_same_mesh_in_any_process() -> None:
    here = check_manifest(ROOT / "mesh.yaml").mesh
    script = "import pickle, sys; from pathlib import Path; from generator.analysis import check_manifest; "
    script += "sys.stdout.buffer.write(pickle.dumps(check_manifest(Path(sys.argv[1])).mesh))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(ROOT / "mesh.yaml")]
        done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
        there = pickle.loads(done.stdout)  # noqa: S301  (our own bytes)
        assert there == here
