"""The one description of a mesh's processes, and that the outputs take what they start and mount from it."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from generator.model import Cluster, Events, External, ExternalTls, GeneratedSecret, Mesh, Secret, Telemetry
from generator.outputs.workloads import (
    Condition,
    Dependency,
    Minted,
    Part,
    Place,
    Process,
    Program,
    SecretFile,
    Where,
    application,
    describe,
    has_event_server,
)
from support.meshes import REPOSITORY, repository_mesh


def by_name(mesh: Mesh) -> dict[str, Process]:
    return {process.name: process for process in describe(mesh)}


def shown(place: Place) -> str:
    return f"<{place.where.value} {place.name}>"


def test_every_process_of_the_mesh_is_described_once() -> None:
    mesh = repository_mesh()
    processes = describe(mesh)
    replicas = {f"{service.name}-{index}" for service in mesh.services for index in range(service.replicas)}
    names = [process.name for process in processes]
    assert len(names) == len(set(names))
    assert set(names) == replicas | {f"{name}-sidecar" for name in replicas} | {"gateway", "introspection", "events"}
    assert {process.workload for process in processes} == replicas | {"gateway", "events"}


def test_a_process_stands_after_those_that_it_waits_for() -> None:
    seen: set[str] = set()
    for process in describe(repository_mesh()):
        assert process.before <= seen, process.name
        seen.add(process.name)


def test_an_application_waits_for_its_sidecar_and_for_events_and_the_gateway_for_all() -> None:
    processes = by_name(repository_mesh())
    assert processes["nip-0"].depends_on == (
        Dependency(process="nip-0-sidecar", condition=Condition.READY),
        Dependency(process="events", condition=Condition.READY),
    )
    applications = {name for name, process in processes.items() if process.part is Part.APPLICATION}
    assert processes["gateway"].before == applications | {"introspection"}


def test_without_events_and_without_a_gateway_there_is_less() -> None:
    mesh = replace(repository_mesh(), events=None, gateway=None)
    processes = by_name(mesh)
    assert not {"events", "gateway", "introspection"} & processes.keys()
    assert processes["nip-0"].before == {"nip-0-sidecar"}
    assert not any("EVENTS" in name or "TOKEN" in name for name in processes["nip-0"].environment)
    assert not has_event_server(mesh)


def test_the_words_of_every_command_and_variable_are_text_or_places() -> None:
    for process in describe(repository_mesh()):
        for word in (*process.command, *process.environment.values()):
            assert isinstance(word, str | Place), (process.name, word)
            assert not (isinstance(word, str) and "/" in word and ".nipmesh" in word), (process.name, word)


def test_sidecars_and_gateway_run_the_same_envoy() -> None:
    processes = by_name(repository_mesh())
    sidecar, gateway = processes["nip-0-sidecar"], processes["gateway"]
    assert sidecar.command == gateway.command
    assert sidecar.program is gateway.program is Program.ENVOY
    words = sidecar.arguments(lambda place: f"<{place.where.value}>")
    assert words[:2] == ("--config-path", "<bootstrap>")
    assert "--reject-unknown-dynamic-fields" in words


def test_the_introspection_server_is_told_where_the_gateways_envoy_is() -> None:
    introspection = by_name(repository_mesh())["introspection"]
    assert introspection.workload == "gateway"
    words = introspection.arguments(shown)
    assert words[0] == "generator.introspection"
    assert ("--admin", "<admin >") in set(itertools.pairwise(words))
    assert ("--methods", "<exposure exposure.json>") in set(itertools.pairwise(words))


def test_what_is_secret_is_a_file_whose_path_is_in_a_variable() -> None:
    mesh = repository_mesh()
    for process in describe(mesh):
        for secret in process.secrets:
            assert process.environment[secret.variable] == Place(where=Where.SECRET, name=secret.variable)
    issuer = application(mesh, mesh.service("nip"), 0)
    assert issuer.secrets == (
        SecretFile(variable="NIP_KEYSTORE_KEY_FILE", source=GeneratedSecret(bytes_count=32), owner="nip"),
        SecretFile(variable="NIPMESH_TOKEN_KEY_FILE", source=Minted.TOKEN_KEY, owner="nip"),
        SecretFile(variable="NIPMESH_EVENTS_CREDENTIALS_FILE", source=Minted.EVENTS_SEED, owner="nip"),
        SecretFile(variable="NIPMESH_EVENTS_CA_FILE", source=Minted.EVENTS_AUTHORITIES, owner="nip"),
    )
    others = [process for process in describe(mesh) if process.service != "nip"]
    assert not any(secret.source is Minted.TOKEN_KEY for process in others for secret in process.secrets)


def test_a_version_shares_data_and_secrets_and_knows_its_own_name() -> None:
    mesh = repository_mesh()
    version = replace(mesh.service("nip"), name="nip-next", version_of="nip")
    own, other = application(mesh, mesh.service("nip"), 0), application(mesh, version, 1)
    assert (own.data, own.secrets) == (other.data, other.secrets)
    assert other.environment["NIPMESH_VERSION"] == "nip-next"
    assert other.environment["NIPMESH_SERVICE"] == "nip"
    assert other.environment["NIPMESH_REPLICA"] == "1"


def test_a_cluster_of_others_is_told_with_what_the_manifest_names() -> None:
    cluster = Cluster(
        url="tls://a:4222", ca=None, credentials=Path("/k"), service_credentials=(("nip", Path("/nip")),), admin=None
    )
    mesh = replace(repository_mesh(), events=Events(cluster=cluster, retention_ms=1, bytes_max=1))
    processes = by_name(mesh)
    assert "events" not in processes
    sources = {
        name: process.secret("NIPMESH_EVENTS_CREDENTIALS_FILE").source
        for name, process in processes.items()
        if process.part is Part.APPLICATION
    }
    assert sources["nip-0"] == Path("/nip")
    assert sources["payment-0"] == Path("/k")
    assert processes["nip-0"].environment["NIPMESH_EVENTS_URL"] == "tls://a:4222"
    assert processes["nip-0"].environment["NIPMESH_EVENTS_CA_FILE"] == ""
    with pytest.raises(KeyError):
        processes["nip-0"].secret("NIPMESH_EVENTS_CA_FILE")


def test_a_program_with_a_tcp_port_finds_it_and_its_hosts_outside() -> None:
    mesh = repository_mesh()
    tls = ExternalTls(server_name="db.example.org", ca=None, client=None)
    outside = External(name="db", host="db.example.org", port=5432, tls=tls, methods=())
    foreign = replace(mesh.service("nip"), listen_port=9_471, external_connections=("db",))
    described = application(replace(mesh, externals=(outside,)), foreign, 0)
    assert described.environment["PORT"] == Place(where=Where.PORT)
    assert described.environment["NIPMESH_EXTERNAL_DB"] == Place(where=Where.EXTERNAL, name="db")
    assert described.listen_port == 9_471
    assert "PORT" not in application(mesh, mesh.service("nip"), 0).environment


def test_what_nipmesh_says_wins_over_the_manifests_variables() -> None:
    mesh = replace(repository_mesh(), telemetry=Telemetry(otlp_host="127.0.0.1", otlp_port=4317))
    service = replace(mesh.service("nip"), environment=(("NIPMESH_MESH", "other"), ("COLOUR", "red")))
    told = application(mesh, service, 0).variables(shown)
    assert (told["NIPMESH_MESH"], told["COLOUR"]) == (mesh.name, "red")
    assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4317"
    assert told["NIPMESH_LOG_LEVEL"] == "<log-level info>"


def test_secrets_of_the_user_are_those_of_the_manifest() -> None:
    mesh = repository_mesh()
    service = replace(mesh.service("payment"), secrets=(Secret(variable="X_FILE", source=Path("/x.key")),))
    assert application(mesh, service, 0).secret("X_FILE") == SecretFile(
        variable="X_FILE", source=Path("/x.key"), owner="payment"
    )


@pytest.mark.parametrize("output", ["local", "compose"])
def test_no_output_writes_a_processs_words_by_itself(output: str) -> None:
    """Names of variables and options stand in the description alone: two copies would differ one day."""
    alone: Callable[[str], bool] = lambda text: text.startswith(("NIPMESH_", "OTEL_", "--config-path", "--drain-"))  # noqa: E731
    allowed = {"NIPMESH_", "NIPMESH_EVENTS_", "NIPMESH_LOG_LEVEL"}
    found = set()
    for file in sorted((REPOSITORY / "generator" / "outputs" / output).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and alone(node.value):
                found.add(node.value)
    assert found <= allowed
