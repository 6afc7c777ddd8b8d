"""An application that speaks HTTP/2 frame by frame, so that it can misbehave where no gRPC library would.

It understands just enough: it answers SETTINGS, finds where a request ends, and does to each stream what it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

FRAME_HEADER_BYTES = 9
PREFIX_BYTES = 5
"""Before each gRPC message: a flag and its length."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK, END_STREAM, END_HEADERS = 1, 1, 4
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL = 0, 2, 7, 8
STATUS_200 = b"\x88"
GRPC = b"application/grpc"
RESPONSE_HEADERS = STATUS_200 + b"\x0f\x10" + bytes([len(GRPC)]) + GRPC
"""`:status: 200` and `content-type: application/grpc` (HPACK: indexed, then a literal with an indexed name)."""

Misbehaviour = Callable[[asyncio.StreamWriter, int], None]
Seen = Callable[[bytes], None]


def frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def reset(code: int) -> Misbehaviour:
    """RST_STREAM and nothing else."""
    return lambda writer, stream: writer.write(frame(RST_STREAM, stream, code.to_bytes(4)))


def reset_after_headers(code: int) -> Misbehaviour:
    """The beginning of an answer, then RST_STREAM."""

    def misbehave(writer: asyncio.StreamWriter, stream: int) -> None:
        writer.write(frame(HEADERS, stream, RESPONSE_HEADERS, END_HEADERS))
        reset(code)(writer, stream)

    return misbehave


def go_away(writer: asyncio.StreamWriter, stream: int) -> None:
    """GOAWAY that names no stream as taken; the peer leaves the connection."""
    writer.write(frame(GOAWAY, 0, (0).to_bytes(4) + NO_ERROR.to_bytes(4)))


def close(writer: asyncio.StreamWriter, stream: int) -> None:
    """Close the connection without a word."""
    writer.close()


def babble(writer: asyncio.StreamWriter, stream: int) -> None:
    """Bytes that are no frame."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" * 10)


class RawApplication:
    """`async with RawApplication(...)`: listens on `unix:PATH` and misbehaves with every stream.

    `at_once`: as soon as a stream begins, and then its request counts as not seen; otherwise when the request is complete. `seen` gets the
    first message of each complete request.
    """

    def __init__(self, listen: str, misbehaviour: Misbehaviour, seen: Seen, *, at_once: bool = False) -> None:
        self._path = listen.removeprefix("unix:")
        self._misbehave, self._seen, self._at_once = misbehaviour, seen, at_once
        self._writers: set[asyncio.StreamWriter] = set()
        self.streams = 0
        """How many streams have begun."""

    async def __aenter__(self) -> Self:
        Path(self._path).unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *details: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()
        Path(self._path).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        bodies: dict[int, bytes] = {}
        try:
            await reader.readexactly(len(PREFACE))
            writer.write(frame(SETTINGS, 0, b""))
            while not writer.is_closing():
                header = await reader.readexactly(FRAME_HEADER_BYTES)
                payload = await reader.readexactly(int.from_bytes(header[:3]))
                self._take(writer, bodies, header, payload)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the sidecar left
        finally:
            writer.close()

    def _take(self, writer: asyncio.StreamWriter, bodies: dict[int, bytes], header: bytes, payload: bytes) -> None:
        kind, flags, stream = header[3], header[4], int.from_bytes(header[5:])
        if kind == SETTINGS and not flags & ACK:
            writer.write(frame(SETTINGS, 0, b"", ACK))
        if kind == PING and not flags & ACK:
            writer.write(frame(PING, 0, payload, ACK))
        if kind == HEADERS:
            self.streams += 1
            bodies[stream] = b""
            if self._at_once:
                self._misbehave(writer, stream)
        if kind == DATA and not self._at_once:
            bodies[stream] += payload
        if kind in {DATA, HEADERS} and flags & END_STREAM and not self._at_once:
            self._seen(first_message(bodies.pop(stream)))
            self._misbehave(writer, stream)


def first_message(body: bytes) -> bytes:
    """The first of the gRPC messages in a request's body."""
    return body[PREFIX_BYTES : PREFIX_BYTES + int.from_bytes(body[1:PREFIX_BYTES])]
