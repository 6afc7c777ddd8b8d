"""Structured logs: one JSON object per line on stdout, with trace ids. Secrets never reach it: they have types that do not show.

log = get_logger("payment"); log.info("payment.settled", payment_id=...)
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from services.chassis.settings import ChassisSettings
from services.chassis.telemetry import trace_ids

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_HIDDEN: Final = frozenset(
    {"authorization", "access_token", "token", "secret", "nsec", "preimage", "private_key", "password"}
)
"""Names under which a value is never printed, should somebody pass it by mistake."""


def configure_logs(settings: ChassisSettings) -> None:
    """Set up structlog, and send the standard library's warnings the same way."""
    level = _LEVELS[settings.log_level]
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_origin(settings.service, settings.replica),
        _add_trace,
        _hide,
        structlog.processors.dict_tracebacks if settings.log_level == "debug" else structlog.processors.format_exc_info,
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
