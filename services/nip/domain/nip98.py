"""NIP-98: a signed event in an `Authorization` value that proves who sends an HTTP request.

Specification: https://github.com/nostr-protocol/nips/blob/master/98.md
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from services.nip.domain.event import Event, Verdict, verify_event

KIND_HTTP_AUTH: Final = 27_235
WINDOW_SECONDS: Final = 60
"""NIP-98: "within a reasonable time window (suggestion 60 seconds)", both into the past and into the future."""

AUTHORIZATION_CHARACTERS_MAX: Final = 8_192
"""What HTTP servers take as one header; a login needs about 700. Also bounds how deep its JSON can nest."""

_SCHEME_AND_VALUE = re.compile(r"[Nn][Oo][Ss][Tt][Rr]\s+([A-Za-z0-9+/_-]+={0,2})\s*", re.ASCII)
"""RFC 7235: the scheme is case-insensitive. Both base64 alphabets occur, with and without padding."""

_EVENT_FIELDS: Final = {
    "id": str,
    "pubkey": str,
    "created_at": int,
    "kind": int,
    "tags": list,
    "content": str,
    "sig": str,
}


class Refusal(enum.Enum):
    """Why an authorization is not accepted; the value is the text for the caller."""

    NOT_AN_AUTHORIZATION = "the authorization is not `Nostr <base64 of a signed event>`"
    NOT_AN_EVENT = "the authorization does not hold a well-formed Nostr event"
    WRONG_KIND = "the event is not of kind 27235"
    OUTSIDE_WINDOW = "the event was not created within 60 seconds of now"
    WRONG_URL = "the event needs exactly one tag `u`, equal to the URL of this method"
    WRONG_METHOD = "the event needs exactly one tag `method`, equal to POST"
    WRONG_PAYLOAD = "the tag `payload` is not the hash of the request's body"
    WRONG_ID = "the event's id does not match its content"
    WRONG_SIGNATURE = "the event's signature is not by its public key"


class AuthorizationError(Exception):
    """The authorization proves nothing; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        """Take the text from `refusal`."""
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The request that an authorization must be for; `body` None where the body is not bound."""

    url: str
    method: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """An accepted authorization: who sent it, and the event that must not be accepted again."""

    pubkey: str
    event_id: str
    created_at: int

    @property
    def acceptable_until_seconds(self) -> int:
        """The last second at which the window still takes this event."""
        return self.created_at + WINDOW_SECONDS


def decode_authorization(authorization: str) -> Event:
    """Return the event in an `Authorization` value, its form checked but not its content. Raises AuthorizationError."""
    if len(authorization) > AUTHORIZATION_CHARACTERS_MAX:
        raise AuthorizationError(Refusal.NOT_AN_AUTHORIZATION)
    matched = _SCHEME_AND_VALUE.fullmatch(authorization)
    if matched is None:
        raise AuthorizationError(Refusal.NOT_AN_AUTHORIZATION)
    encoded = matched[1].rstrip("=").replace("-", "+").replace("_", "/")
    try:
        document = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error as error:
        raise AuthorizationError(Refusal.NOT_AN_AUTHORIZATION) from error
    return event_of_json(document)


def event_of_json(document: bytes) -> Event:
    """Return the event of a JSON object; repeated members, missing ones and wrong types are refused.

    Members that NIP-01 does not name are ignored: no signature covers them. Raises AuthorizationError.
    """
    try:
        members = json.loads(document, object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise AuthorizationError(Refusal.NOT_AN_EVENT) from error
    well_typed = (
        isinstance(members, dict)
        and _EVENT_FIELDS.keys() <= members.keys()
        and all(type(members[name]) is kind for name, kind in _EVENT_FIELDS.items())
        and all(isinstance(tag, list) and all(isinstance(value, str) for value in tag) for tag in members["tags"])
    )
    if not well_typed:
        raise AuthorizationError(Refusal.NOT_AN_EVENT)
    fields = {name: members[name] for name in _EVENT_FIELDS}
    return Event(**{**fields, "tags": tuple(tuple(tag) for tag in members["tags"])})


def verify_authorization(authorization: str, request: Request, *, now_seconds: int) -> Proof:
    """Check an `Authorization` value for one request; the signature, once, only after everything that costs less.

    Whether the event was used before is not known here. Raises AuthorizationError.
    """
    event = decode_authorization(authorization)
    # Check 1: "The `kind` MUST be `27235`."
    if event.kind != KIND_HTTP_AUTH:
        raise AuthorizationError(Refusal.WRONG_KIND)
    # Check 2: "The `created_at` timestamp MUST be within a reasonable time window (suggestion 60 seconds)."
    if abs(now_seconds - event.created_at) > WINDOW_SECONDS:
        raise AuthorizationError(Refusal.OUTSIDE_WINDOW)
    # Check 3: "The `u` tag MUST be exactly the same as the absolute request URL (including query parameters)."
    if _values(event, "u") != [request.url]:
        raise AuthorizationError(Refusal.WRONG_URL)
    # Check 4: "The `method` tag MUST be the same HTTP method used ..." Clients write it in either case.
    if [value.upper() for value in _values(event, "method")] != [request.method.upper()]:
        raise AuthorizationError(Refusal.WRONG_METHOD)
    _check_payload(event, request)
    _check_genuine(event)
    return Proof(pubkey=event.pubkey, event_id=event.id, created_at=event.created_at)


def encode_authorization(event: Event) -> str:
    """Return the `Authorization` value that carries a signed event."""
    members = {name: getattr(event, name) for name in _EVENT_FIELDS}
    document = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    return "Nostr " + base64.b64encode(document).decode()


def _check_payload(event: Event, request: Request) -> None:
    """Check the tag `payload`; "clients SHOULD include" it, so it may be absent. Raises AuthorizationError."""
    hashes = _values(event, "payload")
    if not hashes or request.body is None:
        return
    expected = hashlib.sha256(request.body).hexdigest()
    if len(hashes) != 1 or not hmac.compare_digest(hashes[0].lower().encode(), expected.encode()):
        raise AuthorizationError(Refusal.WRONG_PAYLOAD)


def _check_genuine(event: Event) -> None:
    """Check the id and the signature; one signature verification. Raises AuthorizationError."""
    refusals = {
        Verdict.MALFORMED: Refusal.NOT_AN_EVENT,
        Verdict.BAD_ID: Refusal.WRONG_ID,
        Verdict.BAD_SIGNATURE: Refusal.WRONG_SIGNATURE,
    }
    verdict = verify_event(event)
    if verdict is not Verdict.VALID:
        raise AuthorizationError(refusals[verdict])


def _values(event: Event, name: str) -> list[str]:
    """Return the first value of each tag called `name`; a tag without one counts as empty."""
    return [tag[1] if len(tag) > 1 else "" for tag in event.tags if tag and tag[0] == name]


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's members. Raises ValueError on a repeated name, which readers take differently."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member of a JSON object is repeated")
    return members
