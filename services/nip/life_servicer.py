"""The gRPC methods for the life of a key: from the wire to the domain and back."""

from __future__ import annotations

from typing import Final

import grpc

from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.chassis.caller import current_caller
from services.chassis.logs import get_logger
from services.nip import wire
from services.nip.domain import nip49
from services.nip.errors import domain_errors, password_errors, text_errors
from services.nip.key_life import KeyLife, Order
from services.nip.life_store import Changed

MICROSECONDS_PER_MILLISECOND: Final = 1_000

_log = get_logger("nip")

Context = grpc.aio.ServicerContext
_Request = (
    pb.LockKeyRequest
    | pb.UnlockKeyRequest
    | pb.DisableKeyRequest
    | pb.EnableKeyRequest
    | pb.DeleteKeyRequest
    | pb.ExportKeyRequest
    | pb.SetRelaysRequest
)


class LifeMethods:
    """A part of NipServicer."""

    _life: KeyLife

    async def LockKey(
        self, request: pb.LockKeyRequest, context: Context[pb.LockKeyRequest, pb.LockKeyResponse]
    ) -> pb.LockKeyResponse:
        """Seal a key with a password, or end its unlocking."""
        with domain_errors(), password_errors():
            password = nip49.normalized(request.password) if request.password else None
            changed = await self._life.lock(_order(request), password)
        _tell("key locked", changed)
        return pb.LockKeyResponse(key=changed.message, replayed=changed.replayed)

    async def UnlockKey(
        self, request: pb.UnlockKeyRequest, context: Context[pb.UnlockKeyRequest, pb.UnlockKeyResponse]
    ) -> pb.UnlockKeyResponse:
        """Open a locked key, for a time or for good."""
        ttl_us = request.ttl.ToMicroseconds() if request.WhichOneof("duration") == "ttl" else None
        with domain_errors(), password_errors():
            changed = await self._life.unlock(_order(request), nip49.normalized(request.password), ttl_us)
        _tell("key unlocked", changed)
        return pb.UnlockKeyResponse(key=changed.message, replayed=changed.replayed)

    async def DisableKey(
        self, request: pb.DisableKeyRequest, context: Context[pb.DisableKeyRequest, pb.DisableKeyResponse]
    ) -> pb.DisableKeyResponse:
        """Switch a key off."""
        with domain_errors():
            changed = await self._life.disable(_order(request))
        _tell("key disabled", changed)
        return pb.DisableKeyResponse(key=changed.message, replayed=changed.replayed)

    async def EnableKey(
        self, request: pb.EnableKeyRequest, context: Context[pb.EnableKeyRequest, pb.EnableKeyResponse]
    ) -> pb.EnableKeyResponse:
        """Switch a key on."""
        with domain_errors():
            changed = await self._life.enable(_order(request))
        _tell("key enabled", changed)
        return pb.EnableKeyResponse(key=changed.message, replayed=changed.replayed)

    async def DeleteKey(
        self, request: pb.DeleteKeyRequest, context: Context[pb.DeleteKeyRequest, pb.DeleteKeyResponse]
    ) -> pb.DeleteKeyResponse:
        """Destroy a key."""
        with domain_errors():
            changed = await self._life.delete(_order(request))
        _tell("key deleted", changed)
        return pb.DeleteKeyResponse(key=changed.message, replayed=changed.replayed)

    async def ExportKey(
        self, request: pb.ExportKeyRequest, context: Context[pb.ExportKeyRequest, pb.ExportKeyResponse]
    ) -> pb.ExportKeyResponse:
        """Hand out a key, encrypted with a password."""
        with domain_errors(), password_errors():
            password = nip49.normalized(request.password)
            text, replayed = await self._life.export(_order(request), password, request.log_n or nip49.LOG_N_MIN)
        _log.info("key exported", key_id=request.key_id, owner=current_caller().scope)
        return pb.ExportKeyResponse(ncryptsec=text, replayed=replayed)

    async def GetRelays(
        self, request: pb.GetRelaysRequest, context: Context[pb.GetRelaysRequest, pb.GetRelaysResponse]
    ) -> pb.GetRelaysResponse:
        """Return the relays that belong to a key."""
        with domain_errors():
            relays = await self._life.relays(current_caller().scope, request.key_id)
        return pb.GetRelaysResponse(relays=wire.relay_messages(relays))

    async def SetRelays(
        self, request: pb.SetRelaysRequest, context: Context[pb.SetRelaysRequest, pb.SetRelaysResponse]
    ) -> pb.SetRelaysResponse:
        """Replace the relays that belong to a key."""
        with domain_errors(), text_errors():
            relays, replayed = await self._life.set_relays(_order(request), wire.relays_of(request.relays))
        return pb.SetRelaysResponse(relays=wire.relay_messages(relays), replayed=replayed)


def _order(request: _Request) -> Order:
    return Order(owner=current_caller().scope, key_id=request.key_id, request_id=request.request_id)


def _tell(what: str, changed: Changed) -> None:
    """A line in the log, the first time."""
    if not changed.replayed:
        _log.info(what, key_id=changed.message.key_id, pubkey=changed.message.pubkey, owner=changed.message.owner)
