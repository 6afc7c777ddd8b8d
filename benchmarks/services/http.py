"""The least HTTP/1.1 client: JSON over connections that stay open, so that the server is not slowed by who measures it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ANSWER_S_MAX: Final = 60.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(Exception):
    """The server answered with an error; the text is its own."""


@dataclass(slots=True, kw_only=True)
class HttpClient:
    """Calls one server. A connection serves one call at a time and is used again; there are as many as calls at once."""

    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every call."""
    _idle: list[Connection] = field(default_factory=list)

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:  # whatever JSON the server answers with
        """The answer's JSON. Raises HttpError for every status but success, TimeoutError."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            {"Host": f"{self.host}:{self.port}", "Content-Length": str(len(payload))}
            | self.headers
            | dict(headers or {})
        )
        if payload:
            head["Content-Type"] = "application/json"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        async with asyncio.timeout(ANSWER_S_MAX):
            connection = self._open_one() or await asyncio.open_connection(self.host, self.port)
            status, answer = await _exchange(connection, "\r\n".join(lines).encode() + payload)
        self._idle.append(connection)
        if status not in range(200, 300):
            raise HttpError(f"{method} {path}: {status} {answer.decode(errors='replace')[:500]}")
        return json.loads(answer)

    def _open_one(self) -> Connection | None:
        """An idle connection that the server has not closed for being idle."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def close(self) -> None:
        """Close the connections, which are all idle."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
        self._idle.clear()


async def _exchange(connection: Connection, request: bytes) -> tuple[int, bytes]:
    """Send a request; status and body of the answer, which must have a Content-Length."""
    reader, writer = connection
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return int(head[0].split(" ")[1]), await reader.readexactly(int(fields["content-length"]))
