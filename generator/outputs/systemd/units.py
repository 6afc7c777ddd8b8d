"""One unit per process: how it starts, what it waits for, how it ends, and what it may touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from generator.model import Mesh, Placement, ReplicaPlacement, Service, SocketAddress, UnixAddress
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.local.environment import PYTHON_NAMES, target
from generator.outputs.local.ports import host_and_port
from generator.outputs.systemd import sandbox
from generator.outputs.systemd.layout import Layout, user_of
from generator.outputs.systemd.words import CREDENTIALS, Setting, assignments, command, literal, unit, word
from generator.outputs.workloads import (
    INTROSPECTION,
    Minted,
    Part,
    Place,
    Process,
    Program,
    SecretFile,
    Where,
    resolved,
)
from generator.pki.store import AUTHORITIES

UNIT_PREFIX = "nipmesh-"
TARGET = "nipmesh.target"
CERTIFICATES = "nipmesh-certificates.service"
TIMER = "nipmesh-certificates.timer"
STREAMS = "nipmesh-events-streams.service"
"""No process has this name: a sidecar's ends otherwise, and no service may be called like the server of events."""
NETWORK = "network-online.target"
DRAIN_S = 5
"""How long running calls may delay the end of their application, and then of their sidecar."""
READY_S = 60
"""How long a sidecar may take until it has its certificate and its configuration."""
RESTART_S = 1
STOP_MARGIN_S = 2
SEARCHED = ("/usr/local/bin", "/usr/bin", "/bin")
"""Where programs without a path are looked for, after nipmesh's own folder."""
RENEWALS_PER_LIFE = 12
"""Looks of the timer: a certificate is renewed at half of its life, and a failure may be repeated a few times."""
VOLUME_GROUP, SHARED_MASK = "nipmesh-volumes", "0007"
"""Of services that have named volumes: others of them may use the same."""
KEEPER_PREFIX, ADMIN_CREDENTIAL, SEED_SUFFIX = "keeper-", "admin.nk", ".nk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the units of one machine follow from."""

    mesh: Mesh
    placement: Placement
    """Of the whole mesh."""
    layout: Layout
    events: SocketAddress | None
    """Where the mesh's own server of events listens; None: it has none."""
    processes: tuple[Process, ...]
    """Those that this machine runs."""
    signer: str | None = None
    """The command by which another machine signs its certificates; None: its own authority does."""

    def without(self, names: Iterable[str]) -> Machine:
        """The same, where nobody sends calls to these replicas."""
        leaving = set(names)
        replicas = (replace(one, in_rotation=one.name not in leaving) for one in self.placement.replicas)
        return replace(self, placement=replace(self.placement, replicas=tuple(replicas)))

    def replica(self, name: str) -> ReplicaPlacement:
        """Where a replica is."""
        return next(replica for replica in self.placement.replicas if replica.name == name)

    def service(self, process: Process) -> Service:
        """The service whose process it is."""
        assert process.service is not None, process.name
        return self.mesh.service(process.service)

    def sockets(self, process: Process) -> Path:
        """The folder of a workload's sockets."""
        return self.layout.sockets / process.workload

    def admin(self, process: Process) -> Path:
        """The admin socket of a workload's Envoy."""
        return self.sockets(process) / "admin.sock"


def named_volumes(machine: Machine) -> tuple[str, ...]:
    """The mesh's volumes that are used here, sorted."""
    used = {volume.source for process in machine.processes for volume in process.volumes}
    return tuple(sorted(name for name in used if isinstance(name, str)))


def unit_name(process: str) -> str:
    """The file name of a process's unit."""
    return f"{UNIT_PREFIX}{process}.service"


def user(mesh: Mesh, process: Process) -> str:
    """Whose it is."""
    if process.service is not None:
        return user_of(mesh.service(process.service).role)
    return user_of(EVENTS if process.part is Part.EVENTS else GATEWAY)


def units(machine: Machine) -> Mapping[str, str]:
    """Every unit by its file name."""
    found = {unit_name(process.name): _unit(machine, process) for process in machine.processes}
    if any(process.part is Part.EVENTS for process in machine.processes):
        found[STREAMS] = _streams(machine)
    return found | {TARGET: _target(found), CERTIFICATES: _certificates(machine), TIMER: _timer(machine.mesh)}


def _unit(machine: Machine, process: Process) -> str:
    settings = {
        Part.APPLICATION: _application,
        Part.SIDECAR: _envoy,
        Part.GATEWAY: _envoy,
        Part.INTROSPECTION: _introspection,
        Part.EVENTS: _events,
    }[process.part]
    service = (*_common(machine, process), *settings(machine, process))
    return unit({"Unit": _order(machine, process), "Service": service, "Install": [("WantedBy", TARGET)]})


