"""NIP-57: zap requests, which travel to the recipient's invoice service instead of a relay. What one must look like, and how one is made.

Specification: https://github.com/nostr-protocol/nips/blob/master/57.md
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.nostr.event import KIND_MAX, Event, MalformedEventError, Template, Verdict, verify_event
from services.nostr.event_json import event_of_json
from services.nostr.relay_url import RelayUrlError, normal_relay_url

KIND_ZAP_REQUEST: Final = 9_734
KIND_ZAP_RECEIPT: Final = 9_735

ZAP_REQUEST_BYTES_MAX: Final = 16_384
"""It comes in the URL of a GET request, and its receipt repeats it inside of an event of at most 65,536 bytes."""

AMOUNT_MSAT_MAX: Final = 2_100_000_000_000_000_000
"""All bitcoin that can exist."""

_HEX_32 = re.compile(r"[0-9a-f]{64}")
_AMOUNT = re.compile(r"[1-9][0-9]{0,18}")
_KIND = re.compile(r"0|[1-9][0-9]{0,4}")
_COORDINATE = re.compile(r"(0|[1-9][0-9]{0,4}):[0-9a-f]{64}:[^\x00]*")


class ZapProblem(enum.Enum):
    """What is wrong with a zap request or receipt; the names are those of nipmesh.nip.v1.ZapVerdict, the value is the text for people."""

    NOT_AN_EVENT = "not the JSON of a well-formed event"
    WRONG_KIND = "the event is of another kind"
    WRONG_RECIPIENT = "there must be exactly one tag `p`, with a public key"
    WRONG_TARGET = "there may be one tag `e`, with the id of an event, and one tag `k`, with a kind"
    WRONG_COORDINATE = "there may be one tag `a`, with kind:pubkey:identifier"
    NO_RELAYS = "there must be one tag `relays`, with at least one ws:// or wss:// URL"
    WRONG_AMOUNT = "the tag `amount` is not the amount of the invoice in millisatoshi"
    WRONG_LNURL = "the tag `lnurl` is not the recipient's"
    WRONG_SENDER = "there may be one tag `P`: in a request the key of the receipt to come, in a receipt the sender's"
    WRONG_AUTHOR = "the receipt is not by the recipient's zap server"
    WRONG_INVOICE = "the receipt needs exactly one tag `bolt11`, with an invoice"
    WRONG_DESCRIPTION = "the receipt needs exactly one tag `description`, with the zap request that the invoice is for"
    WRONG_TAGS = "the receipt's tags p, e and a are not those of the zap request"
    WRONG_PREIMAGE = "the tag `preimage` is not that of the invoice's payment hash"
    WRONG_ID = "the event's id does not match its content"
    WRONG_SIGNATURE = "the event's signature is not by its public key"


class ZapError(Exception):
    """A zap request or receipt breaks a rule; `problem` says which."""

    def __init__(self, problem: ZapProblem) -> None:
        """Take the text from `problem`."""
        super().__init__(problem.value)
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ZapRequest:
    """A genuine zap request. `text` is the JSON as it came, whose SHA-256 the invoice commits to.

    `relays` in normal form, each once; `amount_msat` None: it names none; the other texts are empty where it says nothing.
    `receipt_pubkey` is its tag `P`, which must be the author of the receipt.
    """

    text: str
    event: Event
    recipient_pubkey: str
    relays: tuple[str, ...]
    amount_msat: int | None
    lnurl: str
    event_id: str
    coordinate: str
    receipt_pubkey: str

    @property
    def description_hash(self) -> str:
        """SHA-256 of the text in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Zap:
    """A zap request to make; empty texts and None are left out."""

    recipient_pubkey: str
    relays: tuple[str, ...]
    amount_msat: int | None = None
    lnurl: str = ""
    event_id: str = ""
    coordinate: str = ""
    kind: int | None = None
    content: str = ""


def read_zap_request(text: str, *, amount_msat: int | None, lnurl: str = "") -> ZapRequest:
    """Check a zap request as the server of an LNURL must (appendix D), the signature last; return what it says. Raises ZapError.

    `amount_msat` is that of the invoice to come, None when the payer chooses it: then the request must not name one. `lnurl` "": not
    compared.
    """
    request = parse_zap_request(text)
    # "If there is an `amount` tag, it MUST be equal to the `amount` query parameter."
    if request.amount_msat not in (None, amount_msat):
        raise ZapError(ZapProblem.WRONG_AMOUNT)
    if lnurl and request.lnurl and request.lnurl.lower() != lnurl.lower():
        raise ZapError(ZapProblem.WRONG_LNURL)
    check_genuine(request.event)
    return request


