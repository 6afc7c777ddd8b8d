"""What each container of a mesh is told: its image, its volumes, its networks, when it is well, and what it may not do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from generator.model import Gateway, Mesh, Probe, Resources, Service
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.compose import layout
from generator.outputs.compose.emit import literal
from generator.outputs.local.environment import target
from generator.outputs.workloads import (
    DATABASE_URL_FILE,
    Minted,
    Place,
    Process,
    Resolve,
    SecretFile,
    Where,
    application,
    event_server,
    has_event_server,
    introspection,
    sidecar,
    takes_database,
)
from generator.outputs.workloads import gateway as edge_of

ENVOY_IMAGE = "envoyproxy/envoy:v1.40.0"
"""Not the one without a shell: its health check needs one that opens connections."""
NATS_IMAGE = "nats:2.15.1-alpine"
OWN_IMAGE = f"nipmesh:{version('nipmesh')}"
AGENT = "agent"
MESH_NETWORK = "mesh"
"""Sidecars, the gateway, and who looks for them; it leads nowhere else."""
DATABASE_NETWORK = "database"
"""The server of databases and its clients; it leads nowhere else, and nobody else is in it."""
OUTSIDE_NETWORK = "outside"
"""For the gateway's port, and for sidecars that call hosts outside."""
USER = f"{layout.USER_ID}:{layout.USER_ID}"
TEMPORARY = "/tmp:size=64m,mode=1777"  # noqa: S108  # inside the container
MEMORY_BLOCKS = 4_096
"""Of 4 KiB: far more than sockets, keys and Envoy's files need. Not `size=`, which Podman takes for a quota of its disk."""
AGENT_READY = "/tmp/ready.sock"  # noqa: S108  # the same
CHECK_INTERVAL_MS_MIN = 10_000
"""A check starts a process; the sidecars of its callers ask over a connection, and much more often."""
CHECK_TIMEOUT_MS = 5_000
CHECK_FAILURES = 3
START_PERIOD_MS = 60_000
START_INTERVAL = "1s"
STOP_GRACE_S_MIN = 15
DATABASE_CHOICE = f"${{NIPMESH_DATABASE:+{layout.SECRETS / layout.DATABASE_URL}}}"
"""Whoever brings the containers up chooses; empty: the services keep their state in their volumes, as on a laptop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Where the manifest is, as seen from the Compose file."""

    folder: str
    manifest: str


def hardened(image: str, *, restart: str = "unless-stopped") -> dict[str, Any]:
    """What every container is forbidden."""
    return {
        "image": image,
        "user": USER,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": restart,
    }


def agent(mesh: Mesh, beside: Beside) -> dict[str, Any]:
    """The container that fills the others' volumes; nobody else sees the authority's key.

    Those of other servers' state are there for their owner: the first container that mounts an empty volume gives it one.
    """
    command = ["generator.outputs.compose", "--manifest", f"{layout.MANIFEST}/{literal(beside.manifest)}"]
    mounts = [f"{literal(beside.folder)}:{layout.MANIFEST}:ro", f"{AGENT}-state:{layout.DATA}"]
    for workload in _workloads(mesh):
        mounts += [f"{workload}-envoy:{layout.ENVOY}/{workload}", certificates(workload, is_written=True)]
    mounts += [f"{role}-secrets:{layout.SECRETS}/{role}" for role in roles_with_secrets(mesh)]
    if mesh.gateway is not None:
        mounts.append(f"introspection:{layout.INTROSPECTION}")
    networks = [MESH_NETWORK]
    if layout.database_roles(mesh):
        mounts += [f"{layout.POSTGRESQL}:{layout.POSTGRESQL_FILES}", certificates(layout.POSTGRESQL, is_written=True)]
        mounts.append(f"{layout.POSTGRESQL}-state:{layout.POSTGRESQL_STATE}")
        networks.append(DATABASE_NETWORK)
    if has_event_server(mesh):
        mounts += [f"{EVENTS}:{layout.EVENTS}", certificates(EVENTS, is_written=True)]
        mounts.append(f"{EVENTS}-data:{layout.EVENT_STORE}")
        networks.append(EVENTS)
    elif mesh.events is not None:
        networks.append(OUTSIDE_NETWORK)
    return {
        **hardened(OWN_IMAGE),
        "command": module_command(*command, "--state", str(layout.DATA), "--ready", AGENT_READY),
        "networks": networks,
        "volumes": mounts,
        "tmpfs": [TEMPORARY],
        "healthcheck": check(ready_command(AGENT_READY)),
        "stop_grace_period": "5s",
    }


