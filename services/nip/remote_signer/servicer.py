"""The gRPC methods of the remote signer: from the wire to the domain and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Final

import grpc

from nipmesh.events.v1 import remote_signer_events_pb2 as events_pb
from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from nipmesh.nip.v1 import remote_signer_service_pb2_grpc
from services.chassis.caller import Access, require_subject
from services.chassis.draining import Draining
from services.chassis.errors import FieldViolation, InvalidRequest, Reason, ServiceError, not_found
from services.nip.domain.remote_signer.connection import Will
from services.nip.domain.remote_signer.log import Outcome, Recorded
from services.nip.domain.remote_signer.message import Request
from services.nip.domain.remote_signer.uri import NostrConnectUriError, nostr_connect_of
from services.nip.errors import domain_errors
from services.nip.remote_signer import announcing, recording, store
from services.nip.remote_signer.connecting import Connecting, Wish
from services.nip.remote_signer.handler import Asking, Handler
from services.nip.remote_signer.limiting import Limits
from services.nip.remote_signer.wire import connection_message, permission_of, request_message
from services.nip.remote_signer.worker import Worker
from services.nip.wire import timestamp_of_us
from services.storage import sql
from services.storage.database import Database
from services.storage.events import Event, Heartbeat, watch
from services.storage.idempotency import RequestKey, in_progress, run_once
from services.storage.pages import PageTokens

SERVICE_NAME: Final = "nipmesh.nip.v1.RemoteSignerService"
WAIT_S: Final = 2.0
"""So long does a call wait for the same request that runs already; then it says so."""
RATE_RETRY_MS: Final = 1_000
MICROSECONDS_PER_MILLISECOND: Final = 1_000
ACCESS: Final[Mapping[str, Access]] = {
    f"/{SERVICE_NAME}/{method.name}": Access.USER
    for method in pb.DESCRIPTOR.services_by_name["RemoteSignerService"].methods
}
"""All for users: owners of keys, and apps that log in with their own key."""

Context = grpc.aio.ServicerContext


class RemoteSignerServicer(remote_signer_service_pb2_grpc.RemoteSignerServiceServicer):
    """nipmesh.nip.v1.RemoteSignerService."""

    def __init__(
        self,
        database: Database,
        connecting: Connecting,
        handler: Handler,
        worker: Worker,
        limits: Limits,
        page_tokens: PageTokens,
        draining: Draining,
        *,
        replica: str,
    ) -> None:
        self._database = database
        self._connecting = connecting
        self._handler = handler
        self._worker = worker
        self._limits = limits
        self._page_tokens = page_tokens
        self._draining = draining
        self._replica = replica

    async def CreateBunkerConnection(
        self,
        request: pb.CreateBunkerConnectionRequest,
        context: Context[pb.CreateBunkerConnectionRequest, pb.CreateBunkerConnectionResponse],
    ) -> pb.CreateBunkerConnectionResponse:
        """Make a connection and its URI."""
        wish = Wish(
            owner=require_subject(),
            key_id=request.key_id,
            display_name=request.display_name,
            permissions=tuple(permission_of(one) for one in request.permissions),
            relays=tuple(request.relay_urls),
            ttl_us=request.ttl.ToMicroseconds() if request.HasField("ttl") else None,
        )
        with domain_errors():
            response = await self._connecting.create(wish, RequestKey.of(request))
        await self._worker.listen_at(response.connection.relay_urls)
        return response

    async def AcceptNostrConnect(
        self,
        request: pb.AcceptNostrConnectRequest,
        context: Context[pb.AcceptNostrConnectRequest, pb.AcceptNostrConnectResponse],
    ) -> pb.AcceptNostrConnectResponse:
        """Answer an app's URI. The greeting is published by whichever replica sees it first."""
        try:
            app = nostr_connect_of(request.nostrconnect_uri)
        except NostrConnectUriError as error:
            raise ServiceError(Reason.NOSTRCONNECT_URI_INVALID, str(error)) from error
        wish = Wish(
            owner=require_subject(),
            key_id=request.key_id,
            display_name=request.display_name,
            permissions=tuple(permission_of(one) for one in request.permissions),
            ttl_us=request.ttl.ToMicroseconds() if request.HasField("ttl") else None,
            app=app,
        )
        with domain_errors():
            return await self._connecting.accept(wish, RequestKey.of(request))

    async def GetSignerConnection(
        self,
        request: pb.GetSignerConnectionRequest,
        context: Context[pb.GetSignerConnectionRequest, pb.GetSignerConnectionResponse],
    ) -> pb.GetSignerConnectionResponse:
        """One connection."""
        connection = await self._connecting.get(require_subject(), request.connection_id)
        return pb.GetSignerConnectionResponse(connection=connection_message(connection))

    async def ListSignerConnections(
        self,
        request: pb.ListSignerConnectionsRequest,
        context: Context[pb.ListSignerConnectionsRequest, pb.ListSignerConnectionsResponse],
    ) -> pb.ListSignerConnectionsResponse:
        """A page of connections, newest first."""
        owner, page = require_subject(), self._page_tokens.page(request)
        before = str(page.after[0]) if page.after else None
        found = await self._database.read(
            lambda rows: store.connections_of(rows, owner, key_id=request.key_id, before=before, limit=page.size + 1)
        )
        shown = found[: page.size]
        return pb.ListSignerConnectionsResponse(
            connections=[connection_message(one) for one in shown],
            next_page_token=self._page_tokens.next(request, (shown[-1].connection_id,))
            if len(found) > page.size
            else "",
        )

    async def UpdatePermissions(
        self,
        request: pb.UpdatePermissionsRequest,
        context: Context[pb.UpdatePermissionsRequest, pb.UpdatePermissionsResponse],
    ) -> pb.UpdatePermissionsResponse:
        """Replace the permissions."""
        permissions = tuple(permission_of(one) for one in request.permissions)
        return await self._connecting.update(
            require_subject(), request.connection_id, permissions, RequestKey.of(request)
        )

    async def RevokeSignerConnection(
        self,
        request: pb.RevokeSignerConnectionRequest,
        context: Context[pb.RevokeSignerConnectionRequest, pb.RevokeSignerConnectionResponse],
    ) -> pb.RevokeSignerConnectionResponse:
        """End a connection."""
        return await self._connecting.revoke(require_subject(), request.connection_id, RequestKey.of(request))

    async def ListPendingRequests(
        self,
        request: pb.ListPendingRequestsRequest,
        context: Context[pb.ListPendingRequestsRequest, pb.ListPendingRequestsResponse],
    ) -> pb.ListPendingRequestsResponse:
        """What waits for the caller."""
        owner, page = require_subject(), self._page_tokens.page(request)
        after = str(page.after[0]) if page.after else ""
        found = await self._database.read(
            lambda rows: store.asked_requests(rows, owner, after=after, limit=page.size + 1)
        )
        shown = found[: page.size]
        return pb.ListPendingRequestsResponse(
            requests=[request_message(one) for one in shown],
            next_page_token=self._page_tokens.next(request, (shown[-1].approval_id,)) if len(found) > page.size else "",
        )

    async def ResolveRequest(
        self, request: pb.ResolveRequestRequest, context: Context[pb.ResolveRequestRequest, pb.ResolveRequestResponse]
    ) -> pb.ResolveRequestResponse:
        """Decide, then have the app answered."""
        owner, key = require_subject(), RequestKey.of(request)
        found = await self._database.read(lambda rows: store.request_by_id(rows, request.approval_id))
        if found is None or found.owner != owner:
            raise not_found(Reason.SIGNER_REQUEST_NOT_FOUND, "request")
        asking = _asking(request)
        grant = await self._handler.resolve(found, asking) if found.outcome is Outcome.ASKED else None
        now_us = self._handler.now_us()

        def effect(rows: sql.Connection) -> pb.ResolveRequestResponse:
            current = store.request_by_id(rows, request.approval_id)
            assert current is not None, "requests are kept for weeks"
            if current.outcome is Outcome.ASKED:
                current = recording.resolve(rows, current, asking.will, grant, self._replica, now_us)
            return pb.ResolveRequestResponse(request=request_message(current))

        response, replayed = await self._database.write(
            lambda rows: run_once(rows, key, pb.ResolveRequestResponse, lambda: effect(rows))
        )
        if not replayed:
            running = await self._database.read(lambda rows: store.request_by_id(rows, request.approval_id))
            if running is not None and running.outcome is Outcome.RUNNING:
                self._worker.go_on_soon(running)
        response.replayed = replayed
        return response

    async def HandleRequest(
        self, request: pb.HandleRequestRequest, context: Context[pb.HandleRequestRequest, pb.HandleRequestResponse]
    ) -> pb.HandleRequestResponse:
        """Answer an app's call."""
        client_pubkey = require_subject()
        if request.client_pubkey != client_pubkey:
            raise InvalidRequest(FieldViolation(field="client_pubkey", description="must be the token's subject"))
        connection = await self._database.read(lambda rows: store.find_connection(rows, request.connection_id))
        if connection is None:
            raise not_found(Reason.SIGNER_CONNECTION_NOT_FOUND, "connection")
        if not self._limits.allow(connection, client_pubkey):
            raise ServiceError(Reason.SIGNER_RATE_EXCEEDED, "too many requests", retry_delay_ms=RATE_RETRY_MS)
        asked = Request(id=request.id, method=request.method, params=tuple(request.params))
        with domain_errors():
            recorded = await self._handler.from_call(connection, client_pubkey, asked)
            if recorded is None:
                recorded = await self._handled_elsewhere(request)
            answer = None if recorded is None else await self._handler.answer_text(connection, recorded)
        if recorded is None:
            raise in_progress()
        if answer is None and recorded.outcome is Outcome.ASKED:
            return pb.HandleRequestResponse(id=request.id, result="auth_url")
        if answer is None:
            raise not_found(Reason.SIGNER_CONNECTION_NOT_FOUND, "connection")
        return pb.HandleRequestResponse(id=request.id, result=answer.result, error=answer.error)

    async def _handled_elsewhere(self, request: pb.HandleRequestRequest) -> Recorded | None:
        """Wait for what another call, or a decision, makes of the same request; None when it takes too long, or is none."""
        changes, until_s = self._database.changes(), time.monotonic() + WAIT_S
        while True:
            found = await self._database.read(
                lambda rows: store.find_request(rows, request.connection_id, request.client_pubkey, request.id)
            )
            left_s = until_s - time.monotonic()
            if found is None or left_s <= 0:
                return None
            if found[0].outcome is not Outcome.RUNNING:
                return found[0]
            await changes.wait(timeout_s=left_s)

    async def ListSignerRequests(
        self,
        request: pb.ListSignerRequestsRequest,
        context: Context[pb.ListSignerRequestsRequest, pb.ListSignerRequestsResponse],
    ) -> pb.ListSignerRequestsResponse:
        """A page of the audit, newest first."""
        owner, page = require_subject(), self._page_tokens.page(request)
        before = str(page.after[0]) if page.after else None
        found = await self._database.read(
            lambda rows: store.requests_of(
                rows, owner, connection_id=request.connection_id, before=before, limit=page.size + 1
            )
        )
        shown = found[: page.size]
        return pb.ListSignerRequestsResponse(
            requests=[request_message(one) for one in shown],
            next_page_token=self._page_tokens.next(request, (shown[-1].approval_id,)) if len(found) > page.size else "",
        )

    async def WatchRequests(
        self, request: pb.WatchRequestsRequest, context: Context[pb.WatchRequestsRequest, pb.WatchRequestsResponse]
    ) -> AsyncIterator[pb.WatchRequestsResponse]:
        """Changes of requests, without end."""
        owner = require_subject()

        def matches(event: Event) -> bool:
            if event.kind not in announcing.REQUEST_KINDS or request.connection_id not in ("", event.subject):
                return False
            return events_pb.RemoteSignerRequestChanged.FromString(event.payload).owner_pubkey == owner

        position = request.resume_after_sequence if request.HasField("resume_after_sequence") else None
        events = watch(self._database, draining=self._draining, resume_after_sequence=position, matches=matches)
        async with aclosing(events):  # type: ignore[type-var]  # it is an async generator
            async for event in events:
                yield _change(event)


def _asking(request: pb.ResolveRequestRequest) -> Asking:
    """The decision in a request."""
    match request.WhichOneof("decision"):
        case "allow_for":
            return Asking(will=Will.ALLOW, allow_for_us=request.allow_for.ToMicroseconds())
        case "allow_once":
            return Asking(will=Will.ALLOW)
        case _:
            return Asking(will=Will.DENY)


def _change(event: Event | Heartbeat) -> pb.WatchRequestsResponse:
    """An event or heartbeat as the stream's message."""
    if isinstance(event, Heartbeat):
        moment = timestamp_of_us(event.time_ms * MICROSECONDS_PER_MILLISECOND)
        return pb.WatchRequestsResponse(sequence=event.sequence, event_time=moment)
    return pb.WatchRequestsResponse(
        sequence=event.sequence,
        request=events_pb.RemoteSignerRequestChanged.FromString(event.payload).request,
        event_time=timestamp_of_us(event.create_time_ms * MICROSECONDS_PER_MILLISECOND),
    )