def parse_zap_request(text: str) -> ZapRequest:
    """Check all of a zap request but its amount and its signature; return what it says. Raises ZapError."""
    try:
        encoded = text.encode()
        event = event_of_json(text)
    except (MalformedEventError, UnicodeEncodeError) as error:
        raise ZapError(ZapProblem.NOT_AN_EVENT) from error
    if len(encoded) > ZAP_REQUEST_BYTES_MAX:
        raise ZapError(ZapProblem.NOT_AN_EVENT)
    if event.kind != KIND_ZAP_REQUEST:
        raise ZapError(ZapProblem.WRONG_KIND)
    _optional(event, "k", ZapProblem.WRONG_TARGET, _is_kind)
    return ZapRequest(
        text=text,
        event=event,
        # "It MUST have only one `p` tag"
        recipient_pubkey=_required(event, "p", ZapProblem.WRONG_RECIPIENT),
        # "It MUST have 0 or 1 `e` tags"
        event_id=_optional(event, "e", ZapProblem.WRONG_TARGET, _is_hex),
        # "If there is an `a` tag, it MUST be a valid event coordinate"
        coordinate=_optional(event, "a", ZapProblem.WRONG_COORDINATE, _is_coordinate),
        relays=_relays(event),
        amount_msat=_amount(event),
        lnurl=_optional(event, "lnurl", ZapProblem.WRONG_LNURL, bool),
        # "There MUST be 0 or 1 `P` tags. If there is one, it MUST be equal to the `zap receipt`'s `pubkey`."
        receipt_pubkey=_optional(event, "P", ZapProblem.WRONG_SENDER, _is_hex),
    )


def zap_request_template(zap: Zap) -> Template:
    """Return the event to sign, its time that of signing. Raises ZapError for a relay or a coordinate that is none."""
    if zap.coordinate and not _is_coordinate(zap.coordinate):
        raise ZapError(ZapProblem.WRONG_COORDINATE)
    if not all(_is_relay(url) for url in zap.relays):
        raise ZapError(ZapProblem.NO_RELAYS)
    tags: list[tuple[str, ...]] = [("relays", *zap.relays)]
    optional = (
        ("amount", str(zap.amount_msat) if zap.amount_msat else ""),
        ("lnurl", zap.lnurl),
        ("p", zap.recipient_pubkey),
        ("e", zap.event_id),
        ("a", zap.coordinate),
        ("k", "" if zap.kind is None else str(zap.kind)),
    )
    tags += [tag for tag in optional if tag[1]]
    return Template(kind=KIND_ZAP_REQUEST, tags=tuple(tags), content=zap.content, created_at=None)


def check_genuine(event: Event) -> None:
    """Check form, id and signature of an event. Raises ZapError."""
    problems = {
        Verdict.MALFORMED: ZapProblem.NOT_AN_EVENT,
        Verdict.BAD_ID: ZapProblem.WRONG_ID,
        Verdict.BAD_SIGNATURE: ZapProblem.WRONG_SIGNATURE,
    }
    verdict = verify_event(event)
    if verdict is not Verdict.VALID:
        raise ZapError(problems[verdict])


def sole_value(event: Event, name: str) -> str | None:
    """The value of the only tag of this name, "" when there is no such tag, None when there are more or it has no value."""
    tags = [tag for tag in event.tags if tag and tag[0] == name]
    if not tags:
        return ""
    return tags[0][1] if len(tags) == 1 and len(tags[0]) > 1 and tags[0][1] else None


def _required(event: Event, name: str, problem: ZapProblem) -> str:
    value = _optional(event, name, problem, _is_hex)
    if not value:
        raise ZapError(problem)
    return value


def _optional(event: Event, name: str, problem: ZapProblem, is_right: Callable[[str], object]) -> str:
    value = sole_value(event, name)
    if value is None or (value and not is_right(value)):
        raise ZapError(problem)
    return value


def _relays(event: Event) -> tuple[str, ...]:
    """The relays that can be one, each once, in their order. Raises ZapError when none can."""
    tags = [tag for tag in event.tags if tag and tag[0] == "relays"]
    if len(tags) != 1:
        raise ZapError(ZapProblem.NO_RELAYS)
    urls = tuple(dict.fromkeys(normal_relay_url(url) for url in tags[0][1:] if _is_relay(url)))
    if not urls:
        raise ZapError(ZapProblem.NO_RELAYS)
    return urls


def _amount(event: Event) -> int | None:
    value = _optional(event, "amount", ZapProblem.WRONG_AMOUNT, _AMOUNT.fullmatch)
    amount_msat = int(value) if value else None
    if amount_msat is not None and amount_msat > AMOUNT_MSAT_MAX:
        raise ZapError(ZapProblem.WRONG_AMOUNT)
    return amount_msat


def _is_relay(url: str) -> bool:
    try:
        normal_relay_url(url)
    except RelayUrlError:
        return False
    return True


def _is_hex(text: str) -> bool:
    return _HEX_32.fullmatch(text) is not None


def _is_kind(text: str) -> bool:
    return _KIND.fullmatch(text) is not None and int(text) <= KIND_MAX


def _is_coordinate(text: str) -> bool:
    return _COORDINATE.fullmatch(text) is not None and int(text.partition(":")[0]) <= KIND_MAX
