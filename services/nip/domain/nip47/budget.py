"""What a connection may spend, and what it has spent: amounts in millisatoshi, calendar periods in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final

from services.nip.domain.nip47.words import Code, Failure

FEE_LIMIT_MSAT_MIN: Final = 10_000
"""Fees of a payment that may always be spent where the budget has room; below it small payments would find no way."""
FEE_LIMIT_PART: Final = 100
"""Fees may be a hundredth of the amount: what the payment service allows by itself."""


class Renewal(IntEnum):
    """When a budget is whole again: never, or at the start of a day, a week (Monday), a month or a year."""

    NEVER = 1
    DAILY = 2
    WEEKLY = 3
    MONTHLY = 4
    YEARLY = 5


class SpendState(IntEnum):
    """How it stands with what one request spends. FREED can still become SPENT, should the payment turn out to have been made."""

    PENDING = 1
    SPENT = 2
    FREED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the owner allows; None: no limit. `payment_msat_max` is without fees, `limit_msat` with them."""

    limit_msat: int | None = None
    renewal: Renewal = Renewal.NEVER
    payment_msat_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was spent in the period that began at `period_start_ms`, and what is reserved for payments that are not final."""

    period_start_ms: int
    spent_msat: int = 0
    pending_msat: int = 0

    @property
    def used_msat(self) -> int:
        """Both together count."""
        return self.spent_msat + self.pending_msat

    def check(self) -> None:
        """Assert what always holds."""
        assert self.spent_msat >= 0, self
        assert self.pending_msat >= 0, self


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """One payment's part of the budget: reserved at a time, it belongs to that time's period for ever."""

    amount_msat: int
    fee_limit_msat: int
    reserve_time_ms: int
    state: SpendState = SpendState.PENDING
    spent_msat: int = 0

    @property
    def reserved_msat(self) -> int:
        """What counts while it is pending."""
        return self.amount_msat + self.fee_limit_msat


def period_start_ms(renewal: Renewal, now_ms: int) -> int:
    """Return when the period began that a time belongs to, in milliseconds since 1970; 0 when there is one for ever."""
    day = datetime.fromtimestamp(now_ms / 1_000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match renewal:
        case Renewal.NEVER:
            return 0
        case Renewal.DAILY:
            start = day
        case Renewal.WEEKLY:
            start = day - timedelta(days=day.weekday())
        case Renewal.MONTHLY:
            start = day.replace(day=1)
        case Renewal.YEARLY:
            start = day.replace(month=1, day=1)
    return int(start.timestamp()) * 1_000


def renew_time_ms(renewal: Renewal, now_ms: int) -> int | None:
    """Return when the next period begins; None for never."""
    start_ms = period_start_ms(renewal, now_ms)
    start = datetime.fromtimestamp(start_ms / 1_000, UTC)
    match renewal:
        case Renewal.NEVER:
            return None
        case Renewal.DAILY:
            end = start + timedelta(days=1)
        case Renewal.WEEKLY:
            end = start + timedelta(weeks=1)
        case Renewal.MONTHLY:
            end = (start + timedelta(days=32)).replace(day=1)
        case Renewal.YEARLY:
            end = start.replace(year=start.year + 1)
    return int(end.timestamp()) * 1_000


def reserve(budget: Budget, usage: Usage, amount_msat: int, now_ms: int) -> Spend:
    """Return what to reserve for a payment: its amount, and fees as far as the budget has room. Raises Failure QUOTA_EXCEEDED."""
    assert amount_msat > 0
    if budget.payment_msat_max is not None and amount_msat > budget.payment_msat_max:
        raise Failure(Code.QUOTA_EXCEEDED, f"a payment of this connection is at most {budget.payment_msat_max} msat")
    fee_limit_msat = max(FEE_LIMIT_MSAT_MIN, amount_msat // FEE_LIMIT_PART)
    if budget.limit_msat is not None:
        left_msat = budget.limit_msat - usage.used_msat
        if amount_msat > left_msat:
            raise Failure(Code.QUOTA_EXCEEDED, f"the budget has {max(0, left_msat)} msat left")
        fee_limit_msat = min(fee_limit_msat, left_msat - amount_msat)
    return Spend(amount_msat=amount_msat, fee_limit_msat=fee_limit_msat, reserve_time_ms=now_ms)


def reserved(usage: Usage, spend: Spend) -> Usage:
    """Return the usage with a new spend."""
    return _changed(usage, spend, 0, spend.reserved_msat)


def settle(usage: Usage, spend: Spend, spent_msat: int | None) -> tuple[Usage, Spend]:
    """Return usage and spend once the payment is final: `spent_msat` is amount and fees, None when it failed.

    The first outcome stands, but for a payment that was thought to have failed and was made: money that left is counted.
    """
    if spend.state is SpendState.SPENT or (spend.state is SpendState.FREED and spent_msat is None):
        return usage, spend
    freed_msat = spend.reserved_msat if spend.state is SpendState.PENDING else 0
    state = SpendState.FREED if spent_msat is None else SpendState.SPENT
    after = Spend(
        amount_msat=spend.amount_msat,
        fee_limit_msat=spend.fee_limit_msat,
        reserve_time_ms=spend.reserve_time_ms,
        state=state,
        spent_msat=spent_msat or 0,
    )
    return _changed(usage, spend, spent_msat or 0, -freed_msat), after


def _changed(usage: Usage, spend: Spend, spent_msat: int, pending_msat: int) -> Usage:
    """A spend of an earlier period changes nothing in this one."""
    if spend.reserve_time_ms < usage.period_start_ms:
        return usage
    after = Usage(
        period_start_ms=usage.period_start_ms,
        spent_msat=usage.spent_msat + spent_msat,
        pending_msat=usage.pending_msat + pending_msat,
    )
    after.check()
    return after
