"""NIP-98: a signed event in an `Authorization` value that proves who sends an HTTP request.

Specification: https://github.com/nostr-protocol/nips/blob/master/98.md
"""

from __future__ import annotations

import base64
import binascii
import enum
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from services.nostr.event import Event, MalformedEventError, Template, Verdict, values_of, verify_event
from services.nostr.event_json import event_of_json, json_of_event

KIND_HTTP_AUTH: Final = 27_235
WINDOW_SECONDS: Final = 60
"""NIP-98: "within a reasonable time window (suggestion 60 seconds)", both into the past and into the future."""

AUTHORIZATION_CHARACTERS_MAX: Final = 8_192
"""What HTTP servers take as one header; a login needs about 700. Also bounds how deep its JSON can nest."""

NONCE_BYTES: Final = 8
"""Servers take an event once: so many random bits tell apart what is asked for within one second."""

_SCHEME_AND_VALUE = re.compile(r"[Nn][Oo][Ss][Tt][Rr]\s+([A-Za-z0-9+/_-]+={0,2})\s*", re.ASCII)
"""RFC 7235: the scheme is case-insensitive. Both base64 alphabets occur, with and without padding."""


class Refusal(enum.Enum):
    """Why an authorization is not accepted; the value is the text for the caller."""

    NOT_AN_AUTHORIZATION = "the authorization is not `Nostr <base64 of a signed event>`"
    NOT_AN_EVENT = "the authorization does not hold a well-formed Nostr event"
    WRONG_KIND = "the event is not of kind 27235"
    OUTSIDE_WINDOW = "the event was not created within 60 seconds of now"
    WRONG_URL = "the event needs exactly one tag `u`, equal to the URL of the request"
    WRONG_METHOD = "the event needs exactly one tag `method`, equal to the method of the request"
    WRONG_PAYLOAD = "the event needs exactly one tag `payload`, the hash of the request's body"
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
    """The request that an authorization is for; `payload_sha256` in lower-case hex, empty where the body is not bound."""

    url: str
    method: str
    payload_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """An accepted authorization: who sent it, and the event that must not be accepted again.

    `payload_sha256` is what it says of the body, in lower case; empty when it says nothing.
    """

    pubkey: str
    event_id: str
    created_at: int
    payload_sha256: str

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
    try:
        return event_of_json(document)
    except MalformedEventError as error:
        raise AuthorizationError(Refusal.NOT_AN_EVENT) from error


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
    if values_of(event, "u") != [request.url]:
        raise AuthorizationError(Refusal.WRONG_URL)
    # Check 4: "The `method` tag MUST be the same HTTP method used ..." Clients write it in either case.
    if [value.upper() for value in values_of(event, "method")] != [request.method.upper()]:
        raise AuthorizationError(Refusal.WRONG_METHOD)
    _check_payload(event, request)
    _check_genuine(event)
    hashes = values_of(event, "payload")
    payload_sha256 = hashes[0].lower() if len(hashes) == 1 else ""
    return Proof(pubkey=event.pubkey, event_id=event.id, created_at=event.created_at, payload_sha256=payload_sha256)


def authorization_template(request: Request, *, created_at: int) -> Template:
    """Return the event that authorizes a request from `created_at` seconds on; two of them are never the same event."""
    tags = [("u", request.url), ("method", request.method.upper())]
    if request.payload_sha256:
        tags.append(("payload", request.payload_sha256))
    tags.append(("nonce", secrets.token_hex(NONCE_BYTES)))
    return Template(kind=KIND_HTTP_AUTH, tags=tuple(tags), content="", created_at=created_at)


def encode_authorization(event: Event) -> str:
    """Return the `Authorization` value that carries a signed event."""
    return "Nostr " + base64.b64encode(json_of_event(event).encode()).decode()


def _check_payload(event: Event, request: Request) -> None:
    """Check the tag `payload` for whoever wants the body bound: "servers MAY check this". Raises AuthorizationError."""
    if not request.payload_sha256:
        return
    hashes = values_of(event, "payload")
    if len(hashes) != 1 or not hmac.compare_digest(hashes[0].lower().encode(), request.payload_sha256.encode()):
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
