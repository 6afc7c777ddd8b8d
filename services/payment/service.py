"""The payment service: its parts, put together, and who may call which method."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from nipmesh.operations.v1 import saga_service_pb2
from nipmesh.operations.v1.saga_service_pb2_grpc import add_SagaServiceServicer_to_server
from nipmesh.payment.v1 import (
    invoice_ledger_service_pb2,
    payment_operator_service_pb2,
    payment_service_pb2,
    wallet_service_pb2,
)
from nipmesh.payment.v1.invoice_ledger_service_pb2_grpc import add_InvoiceLedgerServiceServicer_to_server
from nipmesh.payment.v1.payment_operator_service_pb2_grpc import add_PaymentOperatorServiceServicer_to_server
from nipmesh.payment.v1.payment_service_pb2_grpc import (
    add_AccountServiceServicer_to_server,
    add_LedgerServiceServicer_to_server,
    add_PaymentServiceServicer_to_server,
)
from nipmesh.payment.v1.wallet_service_pb2_grpc import add_WalletPaymentServiceServicer_to_server
from services.chassis.caller import SERVICE as FROM_SERVICE
from services.chassis.caller import Access
from services.chassis.service import Application, ServiceDefinition
from services.events.runtime import open_events
from services.events.servicer import EVENT_ACCESS, add_event_service
from services.lightning.node import PayingNode
from services.lightning.settings import open_paying_node
from services.payment.accounts import AccountServicer
from services.payment.changefeed import ChangeFeed
from services.payment.clients import InvoiceClient, ReceiptClient
from services.payment.credits import InvoiceLedgerServicer
from services.payment.driver import Parts
from services.payment.engine import SagaEngine
from services.payment.estimating import FeeEstimator
from services.payment.ledgers import LedgerServicer
from services.payment.operations import PaymentOperatorServicer, SagaServicer
from services.payment.paying import InvoicePayer
from services.payment.payments import PaymentServicer
from services.payment.receipts import ReceiptKey
from services.payment.settings import PaymentSettings
from services.payment.store.chaining import chain_what_is_not
from services.payment.wallet import WalletPaymentServicer
from services.payment.watching import PaymentWatcher
from services.storage.cache import Reads, open_reads
from services.storage.database import Database
from services.storage.pages import PageTokens
from services.storage.places import place_of
from services.storage.postgresql.two_phase import two_phase_place
from services.storage.sweeper import run_sweeper

FILE_NAME: Final = "payment.sqlite3"
MIGRATIONS: Final = Path(__file__).parent / "migrations"
_PAYMENTS: Final = "/nipmesh.payment.v1.PaymentService/"
_ACCOUNTS: Final = "/nipmesh.payment.v1.AccountService/"
_LEDGER: Final = "/nipmesh.payment.v1.LedgerService/"
_CREDITS: Final = "/nipmesh.payment.v1.InvoiceLedgerService/"
_WALLET: Final = "/nipmesh.payment.v1.WalletPaymentService/"
_INVOICE: Final = FROM_SERVICE("invoice")
_NIP: Final = FROM_SERVICE("nip")

ACCESS: Final = {
    _PAYMENTS + "PayInvoice": Access.USER,
    _PAYMENTS + "EstimateFee": Access.USER,
    _PAYMENTS + "GetPayment": Access.USER,
    _PAYMENTS + "ListPayments": Access.USER,
    _PAYMENTS + "WatchPayments": Access.USER,
    _PAYMENTS + "RefundPayment": Access.USER,
    _ACCOUNTS + "CreateAccount": Access.USER,
    _ACCOUNTS + "GetAccount": Access.USER | _INVOICE,
    _ACCOUNTS + "ListAccounts": Access.USER,
    _ACCOUNTS + "ListTransfers": Access.USER,
    _ACCOUNTS + "Transfer": Access.USER,
    _ACCOUNTS + "CloseAccount": Access.USER,
    _ACCOUNTS + "GetStatement": Access.USER,
    _ACCOUNTS + "ExportStatement": Access.USER,
    _LEDGER + "Deposit": Access.OPERATOR,
    _LEDGER + "Withdraw": Access.OPERATOR,
    _LEDGER + "FreezeAccount": Access.OPERATOR,
    _LEDGER + "UnfreezeAccount": Access.OPERATOR,
    _LEDGER + "GetTransfer": Access.OPERATOR,
    _LEDGER + "CreateTransfer": Access.OPERATOR,
    _LEDGER + "SetQuota": Access.OPERATOR,
    _LEDGER + "ListAccountEvents": Access.OPERATOR,
    _LEDGER + "GetLedgerHead": Access.OPERATOR,
    _CREDITS + "HoldCredit": _INVOICE,
    _CREDITS + "PostCredit": _INVOICE,
    _CREDITS + "VoidCredit": _INVOICE,
    _CREDITS + "ResumePayment": _INVOICE,
    _CREDITS + "GetDecision": _INVOICE,
    _WALLET + "PayInvoiceFor": _NIP,
    _WALLET + "GetPaymentFor": _NIP,
    _WALLET + "ListPaymentsFor": _NIP,
    _WALLET + "GetAccountFor": _NIP,
    _WALLET + "GetNetwork": _NIP,
    "/nipmesh.payment.v1.PaymentOperatorService/ResolvePayment": Access.OPERATOR,
    "/nipmesh.operations.v1.SagaService/ListSagas": Access.OPERATOR,
    **EVENT_ACCESS,
}
"""Who may call what; ownership is checked with the rows."""


@asynccontextmanager
async def lifespan(app: Application[PaymentSettings]) -> AsyncIterator[None]:
    """Open the databases, start the sagas, serve; at the drain give every lease back at once."""
    if app.settings.two_phase_commit:
        two_phase_place(place_of(app.settings, FILE_NAME))
    async with (
        await Database.open(place_of(app.settings, FILE_NAME), migrations=MIGRATIONS) as database,
        open_reads(app.settings, database, app.registry, FILE_NAME) as reads,
        open_events(app, database) as events,
    ):
        await database.write(chain_what_is_not)
        node = await open_paying_node(app.settings)
        try:
            feed = ChangeFeed(database)
            owner = f"{app.settings.service}-{app.settings.replica}/{uuid.uuid4()}"
            engine = SagaEngine(_parts(app, database, feed, node), owner)
            await _serve(app, database, reads, feed, engine, node)
            add_event_service(app, events, await PageTokens.open(database))
            try:
                yield
            finally:
                await engine.stop()
        finally:
            await node.close()


def _parts(app: Application[PaymentSettings], database: Database, feed: ChangeFeed, node: PayingNode) -> Parts:
    return Parts(
        database=database,
        feed=feed,
        invoices=InvoiceClient(app.channel),
        receipts=ReceiptClient(app.channel),
        receipt_key=ReceiptKey(database),
        node=node,
        two_phase=app.settings.two_phase_commit,
    )


async def _serve(
    app: Application[PaymentSettings],
    database: Database,
    reads: Reads,
    feed: ChangeFeed,
    engine: SagaEngine,
    node: PayingNode,
) -> None:
    tokens = await PageTokens.open(database)
    payer = InvoicePayer(database, engine, feed, node.currency)
    estimator = FeeEstimator(InvoiceClient(app.channel), node)
    payments = PaymentServicer(database, reads, payer, estimator, PaymentWatcher(database, app.draining), tokens)
    services = payment_service_pb2.DESCRIPTOR.services_by_name
    app.add(add_PaymentServiceServicer_to_server, payments, services["PaymentService"])
    accounts = AccountServicer(database, tokens)
    app.add(add_AccountServiceServicer_to_server, accounts, services["AccountService"])
    wallet = wallet_service_pb2.DESCRIPTOR.services_by_name["WalletPaymentService"]
    app.add(add_WalletPaymentServiceServicer_to_server, WalletPaymentServicer(payments, accounts, node), wallet)
    app.add(add_LedgerServiceServicer_to_server, LedgerServicer(database, tokens), services["LedgerService"])
    credit = invoice_ledger_service_pb2.DESCRIPTOR.services_by_name["InvoiceLedgerService"]
    app.add(add_InvoiceLedgerServiceServicer_to_server, InvoiceLedgerServicer(database), credit)
    operators = payment_operator_service_pb2.DESCRIPTOR.services_by_name["PaymentOperatorService"]
    app.add(add_PaymentOperatorServiceServicer_to_server, PaymentOperatorServicer(database, feed), operators)
    operations = saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"]
    app.add(add_SagaServiceServicer_to_server, SagaServicer(database, tokens), operations)
    engine.start()
    app.spawn(run_sweeper(database), name="sweeper")
    app.spawn(_stop_at_drain(app, engine), name="leases back at the drain")


async def _stop_at_drain(app: Application[PaymentSettings], engine: SagaEngine) -> None:
    """A replica that shuts down drives nothing: the others take its sagas over while its calls still wait for them."""
    await app.draining.wait()
    await engine.stop()


SERVICE: Final = ServiceDefinition(settings=PaymentSettings, access=ACCESS, lifespan=lifespan)
