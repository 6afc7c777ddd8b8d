"""What one replica of a service is started with: when it changes, the service has to be restarted.

Paths and ports of the single replica are left out; the contents of files are in, as hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from generator.model import (
    Address,
    GeneratedSecret,
    Probe,
    ReplicaPlacement,
    Secret,
    Service,
    SocketAddress,
    UnixAddress,
)
from generator.outputs.local.environment import Surroundings, application_command, application_environment
from generator.outputs.local.ports import LOOPBACK

ANYWHERE = Path("/")
"""Stands for the folders of whichever replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """Everything that a service's processes are given."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str]
    """Variable to a hash of the file, or to what is generated."""
    working_directory: Path
    listen_port: int | None
    probe: Probe
    problem: str = ""
    """Why the rest is not known: a file that cannot be read. Then the processes could not be started either."""


def definition(around: Surroundings, service: Service) -> Definition:
    """Read what a replica would be started with now."""
    environment: dict[str, str] = {}
    secrets: dict[str, str] = {}
    problem = ""
    try:
        environment = application_environment(around, service, _anyone(service), {})
        secrets = {secret.variable: _content(secret, around.manifest_directory) for secret in service.secrets}
    except (OSError, ValueError) as error:
        problem = str(error)
    return Definition(
        command=application_command(service),
        environment=environment,
        secrets=secrets,
        working_directory=around.manifest_directory / (service.working_directory or ""),
        listen_port=service.listen_port,
        probe=service.probe,
        problem=problem,
    )


def differences(old: Definition, new: Definition) -> tuple[str, ...]:
    """Name what differs, never its value; empty when a restart would change nothing."""
    return tuple(_differences(old, new))


def _differences(old: Definition, new: Definition) -> Iterator[str]:
    if old.command != new.command:
        yield "run"
    yield from (f"env {name}" for name in _changed(old.environment, new.environment))
    yield from (f"secret {name}" for name in _changed(old.secrets, new.secrets))
    if old.working_directory != new.working_directory:
        yield "cwd"
    if old.listen_port != new.listen_port:
        yield "listen"
    if old.probe != new.probe:
        yield "probe"
    if old.problem != new.problem:
        yield "files"


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _content(secret: Secret, manifest_directory: Path) -> str:
    if isinstance(secret.source, GeneratedSecret):
        return f"{secret.source.bytes_count} bytes"
    return hashlib.sha256((manifest_directory / secret.source).read_bytes()).hexdigest()


def _anyone(service: Service) -> ReplicaPlacement:
    """Place no replica in particular."""
    somewhere = UnixAddress(path=ANYWHERE)
    app: Address = somewhere
    if service.listen_port is not None:
        app = SocketAddress(host=LOOPBACK, port=service.listen_port)
    nowhere = SocketAddress(host=LOOPBACK, port=0)
    return ReplicaPlacement(
        service=service.name,
        index=0,
        app=app,
        app_metrics=somewhere,
        egress=somewhere,
        admin=somewhere,
        inbound=nowhere,
        scrape=nowhere,
        certificates=ANYWHERE,
        in_rotation=False,
        external=tuple((name, somewhere) for name in service.external_connections),
    )
