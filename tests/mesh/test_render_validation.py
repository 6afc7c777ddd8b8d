"""Envoy's own opinion: it takes every twin, refuses a broken one, and agrees with the rules that we read from its protobufs."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generator.analysis import check_manifest
from generator.model import TlsFiles
from generator.outputs.files import default_placement, validate_with_envoy
from generator.outputs.files.validation import loadable, throwaway_leaf, validate_bootstrap
from generator.outputs.local.binary import find_envoy
from generator.render import render
from generator.resources import Resource, ResourceError, ResourceSet, ResourceType, make_resource, twin
from support.meshes import DIRECTORY, REPOSITORY, repository_mesh, repository_placement

pytestmark = pytest.mark.mesh
GOLDEN = ("pair", "gateway", "foreign")
SECONDS_MAX = 10.0
"""A limit against hangs; what it takes is a matter of the benchmarks."""


@pytest.fixture(scope="module")
def resources() -> ResourceSet:
    return render(repository_mesh(), repository_placement())


def test_envoy_accepts_every_twin_of_the_repositorys_mesh(resources: ResourceSet) -> None:
    started = time.monotonic()
    assert validate_with_envoy(resources) == ()
    assert time.monotonic() - started < SECONDS_MAX


@pytest.mark.parametrize("manifest", [*(f"golden/in/{name}.yaml" for name in GOLDEN), "foreign/mesh.yaml"])
def test_envoy_accepts_every_other_mesh(manifest: str) -> None:
    analysis = check_manifest(REPOSITORY / "tests" / manifest)
    assert analysis.mesh is not None
    assert validate_with_envoy(render(analysis.mesh, default_placement(analysis.mesh, DIRECTORY))) == ()


def test_envoy_accepts_a_gateway_with_tls_and_a_service_that_nobody_calls() -> None:
    mesh = repository_mesh()
    assert mesh.gateway is not None
    files = TlsFiles(certificate=Path("/nowhere/edge.crt"), private_key=Path("/nowhere/edge.key"))
    services = tuple(replace(service, callers=()) for service in mesh.services)
    secure = replace(mesh, services=services, gateway=replace(mesh.gateway, tls=files))
    assert validate_with_envoy(render(secure, default_placement(secure, DIRECTORY))) == ()


BREAKS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "listener": ("listeners", "inbound", lambda body: body["address"]["socket_address"].update(address="not-a-number")),
    "cluster": ("clusters", "outbound_nip", lambda body: body["load_balancing_policy"].update(policies=[])),
    "route": ("routes", "egress", lambda body: body["virtual_hosts"][0]["routes"][0]["route"].update(cluster="gone")),
    "endpoints": (
        "endpoints",
        "outbound_nip",
        lambda body: body["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"].update(
            address="nip.example"
        ),
    ),
    "secret": ("secrets", "leaf", lambda body: body["tls_certificate"]["private_key"].update(inline_string="no key")),
}


@pytest.mark.parametrize("case", BREAKS)
def test_envoy_refuses_a_twin_with_one_broken_field(resources: ResourceSet, case: str) -> None:
    kind, name, damage = BREAKS[case]
    payment = resources.workload("payment-0")
    payment = replace(payment, secrets=tuple(loadable(secret, throwaway_leaf()) for secret in payment.secrets))
    broken = replace(payment, **{kind: tuple(damaged(found, name, damage) for found in getattr(payment, kind))})
    refusals = validate_with_envoy(ResourceSet(workloads=(broken,)))
    assert len(refusals) == 1
    assert refusals[0].workload == "payment-0"
    assert refusals[0].message


def damaged(resource: Resource, name: str, damage: Callable[[Any], Any]) -> Resource:
    if resource.name != name:
        return resource
    body = copy.deepcopy(dict(resource.body))
    damage(body)
    return make_resource(resource.type, body)


def test_a_refusal_names_the_resource(resources: ResourceSet) -> None:
    kind, name, damage = BREAKS["endpoints"]
    payment = resources.workload("payment-0")
    broken = replace(payment, **{kind: tuple(damaged(found, name, damage) for found in getattr(payment, kind))})
    (refusal,) = validate_with_envoy(ResourceSet(workloads=(broken,)))
    assert "nip.example" in refusal.message


def test_a_bootstrap_that_is_broken_is_refused(resources: ResourceSet, tmp_path: Path) -> None:
    body = copy.deepcopy(twin(resources.workload("nip-0")))
    del body["static_resources"]
    body["overload_manager"]["resource_monitors"][0]["name"] = "envoy.resource_monitors.none"
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(body))
    assert validate_bootstrap(find_envoy(), path)


CLUSTER: dict[str, Any] = {"name": "a", "type": "STATIC", "connect_timeout": "1s"}
RULES: dict[str, dict[str, Any]] = {
    "required": {"name": ""},
    "greater than": {"connect_timeout": "0s"},
    "range": {"outlier_detection": {"max_ejection_percent": 101}},
    "required oneof": {
        "health_checks": [{"timeout": "1s", "interval": "1s", "healthy_threshold": 1, "unhealthy_threshold": 1}]
    },
    "required message": {"health_checks": [{"timeout": "1s", "interval": "1s", "grpc_health_check": {}}]},
    "items": {"load_assignment": {"cluster_name": "a", "endpoints": [{"priority": 129}]}},
    "minimal length": {"load_assignment": {"cluster_name": ""}},
    "unknown field": {"lb_polcy": "ROUND_ROBIN"},
    "unknown value": {"lb_policy": "ROUND_ROBINS"},
    "wrong type": {"connect_timeout": True},
}


@pytest.mark.parametrize("rule", RULES)
def test_what_we_refuse_envoy_refuses_too(rule: str, tmp_path: Path) -> None:
    body = {**CLUSTER, **RULES[rule]}
    with pytest.raises(ResourceError):
        make_resource(ResourceType.CLUSTER, body)
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps({"static_resources": {"clusters": [body]}}))
    assert validate_bootstrap(find_envoy(), path), "Envoy takes it"


def test_the_rules_fixture_is_sound(tmp_path: Path) -> None:
    make_resource(ResourceType.CLUSTER, CLUSTER)
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps({"static_resources": {"clusters": [CLUSTER]}}))
    assert validate_bootstrap(find_envoy(), path) is None
