"""The configuration of the server of events: who may publish and hear what, by subject. Pure; JSON, which NATS reads as its own format.

What a service may do follows from `consumes` alone. NATS does not see a consumer's filters in the subject of the request that makes it, and
it answers to wherever a request says, also to somebody else's subject. So each service has an account of its own: what it asks, makes and
is answered stays there. Into the mesh's account lead only the subjects that it may publish, out of it only those that it may hear: the
server copies them into the service's own stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.model import Hearing, Mesh, SocketAddress
from generator.model.events import filters, inbox

MESH_ACCOUNT = "MESH"
"""Holds the mesh's stream; names of services have no capitals."""
SYSTEM_ACCOUNT = "SYS"
SOURCE_API = "MESH.API"
"""How the server asks the mesh's account for events on behalf of a service's stream; no user may publish there."""
PAYLOAD_BYTES_MAX = 1024 * 1024
"""Of one message, headers included: an event is a fact, not a file."""
CONNECTIONS_MAX = 4_096
"""A hundred services with ten replicas, each with a few connections."""
SUBSCRIPTIONS_MAX = 1_000
"""Of one connection: an inbox and a few fetches."""
CONSUMERS_MAX = 1_000
"""Of a service; each costs the server memory."""
STORE_BYTES_MAX = 1_000_000_000_000
"""More than any stream may have: the stream's own limit is the one that counts."""
LOGIN_SECONDS = 5
"""Until a connection has to have proved who it is; as much for its TLS handshake."""
WRITE_DEADLINE = "10s"
"""A client that takes nothing for so long is cut off: it finds its events again when it is back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsPlace:
    """Where the server is and keeps what it has."""

    listen: SocketAddress
    certificate: Path
    private_key: Path
    store: Path
    monitor: SocketAddress | None = None
    """Where it answers over HTTP whether it is well, for a health check; None: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsUsers:
    """The public halves of keys."""

    admin: str
    """Of who keeps the mesh's stream."""
    services: Mapping[str, str]
    keepers: Mapping[str, str]
    """Of who keeps the stream of a service, by its name."""
    system: str | None = None
    """Of who may tell the server to read its files again, where no signal reaches it; None: nobody."""


def placeholders(services: Iterable[str]) -> NatsUsers:
    """Words where public keys belong."""
    names = tuple(services)
    return NatsUsers(
        admin="PUBLIC KEY OF WHO KEEPS THE MESH'S STREAM",
        services={name: f"PUBLIC KEY OF {name}" for name in names},
        keepers={name: f"PUBLIC KEY OF WHO KEEPS THE STREAM OF {name}" for name in names},
    )


def hearers(*meshes: Mesh) -> dict[str, tuple[Hearing, ...]]:
    """Every service of these meshes by its role, with what it hears in any of them."""
    found: dict[str, tuple[Hearing, ...]] = {}
    for mesh in meshes:
        for service in mesh.services:
            known = found.get(service.role, ())
            found[service.role] = (*known, *(hearing for hearing in service.consumes if hearing not in known))
    return dict(sorted(found.items()))


def permissions(mesh: str, service: str) -> dict[str, Any]:
    """What a service's programs may say in its account: publish as itself, and use its stream, but not change it."""
    own = inbox(mesh, service)
    publish = [f"{mesh}.{service}.>", f"$JS.API.DIRECT.GET.{mesh}.{mesh}.{service}.>", "$JS.API.INFO"]
    publish += ["$JS.API.CONSUMER.>", f"$JS.API.STREAM.INFO.{own}", f"$JS.API.STREAM.MSG.GET.{own}"]
    publish += [f"$JS.API.DIRECT.GET.{own}", f"$JS.API.DIRECT.GET.{own}.>", f"$JS.ACK.{own}.>", f"$JS.FC.{own}.>"]
    return {"publish": {"allow": publish}, "subscribe": {"allow": ["_INBOX.>", f"_INBOX_{service}.>"]}}


