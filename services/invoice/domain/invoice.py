"""What an invoice is, and what a payment's hold on one is. Amounts in millisatoshi, times in milliseconds since 1970."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.chassis.secret import SecretBytes

NODE: Final = "node"
"""Who holds or paid an invoice that was paid from outside; a payment inside has a UUID."""


class State(enum.IntEnum):
    """Life cycle of an invoice; the numbers of nipmesh.invoice.v1.Invoice.State. The last three are final."""

    OPEN = 1
    ACCEPTED = 2
    SETTLED = 3
    CANCELED = 4
    EXPIRED = 5


FINAL = frozenset({State.SETTLED, State.CANCELED, State.EXPIRED})


class Phase(enum.IntEnum):
    """Where an invoice stands, finer than its state: ACCEPTED is LOCKED to VOIDING."""

    OPEN = 1
    LOCKED = 2
    """A payment inside will commit or release it."""
    RESERVED = 3
    """A hold invoice: a payment inside has reserved its money, the owner decides."""
    ARRIVED = 4
    """The Lightning node holds the money; the credit is to be reserved in the ledger."""
    HELD = 5
    """A hold invoice: the node holds the money, the ledger its credit, the owner decides."""
    SETTLING = 6
    """It is decided: the node is to take the money."""
    POSTING = 7
    """The node has taken the money; the credit is to be posted."""
    CANCELING = 8
    """It is decided: the node is to give the money back."""
    VOIDING = 9
    """The node has given the money back; the credit is to be voided."""
    SETTLED = 10
    CANCELED = 11
    EXPIRED = 12

    @property
    def state(self) -> State:
        """What the API calls it."""
        return _STATES.get(self, State.ACCEPTED)


_STATES: Final = {
    Phase.OPEN: State.OPEN,
    Phase.SETTLED: State.SETTLED,
    Phase.CANCELED: State.CANCELED,
    Phase.EXPIRED: State.EXPIRED,
}
DECIDABLE: Final = frozenset({Phase.RESERVED, Phase.HELD})
"""Where the owner decides."""
AT_WORK: Final = frozenset({Phase.ARRIVED, Phase.SETTLING, Phase.POSTING, Phase.CANCELING, Phase.VOIDING})
"""Where this service has to do something at the node or in the ledger."""


class AtNode(enum.IntEnum):
    """Whether somebody outside could still pay the invoice through the Lightning node."""

    LISTED = 1
    """The node may accept a payment for it."""
    CLOSED = 2
    """The node has settled or canceled it, or never knew it."""


class HoldState(enum.IntEnum):
    """What a payment did with the invoice it wanted. RELEASED is also the tombstone of one that never locked anything."""

    HELD = 1
    COMMITTED = 2
    RELEASED = 3
    RESERVED = 4
    """It committed a hold invoice: its money is reserved, and the owner has not decided yet."""
    RETURNED = 5
    """The owner of the hold invoice canceled after the commit, or let the settle deadline pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice as it is stored. `sequence` numbers its newest change.

    `amount_msat` None: the payer chooses. `preimage` None: only the owner knows it. `zap_request` is the text that `description_hash`
    commits to, or empty. `settle_duration_s` is 0 unless it is a hold invoice; `accept_time_ms` and `settle_deadline_ms` are set once its
    owner may decide. `next_run_ms` is when this service has to look at it next, after `attempt` failures; None: there is nothing to do.
    """

    invoice_id: str
    owner_pubkey: str
    account_id: str
    phase: Phase
    payment_request: str
    payment_hash: str
    preimage: SecretBytes | None
    amount_msat: int | None
    amount_held_msat: int = 0
    amount_paid_msat: int = 0
    description: str
    description_hash: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    zap_request: str = ""
    hold: bool = False
    settle_duration_s: int = 0
    create_time_ms: int
    expire_time_ms: int
    accept_time_ms: int | None = None
    settle_deadline_ms: int | None = None
    settle_time_ms: int | None = None
    update_time_ms: int
    locked_by: str | None = None
    at_node: AtNode = AtNode.LISTED
    next_run_ms: int | None = None
    attempt: int = 0
    sequence: int = 0

    @property
    def state(self) -> State:
        """What the API calls the phase."""
        return self.phase.state

    @property
    def outside(self) -> bool:
        """Whether money of somebody outside is held for it, or has paid it."""
        return self.locked_by == NODE

    def check(self) -> None:
        """Assert what holds for every invoice in every phase."""
        state = self.state
        assert (self.locked_by is not None) == (state in (State.ACCEPTED, State.SETTLED)), self.phase
        assert self.outside == (self.phase in AT_WORK | {Phase.HELD}) or state is State.SETTLED, self.phase
        assert (self.settle_time_ms is not None) == (state is State.SETTLED), self.phase
        assert (self.amount_paid_msat > 0) == (state is State.SETTLED), self.phase
        assert (self.amount_held_msat > 0) == (state is State.ACCEPTED), self.phase
        assert self.amount_msat in (None, self.amount_held_msat + self.amount_paid_msat) or not self.locked_by
        assert self.preimage is not None or (self.hold and state is not State.SETTLED), "nobody could settle it"
        assert self.create_time_ms <= self.update_time_ms
        assert not (self.description and self.description_hash)
        assert self.description_hash or not self.zap_request
        self._check_hold()

    def _check_hold(self) -> None:
        """Assert what holds for hold invoices, and only for them."""
        assert self.hold == (self.settle_duration_s > 0)
        assert (self.accept_time_ms is None) == (self.settle_deadline_ms is None)
        assert self.hold or self.accept_time_ms is None
        assert self.phase not in DECIDABLE or self.accept_time_ms is not None
        assert not (self.hold and self.state is State.SETTLED and self.accept_time_ms is None), "nobody decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What one payment did; `invoice_id` None: it was released before it ever locked. `amount_msat` is what it will pay."""

    payment_id: str
    invoice_id: str | None
    state: HoldState
    amount_msat: int
    actor_pubkey: str
    update_time_ms: int

    def check(self) -> None:
        """Assert what holds for every hold."""
        assert self.invoice_id is not None or self.state is HoldState.RELEASED
        assert (self.invoice_id is not None) == (self.amount_msat > 0)
