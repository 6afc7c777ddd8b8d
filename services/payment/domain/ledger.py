"""Double entry after TigerBeetle: what a transfer does to the counters of its two accounts, and when it is refused.

A PENDING transfer reserves, POST_PENDING moves up to what was reserved and releases the rest, VOID_PENDING releases all. Every
transfer adds the same amount to debits and to credits, so their sums are equal at all times. The store applies `net_deltas` with
one UPDATE per account whose WHERE clause holds the rules of `refusal`.

Source: https://docs.tigerbeetle.com/coding/two-phase-transfers/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.payment.domain.model import (
    AMOUNT_MSAT_MAX,
    Account,
    AccountState,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)

SUM_MSAT_MAX = AMOUNT_MSAT_MAX
"""No side of any account may sum up to more, what is reserved included; sums of both sides then fit into 63 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is added to the four counters of one account."""

    account_id: str
    debits_pending_msat: int = 0
    debits_posted_msat: int = 0
    credits_pending_msat: int = 0
    credits_posted_msat: int = 0

    def __add__(self, other: Delta) -> Delta:
        """Both at once, for the same account."""
        assert self.account_id == other.account_id
        return Delta(
            account_id=self.account_id,
            debits_pending_msat=self.debits_pending_msat + other.debits_pending_msat,
            debits_posted_msat=self.debits_posted_msat + other.debits_posted_msat,
            credits_pending_msat=self.credits_pending_msat + other.credits_pending_msat,
            credits_posted_msat=self.credits_posted_msat + other.credits_posted_msat,
        )

    @property
    def credits_msat(self) -> int:
        """The change of all credits."""
        return self.credits_posted_msat + self.credits_pending_msat

    @property
    def debits_msat(self) -> int:
        """The change of all debits."""
        return self.debits_posted_msat + self.debits_pending_msat

    @property
    def available_msat(self) -> int:
        """The change of what can be spent."""
        return self.credits_posted_msat - self.debits_posted_msat - self.debits_pending_msat


def check_shape(transfer: Transfer, pending: Transfer | None) -> None:
    """Assert what must be true of every transfer that our own code builds; `pending` is the one that it resolves."""
    assert transfer.debit_account_id != transfer.credit_account_id, "an account cannot pay itself"
    assert 0 < transfer.amount_msat <= AMOUNT_MSAT_MAX
    resolves = transfer.kind in (TransferKind.POST_PENDING, TransferKind.VOID_PENDING)
    assert resolves == bool(transfer.pending_transfer_id) == (pending is not None)
    if pending is not None:
        assert pending.kind is TransferKind.PENDING
        assert pending.transfer_id == transfer.pending_transfer_id
        assert pending.debit_account_id == transfer.debit_account_id
        assert pending.credit_account_id == transfer.credit_account_id
        assert transfer.amount_msat <= pending.amount_msat, "a post moves at most what was reserved"
        partly = transfer.amount_msat < pending.amount_msat
        assert not (partly and transfer.kind is TransferKind.VOID_PENDING), "a void frees all of it"


def deltas(transfer: Transfer, pending: Transfer | None = None) -> tuple[Delta, Delta]:
    """The change of the debited and of the credited account."""
    check_shape(transfer, pending)
    debit, credit, amount = transfer.debit_account_id, transfer.credit_account_id, transfer.amount_msat
    reserved = pending.amount_msat if pending is not None else 0
    if transfer.kind is TransferKind.PENDING:
        return (
            Delta(account_id=debit, debits_pending_msat=amount),
            Delta(account_id=credit, credits_pending_msat=amount),
        )
    moved = 0 if transfer.kind is TransferKind.VOID_PENDING else amount
    return (
        Delta(account_id=debit, debits_pending_msat=-reserved, debits_posted_msat=moved),
        Delta(account_id=credit, credits_pending_msat=-reserved, credits_posted_msat=moved),
    )


def net_deltas(transfers: Iterable[Transfer], pending: Mapping[str, Transfer]) -> tuple[Delta, ...]:
    """One delta per account for transfers that are applied together, ordered by account id. `pending` is keyed by transfer id."""
    net: dict[str, Delta] = {}
    for transfer in transfers:
        resolved = pending[transfer.pending_transfer_id] if transfer.pending_transfer_id else None
        for delta in deltas(transfer, resolved):
            net[delta.account_id] = net[delta.account_id] + delta if delta.account_id in net else delta
    result = tuple(net[account_id] for account_id in sorted(net))
    debits = sum(delta.debits_posted_msat for delta in result)
    assert debits == sum(delta.credits_posted_msat for delta in result), "posted debits equal posted credits"
    debits = sum(delta.debits_pending_msat for delta in result)
    assert debits == sum(delta.credits_pending_msat for delta in result), "pending debits equal pending credits"
    return result


def refusal(account: Account | None, delta: Delta) -> Refused | None:
    """Why `delta` may not be applied to `account`, or None when it may.

    A frozen account refuses whatever lowers what is available; reservations made before are still posted or released.
    """
    if account is None:
        return Refused(Reason.ACCOUNT_NOT_FOUND, "there is no such account")
    if delta.available_msat < 0 and account.state is not AccountState.ACTIVE:
        return Refused(Reason.ACCOUNT_FROZEN, "the account is frozen: nothing new leaves it")
    if account.must_cover and delta.available_msat < 0 and account.available_msat + delta.available_msat < 0:
        return Refused(Reason.INSUFFICIENT_BALANCE, "the account's available balance does not cover this amount")
    credited_msat = account.credits_posted_msat + account.credits_pending_msat + delta.credits_msat
    debited_msat = account.debits_posted_msat + account.debits_pending_msat + delta.debits_msat
    if max(credited_msat, debited_msat) > SUM_MSAT_MAX:
        return Refused(Reason.BALANCE_LIMIT_EXCEEDED, "a sum of the account would exceed all bitcoin that can exist")
    return None


def apply(account: Account, delta: Delta) -> Account:
    """The account after `delta`; the caller asked `refusal` first. This is the reference that the store is tested against."""
    changed = Account(
        account_id=account.account_id,
        owner=account.owner,
        state=account.state,
        debits_pending_msat=account.debits_pending_msat + delta.debits_pending_msat,
        debits_posted_msat=account.debits_posted_msat + delta.debits_posted_msat,
        credits_pending_msat=account.credits_pending_msat + delta.credits_pending_msat,
        credits_posted_msat=account.credits_posted_msat + delta.credits_posted_msat,
        must_cover=account.must_cover,
        create_time_ms=account.create_time_ms,
    )
    assert min(changed.debits_pending_msat, changed.credits_pending_msat) >= 0, "a reservation was released twice"
    return changed