def accounts(mesh: str, hears: Mapping[str, tuple[Hearing, ...]], users: NatsUsers) -> dict[str, Any]:
    """The mesh's account and one for each service, with what leads from one to another."""
    exports: list[dict[str, Any]] = [{"service": f"$JS.FC.{mesh}.>"}]
    for name, heard in hears.items():
        exports += [{"service": subject, "accounts": [name]} for subject in _services_of(mesh, name)]
        exports += [{"service": _asking(mesh, subject), "accounts": [name]} for subject in filters(mesh, heard)]
        exports.append({"stream": f"{delivery(name)}.>", "accounts": [name]})
    found: dict[str, Any] = {
        MESH_ACCOUNT: {"jetstream": "enabled", "exports": exports, "users": [{"nkey": users.admin}]}
    }
    if users.system is not None:
        found[SYSTEM_ACCOUNT] = {"users": [{"nkey": users.system}]}
    return found | {name: _account(mesh, name, heard, users) for name, heard in hears.items()}


def accounts_of_cluster(mesh: Mesh) -> bytes:
    """The accounts alone, as a file, for a cluster that others run; where public keys belong stand words."""
    hears = hearers(mesh)
    document = {"accounts": accounts(mesh.name, hears, placeholders(hears))}
    return (json.dumps(document, indent=2) + "\n").encode()


def _account(mesh: str, name: str, heard: tuple[Hearing, ...], users: NatsUsers) -> dict[str, Any]:
    imports = [_imported("service", subject) for subject in (*_services_of(mesh, name), f"$JS.FC.{mesh}.>")]
    imports.append(_imported("stream", f"{delivery(name)}.>"))
    asked = [_asking(mesh, subject) for subject in filters(mesh, heard)]
    imports += [_imported("service", one) | {"to": one.replace("$JS.API", SOURCE_API, 1)} for one in asked]
    return {
        "jetstream": {"max_streams": 1, "max_consumers": CONSUMERS_MAX},
        "imports": imports,
        "users": [
            {"nkey": users.services[name], "permissions": permissions(mesh, name)},
            {"nkey": users.keepers[name]},
        ],
    }


def _services_of(mesh: str, name: str) -> tuple[str, ...]:
    """What a service may ask of the mesh's account: to take its events, and for its own newest one."""
    return f"{mesh}.{name}.>", f"$JS.API.DIRECT.GET.{mesh}.{mesh}.{name}.>"


def _asking(mesh: str, subject: str) -> str:
    """The request for events of one filter, which stands in it: the server refuses one whose body says another."""
    return f"$JS.API.CONSUMER.CREATE.{mesh}.*.{subject}"


def delivery(service: str) -> str:
    """Where the mesh's account sends what a service hears."""
    return f"{MESH_ACCOUNT}.to.{service}"


def _imported(kind: str, subject: str) -> dict[str, Any]:
    return {kind: {"account": MESH_ACCOUNT, "subject": subject}}


def configuration(mesh: str, place: NatsPlace, found: Mapping[str, Any]) -> bytes:
    """The whole file of the server that the runner starts; `found` are its accounts."""
    document: dict[str, Any] = {
        "server_name": mesh,
        "host": place.listen.host,
        "port": place.listen.port,
        "tls": {
            "cert_file": str(place.certificate),
            "key_file": str(place.private_key),
            "min_version": "1.3",
            "timeout": LOGIN_SECONDS,
        },
        "jetstream": {
            "store_dir": str(place.store),
            # An acknowledged event is on the disk: not in two minutes, which is the default.
            "sync_interval": "always",
            "max_memory_store": 0,
            "max_file_store": STORE_BYTES_MAX,
        },
        "authorization": {"timeout": LOGIN_SECONDS},
        "accounts": dict(found),
        "max_payload": PAYLOAD_BYTES_MAX,
        "max_connections": CONNECTIONS_MAX,
        "max_subscriptions": SUBSCRIPTIONS_MAX,
        "write_deadline": WRITE_DEADLINE,
    }
    if SYSTEM_ACCOUNT in found:
        document["system_account"] = SYSTEM_ACCOUNT
    if place.monitor is not None:
        document["http"] = f"{place.monitor.host}:{place.monitor.port}"
    return (json.dumps(document, indent=2) + "\n").encode()
