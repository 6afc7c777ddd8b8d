"""The description of one process, complete but for places: a socket, a folder or a file is elsewhere in each output.

Whatever an output needs to know about a process stands here, and nowhere else; what it cannot do it has to say.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from generator.model import GeneratedSecret, Probe, Resources, Volume


class Part(enum.Enum):
    """What a process is to its mesh."""

    APPLICATION = "application"
    SIDECAR = "sidecar"
    GATEWAY = "gateway"
    INTROSPECTION = "introspection"
    EVENTS = "events"


class Program(enum.Enum):
    """Whose program it runs; the first word of a command is its own, or one of these that each output has elsewhere."""

    USERS = "user's"
    NIPMESH = "nipmesh"
    ENVOY = "envoy"
    NATS = "nats"


class Where(enum.Enum):
    """The kinds of place that an output chooses; `Place.name` says which one where a process has several."""

    LISTEN = "listen"
    """Where it serves gRPC, as a gRPC target."""
    METRICS = "metrics"
    """Where it serves Prometheus' text, as a gRPC target."""
    EGRESS = "egress"
    """Where its calls go out, as a gRPC target."""
    EXTERNAL = "external"
    """Where connections to the host outside of this name begin, as a gRPC target."""
    PORT = "port"
    """The number of the TCP port at which it listens."""
    ADMIN = "admin"
    """The path of the admin socket of the Envoy that belongs to it."""
    DATA = "data"
    """The folder of durable state of the service of this name."""
    SECRET = "secret"  # noqa: S105  # the word, not a secret
    """The path of the file of the secret with this variable."""
    EVENTS = "events"
    """The URL of the mesh's own server of events."""
    BOOTSTRAP = "bootstrap"
    """The path of Envoy's first file."""
    EXPOSURE = "exposure"
    """The path of the file of this name that tells what the gateway exposes."""
    CONFIGURATION = "configuration"
    """The path of the configuration of the server of events."""
    LOG_LEVEL = "log-level"
    """What the user's shell decides for every application, or else this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Something that each output puts elsewhere."""

    where: Where
    name: str = ""


Word: TypeAlias = str | Place
"""A word of a command, or the value of a variable."""
Resolve: TypeAlias = Callable[[Place], str]
"""An output's answer to where something is."""


class Minted(enum.Enum):
    """Files that whoever runs the mesh makes for it."""

    TOKEN_KEY = "token-key"  # noqa: S105  # the word, not a key
    """The private key that signs users' tokens."""
    EVENTS_SEED = "events-seed"
    """The seed of a service's user at the mesh's own server of events."""
    EVENTS_AUTHORITIES = "events-authorities"
    """The certificates that vouch for that server; not secret, but a file whose path is in a variable too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFile:
    """A file that a process reads; a variable holds its path."""

    variable: str
    source: Path | GeneratedSecret | Minted
    owner: str
    """The service whose it is: versions of a service share its secrets."""


class Condition(enum.Enum):
    """How far another process must be."""

    STARTED = "started"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """What has to run before a process starts."""

    process: str
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of a mesh."""

    name: str
    """Unlike any other's: `orders-0`, `orders-0-sidecar`, `gateway`, …"""
    part: Part
    workload: str
    """Whose sockets, certificate and configuration it shares: `orders-0`, `gateway` or `events`."""
    service: str | None = None
    """The service or version of which it is a replica, or whose sidecar it is."""
    program: Program
    command: tuple[Word, ...]
    """Of a program that is not the user's: the words after it."""
    image: str | None = None
    """The container image of the user's program; the others follow from `program`."""
    environment: Mapping[str, Word] = field(default_factory=dict)
    """The variables of secrets included."""
    environment_file: Path | None = None
    """NAME=value lines below the environment."""
    working_directory: Path | None = None
    """None: the manifest's folder."""
    secrets: tuple[SecretFile, ...] = ()
    volumes: tuple[Volume, ...] = ()
    data: str | None = None
    """The service whose durable state it keeps."""
    probe: Probe | None = None
    """When it counts as ready, and when as dead; None: when its Envoy says so at `/ready`."""
    resources: Resources = field(default_factory=Resources)
    stop_grace_ms: int
    """What it gets between SIGTERM and SIGKILL."""
    depends_on: tuple[Dependency, ...] = ()
    listen_port: int | None = None
    """The TCP port of a program that cannot listen on a Unix socket; then it shares its sidecar's network."""

    @property
    def before(self) -> frozenset[str]:
        """The names of the processes that it waits for."""
        return frozenset(dependency.process for dependency in self.depends_on)

    def arguments(self, resolve: Resolve) -> tuple[str, ...]:
        """Write the command with the places of an output."""
        return tuple(resolved(word, resolve) for word in self.command)

    def variables(self, resolve: Resolve) -> dict[str, str]:
        """Write the environment with the places of an output."""
        return {name: resolved(value, resolve) for name, value in self.environment.items()}

    def secret(self, variable: str) -> SecretFile:
        """The secret of this variable; KeyError when there is none."""
        for secret in self.secrets:
            if secret.variable == variable:
                return secret
        raise KeyError(variable)


def resolved(word: Word, resolve: Resolve) -> str:
    """Write one word with the places of an output."""
    return resolve(word) if isinstance(word, Place) else word


def waiting_for(names: Iterable[str], condition: Condition) -> tuple[Dependency, ...]:
    """Depend on each of these processes."""
    return tuple(Dependency(process=name, condition=condition) for name in names)
