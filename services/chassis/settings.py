"""What a service is told by its environment: typed, checked at start, each variable documented.

Every variable is `NIPMESH_` plus the field's name in capitals. A service subclasses ChassisSettings for its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.caller import Identities
from services.chassis.secret import SecretBytes, load_secret

DRAIN_GRACE_S_MAX = 3_600.0
"""An hour: whoever waits longer for calls to end has another problem."""
SOCKET_PATH_BYTES_MAX = 107
"""sun_path of Linux, without its final zero byte."""


class ChassisSettings(BaseSettings):
    """The environment of a service. Unknown NIPMESH_ variables are left to others; a wrong value stops the start."""

    model_config = SettingsConfigDict(
        env_prefix="NIPMESH_",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    mesh: str = Field(default="nip", description="Name of the mesh.")
    service: str = Field(default="", description="Name of this service in the manifest, for example payment.")
    version: str = Field(
        default="", description="Name of this version of the service in the manifest; empty: the service itself."
    )
    replica: int = Field(default=0, ge=0, le=9_999, description="Number of this replica, from 0.")
    trust_domain: str = Field(default="nip.mesh", description="SPIFFE trust domain of the mesh.")
    listen: str = Field(
        default="127.0.0.1:50051",
        description="Where to serve gRPC: unix:/path (in a 0700 directory, made if missing) or address:port.",
    )
    metrics_listen: str = Field(
        default="",
        description="Where to serve GET /metrics (Prometheus): unix:/path or 127.0.0.1:port; empty: not at all.",
    )
    egress: str = Field(
        default="", description="Target of all outgoing gRPC calls: the sidecar's socket, unix:/path or address:port."
    )
    authority: str = Field(default="", description="HTTP/2 authority on the egress channel; empty: the mesh's name.")
    data_directory: Path = Field(
        default=Path(".nipmesh/data"), description="Folder of durable state, 0700, shared by the replicas on this host."
    )
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="postgresql://… of the database that holds the state of all services, each in a schema of its own; empty: SQLite"
        " files in the data directory.",
    )
    database_url_file: Path | None = Field(default=None, description="File that holds the URL instead; mode 0600.")
    database_replica_url: SecretStr = Field(
        default=SecretStr(""), description="postgresql://… of a replica that answers queries; empty: the database does."
    )
    database_replica_url_file: Path | None = Field(
        default=None, description="File that holds the replica's URL instead; mode 0600."
    )
    cache_url: SecretStr = Field(
        default=SecretStr(""),
        description="redis://…, rediss://… (TLS) or unix://… of a Redis or Valkey server that caches reads by id; empty: no cache.",
    )
    cache_url_file: Path | None = Field(default=None, description="File that holds the cache's URL instead; mode 0600.")
    events_url: str = Field(
        default="",
        description="Where events go: nats://host:port or tls://host:port (several after commas: a cluster), amqp://… or amqps://…"
        " (RabbitMQ), kafka://… or kafka+tls://… (Kafka); empty: they stay in the outbox.",
    )
    events_credentials_file: Path | None = Field(
        default=None,
        description="File with this service's credential for the event bus: user:password, for NATS also the seed of a user (SU…) or"
        " a .creds file; mode 0600.",
    )
    events_ca_file: Path | None = Field(
        default=None,
        description="Certificates (PEM) that the event bus's own must be signed by; empty: those of the system.",
    )
    events_stream: str = Field(
        default="", description="Name of the stream that all services of the mesh share; empty: the mesh's name."
    )
    events_inbox: str = Field(
        default="",
        description="Stream of what this service may hear, where whoever runs the mesh keeps the streams (NATS); empty: the service makes"
        " the stream of the mesh when there is none, and hears from it.",
    )
    gateway_identity: str = Field(
        default="",
        description="SPIFFE id of the gateway; empty: spiffe://<trust domain>/gateway. Only it brings user claims.",
    )
    gateway_url: str = Field(
        default="http://127.0.0.1:8080", description="Public URL of the gateway, no slash at the end."
    )
    claim_headers: str = Field(
        default="exp=x-nipmesh-token-expire-time,role=x-nipmesh-role,sub=x-nipmesh-subject",
        description="Which header carries which claim of the token, from the gateway.",
    )
    reflection: bool = Field(default=True, description="Whether gRPC reflection is served.")
    drain_grace: float = Field(
        default=10.0, ge=0.0, le=DRAIN_GRACE_S_MAX, description="Seconds that running calls get after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )

    @field_validator("listen", "metrics_listen", "egress")
    @classmethod
    def _socket_path_fits(cls, target: str) -> str:
        """Refuse a socket path that the kernel would."""
        path = target.removeprefix("unix:")
        if target.startswith("unix:") and len(path.encode()) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"the socket path is longer than {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter folder")
        return target

    @field_validator("claim_headers")
    @classmethod
    def _claims_are_pairs(cls, value: str) -> str:
        """Refuse what is no list of claim=header."""
        if any(len(pair.split("=")) != 2 or not all(pair.split("=")) for pair in value.split(",")):
            raise ValueError("write claim=header,claim=header")
        return value

    @field_validator("database_url", "database_replica_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr) -> SecretStr:
        """Refuse the URL of another database."""
        if value and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("write postgresql://user:password@host:port/database")
        return value

    @field_validator("cache_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        """Refuse the URL of something else."""
        if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("write redis://user:password@host:port/number, rediss://… or unix://path")
        return value

    @field_validator("events_url")
    @classmethod
    def _no_secret_in_the_url(cls, value: str) -> str:
        """Refuse a password where logs may show it."""
        if "@" in value:
            raise ValueError("the credential belongs into the file of NIPMESH_EVENTS_CREDENTIALS_FILE")
        return value

    @field_validator("events_stream", "events_inbox")
    @classmethod
    def _is_one_word(cls, value: str) -> str:
        """Refuse what cannot be the first word of a subject."""
        if value and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
            raise ValueError("write letters, digits, - and _")
        return value

    @field_validator(
        "database_url_file",
        "database_replica_url_file",
        "cache_url_file",
        "events_credentials_file",
        "events_ca_file",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """Take an empty variable for one that is not set: that is how a Compose file leaves one out."""
        return None if value == "" else value

    @field_validator("database_url_file", "database_replica_url_file", "cache_url_file")
    @classmethod
    def _one_url(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        """Refuse two places for one URL."""
        assert info.field_name is not None
        if file and info.data.get(info.field_name.removesuffix("_file")):
            raise ValueError("set the URL or the file that holds it, not both")
        return file

    @field_validator("database_replica_url", "database_replica_url_file")
    @classmethod
    def _replica_of_something(cls, value: SecretStr | Path | None, info: ValidationInfo) -> SecretStr | Path | None:
        """Refuse a replica of nothing."""
        if value and not (info.data.get("database_url") or info.data.get("database_url_file")):
            raise ValueError("a replica needs NIPMESH_DATABASE_URL, too")
        return value

    def database_address(self) -> SecretBytes | None:
        """The URL of the database, None for SQLite. Raises SecretFileError."""
        return _url(self.database_url, self.database_url_file)

    def database_replica_address(self) -> SecretBytes | None:
        """The URL of the replica, None when there is none. Raises SecretFileError."""
        return _url(self.database_replica_url, self.database_replica_url_file)

    def cache_address(self) -> SecretBytes | None:
        """The URL of the cache's server, None when there is none. Raises SecretFileError."""
        return _url(self.cache_url, self.cache_url_file)

    @property
    def identities(self) -> Identities:
        """How callers are recognised in this mesh."""
        claims = dict(pair.strip().split("=") for pair in self.claim_headers.split(","))
        return Identities(
            trust_domain=self.trust_domain,
            gateway=self.gateway_identity or f"spiffe://{self.trust_domain}/gateway",
            subject_header=claims.get("sub", "x-nipmesh-subject").lower(),
            role_header=claims.get("role", "x-nipmesh-role").lower(),
            expire_time_header=claims.get("exp", "x-nipmesh-token-expire-time").lower(),
        )

    @property
    def spiffe_id(self) -> str:
        """The SPIFFE id under which this service calls others."""
        return f"spiffe://{self.trust_domain}/service/{self.service}"

    @classmethod
    def load(cls) -> Self:
        """Read the environment, or say on stderr what is wrong with which variable and exit with 2."""
        return load_settings(cls)


