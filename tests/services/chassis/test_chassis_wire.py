"""What stands on the wire, seen by a hand-made HTTP/2 client: frames that gRPC's own client would never send or show."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from services.chassis import ChassisSettings, ServiceDefinition
from services.chassis.testing import running

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS, ACK = 1, 4, 1
Definition = ServiceDefinition[ChassisSettings]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """An HPACK header field without indexing."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def headers(method: str) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "te": "trailers"}
    return b"".join(literal(*each) for each in (fields | {"content-type": "application/grpc"}).items())


async def exchange(path: Path, method: str, body: bytes) -> list[tuple[int, int]]:
    """Call `method` with raw DATA bytes; return kind and flags of the frames of the answer, up to the end of the stream."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
    writer.write(frame(HEADERS, END_HEADERS, 1, headers(method)) + frame(DATA, END_STREAM, 1, body))
    seen: list[tuple[int, int]] = []
    try:
        async with asyncio.timeout(5):
            while not seen or not seen[-1][1] & END_STREAM:
                head = await reader.readexactly(9)
                length, kind, flags, stream = (
                    int.from_bytes(head[:3], "big"),
                    head[3],
                    head[4],
                    int.from_bytes(head[5:], "big"),
                )
                payload = await reader.readexactly(length)
                if kind in (SETTINGS, PING) and not flags & ACK:
                    writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
                if stream == 1 and kind in (DATA, HEADERS):
                    seen.append((kind, flags))
                assert kind != 3 or stream != 1, "the stream was reset"
    finally:
        writer.close()
    return seen


def message(payload: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(payload)) + payload


ECHO, COUNT = "/chassistest.v1.EchoService/Echo", "/chassistest.v1.EchoService/Count"


@pytest.mark.parametrize("body", [b"", b"\0\0\0", message(b"\x0a\x05hello")[:-2], message(b"\x0a\x05he")], ids=repr)
async def test_a_body_cut_short_is_answered_at_once(definition: Definition, short_path: Path, body: bytes) -> None:
    async with running(definition, short_path):
        seen = await exchange(short_path / "app.sock", ECHO, body)
    assert [kind for kind, _ in seen] == [HEADERS], "a Trailers-Only answer"


@pytest.mark.parametrize(
    ("method", "text"), [(ECHO, b"error"), (ECHO, b"crash"), (ECHO, b"stray"), (COUNT, b"")], ids=repr
)
async def test_an_error_is_one_headers_frame(
    definition: Definition, short_path: Path, method: str, text: bytes
) -> None:
    """Envoy's retries and outlier detection see only Trailers-Only errors (one HEADERS frame that ends the stream)."""
    body = message(b"\x0a\x01x" + (b"\x12" + bytes((len(text),)) + text if text else b""))
    async with running(definition, short_path):
        seen = await exchange(short_path / "app.sock", method, body)
    assert len(seen) == 1
    assert seen[0][0] == HEADERS
    assert seen[0][1] & END_STREAM


async def test_a_success_has_headers_message_and_trailers(definition: Definition, short_path: Path) -> None:
    async with running(definition, short_path):
        seen = await exchange(short_path / "app.sock", ECHO, message(b"\x0a\x01x"))
    assert [kind for kind, _ in seen] == [HEADERS, DATA, HEADERS]
