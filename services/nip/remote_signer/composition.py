"""The remote signer put together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from nipmesh.nip.v1 import remote_signer_service_pb2, remote_signer_service_pb2_grpc
from services.chassis.service import Application
from services.nip.keyring import Keyring
from services.nip.keys import Keys
from services.nip.remote_signer.connecting import Connecting
from services.nip.remote_signer.handler import Handler
from services.nip.remote_signer.limiting import Limits
from services.nip.remote_signer.servicer import RemoteSignerServicer
from services.nip.remote_signer.signer_keys import SignerKeys
from services.nip.remote_signer.worker import SignerMetrics, Worker
from services.nip.settings import NipSettings
from services.relays import RelayMetrics, RelayOptions, RelayPool
from services.storage.database import Database
from services.storage.ids import new_id
from services.storage.pages import PageTokens

_SERVICE: Final = remote_signer_service_pb2.DESCRIPTOR.services_by_name["RemoteSignerService"]


@asynccontextmanager
async def serving_remote_signer(
    app: Application[NipSettings], database: Database, keyring: Keyring, keys: Keys
) -> AsyncIterator[Worker]:
    """Serve apps, by calls and over relays. The connections to relays end last: calls that drain may still have answers to publish."""
    settings = app.settings
    replica = f"{settings.replica}-{os.getpid()}-{new_id()}"
    signer_keys, limits = SignerKeys(keys), Limits(settings.signer_requests_per_second)
    handler = Handler(database, keys, signer_keys, replica=replica, auth_url=settings.signer_auth_url)
    worker = Worker(database, handler, signer_keys, limits, SignerMetrics.register(app.registry), replica=replica)
    options = RelayOptions(
        private_allowed=settings.signer_private_relays,
        trusted_relays=frozenset(settings.signer_relay_urls),
        ca_file=settings.relay_ca_file,
        authenticator=worker.prove,
    )
    metrics = RelayMetrics.register(app.registry, "nip46_relay")
    # Two sockets to each relay: what comes in does not wait for what goes out.
    async with RelayPool(options, metrics=metrics) as publishing, RelayPool(options, metrics=metrics) as listening:
        worker.use(listening, publishing)
        connecting = Connecting(database, keys, signer_keys, keyring, settings.signer_relay_urls)
        servicer = RemoteSignerServicer(
            database,
            connecting,
            handler,
            worker,
            limits,
            await PageTokens.open(database),
            app.draining,
            replica=replica,
        )
        app.add(remote_signer_service_pb2_grpc.add_RemoteSignerServiceServicer_to_server, servicer, _SERVICE)
        app.spawn(worker.run(app.draining), name="remote signer")
        yield worker
