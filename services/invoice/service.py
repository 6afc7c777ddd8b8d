"""The invoice service's definition: how it comes to life, and who may call it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from nipmesh.invoice.v1 import invoice_service_pb2, invoice_service_pb2_grpc
from services.chassis.secret import SecretFileError, load_secret
from services.chassis.service import Application, ServiceDefinition
from services.invoice.accounts import Accounts
from services.invoice.expiry import ExpirySweeper
from services.invoice.servicer import ACCESS, InvoiceServicer, InvoiceSettlementServicer, Parts
from services.invoice.settings import InvoiceSettings
from services.invoice.watching import Watcher
from services.lightning.node_key import SECRET_BYTES, NodeKey, NodeKeyError
from services.storage.database import Database
from services.storage.pages import PageTokens
from services.storage.sweeper import run_sweeper

MIGRATIONS: Final = Path(__file__).parent / "migrations"
FILE_NAME: Final = "invoice.sqlite3"
NANOSECONDS_PER_MS: Final = 1_000_000


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // NANOSECONDS_PER_MS


def load_node_key(path: Path) -> NodeKey:
    """Return the node's key from its secret file. Raises SecretFileError."""
    try:
        return NodeKey(load_secret(path, length=SECRET_BYTES))
    except NodeKeyError as error:
        raise SecretFileError(f"the secret file {path} is no key: {error}") from error


@asynccontextmanager
async def invoice(app: Application[InvoiceSettings]) -> AsyncIterator[None]:
    """Live while the service runs."""
    node_key = load_node_key(app.settings.node_key_file)
    async with await Database.open(app.settings.data_directory / FILE_NAME, migrations=MIGRATIONS) as database:
        sweeper = ExpirySweeper(database, now_ms)
        parts = Parts(
            database=database,
            accounts=Accounts(app.channel),
            node_key=node_key,
            page_tokens=await PageTokens.open(database),
            sweeper=sweeper,
            watcher=Watcher(database, app.draining),
            clock=now_ms,
        )
        services = invoice_service_pb2.DESCRIPTOR.services_by_name
        app.add(
            invoice_service_pb2_grpc.add_InvoiceServiceServicer_to_server,
            InvoiceServicer(parts),
            services["InvoiceService"],
        )
        app.add(
            invoice_service_pb2_grpc.add_InvoiceSettlementServiceServicer_to_server,
            InvoiceSettlementServicer(parts),
            services["InvoiceSettlementService"],
        )
        app.spawn(sweeper.run(), name="expiry sweeper")
        app.spawn(run_sweeper(database), name="storage sweeper")
        yield


SERVICE: Final = ServiceDefinition(settings=InvoiceSettings, access=ACCESS, lifespan=invoice)
