"""Who waits for a payment: woken by the commit that ends the waiting, by no other, and never for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.payment.changefeed import ChangeFeed
from services.payment.domain.model import FINAL_STATES, Payment, PaymentState

RESERVED = Payment(
    payment_id="0198c0de-0000-7000-8000-000000000001",
    account_id="customer:0198c0de-0000-7000-8000-000000000002",
    scope="aa" * 32,
    request_id="0198c0de-0000-4000-8000-000000000003",
    state=PaymentState.RESERVED,
    payment_request="lnbcrt1",
    payment_hash="bb" * 32,
    amount_msat=1_000,
    fee_limit_msat=0,
)
IN_FLIGHT = replace(RESERVED, state=PaymentState.IN_FLIGHT)
SUCCEEDED = replace(RESERVED, state=PaymentState.SUCCEEDED)


class Rows:
    """Stands where the database is read: the payment as another process left it."""

    def __init__(self, payment: Payment) -> None:
        self.payment = payment
        self.reads = 0

    async def read(self, _: Callable[[Any], Any]) -> Payment:
        """What a look finds."""
        self.reads += 1
        return self.payment


def feed_over(rows: Rows) -> ChangeFeed:
    """A feed that looks there."""
    return ChangeFeed(rows)  # type: ignore[arg-type]  # reads are all that it needs


def is_over(payment: Payment) -> bool:
    """What a call waits for."""
    return payment.state in FINAL_STATES


async def test_the_commit_that_ends_the_waiting_wakes_and_no_other() -> None:
    rows, asked = Rows(RESERVED), []

    def over(payment: Payment) -> bool:
        asked.append(payment.state)
        return is_over(payment)

    feed = feed_over(rows)
    waiting = asyncio.create_task(feed.wait(RESERVED, over, 30, local=True))
    await asyncio.sleep(0)
    feed.publish(IN_FLIGHT)
    for _ in range(3):
        await asyncio.sleep(0)
    assert asked == [PaymentState.RESERVED, PaymentState.IN_FLIGHT], "asked by the commit, not by whoever waits"
    feed.publish(SUCCEEDED)
    assert await waiting == SUCCEEDED
    assert rows.reads == 0


async def test_who_waits_in_vain_gets_the_newest_there_is() -> None:
    feed = feed_over(Rows(RESERVED))
    waiting = asyncio.create_task(feed.wait(RESERVED, is_over, 0.05, local=True))
    await asyncio.sleep(0)
    feed.publish(IN_FLIGHT)
    assert await waiting == IN_FLIGHT


async def test_what_another_replica_ends_is_seen_by_looking() -> None:
    rows = Rows(RESERVED)
    feed = feed_over(rows)
    waiting = asyncio.create_task(feed.wait(RESERVED, is_over, 30, local=True))
    await asyncio.sleep(0)
    rows.payment = SUCCEEDED
    start_s = time.monotonic()
    assert await waiting == SUCCEEDED, "a word that was lost costs a second, no more"
    assert rows.reads == 1
    assert time.monotonic() - start_s < 20
    assert not feed._waiters, "nobody is left behind"
