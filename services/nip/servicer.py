"""The gRPC methods of NipService: from the wire to the domain and back."""

# names and parameters are those of the generated base classes

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from nipmesh.nip.v1 import nip_service_pb2 as pb
from nipmesh.nip.v1 import nip_service_pb2_grpc
from services.chassis.caller import SERVICE, Access, current_caller
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes
from services.nip import wire
from services.nip.domain import nip49
from services.nip.domain.nip19 import secret_key_of_nsec
from services.nip.errors import domain_errors, password_errors
from services.nip.key_life import KeyLife
from services.nip.keys import Encrypted, Keys, NewKey, Signing, wall_clock
from services.nip.life_servicer import LifeMethods
from services.nip.text_servicer import TextMethods
from services.nostr.verification import Verifier
from services.storage.pages import PageTokens

_OWNERS: Final = Access.USER | SERVICE("payment")
ACCESS: Final[Mapping[str, Access]] = {
    "/nipmesh.nip.v1.NipService/CreateKey": _OWNERS,
    "/nipmesh.nip.v1.NipService/GetKey": _OWNERS,
    "/nipmesh.nip.v1.NipService/ListKeys": _OWNERS,
    "/nipmesh.nip.v1.NipService/SignEvent": _OWNERS,
    "/nipmesh.nip.v1.NipService/VerifyEvents": _OWNERS,
    "/nipmesh.nip.v1.NipService/Encrypt": Access.USER,
    "/nipmesh.nip.v1.NipService/Decrypt": Access.USER,
    "/nipmesh.nip.v1.NipService/GetRelays": Access.USER,
    "/nipmesh.nip.v1.NipService/SetRelays": Access.USER,
    "/nipmesh.nip.v1.NipService/LockKey": Access.USER,
    "/nipmesh.nip.v1.NipService/UnlockKey": Access.USER,
    "/nipmesh.nip.v1.NipService/DisableKey": Access.USER,
    "/nipmesh.nip.v1.NipService/EnableKey": Access.USER,
    "/nipmesh.nip.v1.NipService/DeleteKey": Access.USER,
    "/nipmesh.nip.v1.NipService/ExportKey": Access.USER,
    "/nipmesh.nip.v1.NipService/EncodeNip19": Access.USER,
    "/nipmesh.nip.v1.NipService/DecodeNip19": Access.USER,
}
"""Who may call what. Payment signs its receipts; what else it may call its manifest decides.

What ends or hands out a key is for users alone. A service makes its key once and signs with it for ever: no mistake of its own, and nobody
who takes it over, can lock, delete or export that key.
"""

_log = get_logger("nip")

Context = grpc.aio.ServicerContext


class NipServicer(LifeMethods, TextMethods, nip_service_pb2_grpc.NipServiceServicer):
    """nipmesh.nip.v1.NipService. The owner of a key is whoever calls: the token's subject, else the calling service."""

    def __init__(self, keys: Keys, life: KeyLife, verifier: Verifier, page_tokens: PageTokens) -> None:
        self._keys = keys
        self._life = life
        self._page_tokens = page_tokens
        self._verifier = verifier

    async def CreateKey(
        self, request: pb.CreateKeyRequest, context: Context[pb.CreateKeyRequest, pb.CreateKeyResponse]
    ) -> pb.CreateKeyResponse:
        """Make a fresh key, or take one over."""
        with domain_errors(), password_errors():
            secret_key = _given(request)
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
        return pb.CreateKeyResponse(key=wire.key_message(key, wall_clock()), replayed=replayed)

    async def GetKey(
        self, request: pb.GetKeyRequest, context: Context[pb.GetKeyRequest, pb.GetKeyResponse]
    ) -> pb.GetKeyResponse:
        """Return one key of the caller."""
        with domain_errors():
            key = await self._keys.get(current_caller().scope, request.key_id)
        return pb.GetKeyResponse(key=wire.key_message(key, wall_clock()))

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
            keys=[wire.key_message(key, wall_clock()) for key in shown],
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


def _given(request: pb.CreateKeyRequest) -> SecretBytes | Encrypted | None:
    """The private key that the request brings. Raises Nip19Error, NcryptsecError, TooCostlyError."""
    match request.WhichOneof("source"):
        case "nsec":
            return secret_key_of_nsec(request.nsec)
        case "encrypted":
            data = nip49.bytes_of(request.encrypted.ncryptsec)
            return Encrypted(data=data, password=nip49.normalized(request.encrypted.password))
    return None
