"""Events as JSON objects, the way relays and people hand them around (NIP-01).

Specification: https://github.com/nostr-protocol/nips/blob/master/01.md
"""

from __future__ import annotations

import json
from typing import Any, Final

from services.nostr.event import EVENT_BYTES_MAX, Event, MalformedEventError

EVENT_JSON_BYTES_MAX: Final = 2 * EVENT_BYTES_MAX
"""Room for names of members, the signature and another way of escaping; also bounds how deep the JSON can nest."""

_MEMBERS: Final = {
    "id": str,
    "pubkey": str,
    "created_at": int,
    "kind": int,
    "tags": list,
    "content": str,
    "sig": str,
}


def event_of_json(document: bytes | str) -> Event:
    """Return the event of a JSON object, neither its id nor its signature checked; repeated or missing members and wrong types are refused.

    Members that NIP-01 does not name are ignored: no signature covers them. Raises MalformedEventError.
    """
    if len(document) > EVENT_JSON_BYTES_MAX:
        raise MalformedEventError(f"the event's JSON is larger than {EVENT_JSON_BYTES_MAX} bytes")
    try:
        members = json.loads(document, object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise MalformedEventError("not a JSON object") from error
    return event_of_members(members)


def event_of_members(members: object) -> Event:
    """Return the event of a JSON value that was read already, see event_of_json. Raises MalformedEventError."""
    if not isinstance(members, dict):
        raise MalformedEventError("an event is a JSON object")
    for name, kind in _MEMBERS.items():
        if type(members.get(name)) is not kind:
            raise MalformedEventError(f"an event needs the member `{name}`, {_TYPES[kind]}")
    if not all(isinstance(tag, list) and all(isinstance(value, str) for value in tag) for tag in members["tags"]):
        raise MalformedEventError("a tag is a list of strings")
    fields = {name: members[name] for name in _MEMBERS}
    return Event(**{**fields, "tags": tuple(tuple(tag) for tag in members["tags"])})


def json_of_event(event: Event) -> str:
    """Return the event as a JSON object without spaces, its members in the order of NIP-01."""
    return json.dumps(members_of_event(event), ensure_ascii=False, separators=(",", ":"))


def members_of_event(event: Event) -> dict[str, Any]:
    """Return the members of an event's JSON object, in the order of NIP-01; for a message that contains it."""
    return {name: getattr(event, name) for name in _MEMBERS}


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's members. Raises ValueError on a repeated name, which readers take differently."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member of a JSON object is repeated")
    return members


_TYPES: Final = {str: "a string", int: "an integer", list: "a list"}
