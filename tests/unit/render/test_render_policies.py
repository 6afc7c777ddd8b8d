"""What follows from policies: who may call what, what is repeated, what is bounded; and that the same gives the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generator.model import Method, MethodPolicy, RetryCondition, RetryPolicy, StreamingKind, TlsFiles
from generator.model.mesh import Idempotency
from generator.outputs.files import default_placement
from generator.render import PlacementError, cluster_name, render
from generator.render.calls import limits_of
from generator.render.retries import longest_wait_s
from generator.render.retries import retry_of as retry_or_none
from generator.render.views import RetryView
from generator.resources import Resource, WorkloadResources
from support.meshes import DIRECTORY, REPOSITORY, repository_mesh, repository_placement

PROGRAM = """
import hashlib, sys
sys.path.insert(0, "tests")
from support.meshes import repository_mesh, repository_placement
from generator.outputs.compose import render_compose
from generator.outputs.files import contents
from generator.render import render
digest = hashlib.sha256(render_compose(repository_mesh()).encode())
for workload in render(repository_mesh(), repository_placement()).workloads:
    for path, content in contents(workload).items():
        digest.update(str(path).encode() + content)
print(digest.hexdigest())
"""


def workload(name: str) -> WorkloadResources:
    return render(repository_mesh(), repository_placement()).workload(name)


def named(resources: tuple[Resource, ...], name: str) -> Any:
    return next(resource.body for resource in resources if resource.name == name)


def manager(listener: Any) -> Any:
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def test_the_same_input_gives_the_same_bytes_whatever_the_hash_seed() -> None:
    digests = {digest(seed) for seed in ("0", "1", "4711")}
    assert len(digests) == 1


def digest(seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "protos:."}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def admitted(rendered: WorkloadResources) -> dict[str, list[str]]:
    """Who may call each path of an inbound route."""
    routes = named(rendered.routes, "inbound")["virtual_hosts"][0]["routes"]
    return {
        route["match"]["path"]: [
            principal["authenticated"]["principal_name"]["exact"]
            for principal in route["typed_per_filter_config"]["envoy.filters.http.rbac"]["rbac"]["rules"]["policies"][
                "callers"
            ]["principals"]
        ]
        for route in routes
        if "typed_per_filter_config" in route
    }


def rules_of_inbound(rendered: WorkloadResources) -> Any:
    filters = manager(named(rendered.listeners, "inbound"))["http_filters"]
    return next(entry for entry in filters if entry["name"] == "envoy.filters.http.rbac")["typed_config"]["rules"]


def test_callers_may_call_what_the_manifest_says_and_ask_for_health() -> None:
    rendered = workload("invoice-0")
    assert rules_of_inbound(rendered) == {"action": "ALLOW"}, "what no route allows is denied"
    nip, payment = "spiffe://nip.mesh/service/nip", "spiffe://nip.mesh/service/payment"
    gateway = "spiffe://nip.mesh/gateway"
    paths = {path for path, callers in admitted(rendered).items() if payment in callers}
    settlement = "/nipmesh.invoice.v1.InvoiceSettlementService/"
    assert paths == {
        f"{settlement}LockInvoice",
        f"{settlement}CommitInvoice",
        f"{settlement}GetHold",
        f"{settlement}FindInvoice",
        f"{settlement}ReleaseInvoice",
        "/grpc.health.v1.Health/Check",
    }
    assert admitted(rendered)[f"{settlement}LockInvoice"] == [payment]
    assert admitted(rendered)["/grpc.health.v1.Health/Check"] == [gateway, nip, payment]
    assert admitted(rendered)["/nipmesh.invoice.v1.WalletInvoiceService/CreateInvoiceFor"] == [nip]


def test_a_service_without_callers_lets_nobody_in() -> None:
    mesh = repository_mesh()
    lonely = tuple(replace(service, callers=()) if service.name == "nip" else service for service in mesh.services)
    rendered = render(replace(mesh, services=lonely), repository_placement()).workload("nip-0")
    listener = named(rendered.listeners, "inbound")
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    names = context["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
    assert [name["matcher"]["exact"] for name in names] == ["spiffe://nip.mesh/service/nip"]
    assert rules_of_inbound(rendered) == {"action": "ALLOW"}
    assert admitted(rendered) == {}


def test_roles_stand_in_the_routes_of_the_gateway() -> None:
    routes = named(workload("gateway").routes, "gateway")["virtual_hosts"][0]["routes"]
    operators = ("LedgerService", "PaymentOperatorService", "SagaService", "SimulatedNetworkService")
    for route in routes:
        rules = route.get("typed_per_filter_config", {}).get("envoy.filters.http.rbac")
        assert (rules is not None) == any(f".{name}/" in route["name"] for name in operators), route["name"]
        assert rules is None or "'exact': 'operator'" in str(rules)
    assert sum("LedgerService" in route["name"] for route in routes) > 3


def test_a_sidecar_knows_its_own_dependencies_and_nothing_else() -> None:
    services = {"nip", "invoice", "payment"}
    for service in services:
        clusters = workload(f"{service}-0").clusters
        outbound = {cluster.name for cluster in clusters if cluster.name.startswith("outbound_")}
        assert outbound == {f"outbound_{other}" for other in services - {service}}


def test_replicas_out_of_rotation_are_no_endpoints() -> None:
    placement = repository_placement()
    replicas = tuple(replace(replica, in_rotation=replica.name != "nip-1") for replica in placement.replicas)
    rendered = render(repository_mesh(), replace(placement, replicas=replicas)).workload("gateway")
    hosts = named(rendered.endpoints, "outbound_nip")["endpoints"][0]["lb_endpoints"]
    assert [host["endpoint"]["hostname"] for host in hosts] == ["nip-0"]
    none = tuple(replace(replica, in_rotation=False) for replica in placement.replicas)
    rendered = render(repository_mesh(), replace(placement, replicas=none)).workload("gateway")
    assert named(rendered.endpoints, "outbound_nip")["endpoints"] == []


def retry(*conditions: RetryCondition) -> RetryPolicy:
    return RetryPolicy(conditions=frozenset(conditions), attempts_max=3, backoff_base_ms=25, backoff_max_ms=250)


def retry_of(policy: RetryPolicy, *, deadline_ms: int | None, is_edge: bool = False) -> RetryView:
    view = retry_or_none(policy, deadline_ms=deadline_ms, is_edge=is_edge)
    assert view is not None
    return view


def test_what_was_not_delivered_is_repeated_and_nothing_else() -> None:
    view = retry_of(retry(RetryCondition.NOT_DELIVERED), deadline_ms=10_000)
    assert view.retry_on == "connect-failure,refused-stream,reset-before-request,retriable-headers"
    assert [header.name for header in view.headers] == ["x-nipmesh-not-delivered"]


def test_what_may_run_twice_is_repeated_after_a_reset_and_when_unavailable() -> None:
    view = retry_of(retry(*RetryCondition), deadline_ms=10_000)
    assert "reset" in view.retry_on.split(",")
    assert [header.name for header in view.headers] == [
        "x-nipmesh-not-delivered",
        "x-nipmesh-reset",
        "x-nipmesh-status",
        "x-nipmesh-status",
    ]
    assert (view.wait_header, view.wait_ms_max) == ("retry-after", 6_000)


# What the callee's sidecar says: the status, the mark of a failed dependency, the push-back, the wait in seconds.
@pytest.mark.parametrize(
    ("said", "repeated"),
    [
        ("14;;;", True),
        ("14;;;2", True),
        ("14;;;60", False),
        ("14;true;;", False),
        ("14;;-1;", False),
        ("14;;soon;", False),
        ("14;;0;", True),
        ("14;;999;", True),
        ("14;;999;0", False),
        ("14;;1000;", False),
        ("14;;5001;6", True),
        ("14;;6001;7", False),
        ("14;;60000;60", False),
        ("8;;;", False),
        ("8;;;2", False),
        ("8;true;0;", False),
        ("8;;-5;", False),
        ("8;;0;", True),
        ("8;;250;", True),
        ("8;;1500;2", True),
        ("8;;6001;7", False),
        ("13;;0;", False),
        (";;;", False),
        ("148;;0;", False),
    ],
)
def test_what_the_service_says_decides_whether_it_is_asked_again(said: str, repeated: bool) -> None:
    headers = retry_of(retry(*RetryCondition), deadline_ms=10_000).headers
    patterns = [header.pattern for header in headers if header.name == "x-nipmesh-status"]
    assert any(re.fullmatch(pattern, said) for pattern in patterns) is repeated


@pytest.mark.parametrize(
    ("deadline_ms", "wait_s"), [(100, 0), (1_500, 0), (1_501, 1), (3_001, 2), (60_000, 9), (None, 9)]
)
def test_nobody_waits_past_the_deadline(deadline_ms: int | None, wait_s: int) -> None:
    assert longest_wait_s(deadline_ms) == wait_s
    view = retry_of(retry(*RetryCondition), deadline_ms=deadline_ms)
    said = [f"14;;{seconds}000;{seconds}" for seconds in range(1, 10)]
    waited = [one for one in said if any(re.fullmatch(header.pattern, one) for header in view.headers)]
    assert waited == said[:wait_s]
    assert (view.wait_header is not None) is bool(wait_s)


def test_the_edge_does_not_multiply_a_strangers_nonsense() -> None:
    inside, edge = (
        retry_of(retry(RetryCondition.RESET), deadline_ms=10_000, is_edge=is_edge) for is_edge in (False, True)
    )
    said = ("connection", "stream")
    assert [bool(re.fullmatch(inside.headers[0].pattern, each)) for each in said] == [True, True]
    assert [bool(re.fullmatch(edge.headers[0].pattern, each)) for each in said] == [True, False]


def test_a_host_outside_has_no_sidecar_that_says_what_happened() -> None:
    view = retry_or_none(retry(*RetryCondition), deadline_ms=10_000, is_external=True)
    assert view is not None
    assert "unavailable" in view.retry_on.split(",")
    assert [header.name for header in view.headers] == ["grpc-retry-pushback-ms"]
    assert view.wait_header is None


def method(streaming: StreamingKind) -> Method:
    return Method(
        service="a.v1.B", name="C", streaming=streaming, idempotency=Idempotency.UNKNOWN, request="x", response="y"
    )


def test_unary_calls_have_a_deadline_and_streams_a_life_and_a_silence() -> None:
    unary = MethodPolicy(
        method=method(StreamingKind.UNARY), deadline_ms=500, idle_timeout_ms=None, duration_ms_max=None, retry=None
    )
    stream = MethodPolicy(
        method=method(StreamingKind.SERVER), deadline_ms=None, idle_timeout_ms=60_000, duration_ms_max=9_000, retry=None
    )
    assert (limits_of(unary).duration_ms, limits_of(unary).idle_ms) == (500, 0)
    assert (limits_of(stream).duration_ms, limits_of(stream).idle_ms) == (9_000, 60_000)


def test_streams_of_the_client_are_never_repeated() -> None:
    for name in ("payment-0", "gateway"):
        for route in workload(name).routes:
            for entry in route.body["virtual_hosts"][0]["routes"]:
                assert "Watch" not in str(entry.get("name")) or "retry_policy" not in entry["route"]


def test_every_route_to_a_service_is_bounded() -> None:
    for name in ("payment-0", "invoice-0", "gateway"):
        outgoing = (
            route for route in workload(name).routes if route.name != "inbound"
        )  # its streams' bound: the listener's
        for route in outgoing:
            calls = [entry for entry in route.body["virtual_hosts"][0]["routes"] if "route" in entry]
            assert calls
            for entry in calls:
                assert entry["route"]["timeout"] == "0s"
                bound = entry["route"]["max_stream_duration"]
                assert bound["max_stream_duration"]
                is_stream = "request_headers_to_add" in entry
                assert ("grpc_timeout_header_max" in bound) is not is_stream, (
                    "a stream's service is told to end it earlier"
                )


def test_a_gateway_with_a_certificate_speaks_tls() -> None:
    mesh = repository_mesh()
    assert mesh.gateway is not None
    files = TlsFiles(certificate=Path("/etc/tls/edge.crt"), private_key=Path("/etc/tls/edge.key"))
    secure = replace(mesh, gateway=replace(mesh.gateway, tls=files))
    edge = render(secure, default_placement(secure, DIRECTORY)).workload("gateway")
    assert [secret.name for secret in edge.secrets] == ["authority", "edge", "leaf"]
    chain = named(edge.listeners, "gateway")["filter_chains"][0]
    assert chain["transport_socket"]["name"] == "envoy.transport_sockets.tls"


def test_tokens_need_a_key_set() -> None:
    with pytest.raises(PlacementError, match="no key set"):
        render(repository_mesh(), replace(repository_placement(), jwks=None))


def test_a_placement_of_another_mesh_is_refused() -> None:
    mesh = replace(repository_mesh(), services=repository_mesh().services[1:])
    with pytest.raises(PlacementError, match="has no service invoice"):
        render(mesh, repository_placement())


def test_clusters_have_the_name_that_others_rely_on() -> None:
    assert cluster_name("nip") == "outbound_nip"