def replica(mesh: Mesh, service: Service, index: int) -> dict[str, Any]:
    """An application and the Envoy beside it."""
    name = f"{service.name}-{index}"
    beside = sidecar(name, service.name)
    envoy = _envoy(beside, layout.scrape_port(service))
    envoy["networks"] = {MESH_NETWORK: {"aliases": [layout.host_name(name)]}}
    if service.external_calls or service.external_connections or mesh.telemetry.otlp_host is not None:
        envoy["networks"][OUTSIDE_NETWORK] = {}
    if mesh.events is not None and service.listen_port is not None:
        envoy["networks"][EVENTS if has_event_server(mesh) else OUTSIDE_NETWORK] = {}
    if takes_database(service) and service.listen_port is not None:
        envoy["networks"][DATABASE_NETWORK] = {}
    return {name: _application(mesh, service, index), beside.name: envoy}


def _application(mesh: Mesh, service: Service, index: int) -> dict[str, Any]:
    described = application(mesh, service, index)
    name, resolve = described.name, _places(mesh, service, described)
    container: dict[str, Any] = {
        **hardened(literal(service.image or OWN_IMAGE)),
        "command": [literal(word) for word in service.command],
        "environment": {key: literal(value) for key, value in described.variables(resolve).items()},
        "depends_on": {f"{name}-sidecar": {"condition": "service_healthy"}},
        "volumes": [f"{name}-sockets:{layout.SOCKETS}", f"{service.role}-data:{layout.DATA}"],
        "tmpfs": [TEMPORARY],
        "stop_grace_period": seconds(described.stop_grace_ms),
    }
    if service.role in roles_with_secrets(mesh):
        container["volumes"].append(f"{service.role}-secrets:{layout.SECRETS}:ro")
    container["volumes"] += [_mount(volume.source, volume.target, volume.is_read_only) for volume in service.volumes]
    if service.probe.command:
        container["healthcheck"] = check(service.probe.command, service.probe)
    if has_event_server(mesh):
        container["depends_on"][EVENTS] = {"condition": "service_healthy"}
    container |= _network(mesh, service, name)
    if takes_database(service):
        container["environment"][DATABASE_URL_FILE] = DATABASE_CHOICE
    if service.environment_file is not None:
        container["env_file"] = [literal(str(service.environment_file))]
    files = list(secret_files(described))
    if files:
        container["secrets"] = files
    return container | _limits(service.resources)


def _network(mesh: Mesh, service: Service, name: str) -> dict[str, Any]:
    """A Unix socket is all the network that it needs for calls; one on loopback shares its sidecar's."""
    if service.listen_port is not None:
        return {"network_mode": f"service:{name}-sidecar"}
    networks = [] if mesh.events is None else [EVENTS if has_event_server(mesh) else OUTSIDE_NETWORK]
    if takes_database(service):
        networks.append(DATABASE_NETWORK)
    return {"networks": networks} if networks else {"network_mode": "none"}


def _limits(resources: Resources) -> dict[str, Any]:
    limits: dict[str, str] = {}
    if resources.cpu_millis is not None:
        limits["cpus"] = f"{resources.cpu_millis / 1000:g}"
    if resources.memory_bytes is not None:
        limits["memory"] = str(resources.memory_bytes)
    return {"deploy": {"resources": {"limits": limits}}} if limits else {}


def events() -> dict[str, Any]:
    """The server of events, in a network of its own with the applications."""
    described = event_server()
    return {
        **hardened(NATS_IMAGE),
        "command": list(described.arguments(lambda _: f"{layout.EVENTS}/nats.json")),
        "networks": [EVENTS],
        "depends_on": {AGENT: {"condition": "service_healthy"}},
        "volumes": [
            f"{EVENTS}:{layout.EVENTS}:ro",
            certificates(EVENTS),
            f"{EVENTS}-data:{layout.EVENT_STORE}",
        ],
        "healthcheck": check(
            ("wget", "-q", "-O", "/dev/null", f"http://{layout.LOOPBACK}:{layout.EVENT_MONITOR_PORT}/healthz")
        ),
        "stop_grace_period": seconds(described.stop_grace_ms),
    }


