"""What this project asks of a Lightning node, whatever its make: the port behind which lnd and the simulated network stand.

All invoices that this project adds are hold invoices at the node: the invoice service alone decides whether what arrives is taken
(`settle`) or given back (`cancel`), so an invoice is never paid both inside the mesh and outside. Every method may be repeated with
the same effect, and every method raises NodeUnavailableError when the node gave no definite answer. Amounts are millisatoshi, times
milliseconds since 1970, hashes and preimages 64 lower-case hex digits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class NodeUnavailableError(Exception):
    """The node does not answer: what it did with the request is not known. The text is for logs, never for clients."""


class NodeRefusedError(Exception):
    """The node says for certain no, and did nothing; repeating does not help. `reason` is one lower-case word of the node's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# ---- being paid: the invoice service's side


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceOrder:
    """An invoice to add. `amount_msat` None: the payer chooses. At most one of the descriptions is not empty."""

    payment_hash: str
    amount_msat: int | None
    description: str
    description_hash: str
    create_time_ms: int
    expiry_s: int
    private: bool = False
    """Whether routing hints for the node's unannounced channels belong into the invoice (lnd's `private`)."""


class ReceivedState(Enum):
    """What an invoice of ours has come to at the node."""

    OPEN = "open"
    ACCEPTED = "accepted"
    """The whole amount is held at the node and waits for `settle` or `cancel`."""
    SETTLED = "settled"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The state of one invoice at the node. `amount_msat` is what is held or was paid, 0 while OPEN."""

    payment_hash: str
    state: ReceivedState
    amount_msat: int = 0
    settle_deadline_ms: int | None = None
    """Before this time `settle` is needed: the node gives the money back by itself afterwards. None: not known."""


class ReceivingNode(Protocol):
    """The node as the invoice service sees it."""

    @property
    def currency(self) -> str:
        """The BOLT11 currency of its invoices: bc, tb, tbs, bcrt or sb (simnet)."""

    @property
    def simulated(self) -> bool:
        """Whether no bitcoin moves."""

    async def add_invoice(self, order: InvoiceOrder) -> str:
        """Add a hold invoice, or find the one that was added before for this hash; its payment request, lower case.

        Raises NodeRefusedError.
        """

    async def settle(self, preimage: bytes) -> None:
        """Take what is held for the hash of these 32 bytes. Raises NodeRefusedError when nothing is held any more."""

    async def cancel(self, payment_hash: str) -> None:
        """Give back what is held and accept nothing for this hash any more; also when the node never heard of it.

        Raises NodeRefusedError when it was settled.
        """

    async def lookup(self, payment_hash: str) -> Received | None:
        """The state of one invoice; None when the node does not know it."""

    def subscribe(self) -> AsyncIterator[Received]:
        """Every change of an invoice's state from now on, without end. After an interruption `lookup` tells what was missed.

        That an open invoice was canceled may be left out: nothing comes for it any more, and nothing is held that goes back.
        """

    async def close(self) -> None:
        """Let go of everything."""


# ---- paying: the payment service's side


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOrder:
    """What the node is to pay; it spends at most `fee_limit_msat` on routing and tries for at most `timeout_s`."""

    payment_hash: str
    payment_request: str
    amount_msat: int
    fee_limit_msat: int
    timeout_s: int = 60
    amount_is_open: bool = False
    """Whether the payment request leaves the amount to the payer."""


class NodeFailure(Enum):
    """Why a node did not pay, for certain."""

    NO_ROUTE = "no_route"
    TIMEOUT = "timeout"
    INCORRECT_PAYMENT_DETAILS = "incorrect_payment_details"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    """The node's own channels lack the money."""
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class NodePaid:
    """The payment arrived, with this routing fee."""

    preimage: str
    fee_msat: int


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """Nothing was and nothing will be paid by this attempt."""

    failure: NodeFailure


@dataclass(frozen=True, slots=True)
class NodePending:
    """The node is still trying."""


@dataclass(frozen=True, slots=True)
class NodeUnknown:
    """The node has never heard of the payment: it may have crashed, or we did before the call reached it."""


@dataclass(frozen=True, slots=True)
class FeeEstimate:
    """What a payment would cost now; `delay_blocks` is the time lock of the route."""

    fee_msat: int
    delay_blocks: int


class PayingNode(Protocol):
    """The node as the payment service sees it.

    Its promise, as lnd's: a second `pay` for one hash joins the attempt that runs or ran and never pays twice; only after a definite
    failure a further `pay` begins a new attempt.
    """

    @property
    def currency(self) -> str:
        """The BOLT11 currency of the invoices that it can pay."""

    @property
    def simulated(self) -> bool:
        """Whether no bitcoin moves: said in every payment that this node made."""

    async def pay(self, order: PaymentOrder) -> NodePaid | NodeFailed | NodePending:
        """Begin to pay, or join what began before; returns soon, with or without the outcome."""

    async def track(self, payment_hash: str) -> NodePaid | NodeFailed | NodePending | NodeUnknown:
        """What became of the newest attempt to pay this hash."""

    async def estimate(self, payment_request: str, amount_msat: int) -> FeeEstimate:
        """What it would cost. Raises NodeRefusedError when there is no route."""

    async def close(self) -> None:
        """Let go of everything."""
