"""A payment's row remembers its request: what the migration keeps of requests that were made before, and what a repeated one finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from services.chassis.errors import ServiceError
from services.payment.domain import transfers
from services.payment.domain.chain import hold_body, transfer_body
from services.payment.domain.model import Failure, Payment, PaymentState, numbered
from services.payment.domain.saga import Saga
from services.payment.service import MIGRATIONS
from services.payment.store.payments import find_begun, find_payment_by_request
from services.payment.store.sagas import saga_data
from services.payment.wire import changed_message, reserved_payload
from services.storage import Database
from services.storage.idempotency import RequestKey
from services.storage.places import Place
from services.storage.sql import Connection
from support.postgresql import schema_at

ALICE, BOB = "aa" * 32, "bb" * 32
METHOD = "/nipmesh.payment.v1.PaymentService/PayInvoice"
REMEMBERED, FORGOTTEN, AGAIN, OTHER = "remembered", "forgotten", "again", "other"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return tmp_path / "data" / "payment.sqlite3"
    return schema_at(request.getfixturevalue("postgresql_url"), "payment")


def earlier_migrations(folder: Path) -> Path:
    """All before the sixth."""
    shutil.copytree(MIGRATIONS, folder)
    for path in folder.glob("*/*.sql"):
        if int(path.name[:4]) >= 6:
            path.unlink()
    return folder


def write_payment(connection: Connection, number: int, scope: str, request_id: str) -> None:
    connection.execute(
        "INSERT INTO payment (payment_id, account_id, scope, request_id, state, payment_request, payment_hash, amount_msat,"
        " fee_limit_msat, create_time_ms, update_time_ms) VALUES (?, 'node:lightning', ?, ?, 5, 'lnbcrt1', ?, 1, 0, 1, 1)",
        (f"payment {number}", scope, request_id, f"{number:064x}"),
    )


def write_earlier_payments(connection: Connection) -> None:
    """Requests as they were kept before: beside the payment, and not for ever."""
    payments = [(ALICE, REMEMBERED), (ALICE, FORGOTTEN), (ALICE, AGAIN), (ALICE, AGAIN), (BOB, AGAIN)]
    for number, (scope, request_id) in enumerate(payments):
        write_payment(connection, number, scope, request_id)
    kept = [(ALICE, METHOD, REMEMBERED), (ALICE, METHOD, AGAIN), (ALICE, "/another.Service/Method", OTHER)]
    for scope, method, request_id in kept:
        connection.execute(
            "INSERT INTO storage_idempotency (scope, method, request_id, request_sha256, create_time_ms) VALUES (?, ?, ?, ?, 1)",
            (scope, method, request_id, bytes(32)),
        )


def key(scope: str, request_id: str, sha256: bytes = bytes(32)) -> RequestKey:
    return RequestKey(scope=scope, method=METHOD, request_id=request_id, sha256=sha256)


async def test_requests_of_before_are_remembered(place: Place, tmp_path: Path) -> None:
    async with await Database.open(place, migrations=earlier_migrations(tmp_path / "earlier")) as database:
        await database.write(write_earlier_payments)
    async with await Database.open(place, migrations=MIGRATIONS) as database:
        await database.read(check_earlier_payments)
        rest = await database.read(lambda c: c.execute("SELECT method FROM storage_idempotency").fetchall())
        assert rest == [("/another.Service/Method",)]


def check_earlier_payments(connection: Connection) -> None:
    """The same request finds its payment; one whose hash was forgotten cannot be compared, and is no new payment either."""
    found = find_begun(connection, key(ALICE, REMEMBERED))
    assert found is not None
    assert found.payment_id == "payment 0"
    newest = find_begun(connection, key(ALICE, AGAIN))
    assert newest is not None
    assert newest.payment_id == "payment 3", "the id was used again after it was forgotten"
    assert find_begun(connection, key(BOB, REMEMBERED)) is None
    for reused in (key(ALICE, REMEMBERED, b"\1" * 32), key(ALICE, FORGOTTEN), key(BOB, AGAIN)):
        with pytest.raises(ServiceError, match="REQUEST_ID_REUSED"):
            find_begun(connection, reused)
        assert find_payment_by_request(connection, reused.scope, reused.request_id) is not None


async def test_accounts_with_a_history_are_kept(postgresql_url: str) -> None:
    """Where there are no foreign keys; an account that nothing refers to may go, as when a database is copied."""
    place = schema_at(postgresql_url, "payment")
    async with await Database.open(place, migrations=MIGRATIONS) as database:
        await database.write(lambda connection: write_payment(connection, 0, ALICE, AGAIN))
        for sql in (
            "DELETE FROM account WHERE account_id = 'node:lightning'",
            "UPDATE account SET account_id = 'other' WHERE account_id = 'suspense'",
        ):
            with pytest.raises(psycopg.errors.ForeignKeyViolation, match="is kept"):
                await database.write(lambda connection, sql=sql: connection.execute(sql) and None)  # type: ignore[misc]
        await database.write(
            lambda connection: connection.execute("DELETE FROM account WHERE account_id = 'suspense'") and None
        )


def test_what_is_written_for_speed_is_what_the_slow_way_writes() -> None:
    draft = Payment(
        payment_id="p",
        account_id="customer:a",
        scope=ALICE,
        request_id="r",
        state=PaymentState.RESERVED,
        payment_request="lnbcrt1",
        payment_hash="bb" * 32,
        amount_msat=1_000,
        fee_limit_msat=7,
        create_time_ms=1_700_000_000_123,
        update_time_ms=1_700_000_000_123,
    )
    assert reserved_payload(draft) == changed_message(draft, 0).SerializeToString(deterministic=True)
    hold = transfers.hold(draft, draft.create_time_ms)
    values = (hold.transfer_id, hold.debit_account_id, hold.amount_msat, hold.payment_id)
    assert hold_body(*values) == transfer_body(hold)
    assert numbered(draft, 7) == replace(draft, sequence=7)
    saga = Saga(
        payment_id="p",
        payer_account_id='customer:"ä\\',
        give_up_time_ms=5,
        payee_account_id="",
        failure=Failure.NO_ROUTE,
        hold=True,
        step_time_ms=3,
        error="ü\n",
    )
    assert json.loads(saga_data(saga)) == {
        "payer_account_id": 'customer:"ä\\',
        "give_up_time_ms": 5,
        "payee_account_id": "",
        "failure": int(Failure.NO_ROUTE),
        "hold": True,
        "step_time_ms": 3,
        "moved_time_ms": 0,
        "error": "ü\n",
    }
