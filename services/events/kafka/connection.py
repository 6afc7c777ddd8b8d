"""The connection to Kafka: a producer for the process, with the topic of the mesh at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
    for_code,
)

from services.chassis.settings import ChassisSettings
from services.events.bus import BusSettingsError, BusUnavailableError
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

PORT: Final = 9_092
PARTITIONS: Final = 6
"""Of a topic that is made here: so many replicas of a service may share one consumer."""
REPLICAS: Final = 3
"""Copies of each partition, where there are so many servers."""
REPLICAS_IN_SYNC_MIN: Final = 2
"""Servers that have an event when it is acknowledged; one may be lost."""
AGE_MS_MAX: Final = 7 * 24 * 3_600_000
"""How long a topic that is made here keeps events: as the streams of other brokers."""
MESSAGE_BYTES_MAX: Final = 1024**2
"""The same as with the other brokers, so that an event that one takes all take."""
HEADER_BYTES_MAX: Final = 65_536
"""Room for an event's headers beside its data, in what producer and topic take."""
REQUEST_MS_MAX: Final = 60_000
"""Longer than an answer is waited for: the client never gives up one batch by itself and goes on with the next, out of order."""
LOOK_S: Final = 3.0
"""The client reconnects silently; this often it is asked whether a server answers."""
MECHANISMS: Final = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")
"""How a password may be proved. The first is the default, as it never leaves this process."""
ERRORS: Final = (KafkaError, OSError, TimeoutError)
"""What the client raises when the server is away, or refuses something."""

