"""Talks to a running supervisor. Standard library only: `status` and `down` must be quick."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONNECT_TIMEOUT_S = 5.0


class NotRunningError(Exception):
    """No supervisor runs for this manifest."""


class ControlError(Exception):
    """The supervisor refused; the message is its own."""


def current_file(manifest: Path) -> Path:
    """Give the file in which a running supervisor says how to reach it."""
    return manifest.resolve().parent / ".nipmesh" / "current.json"


def read_current(manifest: Path) -> dict[str, Any]:
    """Read how to reach the supervisor of a manifest. Raises NotRunningError."""
    try:
        current = json.loads(current_file(manifest).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise NotRunningError("the mesh is not running") from error
    assert isinstance(current, dict)
    return current


def call(
    manifest: Path, request: dict[str, Any], *, on_event: Callable[[dict[str, Any]], None] = lambda _: None
) -> Any:  # JSON has no better type
    """Send a request and give its result; events on the way go to `on_event`.

    Raises NotRunningError when nobody listens, ControlError when the supervisor refuses or dies on the way.
    """
    for message in _messages(manifest, request):
        if "event" in message:
            on_event(message["event"])
        elif "error" in message:
            raise ControlError(message["error"])
        else:
            return message["result"]
    raise ControlError("the supervisor ended before it answered")


def _messages(manifest: Path, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT_S)
    with connection:
        try:
            connection.connect(read_current(manifest)["control"])
        except OSError as error:
            raise NotRunningError("the mesh is not running (its supervisor is gone)") from error
        connection.settimeout(None)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                yield json.loads(line)
