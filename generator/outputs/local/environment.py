"""What an application is told: its environment, its command, and the files of its secrets."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from generator.model import Address, GeneratedSecret, Mesh, ReplicaPlacement, Service, UnixAddress
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.ports import host_and_port
from generator.pki import PrivateBytes, private_directory, write_private

DRAIN_GRACE_S = 10
"""What an application may use to finish after SIGTERM."""
TOKEN_LIFETIME_S = 900
"""Of a user's token: 15 minutes."""
OWN_PREFIX = "NIPMESH_"
PYTHON_NAMES = frozenset({"python", "python3"})
PASSED_THROUGH = frozenset({"NIPMESH_LOG_LEVEL"})
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


def application_environment(
    around: Surroundings, service: Service, replica: ReplicaPlacement, secret_files: Mapping[str, Path]
) -> dict[str, str]:
    """Build the whole environment of one replica; the runner's own variables win over the user's."""
    environment = {
        name: value for name, value in around.outer.items() if not name.startswith(OWN_PREFIX) or name in PASSED_THROUGH
    }
    if service.environment_file is not None:
        environment |= read_environment_file(service.environment_file)
    environment |= dict(service.environment)
    environment |= {variable: str(path) for variable, path in secret_files.items()}
    environment |= _identity(around.mesh, service, replica) | _addresses(around, service, replica)
    return environment | _issuer(around, service) | _telemetry(around.mesh, service)


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


def _identity(mesh: Mesh, service: Service, replica: ReplicaPlacement) -> dict[str, str]:
    return {
        "NIPMESH_MESH": mesh.name,
        "NIPMESH_SERVICE": service.role,
        "NIPMESH_VERSION": service.name,
        "NIPMESH_REPLICA": str(replica.index),
        "NIPMESH_TRUST_DOMAIN": mesh.trust_domain,
        "NIPMESH_AUTHORITY": mesh.name,
        "NIPMESH_GATEWAY_IDENTITY": f"spiffe://{mesh.trust_domain}/gateway",
        "NIPMESH_DRAIN_GRACE": str(DRAIN_GRACE_S),
    }


def _addresses(around: Surroundings, service: Service, replica: ReplicaPlacement) -> dict[str, str]:
    gateway = around.mesh.gateway
    values = {
        "NIPMESH_LISTEN": target(replica.app),
        "NIPMESH_METRICS_LISTEN": target(replica.app_metrics),
        "NIPMESH_EGRESS": target(replica.egress),
        "NIPMESH_DATA_DIRECTORY": str(private_directory(around.paths.data(service.role))),
        "NIPMESH_GATEWAY_URL": "" if gateway is None else gateway.public_url,
        "NIPMESH_REFLECTION": "true" if gateway is not None and gateway.reflection else "false",
        "NIPMESH_LOG_LEVEL": around.outer.get("NIPMESH_LOG_LEVEL", "info"),
    }
    values |= {around.mesh.external(name).variable: target(address) for name, address in replica.external}
    if not isinstance(replica.app, UnixAddress):
        values["PORT"] = str(replica.app.port)
    if gateway is not None and gateway.authentication is not None:
        headers = gateway.authentication.claim_headers
        values["NIPMESH_CLAIM_HEADERS"] = ",".join(f"{claim}={header}" for claim, header in headers)
    return values


def _issuer(around: Surroundings, service: Service) -> dict[str, str]:
    gateway = around.mesh.gateway
    if gateway is None or gateway.authentication is None or gateway.authentication.issuer_service != service.role:
        return {}
    return {
        "NIPMESH_TOKEN_KEY_FILE": str(around.paths.token_key),
        "NIPMESH_TOKEN_ISSUER": gateway.authentication.issuer,
        "NIPMESH_TOKEN_AUDIENCE": gateway.authentication.audience,
        "NIPMESH_TOKEN_LIFETIME": str(TOKEN_LIFETIME_S),
    }


def _telemetry(mesh: Mesh, service: Service) -> dict[str, str]:
    if mesh.telemetry.otlp_host is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{mesh.telemetry.otlp_host}:{mesh.telemetry.otlp_port}",
        "OTEL_SERVICE_NAME": service.name,
    }
