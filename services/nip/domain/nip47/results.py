"""How answers and notifications are written: JSON, within what a relay takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.nip.domain.nip47.words import Code, Failure, Topic

RESULT_BYTES_MAX: Final = 38_000
"""Longest JSON of an answer: padded and in base64, with either cipher, it stays within the 65,536 bytes of an event."""


def result_text(method: str, result: Mapping[str, Any]) -> str:
    """Return the JSON of a success."""
    return _json({"result_type": method, "error": None, "result": result})


def failure_text(method: str, failure: Failure) -> str:
    """Return the JSON of a failure. "The `error` field MUST contain a `message` ... and a `code`"."""
    error = {"code": failure.code, "message": failure.message}
    return _json({"result_type": method, "error": error, "result": None})


def notification_text(topic: Topic, notification: Mapping[str, Any]) -> str:
    """Return the JSON of a notification."""
    return _json({"notification_type": topic, "notification": notification})


def list_text(method: str, transactions: Sequence[Mapping[str, Any]]) -> str:
    """Return the JSON of as many transactions, from the newest, as fit into an event: the app asks for the others with `offset`."""
    shown = list(transactions)
    while len((text := result_text(method, {"transactions": shown})).encode()) > RESULT_BYTES_MAX:
        shown = shown[: len(shown) * 3 // 4]
    return text


def code_of(text: str) -> str:
    """Return the code of an answer; empty for a success."""
    error = json.loads(text)["error"]
    return str(Code(error["code"])) if error else ""


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
