"""`python -m nipmesh_home.ready [SOCKET]`: whether what listens on a Unix socket says 200 at /ready; else exit code 1.

For the health checks of containers: it needs nothing but Python's own library and is done in a few hundredths of a second. Without
an argument it asks this container's service where it serves its metrics. `connect:SOCKET` only looks whether somebody listens.
"""

from __future__ import annotations

import os
import socket
import sys

METRICS_LISTEN = "NIPMESH_METRICS_LISTEN"
TIMEOUT_S = 2.0
REQUEST = b"GET /ready HTTP/1.1\r\nHost: ready\r\nConnection: close\r\n\r\n"
READY = b"HTTP/1.1 200"
CONNECT = "connect:"


def main() -> None:
    """Ask, and end with the answer."""
    target = sys.argv[1] if len(sys.argv) > 1 else os.environ.get(METRICS_LISTEN, "")
    try:
        complaint = _connects(target.removeprefix(CONNECT)) if target.startswith(CONNECT) else asked(target)
    except OSError as error:
        complaint = f"{target}: {error}"
    sys.exit(complaint or 0)


def asked(target: str) -> str:
    """Ask for /ready; empty when the answer is 200, else what came instead. Raises OSError."""
    with _connected(target) as connection:
        connection.sendall(REQUEST)
        head = b""
        while len(head) < len(READY) and (part := connection.recv(len(READY) - len(head))):
            head += part
    return "" if head == READY else f"{target} answers {head!r}"


def _connects(target: str) -> str:
    _connected(target).close()
    return ""


def _connected(target: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(TIMEOUT_S)
        connection.connect(target.removeprefix("unix:"))
    except BaseException:
        connection.close()
        raise
    return connection


if __name__ == "__main__":
    main()
