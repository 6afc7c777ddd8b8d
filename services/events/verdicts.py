"""What becomes of an event that is not handled: tried again, or a dead letter, and with which reason."""

from __future__ import annotations

from typing import Final

from google.protobuf import descriptor_pool

from services.events.bus import Delivery
from services.events.catalogue import message_name
from services.events.cloud_event import CloudEvent, PayloadError
from services.events.parking import ParkReason

DELIVERIES_MAX: Final = 20
"""An event that was delivered more often has ended the process each time, as it seems: it is a dead letter."""


class DeadLetterError(Exception):
    """Raised by a handler that knows that trying again is useless: the event becomes a dead letter at once. The text is the reason."""


class NeverAnsweredError(Exception):
    """The event was delivered too often."""


class NoEventError(Exception):
    """The message is no event of ours."""


class SchemaError(PayloadError):
    """The payload is of a message or version that this program does not know."""


def check_deliveries(delivery: Delivery) -> None:
    """Raise NeverAnsweredError for what nobody survives."""
    if delivery.deliveries > DELIVERIES_MAX:
        raise NeverAnsweredError(f"delivered more than {DELIVERIES_MAX} times, and never handled to the end")


def check_delivery(delivery: Delivery) -> None:
    """Raise NoEventError and SchemaError for what no handler should see."""
    if delivery.problem:
        raise NoEventError(delivery.problem)
    check_schema(delivery.event)


def check_schema(event: CloudEvent) -> None:
    """The message must be the one of the catalogue, or at least one that this program has. Raises SchemaError."""
    expected = message_name(event.type)
    if expected:
        if event.schema not in ("", expected):
            raise SchemaError(f"the payload of {event.type} is a {event.schema}, known is {expected}")
    elif event.schema and not _is_known(event.schema):
        raise SchemaError(f"this program does not know {event.schema}, the payload of {event.type}")


def _is_known(message: str) -> bool:
    try:
        descriptor_pool.Default().FindMessageTypeByName(message)
    except KeyError:
        return False
    return True


_REASONS: Final = (
    (NeverAnsweredError, ParkReason.NEVER_ANSWERED),
    (NoEventError, ParkReason.NO_CLOUD_EVENT),
    (SchemaError, ParkReason.SCHEMA_UNKNOWN),
    (PayloadError, ParkReason.PAYLOAD_INVALID),
    (DeadLetterError, ParkReason.HANDLER_REFUSED),
)


def reason_of(error: Exception) -> ParkReason:
    """Only what a handler raised by surprise is tried again."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), ParkReason.HANDLER_FAILED)


def text_of(error: Exception) -> str:
    """For an operator: our own words, or what was raised."""
    own = any(isinstance(error, kind) for kind, _ in _REASONS)
    return str(error) if own else f"{type(error).__name__}: {error}"
