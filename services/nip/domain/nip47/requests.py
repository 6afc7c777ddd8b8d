"""What a request says, from its decrypted JSON; whatever is wrong with it becomes a Failure that the app is told."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from services.nip.domain.nip47.words import Code, Failure, Method

AMOUNT_MSAT_MAX: Final = 2_100_000_000_000_000_000
"""All bitcoin that can exist; what invoices and payments allow."""
INVOICE_CHARACTERS_MAX: Final = 7_089
"""Longest payment request: what a QR code holds."""
DESCRIPTION_BYTES_MAX: Final = 639
"""Longest description: the room that BOLT11 has."""
EXPIRY_S_MAX: Final = 365 * 86_400
"""An invoice can be paid for a year at most."""
METADATA_CHARACTERS_MAX: Final = 4_096
""" "The metadata MUST be no more than 4096 characters, otherwise MUST be dropped"."""
TIME_S_MAX: Final = 4_102_444_799
"""The end of the year 2099, up to which lists can be asked for."""
LIMIT_MAX: Final = 20
"""Transactions of one answer: "clients SHOULD fetch small page sizes (maximum of 20 transactions per page)"."""
OFFSET_MAX: Final = 1_000
"""Transactions that a list may skip; further back an app pages by `until`."""

_HEX_32: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PayInvoice:
    """Pay; `amount_msat` None: what the invoice asks for. `metadata` is JSON, empty for none."""

    invoice: str
    amount_msat: int | None
    metadata: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeInvoice:
    """Make an invoice; `amount_msat` None: the payer chooses. `payment_hash` not empty: a hold invoice."""

    amount_msat: int | None
    description: str
    description_hash: str
    expiry_s: int | None
    metadata: str
    payment_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupInvoice:
    """Say how it stands with an invoice; one of both is empty."""

    payment_hash: str
    invoice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListTransactions:
    """A page of what came in and went out; times in seconds since 1970, both inclusive."""

    from_s: int
    until_s: int | None
    limit: int
    offset: int
    unpaid: bool
    incoming: bool
    outgoing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GetBalance:
    """Say what can be spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetInfo:
    """Say what the connection may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleHoldInvoice:
    """Take what is held for a hold invoice."""

    preimage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelHoldInvoice:
    """Give back what is held for a hold invoice."""

    payment_hash: str


Command = (
    PayInvoice
    | MakeInvoice
    | LookupInvoice
    | ListTransactions
    | GetBalance
    | GetInfo
    | SettleHoldInvoice
    | CancelHoldInvoice
)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Return method and parameters of a request. Raises Failure."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(Code.OTHER, "the request is not JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("method"), str):
        raise Failure(Code.OTHER, "the request is not an object with a method")
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise Failure(Code.OTHER, "params is not an object")
    return document["method"], params or {}


def method_of(name: str) -> Method:
    """Return the method of that name. Raises Failure NOT_IMPLEMENTED."""
    if name not in set(Method):
        raise Failure(Code.NOT_IMPLEMENTED, "the wallet does not know this method")
    return Method(name)


def command_of(method: Method, params: dict[str, Any]) -> Command:
    """Return what is asked for. Raises Failure for parameters that cannot be right."""
    match method:
        case Method.PAY_INVOICE:
            amount_msat = _integer(params, "amount", 1, AMOUNT_MSAT_MAX)
            return PayInvoice(invoice=_invoice(params), amount_msat=amount_msat, metadata=_metadata(params))
        case Method.MAKE_INVOICE:
            return _make(params, "")
        case Method.MAKE_HOLD_INVOICE:
            return _make(params, _hex(params, "payment_hash"))
        case Method.LOOKUP_INVOICE:
            return _lookup(params)
        case Method.LIST_TRANSACTIONS:
            return _list(params)
        case Method.GET_BALANCE:
            return GetBalance()
        case Method.GET_INFO:
            return GetInfo()
        case Method.SETTLE_HOLD_INVOICE:
            return SettleHoldInvoice(preimage=_hex(params, "preimage"))
        case Method.CANCEL_HOLD_INVOICE:
            return CancelHoldInvoice(payment_hash=_hex(params, "payment_hash"))


def _make(params: dict[str, Any], payment_hash: str) -> MakeInvoice:
    """`min_cltv_expiry_delta` is the node's to choose: a wish for it is not refused, as it is a wish for a minimum."""
    amount_msat = _integer(params, "amount", 0, AMOUNT_MSAT_MAX)
    if amount_msat is None:
        raise Failure(Code.OTHER, "amount is missing")
    description = _text(params, "description")
    if len(description.encode()) > DESCRIPTION_BYTES_MAX or "\0" in description:
        raise Failure(Code.OTHER, f"description is longer than {DESCRIPTION_BYTES_MAX} bytes, or has a U+0000")
    description_hash = _hex(params, "description_hash") if params.get("description_hash") else ""
    return MakeInvoice(
        amount_msat=amount_msat or None,
        description="" if description_hash else description,
        description_hash=description_hash,
        expiry_s=_integer(params, "expiry", 0, EXPIRY_S_MAX) or None,
        metadata=_metadata(params),
        payment_hash=payment_hash,
    )


