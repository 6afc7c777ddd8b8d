"""Structured logs: one JSON object per line on stdout, with trace ids. Secrets never reach it: they have types that do not show.

log = get_logger("payment"); log.info("payment.settled", payment_id=...)
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from opentelemetry.trace import Span

from services.chassis.caller import CallInfo
from services.chassis.settings import ChassisSettings
from services.chassis.telemetry import trace_ids

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_HIDDEN: Final = frozenset(
    {"authorization", "access_token", "token", "secret", "nsec", "preimage", "private_key", "password"}
)
"""Names under which a value is never printed, should somebody pass it by mistake."""
_structured_traceback: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
"""Without the values of variables: they may be anything, a decrypted message too."""


def configure_logs(settings: ChassisSettings) -> None:
    """Set up structlog, and send the standard library's warnings the same way."""
    level = _LEVELS[settings.log_level]
    _call_lines.origin = json.dumps({"service": settings.service, "replica": settings.replica})[1:-1]
    _call_lines.wanted = level <= logging.INFO
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_origin(settings.service, settings.replica),
        _add_trace,
        _hide,
        _structured_traceback if settings.log_level == "debug" else structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _StandardOutput(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *processors],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


class _StandardOutput:
    """Writes a line to stdout. When nobody reads it any more (the runner was killed), the line is lost and the service goes on."""

    def msg(self, message: str) -> None:
        """Write one line, at once."""
        with contextlib.suppress(OSError):
            sys.stdout.write(message + "\n")
            sys.stdout.flush()

    log = debug = info = warn = warning = error = critical = fatal = failure = exception = msg


@dataclass(slots=True)
class _CallLines:
    """What each call's line has in common."""

    origin: str = '"service": "", "replica": 0'
    wanted: bool = False
    second: int = -1
    until_second: str = ""
    """The newest line's time to the second, which the next one mostly shares."""

    def timestamp(self) -> str:
        """Now, as structlog's TimeStamper writes it."""
        second, rest_ns = divmod(time.time_ns(), 1_000_000_000)
        if second != self.second:
            self.second, self.until_second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self.until_second}.{rest_ns // 1_000:06d}Z"


_call_lines: Final = _CallLines()
_output: Final = _StandardOutput()


def log_call(info: CallInfo, code: str, duration_s: float, reason: str, span: Span) -> None:
    """The line of a call that is over, as structlog would write it at level info.

    It is the one line that each call has, so it is put together by hand; none of its values needs escaping: the method is one of the
    server's, peer and subject were matched against their patterns, the rest are numbers and names of ours.
    """
    if not _call_lines.wanted:
        return
    caller, context = info.caller, span.get_span_context()
    who = f', "peer": "{caller.peer}"' if caller.peer else ""
    who += f', "subject": "{caller.subject}"' if caller.subject else ""
    who += f', "reason": "{reason}"' if reason else ""
    ids = f', "trace_id": "{context.trace_id:032x}", "span_id": "{context.span_id:016x}"' if context.is_valid else ""
    _output.msg(
        f'{{"component": "rpc", "method": "{info.method}", "code": "{code}", "duration_ms": {duration_s * 1_000:.3f}{who},'
        f' "event": "call", "level": "info", "timestamp": "{_call_lines.timestamp()}", {_call_lines.origin}{ids}}}'
    )


def get_logger(name: str) -> Any:  # structlog's loggers are made of any
    """A logger whose lines say `component: name`."""
    return structlog.get_logger(component=name)  # lazy: it may be made before configure_logs


def _add_origin(service: str, replica: int) -> structlog.typing.Processor:
    """Which process speaks."""

    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # structlog's
        event["service"], event["replica"] = service, replica
        return event

    return add


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # structlog's
    """The running span, when there is one."""
    event.update(trace_ids())
    return event


def _hide(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # structlog's
    """Replace what must not be printed."""
    for name in _HIDDEN & event.keys():
        event[name] = "[redacted]"
    return event
