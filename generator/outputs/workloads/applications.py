"""The application of one replica: what it is told, what it reads, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from generator.model import GeneratedSecret, Mesh, Service
from generator.model.events import EVENTS, inbox
from generator.outputs.workloads.description import (
    Condition,
    Dependency,
    Minted,
    Part,
    Place,
    Process,
    Program,
    SecretFile,
    Where,
    Word,
)
from generator.outputs.workloads.helpers import has_event_server, sidecar_name

DRAIN_GRACE_S = 10
"""What an application may use to finish after SIGTERM."""
GRACE_MARGIN_MS = 2_000
"""An application that uses its whole grace still has to flush and exit."""
TOKEN_LIFETIME_S = 900
"""Of a user's token: 15 minutes."""
LOG_LEVEL = "info"
EVENTS_CREDENTIALS = "NIPMESH_EVENTS_CREDENTIALS_FILE"
EVENTS_AUTHORITIES = "NIPMESH_EVENTS_CA_FILE"
DATABASE_URL_FILE = "NIPMESH_DATABASE_URL_FILE"
"""Of an output that has a database for services; in the others it is the manifest's to say."""
DATABASE_VARIABLES = frozenset({"NIPMESH_DATABASE_URL", DATABASE_URL_FILE})
TOKEN_KEY = "NIPMESH_TOKEN_KEY_FILE"  # noqa: S105  # the variable's name


def application(mesh: Mesh, service: Service, index: int) -> Process:
    """Describe the application of one replica."""
    name = f"{service.name}-{index}"
    secrets = tuple(_secrets(mesh, service))
    return Process(
        name=name,
        part=Part.APPLICATION,
        workload=name,
        service=service.name,
        program=Program.USERS,
        command=service.command,
        image=service.image,
        environment=_environment(mesh, service, index, secrets),
        environment_file=service.environment_file,
        working_directory=service.working_directory,
        secrets=secrets,
        volumes=service.volumes,
        data=service.role,
        probe=service.probe,
        resources=service.resources,
        stop_grace_ms=DRAIN_GRACE_S * 1000 + GRACE_MARGIN_MS,
        depends_on=tuple(_dependencies(mesh, name)),
        listen_port=service.listen_port,
    )


def takes_database(service: Service) -> bool:
    """Whether a service is told of an output's database: not one whose manifest says, or may say, where its own is."""
    named = {name for name, _ in service.environment} | {secret.variable for secret in service.secrets}
    return service.environment_file is None and not named & DATABASE_VARIABLES


def _dependencies(mesh: Mesh, name: str) -> Iterator[Dependency]:
    yield Dependency(process=sidecar_name(name), condition=Condition.READY)
    if has_event_server(mesh):
        yield Dependency(process=EVENTS, condition=Condition.READY)


def _environment(mesh: Mesh, service: Service, index: int, secrets: tuple[SecretFile, ...]) -> Mapping[str, Word]:
    """The whole environment; what nipmesh says wins over the user's."""
    environment: dict[str, Word] = dict(service.environment)
    environment |= {one.variable: Place(where=Where.SECRET, name=one.variable) for one in secrets}
    environment |= _identity(mesh, service, index) | _addresses(mesh, service)
    return environment | _issuer(mesh, service) | _telemetry(mesh, service) | _events(mesh, service)


def _identity(mesh: Mesh, service: Service, index: int) -> dict[str, Word]:
    return {
        "NIPMESH_MESH": mesh.name,
        "NIPMESH_SERVICE": service.role,
        "NIPMESH_VERSION": service.name,
        "NIPMESH_REPLICA": str(index),
        "NIPMESH_TRUST_DOMAIN": mesh.trust_domain,
        "NIPMESH_AUTHORITY": mesh.name,
        "NIPMESH_GATEWAY_IDENTITY": f"spiffe://{mesh.trust_domain}/gateway",
        "NIPMESH_DRAIN_GRACE": str(DRAIN_GRACE_S),
    }


