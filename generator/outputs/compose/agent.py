"""Stands beside the mesh in a container of its own: it fills the volumes of all others, and keeps them fresh.

It alone has the authority's key, the manifest and the durable secrets. Every other container sees its own volumes: its Envoy's files,
its certificate, its service's secrets. Sidecars are found by name: their addresses go into Envoy's endpoints, which take no names.

While it is away the mesh runs on: certificates are renewed at half of their life, and whoever is gone fails its callers' health checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from generator.model import GeneratedSecret, Mesh, Service, SocketAddress
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.compose.databases import Databases
from generator.outputs.compose.layout import (
    EVENT_AUTHORITIES,
    EVENT_MONITOR_PORT,
    EVENT_PORT,
    EVERYWHERE,
    LOOPBACK,
    POSTGRESQL,
    ContainerPaths,
    database_roles,
    host_name,
    placement,
    secret_file_name,
)
from generator.outputs.files import publish
from generator.outputs.local.bodies import write_introspection
from generator.outputs.local.certificates import CertificateKeeper
from generator.outputs.local.environment import materialize_secrets
from generator.outputs.local.event_server import connection_at, event_place, event_users, keepers_at
from generator.outputs.local.events import Journal
from generator.outputs.local.keys import key_set
from generator.outputs.nats import EventsError, cluster_keepers, ensure, reload, topology
from generator.outputs.workloads import Minted, application, has_event_server
from generator.pki import UserKey, private_directory, write_private
from generator.pki.store import AUTHORITIES, DATA_LINK
from generator.render import render
from generator.render.nats import accounts, configuration, hearers

RESOLVE_S = 1.0
"""Between two looks for the addresses of sidecars: a container that comes back may have another."""
STARTING_RESOLVE_S = 0.1
"""While some were never found: the mesh waits for it."""
STREAMS_RETRY_S = 1.0
STREAMS_AGAIN_S = 60.0
"""Whoever empties the volume of events finds its streams made again."""
EVENTS_URL = f"tls://{EVENTS}:{EVENT_PORT}"


class AgentError(Exception):
    """What is mounted is not what the manifest needs."""


@dataclass(kw_only=True)
class Agent:
    """One mesh's; `look` and `fill` first, then `keep` until the end.

    Without the look, an agent that is started again would tell running sidecars that there is nobody.
    """

    mesh: Mesh
    paths: ContainerPaths
    manifest_directory: Path
    journal: Journal
    _found: dict[str, str] = field(default_factory=dict)
    _is_renewed: asyncio.Event = field(default_factory=asyncio.Event)
    _certificates: CertificateKeeper = field(init=False)
    _databases: Databases = field(init=False)

    def __post_init__(self) -> None:
        """Prepare; nothing is written yet."""
        self._certificates = CertificateKeeper(
            self.paths, self.mesh.trust_domain, self.mesh.certificate_lifetime_ms, self.journal
        )
        self._databases = Databases(mesh=self.mesh, paths=self.paths, journal=self.journal)

    def fill(self) -> None:
        """Write everything once: then the others may start. Raises AgentError, OSError, ValueError and ResourceError."""
        self._require_volumes()
        self._issue()
        if has_event_server(self.mesh):
            self._write_events()
        if database_roles(self.mesh):
            self._databases.write()
        for service in self.mesh.services:
            if service.version_of is None:
                self._give_secrets(service)
        if self.mesh.gateway is not None:
            write_introspection(self.mesh, self.paths)
        self._publish()

    async def keep(self) -> None:
        """Renew, look for sidecars and keep the streams, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._certificates.renew_for_ever())
            group.create_task(self._look_for_ever())
            if self.mesh.events is not None:
                group.create_task(self._keep_streams())
            if has_event_server(self.mesh):
                group.create_task(self._reload_events_for_ever())
            if database_roles(self.mesh):
                group.create_task(self._databases.keep(_addresses))

    def _require_volumes(self) -> None:
        """A manifest that has changed since it was rendered has workloads without containers."""
        missing = [str(folder) for folder in self._volumes() if not folder.is_dir()]
        if missing:
            raise AgentError(
                f"nothing is mounted at {', '.join(missing)}: the manifest has changed since compose.yaml was written; "
                "run `nipmesh render --target compose -o .` again"
            )

    def _volumes(self) -> Iterator[Path]:
        for service in self.mesh.services:
            for index in range(service.replicas):
                yield self.paths.envoy / f"{service.name}-{index}"
                yield self.paths.certificates(f"{service.name}-{index}")

        if database_roles(self.mesh):
            yield self.paths.postgresql
            yield self.paths.certificates(POSTGRESQL)

    def _issue(self) -> None:
        for service in self.mesh.services:
            for index in range(service.replicas):
                self._certificates.issue(f"{service.name}-{index}", service.identity)
        if self.mesh.gateway is not None:
            self._certificates.issue(GATEWAY, self.mesh.gateway.identity)
        if has_event_server(self.mesh):
            # Its clients know it by its name, and its own health check is none of them.
            self._certificates.issue(EVENTS, f"spiffe://{self.mesh.trust_domain}/{EVENTS}", (EVENTS,))
            self._certificates.on_renewal(EVENTS, self._events_renewed)
        if database_roles(self.mesh):
            self._certificates.issue(POSTGRESQL, f"spiffe://{self.mesh.trust_domain}/{POSTGRESQL}", (POSTGRESQL,))
            self._certificates.on_renewal(POSTGRESQL, self._databases_renewed)

    def _write_events(self) -> None:
        hears = hearers(self.mesh)
        users = event_users(self.paths, hears, system=UserKey.open(self.paths.event_system).public)
        place = event_place(
            self.paths,
            SocketAddress(host=EVERYWHERE, port=EVENT_PORT),
            monitor=SocketAddress(host=LOOPBACK, port=EVENT_MONITOR_PORT),
        )
        found = accounts(self.mesh.name, hears, users)
        write_private(self.paths.event_configuration, configuration(self.mesh.name, place, found))

    def _give_secrets(self, service: Service) -> None:
        """Copy what a service may read into its volume: what it keeps is ours alone."""
        folder = private_directory(self.paths.given_secrets(service.role))
        generated = materialize_secrets(service, self.paths, self.manifest_directory)
        for secret in application(self.mesh, service, 0).secrets:
            match secret.source:
                case Minted.TOKEN_KEY:
                    source = self.paths.token_key
                    key_set(self.mesh, self.paths, self.manifest_directory)
                case Minted.EVENTS_SEED:
                    source = self.paths.event_credentials(secret.owner)
                case Minted.EVENTS_AUTHORITIES:
                    source = self.paths.certificates(EVENTS) / DATA_LINK / AUTHORITIES
                case GeneratedSecret():
                    source = generated[secret.variable]
                case _:
                    continue  # a file of the user's, which Compose mounts
            is_shared = secret.source is Minted.EVENTS_AUTHORITIES
            name = EVENT_AUTHORITIES if is_shared else secret_file_name(secret)
            write_private(folder / name, source.read_bytes())
        if service.role in database_roles(self.mesh):
            self._databases.give(service.role, folder)

    def _publish(self) -> None:
        jwks = key_set(self.mesh, self.paths, self.manifest_directory)
        where = placement(self.mesh, self._found, jwks=jwks)
        changed = publish(render(self.mesh, where), where.directory)
        self.journal.tell("published", f"{len(changed)} files")

    async def look(self) -> dict[str, str]:
        """Look for sidecars; those that are new or elsewhere now."""
        names = [f"{service.name}-{index}" for service in self.mesh.services for index in range(service.replicas)]
        answers = await asyncio.gather(*(_addresses(host_name(name)) for name in names))
        moved = {
            name: min(answer)
            for name, answer in zip(names, answers, strict=True)
            if answer and self._found.get(name) not in answer
        }
        self._found |= moved
        return moved

    async def _look_for_ever(self) -> None:
        count = sum(service.replicas for service in self.mesh.services)
        while True:
            if moved := await self.look():
                await self._republish(moved)
            await asyncio.sleep(RESOLVE_S if len(self._found) == count else STARTING_RESOLVE_S)

    async def _republish(self, moved: dict[str, str]) -> None:
        for name, address in moved.items():
            self.journal.tell("found", f"at {address}", workload=name)
        try:
            await asyncio.to_thread(self._publish)
        except OSError as error:
            for name in moved:  # so that the next look finds them again
                self._found.pop(name)
            self.journal.tell("publish-failed", f"{error}; tried again")

    async def _keep_streams(self) -> None:
        events, hears = self.mesh.events, hearers(self.mesh)
        assert events is not None, self.mesh.name
        own = keepers_at(EVENTS_URL, self.paths, hears) if has_event_server(self.mesh) else None
        keepers = own or cluster_keepers(events)
        if keepers is None:
            return
        is_told = False
        while True:
            try:
                await ensure(keepers, topology(self.mesh, hears))
            except EventsError as error:
                if not is_told:
                    self.journal.tell("events-waiting", f"{error}; tried again", workload=EVENTS)
                is_told = True
                await asyncio.sleep(STREAMS_RETRY_S)
            else:
                is_told = False
                await asyncio.sleep(STREAMS_AGAIN_S)

    def _events_renewed(self) -> None:
        """The server reads its certificate when it is told to; new authorities go to its clients."""
        self._give_all_secrets()
        self._is_renewed.set()

    def _databases_renewed(self) -> None:
        self._give_all_secrets()
        self._databases.renewed()

    def _give_all_secrets(self) -> None:
        for service in self.mesh.services:
            if service.version_of is None:
                with contextlib.suppress(OSError):
                    self._give_secrets(service)

    async def _reload_events_for_ever(self) -> None:
        """Tell the server of its new certificate, also of one that was issued while the agent itself was started again."""
        connection = replace(connection_at(EVENTS_URL, self.paths, self.paths.event_system), takes_expired=True)
        while True:
            try:
                await reload(connection)
            except EventsError as error:
                self.journal.tell("events-waiting", f"{error}; tried again", workload=EVENTS)
                await asyncio.sleep(STREAMS_RETRY_S)
                continue
            self._is_renewed.clear()
            await self._is_renewed.wait()


async def _addresses(host: str) -> frozenset[str]:
    """Every address of a name; none while there is no such container."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)
