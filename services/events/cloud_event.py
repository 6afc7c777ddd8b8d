"""What travels: a CloudEvent 1.0 in binary mode, whose payload is a serialized protobuf message.

Attributes become headers named `ce-…`, as the bindings of NATS, Kafka and AMQP have it; the W3C trace context stands beside them as
`traceparent`. Specification: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from google.protobuf.message import DecodeError, Message

CONTENT_TYPE: Final = "application/protobuf"
SPEC_VERSION: Final = "1.0"
SCHEMA_PREFIX: Final = "https://type.googleapis.com/"
"""`dataschema` is the message's type URL, as google.protobuf.Any has it: the package says the version, nipmesh.events.v1."""
CHARACTERS_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""What stands in a header as it is; everything else is percent-encoded, as the bindings demand."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Times are counted from it in whole milliseconds: seconds as a float would lose some."""

MessageT = TypeVar("MessageT", bound=Message)


class PayloadError(Exception):
    """The payload is not what was asked for: of another schema, or no such message at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """One event.

    `event_id` is unique over all sources and stays the same when the event is sent again. `schema` is the full name of the payload's
    message ("nipmesh.events.v1.InvoiceChanged"), empty when nobody said. `source` is the SPIFFE id of the service that says so.
    `extensions` are further attributes (lower-case letters and digits), for example `expirytime`.
    """

    event_id: str
    type: str
    source: str
    subject: str
    time_ms: int
    data: bytes
    schema: str = ""
    traceparent: str = ""
    extensions: tuple[tuple[str, str], ...] = ()

    @property
    def service(self) -> str:
        """The name of the service in `source`."""
        return self.source.rpartition("/")[2]

    def extension(self, name: str) -> str:
        """A further attribute; empty when it is not there."""
        return next((value for key, value in self.extensions if key == name), "")

    def unpack(self, kind: builtins.type[MessageT]) -> MessageT:
        """The payload as a message of this kind. Raises PayloadError when it is another one, or broken."""
        wanted = str(kind.DESCRIPTOR.full_name)
        if self.schema not in (wanted, ""):
            raise PayloadError(f"the payload is a {self.schema}, not a {wanted}")
        try:
            return kind.FromString(self.data)
        except DecodeError as error:
            raise PayloadError(f"the payload is no {wanted}: {error}") from error


def headers_of(event: CloudEvent) -> dict[str, str]:
    """The event's attributes as headers, in the order of the specification."""
    headers = {
        "ce-specversion": SPEC_VERSION,
        "ce-id": _encoded(event.event_id),
        "ce-source": _encoded(event.source),
        "ce-type": _encoded(event.type),
        "ce-time": time_text(event.time_ms),
        "ce-datacontenttype": CONTENT_TYPE,
        "content-type": CONTENT_TYPE,
    }
    if event.subject:
        headers["ce-subject"] = _encoded(event.subject)
    if event.schema:
        headers["ce-dataschema"] = _encoded(SCHEMA_PREFIX + event.schema)
    if event.traceparent:
        headers["traceparent"] = _encoded(event.traceparent)
    for name, value in event.extensions:
        headers[f"ce-{name}"] = _encoded(value)
    return headers


_ATTRIBUTES: Final = frozenset(
    "specversion id source type time datacontenttype subject dataschema".split()  # noqa: SIM905
)


def attributes_of(event: CloudEvent) -> dict[str, str]:
    """The attributes by their own names and as they are, for the bindings that do not encode them (AMQP, Kafka)."""
    found = {
        "specversion": SPEC_VERSION,
        "id": event.event_id,
        "source": event.source,
        "type": event.type,
        "time": time_text(event.time_ms),
        "subject": event.subject,
        "dataschema": event.schema and SCHEMA_PREFIX + event.schema,
        **dict(event.extensions),
    }
    return {name: value for name, value in found.items() if value}


def event_of(headers: dict[str, str], data: bytes) -> CloudEvent:
    """The event that a message carries. Raises PayloadError for what is no CloudEvent in binary mode."""
    found = {name.lower(): value for name, value in headers.items()}
    attributes = {name[3:]: unquote(value) for name, value in found.items() if name.startswith("ce-")}
    return event_of_attributes(attributes, unquote(found.get("traceparent", "")), data)


def event_of_attributes(found: dict[str, str], traceparent: str, data: bytes) -> CloudEvent:
    """The event with these attributes. Raises PayloadError when it is none."""
    if found.get("specversion") != SPEC_VERSION:
        raise PayloadError("the message is no CloudEvent 1.0 in binary mode")
    missing = [f"ce-{name}" for name in ("id", "source", "type") if not found.get(name)]
    if missing:
        raise PayloadError(f"the event has no {', '.join(missing)}")
    return CloudEvent(
        event_id=found["id"],
        type=found["type"],
        source=found["source"],
        subject=found.get("subject", ""),
        time_ms=time_ms_of(found.get("time", "")),
        data=data,
        schema=found.get("dataschema", "").removeprefix(SCHEMA_PREFIX),
        traceparent=traceparent,
        extensions=tuple((name, value) for name, value in found.items() if name not in _ATTRIBUTES),
    )


def time_text(time_ms: int) -> str:
    """RFC 3339 with milliseconds, in UTC."""
    return f"{_second_text(time_ms // 1_000)}.{time_ms % 1_000:03d}Z"


@lru_cache(maxsize=64)
def _second_text(time_s: int) -> str:
    """Events that are sent together are of a few seconds."""
    return f"{datetime.fromtimestamp(time_s, tz=UTC):%Y-%m-%dT%H:%M:%S}"


def time_ms_of(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time; 0 for none. Raises PayloadError."""
    if not text:
        return 0
    try:
        return (datetime.fromisoformat(text).astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise PayloadError("ce-time is no RFC 3339 time") from error


def _encoded(text: str) -> str:
    """As it is where that can be."""
    return (
        text
        if text.isascii() and text.isprintable() and not _needs_encoding(text)
        else quote(text, safe=CHARACTERS_PLAIN)
    )


def _needs_encoding(text: str) -> bool:
    return " " in text or "%" in text or '"' in text
