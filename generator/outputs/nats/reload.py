"""Tells a server over its own protocol to read its files again, where no signal reaches it."""

from __future__ import annotations

import json
from typing import Any

from generator.outputs.nats.connection import REQUEST_TIMEOUT_S, AdminConnection, EventsError

PING = "$SYS.REQ.SERVER.PING"


async def reload(connection: AdminConnection) -> None:
    """Let the server at the other end take its files as they are now, its certificate included. Raises EventsError.

    `connection` has the key of a user of the system's account.
    """
    async with connection.client() as client:
        found = _answer((await client.request(PING, b"", timeout=REQUEST_TIMEOUT_S)).data)
        subject = f"$SYS.REQ.SERVER.{found['server']['id']}.RELOAD"
        answer = _answer((await client.request(subject, b"", timeout=REQUEST_TIMEOUT_S)).data)
    if "error" in answer:
        raise EventsError(f"the server of events does not take its files: {answer['error']}")


def _answer(data: bytes) -> dict[str, Any]:
    """The server's answer; ValueError when it is no JSON object with a server in it."""
    answer = json.loads(data)
    if not isinstance(answer, dict) or not isinstance(answer.get("server"), dict):
        raise EventsError("the server of events answers what it should not")
    return answer
