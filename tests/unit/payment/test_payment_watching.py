"""Who watches without a filter sees their own payments, by the owner that an event names, or by the account of one that names none."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

from nipmesh.events.v1 import events_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.caller import OUTSIDE, Caller, CallInfo, set_current_call
from services.chassis.draining import Draining
from services.payment.domain.model import WALLET_SCOPE, Payment, PaymentState
from services.payment.service import MIGRATIONS
from services.payment.store.changes import kind_name, record
from services.payment.watching import PaymentWatcher
from services.payment.wire import changed_message
from services.storage import Database
from services.storage.events import append_event
from services.storage.sql import Connection

ALICE, BOB = "aa" * 32, "bb" * 32
ACCOUNT = "INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES (?, ?, 1, 1, 1)"


def payment(name: str, account_id: str, scope: str) -> Payment:
    return Payment(
        payment_id=name,
        account_id=account_id,
        scope=scope,
        request_id=name,
        state=PaymentState.SUCCEEDED,
        payment_request="lnbcrt1",
        payment_hash="cc" * 32,
        amount_msat=1_000,
        fee_limit_msat=0,
        create_time_ms=1,
        update_time_ms=1,
    )


def record_as_before(connection: Connection, made: Payment) -> None:
    """The event as it was before it named the owner."""
    changed: events_pb2.PaymentChanged = changed_message(made, 0)
    changed.ClearField("owner_pubkey")
    kind = kind_name(made.state)
    append_event(connection, kind=kind, subject=made.payment_id, payload=changed.SerializeToString())


def write(connection: Connection) -> None:
    for account_id, owner in (("a", ALICE), ("b", BOB)):
        connection.execute(ACCOUNT, (account_id, owner))
    record(connection, payment("of bob", "b", BOB), 0)
    record(connection, payment("of alice", "a", ALICE), 0)
    record_as_before(connection, payment("of bob, earlier", "b", BOB))
    record_as_before(connection, payment("of alice, earlier", "a", ALICE))
    record(connection, payment("of bob's app", "b", WALLET_SCOPE + BOB), 0)
    record(connection, payment("of alice's app", "a", WALLET_SCOPE + ALICE), 0)


async def test_each_sees_what_is_theirs(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "data" / "payment.sqlite3", migrations=MIGRATIONS) as database:
        await database.write(write)
        for user, name in ((ALICE, "alice"), (BOB, "bob")):
            set_current_call(CallInfo(caller=Caller(service="gateway", subject=user)))
            try:
                watching = PaymentWatcher(database, Draining()).watch(pb.WatchPaymentsRequest(resume_after_sequence=0))
                async with aclosing(watching) as changes:
                    seen = [(await anext(changes)).payment.payment_id for _ in range(3)]
            finally:
                set_current_call(OUTSIDE)
            assert seen == [f"of {name}", f"of {name}, earlier", f"of {name}'s app"]


def test_the_event_names_whose_money_it_is() -> None:
    for scope in (ALICE, WALLET_SCOPE + ALICE):
        assert changed_message(payment("p", "a", scope), 0).owner_pubkey == ALICE