def _lookup(params: dict[str, Any]) -> LookupInvoice:
    if params.get("payment_hash"):
        return LookupInvoice(payment_hash=_hex(params, "payment_hash"), invoice="")
    return LookupInvoice(payment_hash="", invoice=_invoice(params))


def _list(params: dict[str, Any]) -> ListTransactions:
    kind, unpaid = _text(params, "type"), params.get("unpaid")
    if kind not in ("", "incoming", "outgoing"):
        raise Failure(Code.OTHER, "type is neither incoming nor outgoing")
    if unpaid is not None and not isinstance(unpaid, bool):
        raise Failure(Code.OTHER, "unpaid is neither true nor false")
    limit, offset = _integer(params, "limit", 0, AMOUNT_MSAT_MAX), _integer(params, "offset", 0, AMOUNT_MSAT_MAX) or 0
    if offset > OFFSET_MAX:
        raise Failure(Code.OTHER, f"offset is larger than {OFFSET_MAX}: go further back with until")
    return ListTransactions(
        from_s=_integer(params, "from", 0, TIME_S_MAX) or 0,
        until_s=_integer(params, "until", 0, TIME_S_MAX) or None,
        limit=min(limit or LIMIT_MAX, LIMIT_MAX),
        offset=offset,
        unpaid=bool(unpaid),
        incoming=kind != "outgoing",
        outgoing=kind != "incoming",
    )


def _text(params: dict[str, Any], name: str) -> str:
    value = params.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Failure(Code.OTHER, f"{name} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Failure(Code.OTHER, f"{name} is not valid Unicode") from error
    return value


def _invoice(params: dict[str, Any]) -> str:
    """A payment request, with or without the scheme that links put before it."""
    text = _text(params, "invoice")
    text = text[len("lightning:") :] if text[:10].lower() == "lightning:" else text
    if not 1 <= len(text) <= INVOICE_CHARACTERS_MAX:
        raise Failure(Code.OTHER, "invoice is missing or too long")
    return text


def _hex(params: dict[str, Any], name: str) -> str:
    text = _text(params, name).lower()
    if _HEX_32.match(text) is None:
        raise Failure(Code.OTHER, f"{name} is not 64 hex digits")
    return text


def _integer(params: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise Failure(Code.OTHER, f"{name} is not a whole number from {least} to {most}")
    return value


def _metadata(params: dict[str, Any]) -> str:
    """The metadata as JSON without spaces; what is too long, or no object, is dropped."""
    value = params.get("metadata")
    if not isinstance(value, dict) or not value:
        return ""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return ""
    return text if len(text) <= METADATA_CHARACTERS_MAX else ""
