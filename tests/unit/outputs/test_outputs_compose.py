"""The Compose file: of this mesh, in step with what is committed, and valid where the schema is at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from generator.analysis import check_manifest
from generator.analysis.volumes import own_volumes
from generator.model import Cluster, Events, Mesh, Probe, Resources, Secret, Volume
from generator.outputs.compose import COMPOSE_FILE, render_compose
from generator.outputs.compose.containers import OWN_IMAGE
from generator.outputs.compose.emit import emit
from generator.outputs.compose.layout import EVERYWHERE, placement
from generator.outputs.files.placement import nobodys_key_set
from generator.render import render
from support.foreign import FOREIGN
from support.meshes import REPOSITORY, repository_mesh


def test_the_committed_file_is_what_the_manifest_renders() -> None:
    hint = "run `nipmesh render --target compose -o .`"
    assert (REPOSITORY / COMPOSE_FILE).read_text(encoding="utf-8") == render_compose(repository_mesh()), hint


def test_each_replica_is_an_application_and_a_sidecar() -> None:
    services = yaml.safe_load(render_compose(repository_mesh()))["services"]
    replicas = {
        f"{service.name}-{index}" for service in repository_mesh().services for index in range(service.replicas)
    }
    beside = {"agent", "gateway", "introspection", "events", "postgresql"}
    assert set(services) == replicas | {f"{name}-sidecar" for name in replicas} | beside
    assert services["gateway"]["ports"] == ["127.0.0.1:8080:8080"]
    assert all("ports" not in service for name, service in services.items() if name != "gateway")


def test_it_is_valid_by_the_compose_specification() -> None:
    try:
        package = distribution("check-jsonschema")
    except PackageNotFoundError:
        pytest.skip("the schema of the Compose specification comes with check-jsonschema, which is not installed")
    schema = Path(str(package.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")))
    jsonschema.validate(yaml.safe_load(render_compose(repository_mesh())), json.loads(schema.read_text()))


def test_events_have_a_server_that_only_applications_reach() -> None:
    document = yaml.safe_load(render_compose(repository_mesh()))
    services = document["services"]
    assert document["networks"]["events"] == {"internal": True}
    assert {name for name, service in services.items() if "events" in service.get("networks", ())} == {
        "events",
        "agent",
    } | {f"{service.name}-{index}" for service in repository_mesh().services for index in range(service.replicas)}
    payment = services["payment-1"]
    assert payment["environment"]["NIPMESH_EVENTS_URL"] == "tls://events:4222"
    assert (
        payment["environment"]["NIPMESH_EVENTS_CREDENTIALS_FILE"]
        == "/etc/nipmesh/secrets/nipmesh-events-credentials-file"
    )
    assert "payment-secrets:/etc/nipmesh/secrets:ro" in payment["volumes"]
    assert "secrets" not in document
    assert "events-data" in document["volumes"]


def containers() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(render_compose(repository_mesh()))["services"]
    return services


def test_the_manifest_names_the_image_of_this_version() -> None:
    assert {service.image for service in repository_mesh().services} == {OWN_IMAGE}
    assert f"-t {OWN_IMAGE} " in (REPOSITORY / "Dockerfile").read_text()
    assert f"-t {OWN_IMAGE} " in (REPOSITORY / "docs" / "containers.md").read_text()


def test_no_container_may_do_more_than_it_has_to() -> None:
    for name, container in containers().items():
        assert container["user"] == "65532:65532", name
        assert (container["read_only"], container["cap_drop"]) == (True, ["ALL"]), name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & container.keys(), name


def test_only_the_agent_has_the_manifest_and_the_authority() -> None:
    for name, container in containers().items():
        sees = {volume.partition(":")[0] for volume in container["volumes"]}
        assert ("agent-state" in sees, "." in sees) == ((True, True) if name == "agent" else (False, False)), name


def test_a_certificate_is_seen_by_its_envoy_alone() -> None:
    for name, container in containers().items():
        workload = name.removesuffix("-sidecar")
        keys = {volume for volume in container["volumes"] if "-certificates:" in volume}
        if name == "agent":
            assert not any(volume.endswith(":ro") for volume in keys)
        elif name.endswith("-sidecar") or name in ("gateway", "events", "postgresql"):
            assert keys == {f"{workload}-certificates:/etc/nipmesh/certificates/{workload}:ro"}
        else:
            assert keys == set()


def test_keys_and_configuration_are_in_memory_and_data_is_not() -> None:
    volumes = yaml.safe_load(render_compose(repository_mesh()))["volumes"]
    in_memory = {name for name, volume in volumes.items() if volume.get("driver_opts", {}).get("type") == "tmpfs"}
    servers = {"agent-state", "events-data", "postgresql-state"}
    assert set(volumes) - in_memory == servers | {"invoice-data", "nip-data", "payment-data"}


def test_no_volume_of_the_manifest_can_be_one_of_ours() -> None:
    mesh = repository_mesh()
    own = own_volumes(service.name for service in mesh.services)
    volumes = yaml.safe_load(render_compose(mesh))["volumes"]
    assert [name for name in volumes if not own.fullmatch(name)] == []


def test_everybody_waits_for_what_it_reads() -> None:
    services = containers()
    assert "depends_on" not in services["agent"]
    for name, container in services.items():
        awaited = container.get("depends_on", {})
        if name.endswith("-sidecar") or name in ("gateway", "events", "introspection", "postgresql"):
            assert awaited["agent"] == {"condition": "service_healthy"}, name
        for other, condition in awaited.items():
            assert "healthcheck" in services[other], (name, other)
            assert condition == {"condition": "service_healthy"}, (name, other)
    assert {"payment-0", "payment-1", "introspection"} <= services["gateway"]["depends_on"].keys()


def test_a_service_without_a_probe_is_awaited_until_it_has_started() -> None:
    mesh = repository_mesh()
    silent = replace(mesh, services=tuple(replace(service, probe=Probe()) for service in mesh.services))
    services = yaml.safe_load(render_compose(silent))["services"]
    assert "healthcheck" not in services["nip-0"]
    assert services["gateway"]["depends_on"]["nip-0"] == {"condition": "service_started"}


def test_limits_and_volumes_of_the_manifest_reach_the_container() -> None:
    mesh = repository_mesh()
    service = replace(
        mesh.services[0],
        resources=Resources(cpu_millis=250, memory_bytes=2**28),
        volumes=(
            Volume(source="cache", target=PurePosixPath("/var/cache")),
            Volume(source=Path("/srv/rates"), target=PurePosixPath("/etc/rates"), is_read_only=True),
        ),
    )
    document = yaml.safe_load(render_compose(replace(mesh, services=(service,), volumes=("cache",))))
    container = document["services"]["invoice-0"]
    assert container["deploy"] == {"resources": {"limits": {"cpus": "0.25", "memory": "268435456"}}}
    assert {"cache:/var/cache", "/srv/rates:/etc/rates:ro"} <= set(container["volumes"])
    assert document["volumes"]["cache"] == {}


def test_the_mesh_leads_nowhere_and_only_the_gateway_is_outside() -> None:
    document = yaml.safe_load(render_compose(repository_mesh()))
    closed = {name: {"internal": True} for name in ("mesh", "events", "database")}
    assert document["networks"] == closed | {"outside": {}}
    outside = {name for name, service in document["services"].items() if "outside" in service.get("networks", ())}
    assert outside == {"gateway"}


@pytest.mark.parametrize("port", [20_999, 21_000, 21_002, 21_003])
def test_an_application_beside_its_sidecar_keeps_its_port(port: int) -> None:
    mesh = repository_mesh()
    service = replace(mesh.services[0], listen_port=port)
    (placed, *_) = placement(replace(mesh, services=(service,))).replicas
    taken = [address.port for address in (placed.app, placed.egress, placed.inbound, placed.scrape)]  # type: ignore[union-attr]
    assert len(set(taken)) == 4
    assert taken[0] == port


def test_sidecars_are_in_rotation_once_they_are_found() -> None:
    placed = placement(repository_mesh(), {"nip-1": "10.1.2.3"}, jwks=nobodys_key_set())
    found = {replica.name: (replica.in_rotation, replica.found_at) for replica in placed.replicas}
    assert found.pop("nip-1") == (True, "10.1.2.3")
    assert set(found.values()) == {(False, None)}
    resources = {one.name: one for one in render(repository_mesh(), placed).workloads}
    (endpoints,) = (one for one in resources["payment-0"].endpoints if "nip" in one.name)
    assert "10.1.2.3" in endpoints.text
    assert all(EVERYWHERE not in one.text for workload in resources.values() for one in workload.endpoints)


def with_own_database(mesh: Mesh) -> Mesh:
    own = (Secret(variable="NIPMESH_DATABASE_URL_FILE", source=Path("/database.url")),)
    return replace(mesh, services=tuple(replace(one, secrets=(*one.secrets, *own)) for one in mesh.services))


def test_postgresql_is_there_when_its_profile_is_on() -> None:
    document = yaml.safe_load(render_compose(repository_mesh()))
    server = document["services"]["postgresql"]
    assert server["profiles"] == ["postgresql"]
    assert list(server["networks"]) == ["database"]
    assert "ports" not in server
    assert {name for name, service in document["services"].items() if "database" in service.get("networks", ())} == {
        "postgresql",
        "agent",
    } | {f"{service.name}-{index}" for service in repository_mesh().services for index in range(service.replicas)}
    told = document["services"]["payment-0"]["environment"]["NIPMESH_DATABASE_URL_FILE"]
    assert told == "${NIPMESH_DATABASE:+/etc/nipmesh/secrets/database.url}"
    assert not any("postgresql" in service.get("depends_on", ()) for service in document["services"].values())


@pytest.mark.parametrize("variable", ["NIPMESH_DATABASE_URL", "NIPMESH_DATABASE_URL_FILE"])
def test_a_service_with_a_database_of_its_own_keeps_it(variable: str) -> None:
    mesh = repository_mesh()
    own = replace(mesh.service("payment"), environment=((variable, "mine"),))
    document = yaml.safe_load(render_compose(replace(mesh, services=(mesh.service("nip"), own))))
    assert document["services"]["payment-0"]["environment"][variable] == "mine"
    assert "database" not in document["services"]["payment-0"]["networks"]
    assert "database" in document["services"]["nip-0"]["networks"]
    filed = replace(mesh.service("payment"), environment_file=Path("/payment.env"))
    document = yaml.safe_load(render_compose(replace(mesh, services=(filed,))))
    assert "NIPMESH_DATABASE_URL_FILE" not in document["services"]["payment-0"]["environment"]
    assert "postgresql" not in document["services"]


def test_nobody_without_a_database_has_a_server_for_it() -> None:
    document = yaml.safe_load(render_compose(with_own_database(repository_mesh())))
    assert "postgresql" not in document["services"]
    assert "database" not in document["networks"]
    assert not [name for name in document["volumes"] if "postgresql" in name]


def test_an_application_beside_its_sidecar_reaches_the_database() -> None:
    mesh = repository_mesh()
    service = replace(mesh.service("payment"), listen_port=9_000)
    services = yaml.safe_load(render_compose(replace(mesh, services=(service,))))["services"]
    assert services["payment-0"]["network_mode"] == "service:payment-0-sidecar"
    assert "database" in services["payment-0-sidecar"]["networks"]


def test_without_events_and_databases_an_application_has_no_network() -> None:
    document = yaml.safe_load(render_compose(with_own_database(replace(repository_mesh(), events=None))))
    assert "events" not in document["services"]
    assert document["services"]["payment-0"]["network_mode"] == "none"
    assert "NIPMESH_EVENTS_URL" not in document["services"]["payment-0"]["environment"]


def test_a_cluster_of_others_is_told_to_applications() -> None:
    cluster = Cluster(url="tls://a:4222", ca=None, credentials=Path("/k"), service_credentials=(), admin=None)
    mesh = replace(repository_mesh(), events=Events(cluster=cluster, retention_ms=1, bytes_max=1))
    document = yaml.safe_load(render_compose(mesh))
    assert "events" not in document["services"]
    assert document["services"]["nip-0"]["environment"]["NIPMESH_EVENTS_URL"] == "tls://a:4222"
    assert document["secrets"]["nip-nipmesh-events-credentials-file"] == {"file": "/k"}


def test_regression_an_application_with_tcp_only_finds_its_port() -> None:
    analysis = check_manifest(FOREIGN / "mesh.yaml")
    assert analysis.mesh is not None
    services = yaml.safe_load(render_compose(analysis.mesh))["services"]
    for name in ("customs-0", "customs-1"):
        assert services[name]["environment"]["PORT"] == "9471"
        assert services[name]["network_mode"] == f"service:{name}-sidecar"
    assert "PORT" not in services["tariff-0"]["environment"]


def test_a_version_shares_its_services_data_and_knows_its_own_name() -> None:
    mesh = repository_mesh()
    version = replace(mesh.service("payment"), name="payment-next", version_of="payment")
    document = yaml.safe_load(render_compose(replace(mesh, services=(*mesh.services, version))))
    application = document["services"]["payment-next-0"]
    assert "payment-data:/var/lib/nipmesh" in application["volumes"]
    assert "payment-next-data" not in document["volumes"]
    names = (application["environment"]["NIPMESH_SERVICE"], application["environment"]["NIPMESH_VERSION"])
    assert names == ("payment", "payment-next")


def test_a_dollar_of_the_manifest_is_no_variable() -> None:
    mesh = repository_mesh()
    changed = replace(mesh.services[0], command=("sh", "-c", "echo $HOME"), environment=(("PRICE", "5$"),))
    service = yaml.safe_load(render_compose(replace(mesh, services=(changed,))))["services"]["invoice-0"]
    assert service["command"] == ["sh", "-c", "echo $$HOME"]
    assert service["environment"]["PRICE"] == "5$$"


@pytest.mark.parametrize("text", ["n", "on", "a: b", "#x", "\n", "'\"", "0x1", "é\U0001f600", "", "- a"])
def test_text_stays_text(text: str) -> None:
    document = {"value": text, "list": [text, {"inner": text}], text or "empty": 1, "none": None, "no": {}}
    assert yaml.safe_load(emit(document)) == document
