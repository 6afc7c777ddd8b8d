"""The words of the payment service: accounts, transfers, payments, refusals.

Amounts are millisatoshi (`*_msat`), times are milliseconds since the Unix epoch (`*_ms`), hashes and keys lower-case hex. The
numbers of the enums are those of the API (protos/nipmesh/payment/v1), so that a row and a message never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from operator import attrgetter
from typing import Final

AMOUNT_MSAT_MAX = 21_000_000 * 100_000_000 * 1_000
"""All bitcoin there will ever be: a larger amount, or a larger sum of an account, is a mistake. 63 bits hold four of these."""

CUSTOMER_PREFIX = "customer:"
NODE_ACCOUNT = "node:lightning"
ROUTING_FEES_ACCOUNT = "fees:routing"
SERVICE_FEES_ACCOUNT = "fees:service"
SUSPENSE_ACCOUNT = "suspense"
WALLET_AGENT = "wallet"
WALLET_SCOPE = f"{WALLET_AGENT}:"
"""Before the public key in the scope of what an app asked for on behalf of a user (NIP-47)."""
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
    TRANSFER = 6
    ADJUSTMENT = 7
    RECEIVED = 8


SPENDING = frozenset({Purpose.PAYMENT, Purpose.ROUTING_FEE, Purpose.TRANSFER})
"""What counts against the quota of the account that gives: what its owner spends, not what an operator moves or a refund takes back."""


class AccountEventKind(IntEnum):
    """What happened to an account, apart from transfers."""

    OPENED = 1
    FROZEN = 2
    UNFROZEN = 3
    CLOSED = 4
    QUOTA_SET = 5


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
    INVOICE_CANCELED = 9


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
    ACCOUNT_CLOSED = "ACCOUNT_CLOSED"
    ACCOUNT_NOT_EMPTY = "ACCOUNT_NOT_EMPTY"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TRANSFER_NOT_FOUND = "TRANSFER_NOT_FOUND"
    TRANSFER_NOT_PENDING = "TRANSFER_NOT_PENDING"
    TRANSFER_RESOLVED = "TRANSFER_RESOLVED"
    TRANSFER_EXCEEDS_PENDING = "TRANSFER_EXCEEDS_PENDING"
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
    CREDIT_NOT_HELD = "CREDIT_NOT_HELD"
    CREDIT_POSTED = "CREDIT_POSTED"
    CREDIT_VOIDED = "CREDIT_VOIDED"
    PREIMAGE_MISMATCH = "PREIMAGE_MISMATCH"
    PAYMENT_NOT_STUCK = "PAYMENT_NOT_STUCK"


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A rule said no. `reason` goes on the wire; `message` is for people and holds nothing that the caller may not know.

    The same may be allowed after `retry_delay_ms`, or at `retry_at_ms`; both None: time alone does not help.
    """

    def __init__(
        self, reason: Reason, message: str, *, retry_delay_ms: int | None = None, retry_at_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_delay_ms = retry_delay_ms
        self.retry_at_ms = retry_at_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What an owner may spend out of one account. None: no limit but the balance."""

    payment_msat_max: int | None = None
    day_msat_max: int | None = None
    pending_msat_max: int | None = None


UNLIMITED = Quota()


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
    quota: Quota = UNLIMITED
    spent_day: int = 0
    """Days since 1970, UTC: the newest on which something was spent."""
    spent_msat: int = 0
    """What was reserved or moved on that day and not given back, see SPENDING."""

    @property
    def available_msat(self) -> int:
        """What can be spent now: posted credits less posted and reserved debits."""
        return self.credits_posted_msat - self.debits_posted_msat - self.debits_pending_msat


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """An immutable movement of money; `transfer_id` is its idempotency key.

    `number` is its place in the ledger and `sha256` chains it to what stands before (see `chain`); 0 and empty before it is recorded.
    """

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
    number: int = 0
    sha256: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountEvent:
    """What happened to an account, who did it and why; in the same chain as the transfers. `details` is JSON, see `chain`."""

    account_id: str
    kind: AccountEventKind
    actor: str
    reason: str = ""
    details: str = ""
    create_time_ms: int = 0
    number: int = 0
    sha256: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment of an invoice out of one account.

    `scope` is who asked for it: the public key of the account's owner, or of the owner behind `WALLET_SCOPE` when an app asked on their
    behalf. Ids of requests are told apart by it.
    """

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

    @property
    def actor(self) -> str:
        """The public key of the user whose money it is."""
        return self.scope.removeprefix(WALLET_SCOPE)


_NAMES: Final = tuple(field.name for field in fields(Payment))
_VALUES: Final = attrgetter(*_NAMES)
assert _NAMES[-1] == "sequence"
*_SETTERS, _SET_SEQUENCE = (vars(Payment)[name].__set__ for name in _NAMES)  # the slots' own: frozen is the way to them


def numbered(payment: Payment, sequence: int) -> Payment:
    """`replace(payment, sequence=sequence)`, in a third of its time: every payment is, while all others wait for its transaction."""
    copy = object.__new__(Payment)
    for put, value in zip(_SETTERS, _VALUES(payment), strict=False):  # the last value is the old number
        put(copy, value)
    _SET_SEQUENCE(copy, sequence)
    return copy