REFUSALS: Final = (AuthenticationFailedError, SaslAuthenticationFailed, IllegalSaslStateError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the servers are and how to prove oneself."""

    scheme: str
    places: tuple[tuple[str, int], ...]
    mechanism: str
    topic: str
    service: str
    tls: ssl.SSLContext | None
    credentials_file: Path | None

    @classmethod
    def of(cls, settings: ChassisSettings) -> Server:
        """Raises BusSettingsError and SecretFileError: what a person has to mend, before anything starts."""
        scheme, _, rest = settings.events_url.partition("://")
        hosts, _, query = rest.partition("?")
        is_tls = scheme == "kafka+tls"
        mechanism = query.removeprefix("mechanism=") or MECHANISMS[0]
        if query and (not query.startswith("mechanism=") or mechanism not in MECHANISMS):
            raise BusSettingsError(f"NIPMESH_EVENTS_URL: after ? stands mechanism= and one of {', '.join(MECHANISMS)}")
        login = load_login(settings.events_credentials_file)
        if login is not None and mechanism == "PLAIN" and not is_tls:
            raise BusSettingsError("NIPMESH_EVENTS_URL: PLAIN sends the password as it is: write kafka+tls://")
        return cls(
            scheme=scheme,
            places=tuple(place_of(each, PORT) for each in hosts.split(",")),
            mechanism=mechanism,
            topic=settings.events_stream or settings.mesh,
            service=settings.service,
            tls=tls_context(settings.events_ca_file) if is_tls else None,
            credentials_file=settings.events_credentials_file,
        )

    @property
    def text(self) -> str:
        """For logs and operators; it holds no secret."""
        return f"{self.scheme}://{','.join(f'{host}:{port}' for host, port in self.places)}"

    def client(self) -> dict[str, Any]:
        """Arguments of every client, with the credential as it is now. Raises SecretFileError and BusSettingsError."""
        login = load_login(self.credentials_file)
        given: dict[str, Any] = {
            "bootstrap_servers": [f"{host}:{port}" for host, port in self.places],
            "client_id": f"nipmesh-{self.service}",
            "ssl_context": self.tls,
            "security_protocol": f"{'SASL_' if login else ''}{'SSL' if self.tls else 'PLAINTEXT'}",
        }
        if login is not None:
            given |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": login.user,
                "sasl_plain_password": login.password.reveal().decode(),
            }
        return given


@dataclass(slots=True, kw_only=True, eq=False)
class Link:
    """A live connection. `closed` is set when it is over."""

    producer: AIOKafkaProducer
    admin: AIOKafkaAdminClient
    server: Server
    closed: asyncio.Event

    async def answered(self, asked: Awaitable[T]) -> T:
        """What the server answers. Raises BusUnavailableError when it does not, refuses, or is lost before."""
        try:
            return await answer_of(asked, self.closed)
        except ERRORS as error:
            raise BusUnavailableError(explained(error)) from error


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Link]:
    """A producer that is connected, to a topic that is there. Raises BusUnavailableError and StartError."""
    given = server.client()
    producer = AIOKafkaProducer(
        **given,
        enable_idempotence=True,  # acks=all, and what the client sends again the server keeps once, in order
        request_timeout_ms=REQUEST_MS_MAX,
        max_request_size=MESSAGE_BYTES_MAX + HEADER_BYTES_MAX,
        max_batch_size=MESSAGE_BYTES_MAX,
    )
    admin = AIOKafkaAdminClient(**given, request_timeout_ms=int(CONNECT_S_MAX * 1_000))
    link = Link(producer=producer, admin=admin, server=server, closed=asyncio.Event())
    looking: asyncio.Task[None] | None = None
    try:
        await _start(link)
        looking = asyncio.create_task(_look(link), name="event bus look")
        yield link
    finally:
        link.closed.set()
        if looking is not None:
            looking.cancel()
            await asyncio.wait((looking,))
        await _close(link)


async def _start(link: Link) -> None:
    """Raises BusUnavailableError."""
    await _try(link.server)
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            await link.admin.start()
            await _ensure_topic(link)
            await link.producer.start()
    except ERRORS as error:
        raise BusUnavailableError(explained(error)) from error


async def _try(server: Server) -> None:
    """One connection that says what is wrong: the clients keep that to themselves. Raises BusUnavailableError."""
    given = server.client()
    del given["bootstrap_servers"]
    said: list[str] = []
    for host, port in server.places:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                connection = await create_conn(host, port, **given)
        except ERRORS as error:
            said.append(explained(error))
        else:
            connection.close()
            return
    raise BusUnavailableError("; ".join(dict.fromkeys(said)))


async def _ensure_topic(link: Link) -> None:
    """The topic of the mesh: made when there is none; one that an operator made is used as it is."""
    topic = link.server.topic
    if topic in await link.admin.list_topics():
        return
    servers = len((await link.admin.describe_cluster())["brokers"])
    copies = REPLICAS if servers >= REPLICAS else 1
    configuration = {
        "retention.ms": str(AGE_MS_MAX),
        "max.message.bytes": str(MESSAGE_BYTES_MAX + HEADER_BYTES_MAX),
        "min.insync.replicas": str(min(copies, REPLICAS_IN_SYNC_MIN)),
    }
    new = NewTopic(topic, num_partitions=PARTITIONS, replication_factor=copies, topic_configs=configuration)
    try:
        response = await link.admin.create_topics([new])
    except TopicAlreadyExistsError:
        return
    for _, code, *_ in response.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise for_code(code)(f"the topic {topic} cannot be made")


async def _look(link: Link) -> None:
    """End the link when no server answers any more."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await link.admin.list_topics()
        except ERRORS:
            link.closed.set()
            return


async def _close(link: Link) -> None:
    """At once: what a producer has not sent yet is sent again from the outbox, later and in order."""
    sender = link.producer._sender  # noqa: SLF001  # `stop` would wait until all is sent
    if link.producer._closed:  # noqa: SLF001  # never started to the end
        return
    if sender is not None:
        with contextlib.suppress(Exception):
            await sender.close()
    for close in (link.producer.stop, link.admin.close):
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_S_MAX):
                await close()


def explained(error: BaseException) -> str:
    """What went wrong in an operator's words, without secrets."""
    if isinstance(error, REFUSALS):
        return REFUSED
    if isinstance(error, UnsupportedSaslMechanismError):
        return (
            "the server does not know this way of proving a password: write another ?mechanism= in NIPMESH_EVENTS_URL"
        )
    text = " ".join(str(each) for each in error.args if isinstance(each, str))
    return explained_failure(error) or text or type(error).__name__
