"""The payment service: its parts, put together, and who may call which method."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import (
    add_AccountServiceServicer_to_server,
    add_LedgerServiceServicer_to_server,
    add_PaymentServiceServicer_to_server,
)
from services.chassis.caller import SERVICE as FROM_SERVICE
from services.chassis.caller import Access
from services.chassis.service import Application, ServiceDefinition
from services.payment.accounts import AccountServicer
from services.payment.changefeed import ChangeFeed
from services.payment.clients import InvoiceClient, ReceiptClient
from services.payment.driver import Parts
from services.payment.engine import SagaEngine
from services.payment.ledgers import LedgerServicer
from services.payment.node.simulated import SimulatedNode
from services.payment.paying import InvoicePayer
from services.payment.payments import PaymentServicer
from services.payment.receipts import ReceiptKey
from services.payment.settings import PaymentSettings
from services.payment.watching import PaymentWatcher
from services.storage.database import Database
from services.storage.pages import PageTokens
from services.storage.sweeper import run_sweeper

FILE_NAME: Final = "payment.sqlite3"
MIGRATIONS: Final = Path(__file__).parent / "migrations"
_PAYMENTS: Final = "/nipmesh.payment.v1.PaymentService/"
_ACCOUNTS: Final = "/nipmesh.payment.v1.AccountService/"
_LEDGER: Final = "/nipmesh.payment.v1.LedgerService/"

ACCESS: Final = {
    _PAYMENTS + "PayInvoice": Access.USER,
    _PAYMENTS + "GetPayment": Access.USER,
    _PAYMENTS + "ListPayments": Access.USER,
    _PAYMENTS + "WatchPayments": Access.USER,
    _PAYMENTS + "RefundPayment": Access.USER,
    _ACCOUNTS + "CreateAccount": Access.USER,
    _ACCOUNTS + "GetAccount": Access.USER | FROM_SERVICE("invoice"),
    _ACCOUNTS + "ListAccounts": Access.USER,
    _ACCOUNTS + "ListTransfers": Access.USER,
    _LEDGER + "Deposit": Access.OPERATOR,
    _LEDGER + "Withdraw": Access.OPERATOR,
    _LEDGER + "FreezeAccount": Access.OPERATOR,
    _LEDGER + "UnfreezeAccount": Access.OPERATOR,
    _LEDGER + "GetTransfer": Access.OPERATOR,
}
"""Who may call what; ownership is checked with the rows."""


@asynccontextmanager
async def lifespan(app: Application[PaymentSettings]) -> AsyncIterator[None]:
    """Open the databases, start the sagas, serve; at the drain give every lease back at once."""
    folder = app.settings.data_directory
    async with await Database.open(folder / FILE_NAME, migrations=MIGRATIONS) as database:
        node = await SimulatedNode.open(folder)
        try:
            feed = ChangeFeed(database)
            engine = SagaEngine(_parts(app, database, feed, node))
            await _serve(app, database, feed, engine)
            try:
                yield
            finally:
                await engine.stop()
        finally:
            await node.close()


def _parts(app: Application[PaymentSettings], database: Database, feed: ChangeFeed, node: SimulatedNode) -> Parts:
    return Parts(
        database=database,
        feed=feed,
        invoices=InvoiceClient(app.channel),
        receipts=ReceiptClient(app.channel),
        receipt_key=ReceiptKey(database),
        node=node,
    )


async def _serve(app: Application[PaymentSettings], database: Database, feed: ChangeFeed, engine: SagaEngine) -> None:
    tokens = await PageTokens.open(database)
    payer = InvoicePayer(database, engine, feed)
    payments = PaymentServicer(database, payer, PaymentWatcher(database, app.draining), tokens)
    services = pb.DESCRIPTOR.services_by_name
    app.add(add_PaymentServiceServicer_to_server, payments, services["PaymentService"])
    app.add(add_AccountServiceServicer_to_server, AccountServicer(database, tokens), services["AccountService"])
    app.add(add_LedgerServiceServicer_to_server, LedgerServicer(database), services["LedgerService"])
    engine.start()
    app.spawn(run_sweeper(database), name="sweeper")
    app.spawn(_stop_at_drain(app, engine), name="leases back at the drain")


async def _stop_at_drain(app: Application[PaymentSettings], engine: SagaEngine) -> None:
    """A replica that shuts down drives nothing: the others take its sagas over while its calls still wait for them."""
    await app.draining.wait()
    await engine.stop()


SERVICE: Final = ServiceDefinition(settings=PaymentSettings, access=ACCESS, lifespan=lifespan)
