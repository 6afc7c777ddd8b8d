"""Envoy's admin interface over its Unix socket: a few HTTP/1.1 requests, nothing more.

Errors: OSError when nobody listens, TimeoutError when nobody answers, AdminError when the answer is not a 200.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 2.0
"""The admin thread answers within milliseconds unless the machine is drowning."""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""`/clusters` of 1,000 services x 10 replicas is about 12 MB."""
HTTP_OK = 200
ACTIVE_CALLS = "downstream_rq_active$"
ADMIN_PREFIX = "http.admin."


class AdminError(Exception):
    """Envoy answered, but not with a 200; or what it said was no HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status and body of one admin request."""

    status: int
    body: bytes


async def request(socket: Path, path: str, *, method: str = "GET", timeout_s: float = TIMEOUT_S) -> Answer:
    """Send one request and read the whole answer, whatever its status."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=ANSWER_BYTES_MAX)
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            writer.write(head.encode())
            await writer.drain()
            return await _read_answer(reader)
        except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise AdminError(f"{path}: {error}") from error
        finally:
            writer.close()


async def get_json(socket: Path, path: str, timeout_s: float = TIMEOUT_S) -> Any:  # JSON has no better type
    """GET a JSON document."""
    answer = await request(socket, path, timeout_s=timeout_s)
    if answer.status != HTTP_OK:
        raise AdminError(f"{path} answered {answer.status}")
    return json.loads(answer.body)


async def post(socket: Path, path: str) -> None:
    """POST a command such as `/healthcheck/fail`."""
    answer = await request(socket, path, method="POST")
    if answer.status != HTTP_OK:
        raise AdminError(f"{path} answered {answer.status}: {answer.body[:200]!r}")


async def is_ready(socket: Path) -> bool:
    """Ask `/ready`: true once Envoy is LIVE. False while it starts, drains, or nobody listens."""
    try:
        return (await request(socket, "/ready")).status == HTTP_OK
    except (OSError, TimeoutError, AdminError):
        return False


async def calls_run(socket: Path) -> bool:
    """Whether any call is under way through it, those to the admin interface aside."""
    active = await gauges(socket, ACTIVE_CALLS)
    return any(count for name, count in active.items() if not name.startswith(ADMIN_PREFIX))


async def gauges(socket: Path, pattern: str) -> dict[str, int]:
    """Counters and gauges whose name matches a regular expression."""
    document = await get_json(socket, f"/stats?format=json&filter={pattern}")
    return {entry["name"]: entry["value"] for entry in document["stats"] if "value" in entry}


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status_line, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    if headers.get("transfer-encoding") == "chunked":
        body = await _read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Answer(status=int(status_line.split(" ")[1]), body=body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError("the answer is too long")
    return bytes(body)
