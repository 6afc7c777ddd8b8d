"""What an application is told: its environment, its command, and the files of its secrets."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from generator.model import Address, GeneratedSecret, Mesh, ReplicaPlacement, Service, SocketAddress, UnixAddress
from generator.model.events import EVENTS
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.ports import host_and_port
from generator.outputs.workloads import (
    Minted,
    Place,
    Process,
    Resolve,
    SecretFile,
    Where,
    application,
    resolved,
)
from generator.pki import PrivateBytes, private_directory, write_private
from generator.pki.store import AUTHORITIES, DATA_LINK

OWN_PREFIX = "NIPMESH_"
EVENTS_PREFIX = "NIPMESH_EVENTS_"
LOG_LEVEL = "NIPMESH_LOG_LEVEL"
PYTHON_NAMES = frozenset({"python", "python3"})
PASSED_THROUGH = frozenset({LOG_LEVEL})
"""Of our own variables, what the user's shell may decide for every application."""


class EnvironmentFileError(ValueError):
    """A line of an `env_file` is not NAME=VALUE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every application of a run shares."""

    mesh: Mesh
    paths: StatePaths
    manifest_directory: Path
    outer: Mapping[str, str]
    """The environment that the supervisor itself was started with."""
    events: SocketAddress | None = None
    """Where the runner's own server of events listens; None: it has none."""


def application_environment(
    around: Surroundings, service: Service, replica: ReplicaPlacement, secret_files: Mapping[str, Path]
) -> dict[str, str]:
    """Build the whole environment of one replica; the runner's own variables win over the user's. Nothing is made.

    Of the manifest's secrets it names those that `secret_files` has.
    """
    environment = {
        name: value for name, value in around.outer.items() if not name.startswith(OWN_PREFIX) or name in PASSED_THROUGH
    }
    if service.environment_file is not None:
        environment |= read_environment_file(service.environment_file)
    described = application(around.mesh, service, replica.index)
    resolve = places(around, described, replica, secret_files)
    missing = {secret.variable for secret in service.secrets} - secret_files.keys()
    told = {name: resolved(word, resolve) for name, word in described.environment.items() if name not in missing}
    return environment | told


def places(
    around: Surroundings, described: Process, replica: ReplicaPlacement, secret_files: Mapping[str, Path]
) -> Resolve:
    """Say where everything is for an application on this machine."""
    targets = {Where.LISTEN: replica.app, Where.METRICS: replica.app_metrics, Where.EGRESS: replica.egress}

    def resolve(place: Place) -> str:
        match place.where:
            case Where.LISTEN | Where.METRICS | Where.EGRESS:
                return target(targets[place.where])
            case Where.EXTERNAL:
                return target(dict(replica.external)[place.name])
            case Where.PORT:
                assert isinstance(replica.app, SocketAddress), "an application on a Unix socket has no port"
                return str(replica.app.port)
            case Where.DATA:
                return str(around.paths.data(place.name))
            case Where.SECRET:
                return str(_secret_path(around.paths, described.secret(place.name), secret_files))
            case Where.EVENTS:
                return _events_url(around)
            case _:
                assert place.where is Where.LOG_LEVEL, place
                return around.outer.get(LOG_LEVEL, place.name)

    return resolve


def _secret_path(paths: StatePaths, secret: SecretFile, files: Mapping[str, Path]) -> Path:
    match secret.source:
        case Minted.TOKEN_KEY:
            return paths.token_key
        case Minted.EVENTS_SEED:
            return paths.event_credentials(secret.owner)
        case Minted.EVENTS_AUTHORITIES:
            return paths.certificates(EVENTS) / DATA_LINK / AUTHORITIES
        case Path() as path:
            return files.get(secret.variable, path)
        case GeneratedSecret():
            return files[secret.variable]


def application_command(service: Service) -> tuple[str, ...]:
    """Give the command; the word `python` means the interpreter that runs the mesh."""
    program, *rest = service.command
    return (sys.executable if program in PYTHON_NAMES else program, *rest)


def materialize_secrets(service: Service, paths: StatePaths, manifest_directory: Path) -> dict[str, Path]:
    """Make generated secrets once (0600) and give the file of each variable. Raises OSError."""
    files = {}
    for secret in service.secrets:
        if isinstance(secret.source, GeneratedSecret):
            files[secret.variable] = _generated(paths.secrets(service.role) / secret.variable, secret.source)
        else:
            files[secret.variable] = (manifest_directory / secret.source).resolve(strict=True)
    return files


def target(address: Address) -> str:
    """Write an address as a gRPC target."""
    return f"unix:{address.path}" if isinstance(address, UnixAddress) else host_and_port(address)


def read_environment_file(path: Path) -> dict[str, str]:
    """Read NAME=VALUE lines; blank lines and those that start with # mean nothing. Raises OSError and ValueError."""
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, separator, value = text.partition("=")
        if not separator or not name.strip().isidentifier():
            raise EnvironmentFileError(f"{path}:{number}: not NAME=VALUE")
        values[name.strip()] = value.strip().strip("\"'")
    return values


def _generated(path: Path, source: GeneratedSecret) -> Path:
    private_directory(path.parent)
    if not path.exists():
        write_private(path, PrivateBytes(secrets.token_bytes(source.bytes_count)))
    return path


def event_environment(around: Surroundings, service: Service) -> dict[str, str]:
    """Say where events are, and with what a service proves itself there; empty when the mesh has none."""
    described = application(around.mesh, service, 0)

    def resolve(place: Place) -> str:
        if place.where is Where.SECRET:
            return str(_secret_path(around.paths, described.secret(place.name), {}))
        return _events_url(around)

    words = described.environment.items()
    return {name: resolved(word, resolve) for name, word in words if name.startswith(EVENTS_PREFIX)}


def _events_url(around: Surroundings) -> str:
    assert around.events is not None, "the server of events has no place"
    return f"tls://{host_and_port(around.events)}"
