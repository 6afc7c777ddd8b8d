"""The words of NIP-47: kinds of events, methods, notifications, error codes, ciphers."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

INFO_KIND: Final = 13194
REQUEST_KIND: Final = 23194
RESPONSE_KIND: Final = 23195
NOTIFICATION_KIND: Final = 23197
NOTIFICATION_NIP04_KIND: Final = 23196


class Method(StrEnum):
    """What an app may ask for."""

    PAY_INVOICE = "pay_invoice"
    MAKE_INVOICE = "make_invoice"
    LOOKUP_INVOICE = "lookup_invoice"
    LIST_TRANSACTIONS = "list_transactions"
    GET_BALANCE = "get_balance"
    GET_INFO = "get_info"
    MAKE_HOLD_INVOICE = "make_hold_invoice"
    SETTLE_HOLD_INVOICE = "settle_hold_invoice"
    CANCEL_HOLD_INVOICE = "cancel_hold_invoice"


class Topic(StrEnum):
    """What an app may be told of without asking."""

    PAYMENT_RECEIVED = "payment_received"
    PAYMENT_SENT = "payment_sent"
    HOLD_INVOICE_ACCEPTED = "hold_invoice_accepted"


class Code(StrEnum):
    """Why a request failed."""

    RATE_LIMITED = "RATE_LIMITED"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RESTRICTED = "RESTRICTED"
    UNAUTHORIZED = "UNAUTHORIZED"
    INTERNAL = "INTERNAL"
    UNSUPPORTED_ENCRYPTION = "UNSUPPORTED_ENCRYPTION"
    PAYMENT_FAILED = "PAYMENT_FAILED"
    NOT_FOUND = "NOT_FOUND"
    OTHER = "OTHER"


class Cipher(StrEnum):
    """How a content is encrypted, as the `encryption` tag says."""

    NIP44 = "nip44_v2"
    NIP04 = "nip04"


class Failure(Exception):  # noqa: N818  # it is an answer, not a fault
    """The app's request fails with this code; the text is for people, and holds nothing that the app may not know."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
