"""What each application notes about a call, and how a call tells it to misbehave.

`x-call-id: ANYTHING`: each execution is noted in `executions.jsonl` of the service's data folder, one JSON object a line,
appended in one write, so that replicas share the file and a killed process loses nothing. `event` is `seen` when the
handler begins and `done` when its work took effect.

`x-fault: at=customs/Declare; when=before; code=UNAVAILABLE; ...`, several joined by `|`. Both headers travel along the
chain of calls, so a fault can be set three hops deep. The keys of a fault:

- `at`: SERVICE or SERVICE/METHOD of the manifest that misbehaves; `replica`: only that one
- `when`: `before` (the default: nothing was sent, nothing was done), `headers` (initial metadata was sent, nothing was
  done), `after` (a unary call or client stream did its work and its answer is lost; other streams sent one message)
- `delay`: milliseconds to wait first; `code` and `details`: then fail so; `exit=1`: die like a `kill -9` instead
- `pushback`: with a code, `grpc-retry-pushback-ms` in the trailers
- `times`: only the first so many executions of this call id in this process

`sorting` is in another language and does the same in `apps/sorting/behaviour.js`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

CALL_ID = "x-call-id"
FAULT = "x-fault"
CALLER = "x-forwarded-client-cert"
FORWARDED = (CALL_ID, FAULT)
MOMENTS = ("before", "headers", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to misbehave; see the module."""

    service: str
    method: str | None = None
    replica: int | None = None
    when: str = "before"
    delay_ms: int = 0
    code: grpc.StatusCode | None = None
    details: str = "as told"
    pushback_ms: int | None = None
    times: int | None = None
    is_fatal: bool = False


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read the header. Raises ValueError and KeyError for what is no fault: a test that misspells one must not pass."""
    return tuple(_parse(part) for part in text.split("|") if part.strip())


def _parse(text: str) -> Fault:
    words = dict(part.strip().split("=", 1) for part in text.split(";") if part.strip())
    service, _, method = words.pop("at").partition("/")
    code, when = words.pop("code", None), words.pop("when", "before")
    if when not in MOMENTS:
        raise ValueError(f"when is one of {MOMENTS}: {when}")
    fault = Fault(
        service=service,
        method=method or None,
        replica=_number(words.pop("replica", None)),
        when=when,
        delay_ms=int(words.pop("delay", "0")),
        code=None if code is None else grpc.StatusCode[code],
        details=words.pop("details", "as told"),
        pushback_ms=_number(words.pop("pushback", None)),
        times=_number(words.pop("times", None)),
        is_fatal=words.pop("exit", "0") == "1",
    )
    if words:
        raise ValueError(f"unknown words in a fault: {sorted(words)}")
    return fault


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


_executions: Counter[tuple[str, str]] = Counter()
"""Of this process, by call id and method."""


class Conduct:
    """How one call is noted and spoiled. The application calls `begin`, `done` and `moment`."""

    def __init__(self, path: str, metadata: Mapping[str, str]) -> None:
        self._path, self._metadata = path, metadata
        self._service, self._replica = os.environ["NIPMESH_SERVICE"], int(os.environ["NIPMESH_REPLICA"])
        self._call_id = metadata.get(CALL_ID, "")
        self._faults = parse_faults(metadata.get(FAULT, ""))
        self._count = 0

    def begin(self, remaining_s: float | None) -> None:
        """Note that the handler runs, who calls, and how much time it has."""
        _executions[self._call_id, self._path] += 1
        self._count = _executions[self._call_id, self._path]
        caller = self._metadata.get(CALLER, "").partition("URI=")[2].partition(";")[0]
        self._note("seen", caller=caller, remaining_ms=None if remaining_s is None else int(remaining_s * 1000))

    def done(self) -> None:
        """Note that the work took effect."""
        self._note("done")

    async def moment(self, when: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Misbehave if the caller wants it now. Raises what `context.abort` raises."""
        for fault in self._chosen(when):
            if fault.when == "headers":
                await context.send_initial_metadata(())
            await asyncio.sleep(fault.delay_ms / 1000)
            if fault.is_fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.code is not None:
                pushback = () if fault.pushback_ms is None else (("grpc-retry-pushback-ms", str(fault.pushback_ms)),)
                await context.abort(fault.code, fault.details, pushback)

    def _chosen(self, when: str) -> Iterator[Fault]:
        for fault in self._faults:
            here = fault.service == self._service and fault.method in {None, self._path.rpartition("/")[2]}
            mine = fault.replica in {None, self._replica} and (fault.times is None or self._count <= fault.times)
            if here and mine and fault.when == when:
                yield fault

    def _note(self, event: str, **more: object) -> None:
        if not self._call_id:
            return
        entry = {"event": event, "call_id": self._call_id, "service": self._service, "replica": self._replica}
        line = json.dumps({**entry, "pid": os.getpid(), "method": self._path, **more}) + "\n"
        path = Path(os.environ["NIPMESH_DATA_DIRECTORY"]) / "executions.jsonl"
        file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
