"""Zaps put together: the service, and the workers that nobody calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nipmesh.nip.v1 import zap_service_pb2, zap_service_pb2_grpc
from services.chassis.service import Application
from services.nip.keyring import Keyring
from services.nip.keys import Keys
from services.nip.settings import NipSettings
from services.nip.zaps.publishing import Publisher
from services.nip.zaps.receipts import Receipts, open_zap_key
from services.nip.zaps.relay_call import RelayCaller, relay_options
from services.nip.zaps.servicer import ZapServicer
from services.relays import RelayMetrics, RelayPool
from services.storage.database import Database


@asynccontextmanager
async def open_zaps(
    app: Application[NipSettings], database: Database, keyring: Keyring, keys: Keys
) -> AsyncIterator[Receipts]:
    """Serve ZapService, and publish the receipts that are made; the connections to relays end with it."""
    key = await open_zap_key(keys, app.settings.spiffe_id, keyring.current.auxiliary_key)
    servicer = ZapServicer(database, keys, key.pubkey)
    descriptor = zap_service_pb2.DESCRIPTOR.services_by_name["ZapService"]
    app.add(zap_service_pb2_grpc.add_ZapServiceServicer_to_server, servicer, descriptor)
    options = relay_options(key, private=app.settings.zap_private_relays, ca_file=app.settings.relay_ca_file)
    async with RelayPool(options, metrics=RelayMetrics.register(app.registry, "nip57_relay")) as pool:
        app.spawn(Publisher(database, RelayCaller(pool)).run(), name="publisher of zap receipts")
        yield Receipts(key, app.settings.zap_relays_max)
