"""Bytes for every RPC: plausible messages drawn from their descriptors, odd values, and mutations of what stands on the wire.

The same seed, number and pool of ids give the same case, so that one command replays it.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from buf.validate import validate_pb2
from services.chassis.testing import as_gateway, as_service, as_user

ALICE, BOB, OPERATOR = "a1" * 32, "b0" * 32, "0f" * 32
DEPTH_MAX: Final = 4
FILLED: Final = 0.75
"""How often a field is set."""
RIGHTFUL: Final = 0.7
"""How often the call comes from somebody who may make it."""
PLAUSIBLE: Final = (1.0, 1.0, 0.95, 0.8, 0.5)
"""How often a field of a message gets a value that its name asks for; drawn for each case."""
TEXTS: Final = [
    "", " ", "a", "\0", "\x7f", "é", "日本", "\U0001f600", "\u202e", "\ufeff", "a" * 33, "f" * 64, "F" * 64, "0" * 64, "z" * 64,
    "a" * 70_000, "\n", "'", '"; DROP TABLE account; --', "%s%n", "{0}", "${HOME}", "../../etc/passwd", "customer:", "-1", "1e9",
    "NaN", "null", "customer:00000000-0000-0000-0000-000000000000", "node:lightning", "00000000-0000-0000-0000-000000000000",
    "lnbc1", "lnbcrt1", "lightning:lnbcrt1", "Nostr e30=", "Nostr ", "nsec1", "simulated:hang", "\u0661\u0662",
]  # fmt: skip
NUMBERS: Final = [
    0, 1, 2, -1, 10, 50, 999, 1_000, 1_001, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1,
    2_100_000_000_000_000_000, 2_100_000_000_000_000_001,
]  # fmt: skip
SECONDS: Final = [
    0,
    1,
    -1,
    60,
    3_600,
    2**31,
    253_402_300_799,
    253_402_300_800,
    -62_135_596_800,
    -62_135_596_801,
    2**63 - 1,
    -(2**63),
]
NANOS: Final = [0, 1, -1, 999_999_999, 1_000_000_000, 2**31 - 1, -(2**31)]
BOUNDS: Final[Mapping[int, tuple[int, int]]] = {
    **dict.fromkeys((FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32), (-(2**31), 2**31 - 1)),
    **dict.fromkeys((FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_SFIXED64), (-(2**63), 2**63 - 1)),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64), (0, 2**64 - 1)),
}  # fmt: skip

Metadata = tuple[tuple[str, str | bytes], ...]
Pool = Mapping[str, list[str]]
"""Values that exist in the mesh, by the name of the field that they fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call: these bytes as the request of this method, with these headers."""

    seed: int
    number: int
    method: MethodDescriptor
    body: bytes
    metadata: Metadata
    what: tuple[str, ...]
    """How the bytes were made, for whoever reads a failure."""

    @property
    def path(self) -> str:
        """The method as it stands on the wire."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def case_of(seed: int, number: int, methods: list[MethodDescriptor], pool: Pool) -> Case:
    """Make one; the methods take turns."""
    draw = random.Random(f"{seed}:{number}")
    method = methods[number % len(methods)]
    message = Writer(draw, pool, draw.choice(PLAUSIBLE)).message(method.input_type)
    body, what = message.SerializeToString(), ["message"]
    for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 2, 3))):
        mutation = draw.choice(MUTATIONS)
        body = mutation(draw, body)
        what.append(mutation.__name__.strip("_"))
    metadata = _caller(draw, method.containing_service.name)
    return Case(seed=seed, number=number, method=method, body=body, metadata=metadata, what=tuple(what))


# ---- messages


