"""Many payments begun at once leave the same rows behind as one after the other, on both engines."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from services.chassis.errors import ServiceError
from services.payment.domain.model import (
    NODE_ACCOUNT,
    Account,
    AccountState,
    Payment,
    PaymentState,
    Purpose,
    Quota,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.domain.saga import Saga
from services.payment.service import MIGRATIONS
from services.payment.store import accounts, ledger
from services.payment.store.beginning import BEGIN_PAYMENT, BeginOrder, begin_many, begin_one
from services.payment.store.chaining import chain_what_is_not
from services.payment.store.sagas import Lease
from services.payment.store.transactions import Begun
from services.storage import Database
from services.storage.batches import Transaction
from services.storage.idempotency import RequestKey
from services.storage.places import Place, PostgresPlace
from services.storage.postgresql.connection import PostgresConnection
from services.storage.postgresql.writer import SchemaBatcher, SchemaTransaction
from services.storage.sql import Connection
from services.storage.sqlite.connection import connect
from services.storage.sqlite.writer import FileTransaction
from services.storage.writing import ONE_BY_ONE, BatchWrite
from support.postgresql import schema_at

NOW_MS = 1_700_006_400_000
"""Midnight: some payments come a moment before it, and count on the day of the ledger's newest entry."""
ALICE, BOB = "aa" * 32, "bb" * 32
ACCOUNTS = {
    "customer:rich": Account(account_id="customer:rich", owner=ALICE, state=AccountState.ACTIVE),
    "customer:poor": Account(account_id="customer:poor", owner=ALICE, state=AccountState.ACTIVE),
    "customer:frozen": Account(account_id="customer:frozen", owner=ALICE, state=AccountState.FROZEN),
    "customer:bound": Account(
        account_id="customer:bound", owner=ALICE, state=AccountState.ACTIVE, quota=Quota(day_msat_max=5_000)
    ),
    "customer:bob": Account(account_id="customer:bob", owner=BOB, state=AccountState.ACTIVE),
}
MONEY = {"customer:poor": 3_500}
TABLES = {
    "account": ("account_id", {"number"}),
    "transfer": ("number", set[str]()),
    "payment": ("number", {"number", "sequence"}),
    "saga": ("id", set[str]()),
    "saga_step": ("saga_id, number", set[str]()),
    "storage_event": ("sequence", {"sequence", "create_time_ms"}),
}
"""By what the rows are ordered, and the columns that differ: numbers that the database gives have gaps, and the clock goes on."""
PAY_INVOICE = "/nipmesh.payment.v1.PaymentService/PayInvoice"


