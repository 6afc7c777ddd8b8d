"""The wallet put together: what it is made of, in the order in which it comes to life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NoReturn

from nipmesh.nip.v1 import wallet_connect_service_pb2
from nipmesh.nip.v1.wallet_connect_service_pb2_grpc import add_WalletConnectServiceServicer_to_server
from services.chassis.errors import ServiceError, StartError
from services.chassis.logs import get_logger
from services.chassis.service import Application
from services.nip.keys import Keys
from services.nip.settings import NipSettings
from services.nip.wallet.backend import Backend
from services.nip.wallet.connections import Connections
from services.nip.wallet.engine import Engine
from services.nip.wallet.handler import Handler
from services.nip.wallet.meeting import Meeting, PoolPublisher
from services.nip.wallet.servicer import WalletConnectServicer
from services.nip.wallet.tasks import forget_old_tasks
from services.nip.wallet.vault import Vault
from services.nostr.relay_url import RelayUrlError, normal_relay_url
from services.relays import RelayMetrics, RelayOptions, RelayPool
from services.storage.database import Database
from services.storage.pages import PageTokens

NANOSECONDS_PER_MS: Final = 1_000_000
SWEEP_S: Final = 60.0
"""Pause between two looks for rows that may be forgotten."""
SWEEP_ROWS_MAX: Final = 1_000

_SERVICE: Final = wallet_connect_service_pb2.DESCRIPTOR.services_by_name["WalletConnectService"]
_log = get_logger("nip")


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // NANOSECONDS_PER_MS


@asynccontextmanager
async def serving_wallets(app: Application[NipSettings], database: Database, keys: Keys) -> AsyncIterator[Meeting]:
    """Serve WalletConnectService and listen at the relays; at the drain give what is worked on back.

    Raises StartError for settings that cannot be right.
    """
    relays = relays_of(app.settings)
    options = RelayOptions(trusted_relays=frozenset(relays), ca_file=app.settings.relay_ca_file)
    metrics = RelayMetrics.register(app.registry, "nip47_relay")
    vault, backend = Vault(keys), Backend(lambda: app.channel)
    handler = Handler(database, backend, app.settings.mesh, now_ms)
    # Two sockets to each relay: what comes in does not wait for what goes out.
    async with RelayPool(options, metrics=metrics) as publishing, RelayPool(options, metrics=metrics) as listening:
        engine = Engine(database, vault, backend, handler, PoolPublisher(publishing), now_ms)
        meeting = Meeting(database, listening, engine, now_ms)
        connections = Connections(database, vault, backend, relays, now_ms, meeting.listen_at)
        servicer = WalletConnectServicer(connections, await PageTokens.open(database))
        app.add(add_WalletConnectServiceServicer_to_server, servicer, _SERVICE)
        app.spawn(engine.run(), name="wallet engine")
        app.spawn(engine.renew(), name="wallet leases")
        app.spawn(meeting.run(), name="wallet relays")
        app.spawn(_sweep(database), name="wallet sweeper")
        try:
            yield meeting
        finally:
            await engine.stop()


async def _sweep(database: Database) -> NoReturn:
    """Forget what was done long ago."""
    while True:
        try:
            await database.write(lambda connection: forget_old_tasks(connection, now_ms(), SWEEP_ROWS_MAX))
        except ServiceError as error:
            _log.info("old wallet tasks not forgotten", reason=error.reason)
        await asyncio.sleep(SWEEP_S)


def relays_of(settings: NipSettings) -> tuple[str, ...]:
    """Return the relays that the operator names. Raises StartError for what is none."""
    relays = settings.wallet_relays.replace(",", " ").split()
    try:
        return tuple(normal_relay_url(relay) for relay in relays)
    except RelayUrlError as error:
        raise StartError(f"NIPMESH_WALLET_RELAYS: {error}") from error
