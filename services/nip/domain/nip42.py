"""NIP-42: challenges that carry their own proof, and the signed events that answer them.

A challenge is base64url of `version (1 byte) | end, seconds since 1970 (5) | random (16) | seal (16)`. The seal is a keyed hash of the rest
and of the relay's URL: nobody else can make one, it is good for one relay, and nothing has to be stored until it is answered.

Specification: https://github.com/nostr-protocol/nips/blob/master/42.md
"""

from __future__ import annotations

import base64
import binascii
import enum
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.nostr.event import Event, Verdict, values_of, verify_event
from services.nostr.relay_url import RelayUrlError, normal_relay_url

KIND_CLIENT_AUTHENTICATION: Final = 22_242
WINDOW_SECONDS: Final = 600
"""NIP-42: "close (e.g. within ~10 minutes) of the current time", both into the past and into the future."""

TTL_SECONDS_DEFAULT: Final = 300
CHALLENGE_CHARACTERS_MAX: Final = 128
_VERSION: Final = b"\x01"
_END_BYTES: Final = 5
_RANDOM_BYTES: Final = 16
_SEAL_BYTES: Final = 16
_CHALLENGE_BYTES: Final = 1 + _END_BYTES + _RANDOM_BYTES + _SEAL_BYTES

Seal = Callable[[bytes, bytes], bytes]
"""A keyed hash of two fields, the same on every replica: at least 16 bytes."""


class Refusal(enum.Enum):
    """Why an answer is not accepted; the value is the text for the caller."""

    WRONG_KIND = "the event is not of kind 22242"
    OUTSIDE_WINDOW = "the event was not created within 10 minutes of now"
    WRONG_RELAY = "the event needs exactly one tag `relay`, with the URL of the relay"
    WRONG_CHALLENGE = "the event needs exactly one tag `challenge`, with a challenge that was made for this relay"
    CHALLENGE_EXPIRED = "the time to answer the challenge is over"
    NOT_AN_EVENT = "the event is malformed"
    WRONG_ID = "the event's id does not match its content"
    WRONG_SIGNATURE = "the event's signature is not by its public key"


class ChallengeError(Exception):
    """The answer proves nothing; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        """Take the text from `refusal`."""
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A challenge for one relay; `nonce` (32 hex digits) is what it is remembered by once it is used."""

    text: str
    relay_url: str
    nonce: str
    expire_time_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A genuine answer: who gave it, and to which challenge."""

    pubkey: str
    event_id: str
    challenge: Challenge


def make_challenge(relay_url: str, *, expire_time_seconds: int, seal: Seal) -> Challenge:
    """Return a fresh challenge for a relay, whose URL is in its normal form."""
    nonce = secrets.token_bytes(_RANDOM_BYTES)
    body = _VERSION + expire_time_seconds.to_bytes(_END_BYTES, "big") + nonce
    text = base64.urlsafe_b64encode(body + seal(body, relay_url.encode())[:_SEAL_BYTES]).rstrip(b"=").decode()
    return Challenge(text=text, relay_url=relay_url, nonce=nonce.hex(), expire_time_seconds=expire_time_seconds)


def read_challenge(text: str, relay_url: str, *, seal: Seal) -> Challenge:
    """Return a challenge that was made here for this relay. Raises ChallengeError."""
    decoded = _decoded(text)
    body, sealed = decoded[:-_SEAL_BYTES], decoded[-_SEAL_BYTES:]
    if not hmac.compare_digest(seal(body, relay_url.encode())[:_SEAL_BYTES], sealed):
        raise ChallengeError(Refusal.WRONG_CHALLENGE)
    end, nonce = body[1 : 1 + _END_BYTES], body[1 + _END_BYTES :]
    return Challenge(text=text, relay_url=relay_url, nonce=nonce.hex(), expire_time_seconds=int.from_bytes(end, "big"))


def verify_answer(event: Event, relay_url: str, *, now_seconds: int, seal: Seal) -> Answer:
    """Check an answer; the signature, once, only after everything that costs less. `relay_url` is in its normal form.

    Whether the challenge was used before is not known here. Raises ChallengeError.
    """
    # Relays must ensure "that the `kind` is `22242`",
    if event.kind != KIND_CLIENT_AUTHENTICATION:
        raise ChallengeError(Refusal.WRONG_KIND)
    # The second check: "that the event `created_at` is close (e.g. within ~10 minutes) of the current time"
    if abs(now_seconds - event.created_at) > WINDOW_SECONDS:
        raise ChallengeError(Refusal.OUTSIDE_WINDOW)
    # "that the "relay" tag matches the relay URL: URL normalization techniques can be applied"
    if [_normal(url) for url in values_of(event, "relay")] != [relay_url]:
        raise ChallengeError(Refusal.WRONG_RELAY)
    # "that the "challenge" tag matches the challenge sent before"
    texts = values_of(event, "challenge")
    if len(texts) != 1:
        raise ChallengeError(Refusal.WRONG_CHALLENGE)
    challenge = read_challenge(texts[0], relay_url, seal=seal)
    if now_seconds >= challenge.expire_time_seconds:
        raise ChallengeError(Refusal.CHALLENGE_EXPIRED)
    _check_genuine(event)
    return Answer(pubkey=event.pubkey, event_id=event.id, challenge=challenge)


def _decoded(text: str) -> bytes:
    """The bytes of a challenge; one spelled another way is the same one, and used up with it. Raises ChallengeError."""
    if len(text) > CHALLENGE_CHARACTERS_MAX or not text.isascii():
        raise ChallengeError(Refusal.WRONG_CHALLENGE)
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ChallengeError(Refusal.WRONG_CHALLENGE) from error
    if len(decoded) != _CHALLENGE_BYTES or not decoded.startswith(_VERSION):
        raise ChallengeError(Refusal.WRONG_CHALLENGE)
    return decoded


def _normal(url: str) -> str | None:
    """The URL in its normal form; None for what is no relay's."""
    try:
        return normal_relay_url(url)
    except RelayUrlError:
        return None


def _check_genuine(event: Event) -> None:
    """Check the id and the signature; one signature verification. Raises ChallengeError."""
    refusals = {
        Verdict.MALFORMED: Refusal.NOT_AN_EVENT,
        Verdict.BAD_ID: Refusal.WRONG_ID,
        Verdict.BAD_SIGNATURE: Refusal.WRONG_SIGNATURE,
    }
    verdict = verify_event(event)
    if verdict is not Verdict.VALID:
        raise ChallengeError(refusals[verdict])
