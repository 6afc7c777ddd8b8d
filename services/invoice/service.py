"""The invoice service's definition: how it comes to life, and who may call it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from nipmesh.invoice.v1 import (
    invoice_service_pb2,
    invoice_service_pb2_grpc,
    simulated_network_service_pb2,
    simulated_network_service_pb2_grpc,
    wallet_service_pb2,
    wallet_service_pb2_grpc,
)
from services.chassis.service import Application, ServiceDefinition
from services.events.runtime import open_events
from services.events.servicer import EVENT_ACCESS, add_event_service
from services.invoice import servicer, settlement, simulation, wallet
from services.invoice.accounts import Accounts
from services.invoice.deciding import Deciding
from services.invoice.expiry import ExpirySweeper
from services.invoice.issuing import Issuer
from services.invoice.ledger import Ledger
from services.invoice.parts import Parts
from services.invoice.receiving import Receiver
from services.invoice.servicer import InvoiceServicer
from services.invoice.settings import InvoiceSettings
from services.invoice.settlement import InvoiceSettlementServicer
from services.invoice.simulation import SimulatedNetworkServicer
from services.invoice.two_phase import TwoPhase
from services.invoice.watching import Watcher
from services.invoice.worker import Worker
from services.invoice.zaps import Zaps
from services.lightning.node import ReceivingNode
from services.lightning.settings import open_receiving_node
from services.storage.cache import open_reads
from services.storage.database import Database
from services.storage.pages import PageTokens
from services.storage.places import place_of
from services.storage.postgresql.two_phase import PreparedTransactions
from services.storage.sweeper import run_sweeper

MIGRATIONS: Final = Path(__file__).parent / "migrations"
FILE_NAME: Final = "invoice.sqlite3"
NANOSECONDS_PER_MS: Final = 1_000_000


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // NANOSECONDS_PER_MS


@asynccontextmanager
async def aclosing_node(node: ReceivingNode) -> AsyncIterator[ReceivingNode]:
    """Let go of the node at the end."""
    try:
        yield node
    finally:
        await node.close()


@asynccontextmanager
async def invoice(app: Application[InvoiceSettings]) -> AsyncIterator[None]:
    """Live while the service runs."""
    async with (
        aclosing_node(await open_receiving_node(app.settings, app.settings.node_key_file)) as node,
        await Database.open(place_of(app.settings, FILE_NAME), migrations=MIGRATIONS) as database,
        open_reads(app.settings, database, app.registry, FILE_NAME) as reads,
        open_events(app, database) as events,
        AsyncExitStack() as stack,
    ):
        ledger = Ledger(app.channel)
        two_phase = await _two_phase(app, stack, database, ledger)
        worker = Worker(database, node, ledger, now_ms, app.spawn)
        sweeper = ExpirySweeper(database, now_ms, worker.note)
        parts = Parts(
            database=database,
            reads=reads,
            accounts=Accounts(app.channel),
            zaps=Zaps(app.channel),
            issuer=Issuer(database, node),
            deciding=Deciding(database, worker, now_ms),
            worker=worker,
            page_tokens=await PageTokens.open(database),
            sweeper=sweeper,
            watcher=Watcher(database, app.draining),
            two_phase=two_phase,
            clock=now_ms,
        )
        _serve(app, parts, node)
        add_event_service(app, events, parts.page_tokens)
        _work(app, parts, Receiver(database, node, worker, now_ms, app.spawn))
        yield


def _serve(app: Application[InvoiceSettings], parts: Parts, node: ReceivingNode) -> None:
    """Add the gRPC services."""
    services = invoice_service_pb2.DESCRIPTOR.services_by_name
    invoices = InvoiceServicer(parts)
    app.add(invoice_service_pb2_grpc.add_InvoiceServiceServicer_to_server, invoices, services["InvoiceService"])
    app.add(
        wallet_service_pb2_grpc.add_WalletInvoiceServiceServicer_to_server,
        wallet.WalletInvoiceServicer(invoices),
        wallet_service_pb2.DESCRIPTOR.services_by_name["WalletInvoiceService"],
    )
    app.add(
        invoice_service_pb2_grpc.add_InvoiceSettlementServiceServicer_to_server,
        InvoiceSettlementServicer(parts),
        services["InvoiceSettlementService"],
    )
    app.add(
        simulated_network_service_pb2_grpc.add_SimulatedNetworkServiceServicer_to_server,
        SimulatedNetworkServicer(node),
        simulated_network_service_pb2.DESCRIPTOR.services_by_name["SimulatedNetworkService"],
    )


def _work(app: Application[InvoiceSettings], parts: Parts, receiver: Receiver) -> None:
    """Begin what no call waits for."""
    app.spawn(receiver.follow(), name="words of the node")
    app.spawn(receiver.look(), name="look at the node")
    app.spawn(parts.worker.run(), name="invoice worker")
    app.spawn(parts.sweeper.run(), name="expiry sweeper")
    app.spawn(run_sweeper(parts.database), name="storage sweeper")
    if parts.two_phase is not None:
        app.spawn(parts.two_phase.run(), name="two-phase sweeper")


async def _two_phase(
    app: Application[InvoiceSettings], stack: AsyncExitStack, database: Database, ledger: Ledger
) -> TwoPhase | None:
    """The part in two-phase commits, when that is on. Raises StartError."""
    if not app.settings.two_phase_commit:
        return None
    place = place_of(app.settings, FILE_NAME)
    transactions = await stack.enter_async_context(PreparedTransactions.open(place))
    return TwoPhase(database, transactions, ledger, now_ms)


ACCESS: Final = {
    **servicer.ACCESS,
    **settlement.ACCESS,
    **simulation.ACCESS,
    **wallet.ACCESS,
    **EVENT_ACCESS,
}
SERVICE: Final = ServiceDefinition(settings=InvoiceSettings, access=ACCESS, lifespan=invoice)
