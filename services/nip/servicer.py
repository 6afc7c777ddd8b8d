"""The gRPC methods of the NIP service: from the wire to the domain and back."""

# names and parameters are those of the generated base classes

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from nipmesh.nip.v1 import nip_service_pb2 as pb
from nipmesh.nip.v1 import nip_service_pb2_grpc
from services.chassis.caller import SERVICE, Access, current_caller
from services.chassis.logs import get_logger
from services.nip import wire
from services.nip.domain.nip19 import secret_key_of_nsec
from services.nip.errors import domain_errors
from services.nip.keys import MICROSECONDS_PER_SECOND, Keys, NewKey, Signing
from services.nip.login import Logins
from services.nip.verification import Verifier
from services.storage.pages import PageTokens

TOKEN_TYPE: Final = "Bearer"  # noqa: S105  # the scheme's name

_OWNERS: Final = Access.USER | SERVICE("payment")
ACCESS: Final[Mapping[str, Access]] = {
    "/nipmesh.nip.v1.AuthService/Login": Access.PUBLIC,
    "/nipmesh.nip.v1.NipService/CreateKey": _OWNERS,
    "/nipmesh.nip.v1.NipService/GetKey": _OWNERS,
    "/nipmesh.nip.v1.NipService/ListKeys": _OWNERS,
    "/nipmesh.nip.v1.NipService/SignEvent": _OWNERS,
    "/nipmesh.nip.v1.NipService/VerifyEvents": _OWNERS,
}
"""Who may call what. Payment signs its receipts; what else it may call its manifest decides."""

_log = get_logger("nip")

Context = grpc.aio.ServicerContext


class AuthServicer(nip_service_pb2_grpc.AuthServiceServicer):
    """nipmesh.nip.v1.AuthService."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    async def Login(
        self, request: pb.LoginRequest, context: Context[pb.LoginRequest, pb.LoginResponse]
    ) -> pb.LoginResponse:
        """Exchange a NIP-98 authorization for an access token."""
        with domain_errors():
            session = await self._logins.login(request.authorization)
        _log.info("login granted", pubkey=session.pubkey)
        expire_time_us = session.access_token.expire_time_seconds * MICROSECONDS_PER_SECOND
        return pb.LoginResponse(
            access_token=session.access_token.token.reveal().decode(),
            token_type=TOKEN_TYPE,
            expire_time=wire.timestamp_of_us(expire_time_us),
            pubkey=session.pubkey,
        )


class NipServicer(nip_service_pb2_grpc.NipServiceServicer):
    """nipmesh.nip.v1.NipService. The owner of a key is whoever calls: the token's subject, else the calling service."""

    def __init__(self, keys: Keys, verifier: Verifier, page_tokens: PageTokens) -> None:
        self._keys = keys
        self._page_tokens = page_tokens
        self._verifier = verifier

    async def CreateKey(
        self, request: pb.CreateKeyRequest, context: Context[pb.CreateKeyRequest, pb.CreateKeyResponse]
    ) -> pb.CreateKeyResponse:
        """Make a fresh key, or take one over."""
        with domain_errors():
            secret_key = secret_key_of_nsec(request.nsec) if request.WhichOneof("source") == "nsec" else None
            key, replayed = await self._keys.create(
                NewKey(
                    owner=current_caller().scope,
                    request_id=request.request_id,
                    display_name=request.display_name,
                    secret_key=secret_key,
                )
            )
        if not replayed:
            _log.info("key created", key_id=key.key_id, pubkey=key.pubkey, owner=key.owner)
        return pb.CreateKeyResponse(key=wire.key_message(key), replayed=replayed)

    async def GetKey(
        self, request: pb.GetKeyRequest, context: Context[pb.GetKeyRequest, pb.GetKeyResponse]
    ) -> pb.GetKeyResponse:
        """Return one key of the caller."""
        with domain_errors():
            key = await self._keys.get(current_caller().scope, request.key_id)
        return pb.GetKeyResponse(key=wire.key_message(key))

    async def ListKeys(
        self, request: pb.ListKeysRequest, context: Context[pb.ListKeysRequest, pb.ListKeysResponse]
    ) -> pb.ListKeysResponse:
        """Return a page of the caller's keys, newest first."""
        page = self._page_tokens.page(request)
        before = str(page.after[0]) if page.after else None
        keys = await self._keys.page(current_caller().scope, before=before, limit=page.size + 1)
        shown = keys[: page.size]
        more = len(keys) > page.size
        return pb.ListKeysResponse(
            keys=[wire.key_message(key) for key in shown],
            next_page_token=self._page_tokens.next(request, (shown[-1].key_id,)) if more else "",
        )

    async def SignEvent(
        self, request: pb.SignEventRequest, context: Context[pb.SignEventRequest, pb.SignEventResponse]
    ) -> pb.SignEventResponse:
        """Sign an event with a key of the caller."""
        signing = Signing(
            owner=current_caller().scope,
            request_id=request.request_id,
            key_id=request.key_id,
            template=wire.template_of(request.template),
        )
        with domain_errors():
            event, replayed = await self._keys.sign(signing)
        return pb.SignEventResponse(event=wire.event_message(event), replayed=replayed)

    async def VerifyEvents(
        self, request: pb.VerifyEventsRequest, context: Context[pb.VerifyEventsRequest, pb.VerifyEventsResponse]
    ) -> pb.VerifyEventsResponse:
        """Check ids and signatures."""
        verdicts = await self._verifier.verify([wire.event_of(event) for event in request.events])
        return pb.VerifyEventsResponse(results=[wire.RESULTS[verdict] for verdict in verdicts])