def edge(mesh: Mesh, gateway: Gateway) -> dict[str, Any]:
    """The gateway, whose port is the only one that is published, and the server beside it."""
    described, beside = edge_of(mesh), introspection()
    envoy = _envoy(described, layout.gateway_scrape_port(gateway.listen_port))
    envoy["networks"] = {MESH_NETWORK: {}, OUTSIDE_NETWORK: {}}
    host = f"[{gateway.listen_host}]" if ":" in gateway.listen_host else gateway.listen_host
    envoy["ports"] = [f"{host}:{gateway.listen_port}:{gateway.listen_port}"]
    envoy["depends_on"] |= {beside.name: {"condition": "service_healthy"}} | {
        f"{service.name}-{index}": {"condition": "service_healthy" if service.probe.command else "service_started"}
        for service in mesh.services
        for index in range(service.replicas)
    }
    socket = f"{layout.SOCKETS}/introspection.sock"
    server = {
        **hardened(OWN_IMAGE),
        "command": module_command(*beside.arguments(_introspection_place)),
        "network_mode": "none",
        "depends_on": {AGENT: {"condition": "service_healthy"}},
        "volumes": [f"introspection:{layout.INTROSPECTION}:ro", f"{GATEWAY}-sockets:{layout.SOCKETS}"],
        "tmpfs": [TEMPORARY],
        "healthcheck": check(ready_command(f"connect:{socket}")),
        "stop_grace_period": seconds(beside.stop_grace_ms),
    }
    return {described.name: envoy, beside.name: server}


def _envoy(described: Process, scrape_port: int) -> dict[str, Any]:
    workload = described.workload
    return {
        **hardened(ENVOY_IMAGE),
        "entrypoint": ["/usr/local/bin/envoy"],
        "command": list(described.arguments(lambda _: f"{layout.ENVOY}/{workload}/bootstrap.json")),
        "depends_on": {AGENT: {"condition": "service_healthy"}},
        "volumes": [
            f"{workload}-envoy:{layout.ENVOY}/{workload}:ro",
            certificates(workload),
            f"{workload}-sockets:{layout.SOCKETS}",
        ],
        "healthcheck": check(("bash", "-c", literal(envoy_check(scrape_port)))),
        "stop_grace_period": seconds(max(described.stop_grace_ms, STOP_GRACE_S_MIN * 1000)),
    }


def envoy_check(port: int) -> str:
    """Ask Envoy at /ready with what its image has: bash opens connections by itself."""
    request = r"GET /ready HTTP/1.1\r\nHost: ready\r\nConnection: close\r\n\r\n"
    return f"exec 3<>/dev/tcp/{layout.LOOPBACK}/{port} && printf '{request}' >&3 && read -r _ code _ <&3 && [ $code = 200 ]"


def module_command(module: str, *words: str) -> list[str]:
    """Run one of nipmesh's own modules in its image."""
    return ["python", "-P", "-m", "nipmesh_home", module, *words]


def ready_command(target_of: str) -> tuple[str, ...]:
    """Ask what listens on a Unix socket of its own container."""
    return ("python", "-P", "-m", "nipmesh_home.ready", target_of)


def check(command: Iterable[str], probe: Probe | None = None) -> dict[str, Any]:
    """Say how a container is asked whether it is well."""
    interval = CHECK_INTERVAL_MS_MIN if probe is None else max(probe.interval_ms, CHECK_INTERVAL_MS_MIN)
    return {
        "test": ["CMD", *(word if probe is None else literal(word) for word in command)],
        "interval": seconds(interval),
        "timeout": seconds(CHECK_TIMEOUT_MS if probe is None else max(probe.timeout_ms, CHECK_TIMEOUT_MS)),
        "retries": CHECK_FAILURES if probe is None else probe.failures,
        "start_period": seconds(START_PERIOD_MS if probe is None else probe.start_period_ms),
        "start_interval": START_INTERVAL,
    }


def seconds(duration_ms: int) -> str:
    """Write a duration as Compose reads it."""
    return f"{duration_ms / 1000:g}s"


