"""nats-py's client, with a way to send many messages: their headers are encoded here, in one piece.

The client encodes header by header, and an event has a dozen: that was more than half of what publishing cost. What goes over the wire
is the same; a test compares both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from nats.aio.client import Client
from nats.errors import ConnectionClosedError
from nats.protocol.command import hpub_cmd

HEAD: Final = "NATS/1.0\r\n"


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers as they travel. Raises ValueError for one that would not be one: with a line end in it."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header has no line ends")
    return f"{HEAD}{lines}\r\n".encode()


class BatchClient(Client):
    """A client that sends messages with headers and asks for no answer, and that says when its connection is over."""

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Close. Where the last flush fails, nats-py leaves the rest undone: the socket stays, and nobody is told, for ever."""
        try:
            await super()._close(status, do_cbs)
        except OSError:
            self._status = Client.DISCONNECTED
            await super()._close(status, do_cbs)  # there is nothing to flush any more

    async def send(self, messages: Iterable[tuple[str, bytes, bytes]]) -> None:
        """(subject, header block, payload) each, in order. Raises ConnectionClosedError."""
        if not self.is_connected:
            raise ConnectionClosedError
        for subject, headers, payload in messages:
            self.stats["out_msgs"] += 1
            self.stats["out_bytes"] += len(payload)
            await self._send_command(hpub_cmd(subject, "", headers, payload))
        await self._flush_pending()