def _url(value: SecretStr, file: Path | None) -> SecretBytes | None:
    """A URL given as such or in a file."""
    if file is not None:
        return SecretBytes(load_secret(file).reveal().strip())
    return SecretBytes(value.get_secret_value().encode()) if value else None


SettingsT = TypeVar("SettingsT", bound=ChassisSettings)


def load_settings(kind: type[SettingsT], **values: Any) -> SettingsT:
    """Read the environment; on a mistake print one line per variable to stderr and exit with 2. Values are never printed.

    `values` are fields that a command's options give: they come before the environment.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            sys.stderr.write(f"error: {_variable(kind, problem['loc'])}: {problem['msg']}\n")
        raise SystemExit(2) from error


def _variable(kind: type[ChassisSettings], location: tuple[int | str, ...]) -> str:
    """The environment variable that a problem is about: an alias is a whole name, a field's name gets our prefix."""
    name = str(location[0]) if location else ""
    aliases = {str(field.validation_alias) for field in kind.model_fields.values() if field.validation_alias}
    return name if name in aliases else f"NIPMESH_{name.upper()}"


def settings_table(kind: type[ChassisSettings]) -> str:
    """The variables of a service as a Markdown table, without those that every service has."""
    common = set() if kind is ChassisSettings else set(ChassisSettings.model_fields)
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in kind.model_fields.items():
        if name not in common:
            variable = field.validation_alias or f"NIPMESH_{name.upper()}"
            shown = "" if field.default is None else str(field.default)
            default = "required" if field.is_required() else f"`{shown}`" if shown else ""
            rows.append(f"| `{variable}` | {default} | {field.description} |")
    return "\n".join(rows)