def _places(mesh: Mesh, service: Service, described: Process) -> Resolve:
    """Say where everything is for an application in its container."""
    mine = layout.placement(mesh).of_service(service.name)[0]
    targets = {Where.LISTEN: mine.app, Where.METRICS: mine.app_metrics, Where.EGRESS: mine.egress}

    def resolve(place: Place) -> str:
        match place.where:
            case Where.LISTEN | Where.METRICS | Where.EGRESS:
                return target(targets[place.where])
            case Where.EXTERNAL:
                return target(dict(mine.external)[place.name])
            case Where.PORT:
                return str(service.listen_port)
            case Where.DATA:
                return str(layout.DATA)
            case Where.SECRET:
                return _secret_path(described.secret(place.name))
            case Where.EVENTS:
                return f"tls://{EVENTS}:{layout.EVENT_PORT}"
            case _:
                assert place.where is Where.LOG_LEVEL, place
                return place.name

    return resolve


def _introspection_place(place: Place) -> str:
    match place.where:
        case Where.LISTEN:
            return f"unix:{layout.SOCKETS}/introspection.sock"
        case Where.ADMIN:
            return f"{layout.SOCKETS}/admin.sock"
        case _:
            return f"{layout.INTROSPECTION}/{place.name}"


def _secret_path(secret: SecretFile) -> str:
    if secret.source is Minted.EVENTS_AUTHORITIES:
        return str(layout.SECRETS / layout.EVENT_AUTHORITIES)
    if isinstance(secret.source, Path):
        return f"/run/secrets/{_secret_name(secret)}"
    return str(layout.SECRETS / layout.secret_file_name(secret))


def secret_files(described: Process) -> dict[str, str]:
    """The files of the user's own that a process reads, by the name of the secret."""
    return {
        _secret_name(secret): literal(str(secret.source))
        for secret in described.secrets
        if isinstance(secret.source, Path)
    }


def _secret_name(secret: SecretFile) -> str:
    return f"{secret.owner}-{layout.secret_file_name(secret)}"


def _mount(source: str | Path, inside: PurePosixPath, is_read_only: bool) -> str:
    return f"{literal(str(source))}:{literal(str(inside))}{':ro' if is_read_only else ''}"


def certificates(workload: str, *, is_written: bool = False) -> str:
    """Mount a workload's certificate."""
    return f"{workload}-certificates:{layout.CERTIFICATES}/{workload}" + ("" if is_written else ":ro")


def _workloads(mesh: Mesh) -> list[str]:
    names = [f"{service.name}-{index}" for service in mesh.services for index in range(service.replicas)]
    return [*names, GATEWAY] if mesh.gateway is not None else names


def roles_with_secrets(mesh: Mesh) -> list[str]:
    """Services for which somebody has to make secrets, in the order of the mesh."""
    databases = layout.database_roles(mesh)
    return [
        service.name
        for service in mesh.services
        if service.version_of is None
        and (
            service.name in databases
            or any(not isinstance(secret.source, Path) for secret in application(mesh, service, 0).secrets)
        )
    ]


def volumes(mesh: Mesh) -> dict[str, Mapping[str, Any]]:
    """Every volume: what is made anew at each start is in memory, and never on a disk."""
    found: dict[str, Mapping[str, Any]] = {f"{AGENT}-state": {}}
    for workload in _workloads(mesh):
        found |= {f"{workload}-{kind}": _in_memory() for kind in ("envoy", "certificates", "sockets")}
    found |= {f"{role}-secrets": _in_memory() for role in roles_with_secrets(mesh)}
    found |= {f"{service.name}-data": {} for service in mesh.services if service.version_of is None}
    if mesh.gateway is not None:
        found["introspection"] = _in_memory()
    if has_event_server(mesh):
        found |= {EVENTS: _in_memory(), f"{EVENTS}-certificates": _in_memory(), f"{EVENTS}-data": {}}
    if layout.database_roles(mesh):
        server = layout.POSTGRESQL
        found |= {server: _in_memory(), f"{server}-certificates": _in_memory(), f"{server}-state": {}}
    return found | {name: {} for name in mesh.volumes}


def _in_memory() -> dict[str, Any]:
    options = f"nr_blocks={MEMORY_BLOCKS},mode=0700,uid={layout.USER_ID},gid={layout.USER_ID}"
    return {"driver": "local", "driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": options}}