def _addresses(mesh: Mesh, service: Service) -> dict[str, Word]:
    gateway = mesh.gateway
    values: dict[str, Word] = {
        "NIPMESH_LISTEN": Place(where=Where.LISTEN),
        "NIPMESH_METRICS_LISTEN": Place(where=Where.METRICS),
        "NIPMESH_EGRESS": Place(where=Where.EGRESS),
        "NIPMESH_DATA_DIRECTORY": Place(where=Where.DATA, name=service.role),
        "NIPMESH_GATEWAY_URL": "" if gateway is None else gateway.public_url,
        "NIPMESH_REFLECTION": "true" if gateway is not None and gateway.reflection else "false",
        "NIPMESH_LOG_LEVEL": Place(where=Where.LOG_LEVEL, name=LOG_LEVEL),
    }
    for name in service.external_connections:
        values[mesh.external(name).variable] = Place(where=Where.EXTERNAL, name=name)
    if service.listen_port is not None:
        values["PORT"] = Place(where=Where.PORT)
    if gateway is not None and gateway.authentication is not None:
        headers = gateway.authentication.claim_headers
        values["NIPMESH_CLAIM_HEADERS"] = ",".join(f"{claim}={header}" for claim, header in headers)
    return values


def _issuer(mesh: Mesh, service: Service) -> dict[str, Word]:
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    if authentication is None or not _is_issuer(mesh, service):
        return {}
    return {
        "NIPMESH_TOKEN_ISSUER": authentication.issuer,
        "NIPMESH_TOKEN_AUDIENCE": authentication.audience,
        "NIPMESH_TOKEN_LIFETIME": str(TOKEN_LIFETIME_S),
    }


def _telemetry(mesh: Mesh, service: Service) -> dict[str, Word]:
    if mesh.telemetry.otlp_host is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{mesh.telemetry.otlp_host}:{mesh.telemetry.otlp_port}",
        "OTEL_SERVICE_NAME": service.name,
    }


def _events(mesh: Mesh, service: Service) -> dict[str, Word]:
    """Say where events are; with what a service proves itself there is among its secrets, or nothing."""
    if mesh.events is None:
        return {}
    cluster = mesh.events.cluster
    said: dict[str, Word] = {
        "NIPMESH_EVENTS_URL": Place(where=Where.EVENTS) if cluster is None else cluster.url,
        "NIPMESH_EVENTS_STREAM": mesh.name,
        "NIPMESH_EVENTS_INBOX": inbox(mesh.name, service.role),
    }
    given = {secret.variable for secret in _event_secrets(mesh, service)}
    return said | {name: "" for name in (EVENTS_CREDENTIALS, EVENTS_AUTHORITIES) if name not in given}


def _secrets(mesh: Mesh, service: Service) -> Iterator[SecretFile]:
    for secret in service.secrets:
        own = service.role if isinstance(secret.source, GeneratedSecret) else service.name
        yield SecretFile(variable=secret.variable, source=secret.source, owner=own)
    if _is_issuer(mesh, service):
        yield SecretFile(variable=TOKEN_KEY, source=Minted.TOKEN_KEY, owner=service.role)
    yield from _event_secrets(mesh, service)


def _event_secrets(mesh: Mesh, service: Service) -> Iterator[SecretFile]:
    if mesh.events is None:
        return
    cluster, role = mesh.events.cluster, service.role
    credentials = Minted.EVENTS_SEED if cluster is None else cluster.credentials_of(role)
    authorities = Minted.EVENTS_AUTHORITIES if cluster is None else cluster.ca
    if credentials is not None:
        yield SecretFile(variable=EVENTS_CREDENTIALS, source=credentials, owner=role)
    if authorities is not None:
        yield SecretFile(variable=EVENTS_AUTHORITIES, source=authorities, owner=role)


def _is_issuer(mesh: Mesh, service: Service) -> bool:
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    return authentication is not None and authentication.issuer_service == service.role
