"""The words of the payment service: accounts, transfers, payments, refusals.

Amounts are millisatoshi (`*_msat`), times are milliseconds since the Unix epoch (`*_ms`), hashes and keys lower-case hex. The
numbers of the enums are those of the API (protos/nipmesh/payment/v1), so that a row and a message never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

AMOUNT_MSAT_MAX = 21_000_000 * 100_000_000 * 1_000
"""All bitcoin there will ever be: a larger amount, or a larger sum of an account, is a mistake. 63 bits hold four of these."""

CUSTOMER_PREFIX = "customer:"
NODE_ACCOUNT = "node:lightning"
ROUTING_FEES_ACCOUNT = "fees:routing"
SERVICE_FEES_ACCOUNT = "fees:service"
SUSPENSE_ACCOUNT = "suspense"
SYSTEM_ACCOUNTS = (NODE_ACCOUNT, ROUTING_FEES_ACCOUNT, SERVICE_FEES_ACCOUNT, SUSPENSE_ACCOUNT)


class AccountState(IntEnum):
    """Life cycle of an account."""

    ACTIVE = 1
    FROZEN = 2
    CLOSED = 3


class TransferKind(IntEnum):
    """What a transfer does, after TigerBeetle's flags."""

    POSTED = 1
    PENDING = 2
    POST_PENDING = 3
    VOID_PENDING = 4


class Purpose(IntEnum):
    """What a transfer is for."""

    PAYMENT = 1
    ROUTING_FEE = 2
    REFUND = 3
    DEPOSIT = 4
    WITHDRAWAL = 5


class Failure(IntEnum):
    """Why a payment failed."""

    NONE = 0
    INSUFFICIENT_BALANCE = 1
    INVOICE_EXPIRED = 2
    INVOICE_NOT_PAYABLE = 3
    SAME_ACCOUNT = 4
    NO_ROUTE = 5
    TIMEOUT = 6
    INCORRECT_PAYMENT_DETAILS = 7
    NODE_ERROR = 8


class PaymentState(IntEnum):
    """Life cycle of a payment; FAILED and REFUNDED are terminal, SUCCEEDED can only become REFUNDED."""

    INITIATED = 1
    RESERVED = 2
    IN_FLIGHT = 3
    SUCCEEDED = 4
    FAILED = 5
    REFUNDED = 6


FINAL_STATES = frozenset({PaymentState.SUCCEEDED, PaymentState.FAILED, PaymentState.REFUNDED})
"""The saga can change nothing about money any more."""


class Reason(StrEnum):
    """Why something was refused: the values of `google.rpc.ErrorInfo.reason` that this service's rules can give."""

    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    BALANCE_LIMIT_EXCEEDED = "BALANCE_LIMIT_EXCEEDED"
    ACCOUNT_NOT_FOUND = "ACCOUNT_NOT_FOUND"
    ACCOUNT_FROZEN = "ACCOUNT_FROZEN"
    TRANSFER_NOT_FOUND = "TRANSFER_NOT_FOUND"
    PAYMENT_NOT_FOUND = "PAYMENT_NOT_FOUND"
    PAYMENT_IN_FLIGHT = "PAYMENT_IN_FLIGHT"
    PAYMENT_ALREADY_PAID = "PAYMENT_ALREADY_PAID"
    PAYMENT_NOT_SUCCEEDED = "PAYMENT_NOT_SUCCEEDED"
    PAYMENT_AMOUNT_REQUIRED = "PAYMENT_AMOUNT_REQUIRED"
    PAYMENT_AMOUNT_NOT_ALLOWED = "PAYMENT_AMOUNT_NOT_ALLOWED"
    PAYMENT_REQUEST_INVALID = "PAYMENT_REQUEST_INVALID"
    REFUND_EXCEEDS_PAYMENT = "REFUND_EXCEEDS_PAYMENT"
    REFUND_NOT_ALLOWED = "REFUND_NOT_ALLOWED"
    INVOICE_EXPIRED = "INVOICE_EXPIRED"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    REQUEST_IN_PROGRESS = "REQUEST_IN_PROGRESS"


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A rule said no. `reason` goes on the wire; `message` is for people and holds nothing that the caller may not know."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One ledger account. Its balance is a liability of ours: credits are the customer's money."""

    account_id: str
    owner: str
    state: AccountState
    debits_pending_msat: int = 0
    debits_posted_msat: int = 0
    credits_pending_msat: int = 0
    credits_posted_msat: int = 0
    must_cover: bool = True
    create_time_ms: int = 0

    @property
    def available_msat(self) -> int:
        """What can be spent now: posted credits less posted and reserved debits."""
        return self.credits_posted_msat - self.debits_posted_msat - self.debits_pending_msat


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """An immutable movement of money; `transfer_id` is its idempotency key."""

    transfer_id: str
    kind: TransferKind
    debit_account_id: str
    credit_account_id: str
    amount_msat: int
    purpose: Purpose
    pending_transfer_id: str = ""
    payment_id: str = ""
    reference: str = ""
    create_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment of an invoice out of one account."""

    payment_id: str
    account_id: str
    scope: str
    request_id: str
    state: PaymentState
    payment_request: str
    payment_hash: str
    amount_msat: int
    fee_limit_msat: int
    fee_msat: int = 0
    internal: bool = False
    simulated: bool = False
    payee_account_id: str = ""
    preimage: str = ""
    failure: Failure = Failure.NONE
    refunded_msat: int = 0
    receipt_json: str = ""
    create_time_ms: int = 0
    update_time_ms: int = 0
    settle_time_ms: int = 0
    sequence: int = 0
