"""Double entry after TigerBeetle: what a transfer does to the counters of its two accounts, and when it is refused.

A PENDING transfer reserves, POST_PENDING moves up to what was reserved and releases the rest, VOID_PENDING releases all. Every
transfer adds the same amount to debits and to credits, so their sums are equal at all times. The store applies `net_deltas` with
one UPDATE per account whose WHERE clause holds the rules of `refusal`.

Quotas count what the owner of an account spends (SPENDING) from the moment when it is reserved, so that parallel payments cannot outrun
them; what is released is given back to the day that it was taken from. A day is one of UTC: its count is one number in the account's
row, an owner can be told when it starts over, and anyone can recount it from the transfers.

Source: https://docs.tigerbeetle.com/coding/two-phase-transfers/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.payment.domain.model import (
    AMOUNT_MSAT_MAX,
    SPENDING,
    Account,
    AccountState,
    Purpose,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)

SUM_MSAT_MAX = AMOUNT_MSAT_MAX
"""No side of any account may sum up to more, what is reserved included; sums of both sides then fit into 63 bits."""
DAY_MS = 24 * 3_600_000
"""Days are counted from 1970 in UTC, where none is longer or shorter (leap seconds have no milliseconds of their own)."""
PENDING_RETRY_MS = 1_000
"""When to ask again after too much was pending: most payments end within a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is added to the four counters of one account, and to what was spent.

    `spent_msat` counts on `spent_day`. `returned_msat` was taken on `returned_day`; of several days the newest is kept, as an account
    counts no day before its newest. `following_msat` is needed by payments that were reserved before: neither freezing nor a quota
    stops it.
    """

    account_id: str
    debits_pending_msat: int = 0
    debits_posted_msat: int = 0
    credits_pending_msat: int = 0
    credits_posted_msat: int = 0
    spent_msat: int = 0
    spent_day: int = 0
    returned_msat: int = 0
    returned_day: int = 0
    following_msat: int = 0

    def __add__(self, other: Delta) -> Delta:
        """Both at once, for the same account."""
        assert self.account_id == other.account_id
        returned_day = max(self.returned_day, other.returned_day)
        return Delta(
            account_id=self.account_id,
            debits_pending_msat=self.debits_pending_msat + other.debits_pending_msat,
            debits_posted_msat=self.debits_posted_msat + other.debits_posted_msat,
            credits_pending_msat=self.credits_pending_msat + other.credits_pending_msat,
            credits_posted_msat=self.credits_posted_msat + other.credits_posted_msat,
            spent_msat=self.spent_msat + other.spent_msat,
            spent_day=max(self.spent_day, other.spent_day),
            returned_msat=sum(one.returned_msat for one in (self, other) if one.returned_day == returned_day),
            returned_day=returned_day,
            following_msat=self.following_msat + other.following_msat,
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

    @property
    def leaving_msat(self) -> int:
        """What newly leaves the account or is reserved for it; 0 when nothing does."""
        return max(0, -self.available_msat - self.following_msat)

    @property
    def is_spending(self) -> bool:
        """Whether quotas are asked."""
        return self.leaving_msat > 0 and self.spent_msat > 0


def day_of(time_ms: int) -> int:
    """The day, UTC, since 1970."""
    return time_ms // DAY_MS


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
    """The change of the debited and of the credited account. A reservation's purpose and day hold for what resolves it."""
    check_shape(transfer, pending)
    reserved_msat = pending.amount_msat if pending is not None else 0
    held_msat = transfer.amount_msat if transfer.kind is TransferKind.PENDING else -reserved_msat
    moved_msat = transfer.amount_msat if transfer.kind in (TransferKind.POSTED, TransferKind.POST_PENDING) else 0
    first = transfer if pending is None else pending
    counts = first.purpose in SPENDING
    spent_msat = transfer.amount_msat if counts and pending is None else 0
    returned_msat = reserved_msat - moved_msat if counts and pending is not None else 0
    day = day_of(first.create_time_ms)
    return (
        Delta(
            account_id=transfer.debit_account_id,
            debits_pending_msat=held_msat,
            debits_posted_msat=moved_msat,
            spent_msat=spent_msat,
            spent_day=day if spent_msat else 0,
            returned_msat=returned_msat,
            returned_day=day if returned_msat else 0,
            following_msat=spent_msat if transfer.purpose is Purpose.ROUTING_FEE else 0,
        ),
        Delta(account_id=transfer.credit_account_id, credits_pending_msat=held_msat, credits_posted_msat=moved_msat),
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

    A frozen account refuses whatever newly leaves it; payments reserved before go on. A closed one holds nothing and refuses all.
    """
    if account is None:
        return Refused(Reason.ACCOUNT_NOT_FOUND, "there is no such account")
    if account.state is AccountState.CLOSED:
        return Refused(Reason.ACCOUNT_CLOSED, "the account is closed")
    if delta.leaving_msat > 0 and account.state is not AccountState.ACTIVE:
        return Refused(Reason.ACCOUNT_FROZEN, "the account is frozen: nothing new leaves it")
    if account.must_cover and delta.available_msat < 0 and account.available_msat + delta.available_msat < 0:
        return Refused(Reason.INSUFFICIENT_BALANCE, "the account's available balance does not cover this amount")
    credited_msat = account.credits_posted_msat + account.credits_pending_msat + delta.credits_msat
    debited_msat = account.debits_posted_msat + account.debits_pending_msat + delta.debits_msat
    if max(credited_msat, debited_msat) > SUM_MSAT_MAX:
        return Refused(Reason.BALANCE_LIMIT_EXCEEDED, "a sum of the account would exceed all bitcoin that can exist")
    return _beyond_quota(account, delta) if delta.is_spending else None


def _beyond_quota(account: Account, delta: Delta) -> Refused | None:
    """Which limit of the account's quota is exceeded. Time helps where less than the limit is asked for."""
    quota, leaving_msat = account.quota, delta.leaving_msat
    if quota.payment_msat_max is not None and leaving_msat > quota.payment_msat_max:
        return Refused(Reason.QUOTA_EXCEEDED, f"more than {quota.payment_msat_max} msat at once")
    _, spent_msat = spent_after(account, delta)
    if quota.day_msat_max is not None and spent_msat > quota.day_msat_max:
        tomorrow_ms = (delta.spent_day + 1) * DAY_MS
        helps = leaving_msat <= quota.day_msat_max
        return Refused(
            Reason.QUOTA_EXCEEDED,
            f"more than {quota.day_msat_max} msat in one day (UTC)",
            retry_at_ms=tomorrow_ms if helps else None,
        )
    pending_msat = account.debits_pending_msat + delta.debits_pending_msat
    if quota.pending_msat_max is not None and delta.debits_pending_msat > 0 and pending_msat > quota.pending_msat_max:
        helps = leaving_msat <= quota.pending_msat_max
        return Refused(
            Reason.QUOTA_EXCEEDED,
            f"more than {quota.pending_msat_max} msat reserved at the same time",
            retry_delay_ms=PENDING_RETRY_MS if helps else None,
        )
    return None


def spent_after(account: Account, delta: Delta) -> tuple[int, int]:
    """The newest day of spending, and what was spent on it, after `delta`."""
    day, spent_msat = account.spent_day, account.spent_msat
    if delta.spent_msat > 0:
        day, spent_msat = delta.spent_day, delta.spent_msat + (spent_msat if delta.spent_day == day else 0)
    return day, spent_msat - (delta.returned_msat if delta.returned_day == day else 0)


def apply(account: Account, delta: Delta) -> Account:
    """The account after `delta`; the caller asked `refusal` first. This is the reference that the store is tested against."""
    spent_day, spent_msat = spent_after(account, delta)
    changed = (
        Account(  # every field: `replace` takes three times as long, and every payment of a batch comes along here
            account_id=account.account_id,
            owner=account.owner,
            state=account.state,
            debits_pending_msat=account.debits_pending_msat + delta.debits_pending_msat,
            debits_posted_msat=account.debits_posted_msat + delta.debits_posted_msat,
            credits_pending_msat=account.credits_pending_msat + delta.credits_pending_msat,
            credits_posted_msat=account.credits_posted_msat + delta.credits_posted_msat,
            must_cover=account.must_cover,
            create_time_ms=account.create_time_ms,
            quota=account.quota,
            spent_day=spent_day,
            spent_msat=spent_msat,
        )
    )
    assert min(changed.debits_pending_msat, changed.credits_pending_msat) >= 0, "a reservation was released twice"
    return changed
