"""The supervisor's control socket: one JSON object per line in, one or more per line out.

Request:  {"command": "status" | "apply" | "scale" | "restart" | "logs" | "events" | "down", ...}
Answer:   zero or more {"event": {...}} while it works, then {"result": ...} or {"error": "..."}.
The socket is 0600 in a 0700 folder: who can open it may do all that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from generator.outputs.local.apply import apply
from generator.outputs.local.errors import OperationError
from generator.outputs.local.logs import tail
from generator.outputs.local.operations import restart, scale
from generator.outputs.local.status import status_document
from generator.outputs.local.supervisor import Supervisor

LINE_BYTES_MAX = 64 * 1024
REPLICAS_MAX = 100
"""As in the manifest."""
LOG_LINES_MAX = 10_000
SOCKET_MODE = 0o600

Request = dict[str, Any]


class RequestError(Exception):
    """The request is not one that this socket knows; the message says why."""


MAPPED = (RequestError, OperationError, ValueError, TimeoutError)
"""What the client is told of."""


class Control:
    """Serves the control socket until it is closed."""

    def __init__(self, supervisor: Supervisor, path: Path, stop: Callable[[], None]) -> None:
        self._supervisor = supervisor
        self._path = path
        self._stop = stop
        self._stopped = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._work: set[asyncio.Future[str]] = set()
        """Operations that run: they go on when their client goes away."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Start to listen. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=LINE_BYTES_MAX)
        self._path.chmod(SOCKET_MODE)

    async def close(self) -> None:
        """Tell those who wait for the end that it has come, and stop listening."""
        self._stopped.set()
        if self._server is not None:
            self._server.close()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=1.0)
            for task in late:
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(message: dict[str, Any]) -> None:
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()

        with contextlib.suppress(ConnectionError):
            try:
                request = parse_request(await reader.readline())
                await send({"result": await self._answer(request, send)})
            except MAPPED as error:
                await send({"error": str(error)})
            finally:
                writer.close()

    async def _answer(self, request: Request, send: Callable[[dict[str, Any]], Awaitable[None]]) -> Any:
        command = request["command"]
        if command == "status":
            return await status_document(self._supervisor)
        if command == "logs":
            return self._logs(request)
        if command == "down":
            return await self.with_events(self._down(), send)
        if command == "events":
            return await self.with_events(self._until_stopped(), send)
        if command == "scale":
            replicas = integer(request, "replicas", least=1, most=REPLICAS_MAX)
            return await self.with_events(scale(self._supervisor, text(request, "service"), replicas), send)
        if command == "restart":
            return await self.with_events(restart(self._supervisor, text(request, "service")), send)
        if command == "apply":
            return await self.with_events(apply(self._supervisor, is_dry=request.get("dry_run") is True), send)
        raise RequestError(f"unknown command {command!r}")

    async def with_events(self, work: Awaitable[str], send: Callable[[dict[str, Any]], Awaitable[None]]) -> str:
        """Do the work and meanwhile pass on what happens. A client that goes away does not stop the work."""
        queue = self._supervisor.journal.subscribe()
        doing = asyncio.ensure_future(work)
        self._work.add(doing)
        doing.add_done_callback(self._work_ended)
        try:
            while not doing.done():
                getting = asyncio.ensure_future(queue.get())
                await asyncio.wait({doing, getting}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    await send({"event": getting.result().to_json()})
                getting.cancel()
            while not queue.empty():  # what happened in one go with the end
                await send({"event": queue.get_nowait().to_json()})
            return await doing
        finally:
            self._supervisor.journal.unsubscribe(queue)

    def _work_ended(self, doing: asyncio.Future[str]) -> None:
        """Look at the outcome, which also asyncio wants: the client may be gone, and the journal has it."""
        self._work.discard(doing)
        if not doing.cancelled() and (error := doing.exception()) is not None and not isinstance(error, MAPPED):
            self._supervisor.journal.tell("operation-failed", f"{type(error).__name__}: {error}")

    async def _down(self) -> str:
        self._stop()
        return await self._until_stopped()

    async def _until_stopped(self) -> str:
        await self._stopped.wait()
        return "the mesh is down"

    def _logs(self, request: Request) -> dict[str, list[str]]:
        service = text(request, "service")
        part = "sidecar" if request.get("sidecar") else "app"
        lines = integer(request, "lines", least=0, most=LOG_LINES_MAX)
        replicas = self._supervisor.board.placement().of_service(service)
        names = [replica.name for replica in replicas] or [service]
        return {name: tail(self._supervisor.setup.paths.log(name, part), lines) for name in names}


def parse_request(line: bytes) -> Request:
    """Parse one line. Raises RequestError."""
    try:
        request = json.loads(line)
    except ValueError as error:
        raise RequestError(f"not a JSON object: {error}") from error
    except RecursionError as error:
        raise RequestError("not a JSON object that a request could be: nested too deeply") from error
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise RequestError('a request is an object with a "command"')
    return request


def text(request: Request, name: str) -> str:
    """Read a string member. Raises RequestError."""
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise RequestError(f'"{name}" must be a text')
    return value


def integer(request: Request, name: str, *, least: int, most: int) -> int:
    """Read an integer member within its limits. Raises RequestError."""
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f'"{name}" must be a number from {least} to {most}')
    return value