def _order(machine: Machine, process: Process) -> Iterator[Setting]:
    """After what it depends on, as far as that runs here; nothing ends because something else ended: callers have other replicas."""
    here = {other.name for other in machine.processes}
    before = [unit_name(name) for name in sorted(process.before & here)]
    if EVENTS in process.before & here:
        before.append(STREAMS)
    if process.part in (Part.SIDECAR, Part.GATEWAY, Part.EVENTS):
        before = [NETWORK, CERTIFICATES, *before]
    yield "Description", f"nipmesh {machine.mesh.name}: {process.part.value} of {process.workload}"
    yield "PartOf", TARGET
    if before:
        yield "Wants", " ".join(before)
        yield "After", " ".join(before)
    yield "StartLimitIntervalSec", "0"


def _common(machine: Machine, process: Process) -> Iterator[Setting]:
    """What every process has: its user, its end, and its next start."""
    owner = user(machine.mesh, process)
    seconds = process.stop_grace_ms / 1000 + STOP_MARGIN_S + DRAIN_S
    yield "Type", "exec"
    yield "User", owner
    yield "Group", owner
    yield "Restart", "always"
    yield "RestartSec", f"{RESTART_S}s"
    yield "KillMode", "mixed"
    yield "TimeoutStartSec", f"{READY_S + STOP_MARGIN_S}s"
    yield "TimeoutStopSec", f"{seconds:.0f}s"


def _application(machine: Machine, process: Process) -> Iterator[Setting]:
    service, layout = machine.service(process), machine.layout
    replica = machine.replica(process.workload)
    folder = service.working_directory or layout.project
    yield "WorkingDirectory", literal(str(folder))
    yield "ExecSearchPath", literal(":".join((str(layout.programs.python.parent), *SEARCHED)))
    own = (address.path for address in (replica.app, replica.app_metrics) if isinstance(address, UnixAddress))
    yield from _without_stale(*own)
    yield "ExecStart", command(literal(each) for each in _program(layout, service, folder))
    yield "ExecStartPost", _host(layout, "open", machine.admin(process))
    yield "ExecStop", _host(layout, "drain", machine.admin(process))
    yield from _variables(machine, process, replica)
    yield from _credentials(layout, process)
    yield from sandbox.application()
    volumes = [layout.volume(one.source) if isinstance(one.source, str) else one.source for one in service.volumes]
    yield sandbox.homes((folder, *volumes, *_needed(layout)))
    yield from sandbox.writable(machine.sockets(process), layout.data(service.role))
    yield from _volumes(layout, service)
    yield from sandbox.limits(process.resources)


def _program(layout: Layout, service: Service, folder: Path) -> tuple[str, ...]:
    """The command; `python` is that with which nipmesh was installed, and a path is seen from the working folder."""
    program, *rest = service.command
    if program in PYTHON_NAMES:
        return (str(layout.programs.python), *rest)
    return (str(folder / program) if "/" in program else program, *rest)


def _variables(machine: Machine, process: Process, replica: ReplicaPlacement) -> Iterator[Setting]:
    """The environment. A file wins over `Environment=` in systemd, so the user's own variables stand in a file behind his."""
    layout, service = machine.layout, machine.service(process)
    written = dict(service.environment) if service.environment_file is not None else {}
    values = {
        name: _value(machine, process, replica, value)
        for name, value in process.environment.items()
        if name not in written
    }
    values["PATH"] = literal(":".join((str(layout.programs.python.parent), *SEARCHED)))
    if service.environment_file is not None:
        yield "EnvironmentFile", literal(str(service.environment_file))
        yield "EnvironmentFile", literal(str(environment_file(layout, service)))
    yield from assignments(values)


def environment_file(layout: Layout, service: Service) -> Path:
    """The variables of the manifest's `env` of a service that has an `env_file`, too."""
    return layout.configuration / "environment" / f"{service.name}.env"


def _value(machine: Machine, process: Process, replica: ReplicaPlacement, value: str | Place) -> str:
    if isinstance(value, Place) and value.where is Where.SECRET:
        secret = process.secret(value.name)
        if secret.source is not Minted.EVENTS_AUTHORITIES:
            return f"{CREDENTIALS}/{value.name}"
    return literal(resolved(value, lambda place: _place(machine, process, replica, place)))


