"""Every file of one machine: units, users, folders, the Envoys' configuration, and what its certificates are to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from generator.model import Mesh, SocketAddress
from generator.model.events import EVENTS
from generator.outputs.files import default_placement, publish, write_changed
from generator.outputs.files.placement import events_address
from generator.outputs.files.publish import PUBLIC
from generator.outputs.local.bodies import exposure_files
from generator.outputs.nats import topology
from generator.outputs.systemd.hosts import Hosts, workloads
from generator.outputs.systemd.layout import Layout
from generator.outputs.systemd.units import VOLUME_GROUP, Machine, environment_file, named_volumes, units, user
from generator.outputs.systemd.words import HEADER, quoted
from generator.outputs.workloads import Part, describe, has_event_server
from generator.pki import TokenKey, UserKey
from generator.pki.plan import CertificatePlan, Wanted
from generator.pki.store import CERTIFICATE, DATA_LINK, PRIVATE_KEY
from generator.render import render
from generator.render.nats import NatsPlace, NatsUsers, accounts, configuration, hearers, placeholders

LOCALHOST = "localhost"
WORLD, PRIVATE, SHARED = "0755", "0700", "2770"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """The public halves of keys that configurations hold; None: there are no keys yet."""

    jwks: str | None = None
    users: NatsUsers | None = None


def public_keys(mesh: Mesh, layout: Layout) -> PublicKeys:
    """Read them from the keys of this machine, which stay where they are. Raises OSError and DamagedFileError."""
    paths = layout.secrets
    issuer = None if mesh.gateway is None else mesh.gateway.authentication
    jwks = None
    if issuer is not None and issuer.issuer_service is not None and paths.token_key.exists():
        jwks = TokenKey.open(paths.token_key).key_set()
    users = None
    if has_event_server(mesh) and paths.event_admin.exists():
        names = hearers(mesh)
        users = NatsUsers(
            admin=UserKey.load(paths.event_admin).public,
            services={name: UserKey.load(paths.event_credentials(name)).public for name in names},
            keepers={name: UserKey.load(paths.event_keeper(name)).public for name in names},
        )
    return PublicKeys(jwks=jwks, users=users)


def machine_of(mesh: Mesh, layout: Layout, hosts: Hosts | None, host: str | None, keys: PublicKeys) -> Machine:
    """What one of the hosts runs; without hosts this machine runs everything. Raises ValueError and OSError."""
    addresses = {} if hosts is None else hosts.addresses
    placement = default_placement(
        mesh,
        layout.envoy,
        jwks=keys.jwks,
        certificates=layout.certificates,
        sockets=layout.sockets,
        addresses=addresses,
    )
    mine = [name for name, _ in workloads(mesh)] if hosts is None or host is None else hosts.runs[host]
    return Machine(
        mesh=mesh,
        placement=placement,
        layout=layout,
        events=events_address(mesh, addresses) if has_event_server(mesh) else None,
        processes=tuple(process for process in describe(mesh) if process.workload in mine),
    )


def write_tree(machine: Machine, keys: PublicKeys, output: Path) -> list[Path]:
    """Bring the files below `output`, which stands for `/`, in line; give those that changed. Raises OSError, ResourceError.

    The Envoys' files are replaced one by one, each at once and in an order that a running Envoy may see.
    """
    layout = machine.layout
    rendered = render(machine.mesh, machine.placement)
    mine = {process.workload for process in machine.processes}
    some = replace(rendered, workloads=tuple(each for each in rendered.workloads if each.name in mine))
    changed = list(publish(some, below(output, layout.envoy), PUBLIC))
    for path, content in tree(machine, keys).items():
        changed += write_changed(below(output, path), content, PUBLIC)
    return [*changed, *_without_others(machine, output)]


def below(output: Path, path: Path) -> Path:
    """The file that becomes `path` on the machine."""
    return output / path.relative_to(path.anchor)


def tree(machine: Machine, keys: PublicKeys) -> Mapping[Path, bytes]:
    """Every file but the Envoys', by its place on the machine."""
    layout = machine.layout
    files = {layout.units / name: text.encode() for name, text in units(machine).items()}
    files[layout.users] = _lines(_users(machine))
    files[layout.folders] = _lines(_folders(machine))
    files[layout.certificate_plan] = certificate_plan(machine).to_json()
    parts = {process.part for process in machine.processes}
    if Part.INTROSPECTION in parts:
        files |= {layout.introspection / name: content for name, content in exposure_files(machine.mesh).items()}
    if Part.EVENTS in parts:
        files |= _event_files(machine, keys)
    return files | dict(_environments(machine))


