"""The port to a message broker: publish a batch, subscribe, health; and the stream's tail, where a broker can tell it.

Adapters: NATS JetStream here, RabbitMQ and Kafka as extras.

    async with open_bus(settings) as bus:                    # None when NIPMESH_EVENTS_URL is empty
        receipt = await bus.publish_batch(events)            # durable when it returns
        async with bus.subscribe(Subscription(name="zaps", types=("nipmesh.invoice.v1.settled",))) as inflow:
            for delivery in await inflow.fetch(256):         # at least once, in the order of the stream
                ...
            await inflow.ack(deliveries)

A bus that is away is no error of the service: it connects in the background, as often as needed, and says in `health` what is wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from services.chassis.errors import StartError
from services.chassis.settings import ChassisSettings
from services.events.cloud_event import CloudEvent


class BusUnavailableError(Exception):
    """The bus cannot be reached, or did not take (all of) a batch: send it again later. The text says what is wrong, without secrets."""


class RewindError(Exception):
    """The bus cannot deliver again what was acknowledged; the text says what can be done instead."""


class BusSettingsError(StartError):
    """The settings of the bus cannot be right: an unknown scheme, a broken credential file, an extra that is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a new consumer begins: at the oldest event, at the next one, at a position of the stream, or at a time."""

    sequence: int | None = None
    time_ms: int | None = None
    new: bool = False


ALL = Start()
NEW = Start(new=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What somebody wants to hear.

    `name` with the service's name is the durable consumer that all replicas share; empty: a consumer of this process alone, gone with
    it. `types` are CloudEvent types with wildcards: `*` is one word, `>` at the end any number of words. `start` counts when the durable
    consumer is made, not later.
    """

    name: str
    types: tuple[str, ...]
    start: Start = ALL
    in_flight_max: int = 1_024
    answer_s_max: float = 30.0
    """What is not acknowledged for so long is delivered again, to whoever asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to a consumer. `position` is its place in the stream; `handle` is the adapter's own.

    `problem`: why the message is no event of ours (then `event` holds what could be read); empty as a rule.
    """

    event: CloudEvent
    position: int
    deliveries: int
    handle: Any
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An event that the bus will never take, and why: too large, for example."""

    event_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """All events of a batch are on disk, but for those that were rejected. `duplicates` were there before."""

    rejections: tuple[Rejection, ...] = ()
    duplicates: int = 0
    position: int = 0
    """The place of the last one in the stream; 0 when the bus does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusHealth:
    """How the bus is. `error` says what is wrong, for an operator; it holds no secret."""

    connected: bool
    server: str
    error: str = ""
    connections: int = 0
    """How often it was connected: what rises may mean that the server was restarted, or is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What a stream holds of this service: by it a relay finds out whether what it published is still there.

    `at_position` is the id of the event at the place that was asked for, `newest` that of the service's newest event; each is empty when
    there is none.
    """

    at_position: str
    newest: str


class Inflow(Protocol):
    """An open subscription."""

    async def fetch(self, events_max: int, *, wait_s: float = 5.0) -> Sequence[Delivery]:
        """What is there, at most `events_max`; after `wait_s` nothing. Raises BusUnavailableError; the next fetch connects again."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These are done with. An acknowledgement that is lost leads to one more delivery, no more. Raises nothing."""

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """These were not handled: whoever asks next may have them at once. Raises nothing."""

    async def working(self, deliveries: Sequence[Delivery]) -> None:
        """These take longer: `answer_s_max` begins anew. Raises nothing."""

    async def pending(self) -> int | None:
        """How many events wait for the consumer; None when the bus cannot tell."""

    async def rewind(self, start: Start) -> None:
        """Deliver again from there, to all replicas of the consumer. Raises BusUnavailableError and RewindError."""


class EventBus(Protocol):
    """A broker."""

    @property
    def can_rewind(self) -> bool:
        """Whether it keeps what was acknowledged: without, `rewind` raises RewindError."""

    async def publish_batch(self, events: Sequence[CloudEvent]) -> Receipt:
        """Publish in this order; all are on disk when it returns. One that is there already (its id) is no error.

        Raises BusUnavailableError: then any of them may have been taken; to publish all again is harmless.
        """

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Inflow]:
        """Open a subscription; it connects with its first fetch."""

    def health(self) -> BusHealth:
        """How the bus is, as far as is known now."""

    async def tail(self, position: int) -> Tail | None:
        """What the stream ends with; None when the bus cannot tell. Raises BusUnavailableError."""


@asynccontextmanager
async def open_bus(settings: ChassisSettings) -> AsyncIterator[EventBus | None]:
    """The bus that the settings name, None when they name none. Raises BusSettingsError and SecretFileError, nothing when it is away."""
    if not settings.events_url:
        yield None
        return
    async with _opened(settings) as bus:
        yield bus


def _opened(settings: ChassisSettings) -> AbstractAsyncContextManager[EventBus]:
    """Each adapter is loaded only where it is used: the clients of RabbitMQ and Kafka are extras."""
    scheme = settings.events_url.partition("://")[0]
    if scheme in ("nats", "tls"):
        from services.events.nats import open_nats_bus

        return open_nats_bus(settings)
    if scheme in ("amqp", "amqps"):
        with _extra("rabbitmq", "RabbitMQ"):
            from services.events.rabbitmq import open_rabbitmq_bus
        return open_rabbitmq_bus(settings)
    if scheme in ("kafka", "kafka+tls"):
        with _extra("kafka", "Kafka"):
            from services.events.kafka import open_kafka_bus
        return open_kafka_bus(settings)
    raise BusSettingsError(f"NIPMESH_EVENTS_URL: no bus is known by {scheme}://")


@contextmanager
def _extra(name: str, broker: str) -> Iterator[None]:
    """An import that needs an extra. Raises BusSettingsError that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("services."):
            raise
        raise BusSettingsError(
            f"NIPMESH_EVENTS_URL names {broker}, whose client is not installed: pip install 'nipmesh[{name}]'"
        ) from error