def _place(machine: Machine, process: Process, replica: ReplicaPlacement, place: Place) -> str:
    targets = {Where.LISTEN: replica.app, Where.METRICS: replica.app_metrics, Where.EGRESS: replica.egress}
    match place.where:
        case Where.LISTEN | Where.METRICS | Where.EGRESS:
            return target(targets[place.where])
        case Where.EXTERNAL:
            return target(dict(replica.external)[place.name])
        case Where.PORT:
            assert isinstance(replica.app, SocketAddress), "an application on a Unix socket has no port"
            return str(replica.app.port)
        case Where.DATA:
            return str(machine.layout.data(place.name))
        case Where.SECRET:
            return str(machine.layout.trust / AUTHORITIES)
        case Where.EVENTS:
            assert machine.events is not None, "the server of events has no place"
            return f"tls://{host_and_port(machine.events)}"
        case _:
            assert place.where is Where.LOG_LEVEL, (process.name, place)
            return place.name


def _credentials(layout: Layout, process: Process) -> Iterator[Setting]:
    """Secrets: root's files, of which the process gets a copy that nobody else can read and no disk ever sees."""
    for secret in process.secrets:
        if secret.source is not Minted.EVENTS_AUTHORITIES:
            yield "LoadCredential", word(literal(f"{secret.variable}:{secret_file(layout, secret)}"))


def secret_file(layout: Layout, secret: SecretFile) -> Path:
    """Where a secret lies on the machine."""
    match secret.source:
        case Minted.TOKEN_KEY:
            return layout.secrets.token_key
        case Minted.EVENTS_SEED:
            return layout.secrets.event_credentials(secret.owner)
        case Path() as path:
            return path
        case _:
            return layout.secrets.secrets(secret.owner) / secret.variable


def _volumes(layout: Layout, service: Service) -> Iterator[Setting]:
    for volume in service.volumes:
        source = layout.volume(volume.source) if isinstance(volume.source, str) else volume.source
        key = "BindReadOnlyPaths" if volume.is_read_only else "BindPaths"
        yield key, word(literal(f"{source}:{volume.target}"))
    if any(isinstance(volume.source, str) for volume in service.volumes):
        yield "SupplementaryGroups", VOLUME_GROUP
        yield "UMask", SHARED_MASK


def _envoy(machine: Machine, process: Process) -> Iterator[Setting]:
    layout, admin = machine.layout, machine.admin(process)
    folder = layout.envoy / process.workload
    edge = machine.mesh.gateway if process.part is Part.GATEWAY else None
    yield from _without_stale(admin, *_egress(machine, process))
    yield "ExecStart", command(_words(layout, process, {Where.BOOTSTRAP: str(folder / "bootstrap.json")}))
    yield "ExecStartPost", _host(layout, "ready", admin)
    yield "ExecStop", _host(layout, "drain", "--listeners", admin)
    yield from sandbox.own(port=None if edge is None else edge.listen_port)
    yield sandbox.homes(_needed(layout))
    yield from sandbox.writable(machine.sockets(process))


def _egress(machine: Machine, process: Process) -> Iterator[Path]:
    if process.part is Part.SIDECAR:
        replica = machine.replica(process.workload)
        addresses = (replica.egress, *dict(replica.external).values())
        yield from (address.path for address in addresses if isinstance(address, UnixAddress))


def _introspection(machine: Machine, process: Process) -> Iterator[Setting]:
    layout = machine.layout
    socket = machine.sockets(process) / "introspection.sock"
    places = {Where.LISTEN: f"unix:{socket}", Where.ADMIN: str(machine.admin(process))}
    yield from _without_stale(socket)
    yield "ExecStart", command(_words(layout, process, places))
    yield from sandbox.own()
    yield sandbox.homes(_needed(layout))
    yield from sandbox.writable(machine.sockets(process))


def _events(machine: Machine, process: Process) -> Iterator[Setting]:
    """NATS; it reads its files again when it is told to."""
    layout = machine.layout
    yield "ExecStart", command(_words(layout, process, {Where.CONFIGURATION: str(layout.event_configuration)}))
    yield "ExecReload", "/bin/kill -HUP $MAINPID"
    yield from sandbox.own()
    yield sandbox.homes(_needed(layout))
    yield from sandbox.writable(layout.data(EVENTS))


def _streams(machine: Machine) -> str:
    """A unit of its own: what follows a start (`ExecStartPost=`) sees no credentials before systemd 253."""
    layout, owner = machine.layout, user_of(EVENTS)
    order = [("Description", f"nipmesh {machine.mesh.name}: streams of events"), ("PartOf", TARGET)]
    order += [("Wants", unit_name(EVENTS)), ("After", unit_name(EVENTS)), ("StartLimitIntervalSec", "0")]
    settings = [("Type", "oneshot"), ("RemainAfterExit", "yes"), ("User", owner), ("Group", owner)]
    settings += [("Restart", "on-failure"), ("RestartSec", f"{RESTART_S}s")]
    settings += [*_keepers(machine), *sandbox.own(), sandbox.homes(_needed(layout))]
    return unit({"Unit": order, "Service": settings, "Install": [("WantedBy", TARGET)]})


