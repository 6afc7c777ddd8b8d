"""A whole house for tests that kill a service: processes that can be killed, and routers for their sidecars."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from nipmesh.nip.v1.wallet_connect_service_pb2_grpc import WalletConnectServiceStub
from services.chassis.testing import as_user
from support.payment_mesh import PaymentMesh, Process, Router


class WalletProcesses(PaymentMesh):
    """See the module; `nips` are the replicas of the NIP service; `rest` is more of the environment of all three services."""

    def __init__(self, folder: Path, relay: str, **rest: Any) -> None:
        self._relay = relay
        super().__init__(folder, real_invoices=True, **rest)
        environment = {**self._nip_environment_of_both, "NIPMESH_REPLICA": "1"}
        self.nips = [self.nip, Process("services.nip", "nip-1", folder, environment)]

    def _nip_environment(self) -> dict[str, str]:
        self._nip_environment_of_both = {
            **super()._nip_environment(),
            "NIPMESH_EGRESS": f"unix:{self.folder}/nip-egress.sock",
            "NIPMESH_WALLET_RELAYS": self._relay,
            **self._rest,
        }
        return self._nip_environment_of_both

    async def start(self) -> None:
        routes = {
            "/nipmesh.payment.": self._living_socket,
            "/nipmesh.invoice.": lambda: f"unix:{self.invoice.socket}",
        }
        router = Router("nip", routes)
        await self._serve("nip-egress", lambda server: server.add_generic_rpc_handlers((router,)))
        await super().start()
        self._routers.append(router)
        await self.nips[1].start()

    async def stop(self) -> None:
        if self.nips[1].alive:
            await self.nips[1].end()
        await super().stop()

    async def wallets(self, method: str, request: Any, user: str, *, nip: Process | None = None) -> Any:
        """One call of WalletConnectService, at this replica or a living one."""
        living = nip or next(nip for nip in self.nips if nip.alive)
        async with grpc.aio.insecure_channel(f"unix:{living.socket}") as channel:
            call = getattr(WalletConnectServiceStub(channel), method)
            return await call(request, metadata=as_user(user), timeout=15)

    async def connection(self, user: str, connection_id: str) -> pb.WalletConnection:
        request = pb.GetWalletConnectionRequest(connection_id=connection_id)
        return (await self.wallets("GetWalletConnection", request, user)).connection


@asynccontextmanager
async def wallet_processes(folder: Path, relay: str, **rest: Any) -> AsyncIterator[WalletProcesses]:
    """Started, and stopped at the end."""
    folder.chmod(0o700)
    mesh = WalletProcesses(folder, relay, **rest)
    try:
        await mesh.start()
        yield mesh
    finally:
        await mesh.stop()
