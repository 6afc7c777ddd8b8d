"""The gRPC methods of WalletConnectService: from the wire to the connections and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import grpc

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from nipmesh.nip.v1 import wallet_connect_service_pb2_grpc
from services.chassis.caller import Access, require_subject
from services.chassis.logs import get_logger
from services.nip.wallet.connections import Connections, NewConnection
from services.nip.wallet.wire import terms_of
from services.storage.idempotency import RequestKey
from services.storage.pages import PageTokens

ACCESS: Final[Mapping[str, Access]] = {
    f"/nipmesh.nip.v1.WalletConnectService/{method}": Access.USER
    for method in (
        "CreateWalletConnection",
        "GetWalletConnection",
        "ListWalletConnections",
        "UpdateWalletConnection",
        "RevokeWalletConnection",
    )
}
"""Who may call what: users, about their own connections."""
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = get_logger("nip")


class WalletConnectServicer(wallet_connect_service_pb2_grpc.WalletConnectServiceServicer):
    """nipmesh.nip.v1.WalletConnectService."""

    def __init__(self, connections: Connections, page_tokens: PageTokens) -> None:
        self._connections = connections
        self._page_tokens = page_tokens

    async def CreateWalletConnection(
        self, request: pb.CreateWalletConnectionRequest, context: Context
    ) -> pb.CreateWalletConnectionResponse:
        """Connect an app to an account of the caller."""
        new = NewConnection(
            owner_pubkey=require_subject(),
            account_id=request.account_id,
            display_name=request.display_name,
            terms=terms_of(request.terms),
            relays=request.relays,
        )
        response = await self._connections.create(new, RequestKey.of(request))
        _log.info("wallet connected", owner=new.owner_pubkey, connection_id=response.connection.connection_id)
        return response

    async def GetWalletConnection(
        self, request: pb.GetWalletConnectionRequest, context: Context
    ) -> pb.GetWalletConnectionResponse:
        """One connection of the caller."""
        found = await self._connections.get(require_subject(), request.connection_id)
        return pb.GetWalletConnectionResponse(connection=found)

    async def ListWalletConnections(
        self, request: pb.ListWalletConnectionsRequest, context: Context
    ) -> pb.ListWalletConnectionsResponse:
        """The caller's connections, newest first."""
        page = self._page_tokens.page(request)
        before = str(page.after[0]) if page.after else None
        found = await self._connections.page(require_subject(), before, page.size + 1)
        response = pb.ListWalletConnectionsResponse(connections=found[: page.size])
        if len(found) > page.size:
            response.next_page_token = self._page_tokens.next(request, (found[page.size - 1].connection_id,))
        return response

    async def UpdateWalletConnection(
        self, request: pb.UpdateWalletConnectionRequest, context: Context
    ) -> pb.UpdateWalletConnectionResponse:
        """Replace the terms of a connection of the caller."""
        terms, owner = terms_of(request.terms), require_subject()
        return await self._connections.update(owner, request.connection_id, terms, RequestKey.of(request))

    async def RevokeWalletConnection(
        self, request: pb.RevokeWalletConnectionRequest, context: Context
    ) -> pb.RevokeWalletConnectionResponse:
        """End a connection of the caller."""
        response = await self._connections.revoke(require_subject(), request.connection_id, RequestKey.of(request))
        _log.info("wallet revoked", connection_id=request.connection_id)
        return response
