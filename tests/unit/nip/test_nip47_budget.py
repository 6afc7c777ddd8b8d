"""Budgets of connections: periods by the calendar, and a model that counts nothing but what was really reserved and spent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.nip.domain.nip47 import budget as rules
from services.nip.domain.nip47.budget import Budget, Renewal, Spend, SpendState, Usage
from services.nip.domain.nip47.words import Code, Failure

R = Renewal


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


@pytest.mark.parametrize(
    ("renewal", "now", "start", "end"),
    [
        (R.DAILY, "2026-03-01T00:00:00", "2026-03-01", "2026-03-02"),
        (R.DAILY, "2026-02-28T23:59:59.999", "2026-02-28", "2026-03-01"),
        (R.WEEKLY, "2026-11-26T12:00:00", "2026-11-23", "2026-11-30"),
        (R.WEEKLY, "2026-11-23T00:00:00", "2026-11-23", "2026-11-30"),
        (R.WEEKLY, "2027-01-01T12:00:00", "2026-12-28", "2027-01-04"),
        (R.MONTHLY, "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        (R.MONTHLY, "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        (R.YEARLY, "2028-02-29T12:00:00", "2028-01-01", "2029-01-01"),
    ],
)
def test_periods_are_those_of_the_calendar_in_utc(renewal: Renewal, now: str, start: str, end: str) -> None:
    assert rules.period_start_ms(renewal, ms(now)) == ms(start)
    assert rules.renew_time_ms(renewal, ms(now)) == ms(end)
    assert (rules.period_start_ms(R.NEVER, ms(now)), rules.renew_time_ms(R.NEVER, ms(now))) == (0, None)


@pytest.mark.parametrize(
    ("limit", "used", "amount", "payment_max", "fee_limit"),
    [
        (None, 10**12, 5_000_000, None, 50_000),
        (None, 0, 1, None, 10_000),
        (30_000, 0, 20_000, None, 10_000),
        (30_000, 5_000, 20_000, None, 5_000),
        (30_000, 10_000, 20_000, None, 0),
        (30_000, 10_001, 20_000, None, "QUOTA_EXCEEDED"),
        (30_000, 40_000, 1, None, "QUOTA_EXCEEDED"),
        (0, 0, 1, None, "QUOTA_EXCEEDED"),
        (None, 0, 20_000, 20_000, 10_000),
        (None, 0, 20_001, 20_000, "QUOTA_EXCEEDED"),
    ],
)
def test_what_is_reserved(limit: int | None, used: int, amount: int, payment_max: int | None, fee_limit: Any) -> None:
    budget = Budget(limit_msat=limit, payment_msat_max=payment_max)
    usage = Usage(period_start_ms=0, spent_msat=used // 2, pending_msat=used - used // 2)
    if fee_limit == Code.QUOTA_EXCEEDED:
        with pytest.raises(Failure) as caught:
            rules.reserve(budget, usage, amount, 1)
        assert caught.value.code is Code.QUOTA_EXCEEDED
        return
    assert rules.reserve(budget, usage, amount, 1).fee_limit_msat == fee_limit


class BudgetMachine(RuleBasedStateMachine):
    """Payments that begin, succeed, fail, turn out to have been made after all, or stay unknown; the model is a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1
        self.usage = Usage(period_start_ms=0)
        self.spends: list[Spend] = []
        self.budget = Budget(limit_msat=100_000)

    @rule(amount=st.integers(1, 60_000))
    def reserve(self, amount: int) -> None:
        self.now_ms += 1
        used = self._spent() + self._pending()
        try:
            spend = rules.reserve(self.budget, self.usage, amount, self.now_ms)
        except Failure:
            assert used + amount > 100_000
            return
        assert used + spend.reserved_msat <= 100_000, "never more than the budget"
        self.usage = rules.reserved(self.usage, spend)
        self.spends.append(spend)

    @precondition(lambda self: self.spends)
    @rule(data=st.data(), succeeds=st.booleans())
    def settle(self, data: Any, succeeds: bool) -> None:
        number = data.draw(st.integers(0, len(self.spends) - 1))
        before = self.spends[number]
        fee = data.draw(st.integers(0, before.fee_limit_msat))
        spent = before.amount_msat + fee if succeeds else None
        self.usage, after = rules.settle(self.usage, before, spent)
        if before.state is SpendState.SPENT:
            assert after is before, "what was spent stays spent"
        elif succeeds:
            assert (after.state, after.spent_msat) == (SpendState.SPENT, before.amount_msat + fee)
        else:
            assert after.state is SpendState.FREED
        self.spends[number] = after

    @rule()
    def renew(self) -> None:
        """A new period: what was reserved in the one before is its own."""
        self.now_ms += 1
        self.usage = Usage(period_start_ms=self.now_ms)
        self.now_ms += 1

    def _spent(self) -> int:
        return sum(each.spent_msat for each in self._running())

    def _pending(self) -> int:
        return sum(each.reserved_msat for each in self._running() if each.state is SpendState.PENDING)

    def _running(self) -> list[Spend]:
        return [each for each in self.spends if each.reserve_time_ms >= self.usage.period_start_ms]

    @invariant()
    def counts_what_there_is(self) -> None:
        assert (self.usage.spent_msat, self.usage.pending_msat) == (self._spent(), self._pending())


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=40, stateful_step_count=25)
