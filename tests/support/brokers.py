"""The brokers that the bus works with, each a real server with TLS and a password, in one form for the tests that hold for all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from services.chassis.settings import ChassisSettings
from support import kafka_server, rabbitmq_server
from support.events import bus_settings, write_secret
from support.nats_server import running_nats, write_certificates


class Server(Protocol):
    def start(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A running server."""

    name: str
    server: Server
    url: str
    authority: Path
    credentials: Path
    settles_s: float = 0.0
    """A queue that is younger than this may not outlive `kill -9`: RabbitMQ 3.10 notes its name on disk so much later."""

    def settings(self, stream: str, **values: Any) -> ChassisSettings:
        """A service that may use it."""
        given = {"events_ca_file": self.authority, "events_credentials_file": self.credentials}
        return bus_settings(self.url, stream, **(given | values))


@contextlib.contextmanager
def nats() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="nipmesh-nats-pki-") as name:
        authority, certificate, key = write_certificates(Path(name))
        extra = (
            f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n'
            'authorization { users: [{ user: invoice, password: "s3cret-of-invoice" }] }\n'
        )
        credentials = write_secret(Path(name) / "credentials", "invoice:s3cret-of-invoice\n")
        with running_nats(extra, "tls") as server:
            yield Broker(name="nats", server=server, url=server.url, authority=authority, credentials=credentials)


@contextlib.contextmanager
def rabbitmq() -> Iterator[Broker]:
    with rabbitmq_server.running_rabbitmq() as server:
        yield Broker(
            name="rabbitmq",
            server=server,
            url=server.tls_url,
            authority=server.authority,
            credentials=server.credentials,
            settles_s=4.0,
        )


@contextlib.contextmanager
def kafka() -> Iterator[Broker]:
    with kafka_server.running_kafka() as server:
        yield Broker(
            name="kafka",
            server=server,
            url=server.tls_url,
            authority=server.authority,
            credentials=server.credentials,
        )


BROKERS: dict[str, Callable[[], contextlib.AbstractContextManager[Broker]]] = {
    "nats": nats,
    "rabbitmq": rabbitmq,
    "kafka": kafka,
}
MISSING: dict[str, Callable[[], str]] = {
    "nats": lambda: "",
    "rabbitmq": rabbitmq_server.missing,
    "kafka": kafka_server.missing,
}
"""Why a server cannot be started here."""


@contextlib.contextmanager
def running_broker(name: str) -> Iterator[Broker]:
    """A new server; where there is none the test is skipped, with the reason."""
    why = MISSING[name]()
    if why:
        pytest.skip(why)
    with BROKERS[name]() as running:
        yield running