def certificate_plan(machine: Machine) -> CertificatePlan:
    """Whose certificates this machine keeps."""
    wanted: dict[str, Wanted] = {}
    for process in machine.processes:
        owner = user(machine.mesh, process)
        identity = f"spiffe://{machine.mesh.trust_domain}/{EVENTS}"
        hosts: tuple[str, ...] = ()
        if process.part is Part.EVENTS:
            assert machine.events is not None, process.name
            hosts = tuple(dict.fromkeys((machine.events.host, *_loopback_names(machine.events))))
        elif process.service is not None:
            identity = machine.service(process).identity
        else:
            assert machine.mesh.gateway is not None, process.name
            identity = machine.mesh.gateway.identity
        wanted[process.workload] = Wanted(workload=process.workload, identity=identity, hosts=hosts, user=owner)
    return CertificatePlan(
        trust_domain=machine.mesh.trust_domain,
        lifetime_ms=machine.mesh.certificate_lifetime_ms,
        wanted=tuple(wanted.values()),
    )


def _loopback_names(address: SocketAddress) -> tuple[str, ...]:
    return (LOCALHOST,) if address.host.startswith("127.") else ()


def _users(machine: Machine) -> Iterator[str]:
    """One user for each service, so that none can read another's keys (sysusers.d(5))."""
    state, name = machine.layout.state, machine.mesh.name
    for owner in sorted({user(machine.mesh, process) for process in machine.processes}):
        yield f'u {owner} - "nipmesh {name}" {state}'
    if named_volumes(machine):
        yield f"g {VOLUME_GROUP} -"


def _folders(machine: Machine) -> Iterator[str]:
    """What is made at each start of the machine, and once (tmpfiles.d(5))."""
    layout, mesh = machine.layout, machine.mesh
    for folder in (layout.state, layout.sockets, layout.certificates, layout.trust, layout.state / "data"):
        yield f"d {folder} {WORLD} root root -"
    for folder in (layout.secrets.authorities, layout.state / "secrets"):
        yield f"d {folder} {PRIVATE} root root -"
    for workload, owner in sorted({(process.workload, user(mesh, process)) for process in machine.processes}):
        yield f"d {layout.sockets / workload} {PRIVATE} {owner} {owner} -"
        yield f"d {layout.certificates / workload} {PRIVATE} {owner} {owner} -"
    for data, owner in sorted({(one.data, user(mesh, one)) for one in machine.processes if one.data is not None}):
        yield f"d {layout.data(data)} {PRIVATE} {owner} {owner} -"
    yield from _volumes(machine)


def _volumes(machine: Machine) -> Iterator[str]:
    """Services may share a named volume, and so do their users: by a group that only they have."""
    names = named_volumes(machine)
    if names:
        yield f"d {machine.layout.state / 'volumes'} {WORLD} root root -"
    for name in names:
        yield f"d {machine.layout.volume(name)} {SHARED} root {VOLUME_GROUP} -"


def _lines(lines: Iterator[str]) -> bytes:
    return (HEADER + "\n".join(lines) + "\n").encode()


def _event_files(machine: Machine, keys: PublicKeys) -> Mapping[Path, bytes]:
    """The server's configuration and its streams."""
    layout, mesh = machine.layout, machine.mesh
    assert machine.events is not None, mesh.name
    folder = layout.certificates / EVENTS / DATA_LINK
    place = NatsPlace(
        listen=machine.events,
        certificate=folder / CERTIFICATE,
        private_key=folder / PRIVATE_KEY,
        store=layout.data(EVENTS),
    )
    hears = hearers(mesh)
    found = accounts(mesh.name, hears, keys.users or placeholders(hears))
    return {
        layout.event_configuration: configuration(mesh.name, place, found),
        layout.streams: topology(mesh).to_json(),
    }


def _environments(machine: Machine) -> Iterator[tuple[Path, bytes]]:
    """What stands behind users' environment files, which would win otherwise."""
    for service in {process.service: process for process in machine.processes if process.service}.values():
        described = machine.service(service)
        if described.environment_file is not None:
            lines = (f"{name}={quoted(value)}\n" for name, value in described.environment)
            yield environment_file(machine.layout, described), "".join(lines).encode()


def _without_others(machine: Machine, output: Path) -> Iterator[Path]:
    """Remove units of workloads that this machine runs no longer."""
    folder = below(output, machine.layout.units)
    for path in sorted(folder.glob("nipmesh*")):
        if path.name not in units(machine) and path.is_file() and path.read_text(encoding="utf-8").startswith(HEADER):
            path.unlink()
            yield path