@dataclass(frozen=True, slots=True)
class Writer:
    """Draws messages."""

    draw: random.Random
    pool: Pool
    plausible: float

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with most of its fields set; of a oneof the last one stays."""
        message: Message = GetMessageClass(descriptor)()
        if descriptor.full_name in (
            timestamp_pb2.Timestamp.DESCRIPTOR.full_name,
            duration_pb2.Duration.DESCRIPTOR.full_name,
        ):
            return self._moment(message)
        for field in descriptor.fields:
            if self._is_needed(field) or self.draw.random() < FILLED:
                self._fill(message, field, depth)
        return message

    def _is_needed(self, field: FieldDescriptor) -> bool:
        """What a message that is plausible throughout does not leave out."""
        is_bare = field.containing_oneof is None and field.type in BOUNDS
        return self.plausible == 1 and (is_bare or field.GetOptions().Extensions[validate_pb2.field].required)

    def _moment(self, message: Any) -> Message:
        plausible = self.draw.random() < self.plausible
        message.seconds = self.draw.choice((1, 5, 60)) if plausible else self.draw.choice(SECONDS)
        message.nanos = 0 if plausible else self.draw.choice(NANOS)
        result: Message = message
        return result

    def _fill(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and depth == DEPTH_MAX:
            return
        if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(getattr(message, field.name), field.message_type, depth)
        elif field.is_repeated:
            target = getattr(message, field.name)
            for _ in range(self.draw.choice((0, 1, 1, 2, 3) if self.plausible == 1 else (0, 1, 2, 40))):
                target.append(self._value(field, depth))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(message, field.name, self._value(field, depth))

    def _fill_map(self, target: Any, entry: Descriptor, depth: int) -> None:
        """A few entries, or many; the values of messages are made in place."""
        key, value = entry.fields
        for _ in range(self.draw.choice((0, 1, 2) if self.plausible == 1 else (1, 3, 60))):
            name = self._value(key, depth)
            name = (
                f"{name[:20]}{self.draw.randrange(100)}" if isinstance(name, str) and self.draw.random() < 0.9 else name
            )
            if value.message_type is None:
                target[name] = self._value(value, depth)
            else:
                target[name].CopyFrom(self.message(value.message_type, depth + 1))

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        draw = self.draw
        if field.message_type is not None:
            return self.message(field.message_type, depth + 1)
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(field.name)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return draw.randbytes(draw.choice((0, 1, 32, 33)))
        if field.type == FieldDescriptor.TYPE_BOOL:
            return draw.random() < max(0.5, self.plausible)
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values]
            return draw.choice(known if draw.random() < self.plausible else [99, -1, 2**31 - 1])
        if field.type in BOUNDS:
            return self._number(*BOUNDS[field.type])
        return draw.choice((0.0, -1.5, float("inf"), float("nan")))

    def _text(self, name: str) -> str:
        draw = self.draw
        if draw.random() < self.plausible:
            if name == "request_id":
                return (
                    str(uuid.UUID(int=draw.getrandbits(128), version=4))
                    if draw.random() < 0.8
                    else str(uuid.UUID(int=5, version=4))
                )
            known = self.pool.get(name) or self.pool.get("_".join(name.split("_")[-2:]))
            if known:
                return draw.choice(known)
            if self.plausible == 1:
                return ""
        return draw.choice(TEXTS)

    def _number(self, least: int, most: int) -> int:
        draw = self.draw
        if draw.random() < self.plausible:
            return draw.choice((1, 2, 5, 1_000, 10_000))
        return draw.choice([number for number in NUMBERS if least <= number <= most])


# ---- the wire


def varint(value: int) -> bytes:
    """Base 128, least part first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _nothing(_draw: random.Random, _body: bytes) -> bytes:
    return b""


def _noise(draw: random.Random, _body: bytes) -> bytes:
    return draw.randbytes(draw.choice((1, 2, 10, 100, 5_000)))


def _truncated(draw: random.Random, body: bytes) -> bytes:
    return body[: draw.randrange(len(body) + 1)]


def _flipped(draw: random.Random, body: bytes) -> bytes:
    data = bytearray(body or b"\0")
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _spliced(draw: random.Random, body: bytes) -> bytes:
    at, other = draw.randrange(len(body) + 1), draw.randrange(len(body) + 1)
    return body[:at] + body[min(at, other) : max(at, other)] + body[at:]


def _doubled(_draw: random.Random, body: bytes) -> bytes:
    return body + body


def _unknown_field(draw: random.Random, body: bytes) -> bytes:
    number = draw.choice((15, 99, 1_000, 18_999, 19_000, 2**29 - 1))
    value = draw.choice((b"\0" + varint(2**64 - 1), b"\2" + varint(3) + b"abc", b"\5" + bytes(4), b"\1" + bytes(8)))
    return body + varint(number << 3 | value[0]) + value[1:]


def _wrong_type(draw: random.Random, body: bytes) -> bytes:
    number = draw.randrange(1, 8)
    kind = draw.randrange(8)
    return body + varint(number << 3 | kind) + draw.randbytes(draw.randrange(12))


