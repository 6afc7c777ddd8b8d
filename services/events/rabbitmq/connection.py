"""The connection to RabbitMQ: one for the process, with the exchange of the mesh at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from aio_pika import Connection
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, ExchangeType
from aio_pika.connection import make_url
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)

from services.chassis.errors import StartError
from services.chassis.settings import ChassisSettings
from services.events.bus import BusUnavailableError
from services.events.connecting import (
    CLOSE_S_MAX,
    CONNECT_S_MAX,
    REFUSED,
    answer_of,
    explained_failure,
    load_login,
    place_of,
    tls_context,
)

T = TypeVar("T")

PORT, PORT_TLS = 5_672, 5_671
HEARTBEAT_S: Final = 20
"""A dead connection is noticed after two of these, should TCP not tell."""
ERRORS: Final = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
"""What the client raises when the server is away, or refuses something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the servers are and how to prove oneself."""

    scheme: str
    places: tuple[tuple[str, int], ...]
    virtual_host: str
    exchange: str
    service: str
    tls: ssl.SSLContext | None
    credentials_file: Path | None

    @classmethod
    def of(cls, settings: ChassisSettings) -> Server:
        """Raises BusSettingsError and SecretFileError: what a person has to mend, before anything starts."""
        scheme, _, rest = settings.events_url.partition("://")
        hosts, _, virtual_host = rest.partition("/")
        load_login(settings.events_credentials_file)
        is_tls = scheme == "amqps"
        return cls(
            scheme=scheme,
            places=tuple(place_of(each, PORT_TLS if is_tls else PORT) for each in hosts.split(",")),
            virtual_host=virtual_host or "/",
            exchange=settings.events_stream or settings.mesh,
            service=settings.service,
            tls=tls_context(settings.events_ca_file) if is_tls else None,
            credentials_file=settings.events_credentials_file,
        )

    @property
    def text(self) -> str:
        """For logs and operators; it holds no secret."""
        return ",".join(f"{self.scheme}://{host}:{port}" for host, port in self.places)


@dataclass(slots=True, kw_only=True, eq=False)
class Link:
    """A live connection. `closed` is set when it is over."""

    connection: AbstractConnection
    publisher: AbstractChannel
    exchange: AbstractExchange
    closed: asyncio.Event

    async def answered(self, asked: Awaitable[T]) -> T:
        """What the server answers. Raises BusUnavailableError when it does not, refuses, or is lost before."""
        try:
            return await answer_of(asked, self.closed)
        except ERRORS as error:
            raise BusUnavailableError(explained(error)) from error


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Link]:
    """One connection, to the first server of the list that answers. Raises BusUnavailableError and StartError."""
    connection = await _connect_to_any(server)
    closed = asyncio.Event()

    def on_close(*_: Any) -> None:
        closed.set()

    connection.close_callbacks.add(on_close)
    try:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await _ensure_exchange(connection, server.exchange)
                publisher = await connection.channel(publisher_confirms=True)
                publisher.close_callbacks.add(on_close)  # a refused publication closes the channel: begin anew
                exchange = await publisher.get_exchange(server.exchange, ensure=False)
        except ERRORS as error:
            message = f"the exchange {server.exchange} cannot be used: {explained(error)}"
            raise BusUnavailableError(message) from error
        yield Link(connection=connection, publisher=publisher, exchange=exchange, closed=closed)
    finally:
        closed.set()
        await _close(connection)


async def _connect_to_any(server: Server) -> AbstractConnection:
    said: list[str] = []
    for host, port in server.places:
        try:
            return await _connect(server, host, port)
        except ERRORS as error:
            said.append(explained(error))
    raise BusUnavailableError("; ".join(dict.fromkeys(said)))


async def _connect(server: Server, host: str, port: int) -> AbstractConnection:
    login = load_login(server.credentials_file)  # each time: it may have been renewed
    given: dict[str, Any] = {}
    if login is not None:
        given = {"login": login.user, "password": login.password.reveal().decode()}
    url = make_url(
        host=host,
        port=port,
        virtualhost=server.virtual_host,
        ssl=server.tls is not None,
        heartbeat=HEARTBEAT_S,
        **given,
    )
    named: dict[str, Any] = {"connection_name": f"nipmesh {server.service}"}
    connection = Connection(url, ssl_context=server.tls, client_properties=named)
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            await connection.connect(timeout=CONNECT_S_MAX)
    except BaseException:
        await _close(connection)  # the client would do it when the object is collected, and be late
        raise
    return connection


async def _ensure_exchange(connection: AbstractConnection, name: str) -> None:
    """The exchange of the mesh: made when there is none, which a service may not be allowed to."""
    try:
        async with connection.channel() as channel:
            await channel.declare_exchange(name, ExchangeType.TOPIC, passive=True)
    except ChannelNotFoundEntity:
        async with connection.channel() as channel:
            await channel.declare_exchange(name, ExchangeType.TOPIC, durable=True)


async def _close(connection: AbstractConnection) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_S_MAX):
            await connection.close()


def explained(error: BaseException) -> str:
    """What went wrong in an operator's words, without secrets."""
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return REFUSED
    if isinstance(error, ConnectionNotAllowed):
        return "the server refuses the virtual host to this user, or has none of that name"
    if isinstance(error, ChannelAccessRefused):
        return f"the server does not permit it: {error.args[-1] if error.args else ''}"
    return explained_failure(error) or " ".join(map(str, error.args)) or type(error).__name__


__all__ = ["ERRORS", "Link", "Server", "StartError", "connected", "explained"]
