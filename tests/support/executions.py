"""Counting executions: applications that know which call ran how often, callers of every kind of method, and the cells of the table."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from support.envoys import Application

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service CountService {
  rpc Unary(Text) returns (Text);
  rpc UnaryIdempotent(Text) returns (Text) { option idempotency_level = IDEMPOTENT; }
  rpc UnaryFree(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Server(Text) returns (stream Text);
  rpc ServerFree(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Client(stream Text) returns (Text);
  rpc ClientFree(stream Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Both(stream Text) returns (stream Text);
  rpc BothFree(stream Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service FrontService {
  rpc Say(Text) returns (Text);
}
"""
MANIFEST = """
mesh: test
trust_domain: test.mesh
protos: [protos]
services:
  front:
    run: "true"
    serves: [echo.v1.FrontService]
    replicas: 1
    calls:
      echo: [CountService/*]
  echo:
    run: "true"
    serves: [echo.v1.CountService]
    replicas: 2
"""
SERVICE = "/echo.v1.CountService/"
METHODS: dict[str, tuple[str, ...]] = {
    "unary": ("Unary",),
    "unary, IDEMPOTENT": ("UnaryIdempotent",),
    "unary, NO_SIDE_EFFECTS": ("UnaryFree",),
    "server stream": ("Server", "ServerFree"),
    "client stream": ("Client", "ClientFree"),
    "bidirectional stream": ("Both", "BothFree"),
}
"""The columns. A stream is measured with `idempotency_level` unset and with NO_SIDE_EFFECTS, which must make no difference."""
METHOD_NAMES = tuple(name for names in METHODS.values() for name in names)
STREAMS_MAX = 32
"""Streams of requests that callers have open at once: each has a thread."""
MESSAGES = 2
"""Requests of a call that streams them."""
Behaviour = Callable[[grpc.aio.ServicerContext[Any, Any]], Awaitable[None]]
Executions = Counter[bytes]


async def answer(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Do the work and answer."""


@dataclass
class CountingApplication(Application):
    """Counts each call once, by the id in its first message, when that message is there; then behaves."""

    executions: Executions = field(default_factory=Counter)
    """Of all applications together."""
    own: Executions = field(default_factory=Counter)
    behaviour: Behaviour = answer

    def generic_handler(self) -> grpc.GenericRpcHandler:
        return _Counted(self)


class _Counted(grpc.GenericRpcHandler):
    def __init__(self, application: CountingApplication) -> None:
        self._application = application

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if not str(details.method).startswith(SERVICE):
            return None
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        call_id = await anext(requests)
        self._application.executions[call_id] += 1
        self._application.own[call_id] += 1
        await self._application.behaviour(context)
        async for _ in requests:
            pass
        yield call_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One call: its id and the code that its caller saw."""

    call_id: bytes
    code: str


@dataclass(slots=True)
class Callers:
    """Makes calls of every method, each with an id of its own."""

    channel: grpc.aio.Channel
    blocking: grpc.Channel
    threads: ThreadPoolExecutor
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_id(self, name: str) -> bytes:
        """What tells a call from every other."""
        return f"{name}/{next(self.numbers)}".encode()

    async def every_method(self, calls: int, timeout_s: float, *, one_at_a_time: bool) -> dict[str, list[Ended]]:
        """So many calls of each method, one after the other; the methods at the same time, or one after the other, too."""
        if one_at_a_time:
            return {name: await self._one_by_one(name, calls, timeout_s) for name in METHOD_NAMES}
        ended = await asyncio.gather(*(self._one_by_one(name, calls, timeout_s) for name in METHOD_NAMES))
        return dict(zip(METHOD_NAMES, ended, strict=True))

    async def _one_by_one(self, name: str, calls: int, timeout_s: float) -> list[Ended]:
        return [await self.call(name, timeout_s, self.new_id(name)) for _ in range(calls)]

    async def call(self, name: str, timeout_s: float, call_id: bytes) -> Ended:
        """One call to its end."""
        try:
            await self._send(name, call_id, timeout_s)
        except grpc.RpcError as error:
            return Ended(call_id=call_id, code=error.code().name)
        return Ended(call_id=call_id, code="OK")

    async def _send(self, name: str, call_id: bytes, timeout_s: float) -> None:
        path = SERVICE + name
        if name.startswith("Unary"):
            answers = [await self.channel.unary_unary(path)(call_id, timeout=timeout_s)]
        elif name.startswith("Server"):
            answers = [each async for each in self.channel.unary_stream(path)(call_id, timeout=timeout_s)]
        else:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.threads, self._send_stream, name, call_id, timeout_s)
        assert answers == [call_id], f"{call_id!r} was answered {answers!r}"

    def _send_stream(self, name: str, call_id: bytes, timeout_s: float) -> list[bytes]:
        """With threads: grpc.aio says INTERNAL when a call ends while it still sends, whatever its status is."""
        path, messages = SERVICE + name, iter([call_id] * MESSAGES)
        if name.startswith("Client"):
            return [self.blocking.stream_unary(path)(messages, timeout=timeout_s)]
        return list(self.blocking.stream_stream(path)(messages, timeout=timeout_s))


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of the calls of one column under one fault: how often they ran, by the code that the caller saw."""

    outcomes: frozenset[tuple[str, int]]

    @property
    def executions_max(self) -> int:
        return max(executions for _, executions in self.outcomes)

    @property
    def codes(self) -> frozenset[str]:
        return frozenset(code for code, _ in self.outcomes)

    def __str__(self) -> str:
        return ", ".join(self._of(code) for code in sorted(self.codes, key=lambda code: (code != "OK", code)))

    def _of(self, code: str) -> str:
        counts = [executions for each, executions in self.outcomes if each == code]
        low, high = min(counts), max(counts)
        return f"{low}x {code}" if low == high else f"{low}-{high}x {code}"


def cell(ended: Iterable[Ended], executions: Executions) -> Cell:
    """Join what callers saw with what applications counted."""
    return Cell(frozenset((call.code, executions[call.call_id]) for call in ended))