def _keepers(machine: Machine) -> Iterator[Setting]:
    """Make the streams with the keys of those that keep them."""
    layout = machine.layout
    assert machine.events is not None, machine.mesh.name
    url = f"tls://{host_and_port(machine.events)}"
    words = (str(layout.streams), "--url", url, "--authorities", str(layout.trust / AUTHORITIES))
    yield "ExecStart", _host(layout, "streams", *words, "--keys", raw=CREDENTIALS)
    yield "LoadCredential", word(literal(f"{ADMIN_CREDENTIAL}:{layout.secrets.event_admin}"))
    for role in sorted({service.role for service in machine.mesh.services}):
        name = f"{KEEPER_PREFIX}{role}{SEED_SUFFIX}"
        yield "LoadCredential", word(literal(f"{name}:{layout.secrets.event_keeper(role)}"))


def _words(layout: Layout, process: Process, places: Mapping[Where, str]) -> Iterator[str]:
    """The command of one of our own processes."""

    def resolve(place: Place) -> str:
        if place.where is Where.EXPOSURE:
            return literal(str(layout.introspection / place.name))
        return literal(places[place.where])

    programs = layout.programs
    words = process.arguments(resolve)
    match process.program:
        case Program.ENVOY:
            yield from (literal(str(programs.envoy)), *words)
        case Program.NATS:
            yield from (literal(str(programs.nats)), *words)
        case _:
            assert process.name == INTROSPECTION, process.name
            yield from (literal(str(programs.python)), "-P", "-m", "nipmesh_home", *words)


def _host(layout: Layout, *words: str | Path, raw: str = "") -> str:
    """A command line of `nipmesh host`; `raw` is a last word with specifiers."""
    told = (literal(str(each)) for each in (layout.programs.nipmesh, "host", *words))
    return command((*told, raw) if raw else told)


def _needed(layout: Layout) -> tuple[Path, ...]:
    """What our own processes read, wherever it is."""
    programs = layout.programs
    return (layout.root, programs.python, programs.envoy, programs.nats, *programs.needed)


def _without_stale(*sockets: Path) -> Iterator[Setting]:
    """What a predecessor that was killed left would be in the way, or look alive."""
    if sockets:
        yield "ExecStartPre", command(("/bin/rm", "-f", *(literal(str(socket)) for socket in sockets)))


def _target(units: Mapping[str, str]) -> str:
    wanted = " ".join((*sorted(units), TIMER))
    settings = [("Description", "nipmesh: every process of the mesh that runs here"), ("Wants", wanted)]
    return unit({"Unit": settings, "Install": [("WantedBy", "multi-user.target")]})


def _certificates(machine: Machine) -> str:
    """Root's, since it gives each workload's files to its user; the events' server is told, everybody else sees it by itself."""
    layout = machine.layout
    words = ("certificates", "renew", "--plan", layout.certificate_plan, "--state", layout.state, "--chown")
    signer = () if machine.signer is None else ("--signer", machine.signer)
    service: list[Setting] = [
        ("Type", "oneshot"),
        ("ExecStart", command(literal(str(each)) for each in (layout.programs.nipmesh, *words, *signer))),
    ]
    if any(process.part is Part.EVENTS for process in machine.processes):
        service.append(("ExecStartPost", f"-/bin/systemctl --no-block try-reload-or-restart {unit_name(EVENTS)}"))
    service += [*sandbox.STRICT, *sandbox.SYSTEM_CALLS_OF_ROOT, sandbox.FAMILIES, sandbox.NO_CODE_AT_RUN_TIME]
    service.append(("CapabilityBoundingSet", "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER"))
    home = (
        sandbox.homes(_needed(layout)) if machine.signer is None else sandbox.HOMES_READ_ONLY
    )  # where SSH has its keys
    service += [home, *sandbox.writable(layout.state)]
    description = [("Description", "nipmesh: renew the certificates of this machine"), ("After", NETWORK)]
    return unit({"Unit": [*description, ("Wants", NETWORK)], "Service": service})


def _timer(mesh: Mesh) -> str:
    seconds = max(1, mesh.certificate_lifetime_ms // 1000 // RENEWALS_PER_LIFE)
    timer = [("OnActiveSec", "0"), ("OnUnitInactiveSec", f"{seconds}s"), ("AccuracySec", "1s")]
    return unit(
        {
            "Unit": [("Description", "nipmesh: look after certificates"), ("PartOf", TARGET)],
            "Timer": timer,
            "Install": [("WantedBy", TARGET)],
        }
    )