@contextmanager
def transaction_at(place: Place) -> Iterator[Transaction]:
    """A transaction as the writer begins it; it is rolled back."""
    if isinstance(place, PostgresPlace):
        batcher = SchemaBatcher(place, "nobody", "test")
        try:
            yield SchemaTransaction(batcher, batcher.begun())
        finally:
            batcher.close()
        return
    with closing(connect(place)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield FileTransaction(connection)


@contextmanager
def ledger_at(place: Place) -> Iterator[Transaction]:
    """A payment database with these accounts, in a transaction that is rolled back."""
    with transaction_at(place) as transaction:
        connection = transaction.connection
        chain_what_is_not(connection)
        for account in ACCOUNTS.values():
            active = replace(account, state=AccountState.ACTIVE, create_time_ms=NOW_MS)
            accounts.insert_account(connection, active)
            deposit(connection, account.account_id, MONEY.get(account.account_id, 1_000_000))
            values = (int(account.state), account.quota.day_msat_max, account.account_id)
            connection.execute("UPDATE account SET state = ?, quota_day_msat = ? WHERE account_id = ?", values)
        yield transaction


def deposit(connection: Connection, account_id: str, amount_msat: int) -> None:
    transfer = Transfer(
        transfer_id=str(uuid.uuid5(uuid.NAMESPACE_URL, account_id)),
        kind=TransferKind.POSTED,
        debit_account_id=NODE_ACCOUNT,
        credit_account_id=account_id,
        amount_msat=amount_msat,
        purpose=Purpose.DEPOSIT,
        create_time_ms=NOW_MS,
    )
    ledger.post(connection, (transfer,))


def order(draw: random.Random, number: int) -> BeginOrder:
    """A payment; requests, invoices and accounts repeat themselves."""
    account_id = draw.choice(list(ACCOUNTS))
    payment_id = f"00000000-0000-7000-8000-{number:012d}"
    scope = BOB if draw.random() < 0.1 else ALICE
    request_id = f"{draw.randrange(60):032x}"
    now_ms = NOW_MS + draw.randrange(-5, 5)
    draft = Payment(
        payment_id=payment_id,
        account_id=account_id,
        scope=scope,
        request_id=request_id,
        state=PaymentState.RESERVED,
        payment_request="lnbcrt1ä\"\\{},'" + str(number),
        payment_hash=hashlib.sha256(b"%d" % draw.randrange(60)).hexdigest(),
        amount_msat=draw.choice([1, 1_000, 1_500, 2_000]),
        fee_limit_msat=0,
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )
    key = RequestKey(scope=scope, method=PAY_INVOICE, request_id=request_id, sha256=bytes([draw.randrange(2)] * 32))
    return BeginOrder(
        key=key,
        draft=draft,
        saga=Saga(payment_id=payment_id, payer_account_id=account_id, give_up_time_ms=NOW_MS + 1),
        lease=Lease(saga_id=payment_id, owner="me", fence=1),
        lease_until_ms=NOW_MS + 2_000,
        traceparent="",
    )


def one(transaction: Transaction, wanted: BeginOrder) -> Any:
    """As the writer runs it: what it raises undoes it alone."""
    refused = False
    transaction.savepoint()
    try:
        result: Any = begin_one(transaction.connection, wanted)
        transaction.settle()
    except (Refused, ServiceError) as error:
        refused, result = True, (type(error), error.reason)
    transaction.end_savepoint(undo=refused)
    return numberless(result)


def numberless(result: Any) -> Any:
    """Without the sequence of an event."""
    if isinstance(result, Begun):
        return replace(result, payment=replace(result.payment, sequence=0))
    return result


def rows(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tables that a payment's beginning touches."""
    found = {}
    for table, (order_by, unlike) in TABLES.items():
        names = [name for name in columns(connection, table) if name not in unlike]
        found[table] = connection.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY {order_by}").fetchall()
    return found


def columns(connection: Connection, table: str) -> list[str]:
    if isinstance(connection, apsw.Connection):
        return [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    described = connection.execute(
        "SELECT CAST(column_name AS TEXT) FROM information_schema.columns"
        " WHERE table_schema = 'payment' AND table_name = CAST(? AS TEXT) ORDER BY ordinal_position",
        (table,),
    )
    return [name for (name,) in described.fetchall()]


@pytest.fixture(params=["sqlite", "postgresql"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    file = tmp_path / "data" / "payment.sqlite3"
    wanted: Place = file
    if request.param == "postgresql":
        wanted = schema_at(request.getfixturevalue("postgresql_url"), "payment")
    await (await Database.open(wanted, migrations=MIGRATIONS)).close()
    return wanted


@pytest.mark.parametrize("seed", range(8))
async def test_a_set_is_one_after_the_other(place: Place, seed: int) -> None:
    draw = random.Random(seed)
    sets = [[order(draw, 1_000 * number + each) for each in range(draw.choice([1, 7, 40]))] for number in range(3)]
    with ledger_at(place) as transaction:
        connection = transaction.connection
        results, sequence = [], []
        for orders in sets:
            done = begin_many(connection, orders)
            transaction.settle()
            smooth = [wanted for wanted, result in zip(orders, done, strict=True) if result is not ONE_BY_ONE]
            rest = [wanted for wanted, result in zip(orders, done, strict=True) if result is ONE_BY_ONE]
            results += [numberless(each) for each in done if each is not ONE_BY_ONE]
            results += [one(transaction, wanted) for wanted in rest]
            sequence += [*smooth, *rest]
        together = rows(connection)
        events = connection.execute("SELECT sequence, subject FROM storage_event ORDER BY sequence").fetchall()
        numbers = dict(connection.execute("SELECT payment_id, sequence FROM payment").fetchall())
    with ledger_at(place) as transaction:
        assert results == [one(transaction, wanted) for wanted in sequence]
        assert together == rows(transaction.connection)
    assert {subject: sequence for sequence, subject in events} == numbers
    kinds = {type(result) for result in results}
    assert Begun in kinds
    if len(results) > 60:
        assert tuple in kinds, "some are refused"


async def test_the_writer_does_sets_and_what_is_left(place: Place) -> None:
    draw = random.Random(7)
    with ledger_at(place) as transaction:
        transaction.settle()
        commit(transaction.connection)
    async with await Database.open(place, migrations=MIGRATIONS) as database:
        writes = [database.write(BatchWrite(BEGIN_PAYMENT, order(draw, number))) for number in range(200)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} >= {Begun, Refused}
        assert not [result for result in results if not isinstance(result, Begun | Refused | ServiceError)]
        await database.read(ledger.sums)
        fresh = sum(isinstance(result, Begun) and result.fresh for result in results)
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM payment").fetchone()) == (fresh,)


def commit(connection: Connection) -> None:
    if isinstance(connection, PostgresConnection):
        connection.command(b"COMMIT")
        connection.settle()
    else:
        connection.execute("COMMIT")
