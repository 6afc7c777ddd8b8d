"""What an invoice is, and what a payment's hold on one is. Amounts in millisatoshi, times in milliseconds since 1970."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.chassis.secret import SecretBytes


class State(enum.IntEnum):
    """Life cycle of an invoice; the numbers of nipmesh.invoice.v1.Invoice.State. The last three are final."""

    OPEN = 1
    ACCEPTED = 2
    SETTLED = 3
    CANCELED = 4
    EXPIRED = 5


FINAL = frozenset({State.SETTLED, State.CANCELED, State.EXPIRED})


class HoldState(enum.IntEnum):
    """What a payment did with the invoice it wanted. RELEASED is also the tombstone of one that never locked anything."""

    HELD = 1
    COMMITTED = 2
    RELEASED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice as it is stored. `amount_msat` None: the payer chooses. `sequence` numbers its newest change."""

    invoice_id: str
    owner_pubkey: str
    account_id: str
    state: State
    payment_request: str
    payment_hash: str
    preimage: SecretBytes
    amount_msat: int | None
    amount_paid_msat: int = 0
    description: str
    description_hash: str
    create_time_ms: int
    expire_time_ms: int
    settle_time_ms: int | None = None
    update_time_ms: int
    locked_by: str | None = None
    sequence: int = 0

    def check(self) -> None:
        """Assert what holds for every invoice in every state."""
        assert (self.locked_by is not None) == (self.state in (State.ACCEPTED, State.SETTLED)), self.state
        assert (self.settle_time_ms is not None) == (self.state is State.SETTLED), self.state
        assert (self.amount_paid_msat > 0) == (self.state is State.SETTLED), self.state
        assert self.state is not State.SETTLED or self.amount_msat in (None, self.amount_paid_msat)
        assert self.create_time_ms <= self.update_time_ms
        assert not (self.description and self.description_hash)


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