def _wrong_text(draw: random.Random, body: bytes) -> bytes:
    text = draw.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"abc\xf5", b"\xf0\x9f\x98"))
    return body + varint(draw.randrange(1, 8) << 3 | 2) + varint(len(text)) + text


def _too_long(draw: random.Random, body: bytes) -> bytes:
    length = draw.choice((2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
    return body + varint(draw.randrange(1, 8) << 3 | 2) + varint(length) + b"abc"


def _bad_varint(draw: random.Random, body: bytes) -> bytes:
    return body + varint(draw.randrange(1, 8) << 3) + b"\xff" * draw.choice((9, 10, 11, 30))


def _deep(draw: random.Random, body: bytes) -> bytes:
    number, inner = draw.randrange(1, 8), b""
    for _ in range(draw.choice((50, 101, 500))):
        inner = varint(number << 3 | 2) + varint(len(inner)) + inner
    return body + inner


def _deep_groups(draw: random.Random, body: bytes) -> bytes:
    depth, number = draw.choice((50, 101, 20_000)), draw.choice((1, 3, 99))
    return body + varint(number << 3 | 3) * depth + varint(number << 3 | 4) * draw.choice((depth, depth - 1))


def _large(draw: random.Random, body: bytes) -> bytes:
    size = draw.choice((70_000, 1_000_000))
    return body + varint(draw.randrange(1, 8) << 3 | 2) + varint(size) + draw.choice((b"a", b"\0", b"\x0a")) * size


def _many(draw: random.Random, body: bytes) -> bytes:
    return body + (varint(draw.randrange(1, 8) << 3 | 2) + b"\0") * draw.choice((1_000, 100_000))


MUTATIONS: Final[list[Callable[[random.Random, bytes], bytes]]] = [
    _nothing, _noise, _truncated, _truncated, _flipped, _flipped, _spliced, _doubled, _unknown_field, _wrong_type, _wrong_text,
    _too_long, _bad_varint, _deep, _deep_groups, _large, _many,
]  # fmt: skip


# ---- who calls


def _odd(draw: random.Random) -> Metadata:
    peer = dict(as_gateway())["x-forwarded-client-cert"]
    return draw.choice(
        (
            (),
            (("x-nipmesh-subject", ALICE),),
            (("x-forwarded-client-cert", peer), ("x-forwarded-client-cert", peer)),
            (("x-forwarded-client-cert", f"{peer},{peer}"), ("x-nipmesh-subject", ALICE)),
            (("x-forwarded-client-cert", "URI=spiffe://other.mesh/service/payment"),),
            (("x-forwarded-client-cert", 'URI="' + "\\" * 2_000),),
            (("x-forwarded-client-cert", "=;" * 2_000),),
            (*as_gateway(), ("x-nipmesh-subject", "A1" * 32)),
            (*as_gateway(), ("x-nipmesh-subject", ALICE), ("x-nipmesh-subject", BOB)),
            (
                *as_user(ALICE),
                ("x-nipmesh-token-expire-time", draw.choice(("0", "-1", "1e9", "99999999999", "9" * 40, "NaN"))),
            ),
            (*as_user(ALICE), ("grpc-trace-bin", draw.randbytes(20)), ("traceparent", "00-" + "0" * 40)),
            as_user(ALICE, role=draw.choice(("operator,", "admin", " operator x", "OPERATOR", ",,"))),
        )
    )


IDENTITIES: Final[list[Callable[[random.Random], Metadata]]] = [
    lambda _: as_user(ALICE), lambda _: as_user(ALICE), lambda _: as_user(BOB), lambda _: as_user(OPERATOR, role="operator"),
    lambda _: as_user(OPERATOR, role="operator"), lambda _: as_service("payment"), lambda _: as_service("invoice"),
    lambda _: as_service("nip"), lambda _: as_gateway(), _odd,
]  # fmt: skip


def _caller(draw: random.Random, service: str) -> Metadata:
    """Mostly somebody who may call the service's methods, so that the bytes reach the servicer."""
    if draw.random() < RIGHTFUL:
        right = {"InvoiceSettlementService": as_service("payment"), "InvoiceLedgerService": as_service("invoice")}
        if service in right:
            return right[service]
        operates = service == "LedgerService" or draw.random() < 0.2
        return as_user(OPERATOR, role="operator") if operates else as_user(draw.choice((ALICE, ALICE, BOB)))
    return draw.choice(IDENTITIES)(draw)
