"""The gRPC methods for texts: encrypted ones, and those in NIP-19 form."""

from __future__ import annotations

import grpc

from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.chassis.caller import current_caller
from services.chassis.errors import Reason, ServiceError
from services.nip import wire, wire_nip19
from services.nip.domain import nip19
from services.nip.domain.nip19 import URI_SCHEME, Nip19Error
from services.nip.errors import domain_errors, text_errors
from services.nip.keys import Keys

Context = grpc.aio.ServicerContext


class TextMethods:
    """A part of NipServicer."""

    _keys: Keys

    async def Encrypt(
        self, request: pb.EncryptRequest, context: Context[pb.EncryptRequest, pb.EncryptResponse]
    ) -> pb.EncryptResponse:
        """Encrypt a text for another key."""
        cipher = wire.CIPHERS[request.cipher]
        with domain_errors(), text_errors():
            payload = await self._keys.encrypt(
                current_caller().scope, request.key_id, _peer(request.peer), request.plaintext, cipher
            )
        return pb.EncryptResponse(payload=payload)

    async def Decrypt(
        self, request: pb.DecryptRequest, context: Context[pb.DecryptRequest, pb.DecryptResponse]
    ) -> pb.DecryptResponse:
        """Decrypt a payload of another key."""
        cipher = wire.CIPHERS[request.cipher]
        with domain_errors(), text_errors():
            text = await self._keys.decrypt(
                current_caller().scope, request.key_id, _peer(request.peer), request.payload, cipher
            )
        return pb.DecryptResponse(plaintext=text)

    async def EncodeNip19(
        self, request: pb.EncodeNip19Request, context: Context[pb.EncodeNip19Request, pb.EncodeNip19Response]
    ) -> pb.EncodeNip19Response:
        """Write in NIP-19 form."""
        try:
            text = nip19.encode(wire_nip19.entity_of(request.entity))
        except Nip19Error as error:
            raise ServiceError(Reason.NIP19_INVALID, str(error)) from error
        return pb.EncodeNip19Response(text=text, uri=URI_SCHEME + text)

    async def DecodeNip19(
        self, request: pb.DecodeNip19Request, context: Context[pb.DecodeNip19Request, pb.DecodeNip19Response]
    ) -> pb.DecodeNip19Response:
        """Read NIP-19 form."""
        try:
            entity = nip19.decode(request.text)
        except Nip19Error as error:
            raise ServiceError(Reason.NIP19_INVALID, str(error)) from error
        return pb.DecodeNip19Response(entity=wire_nip19.entity_message(entity))


def _peer(text: str) -> str:
    """The public key in hex of what names the peer. Raises PEER_INVALID."""
    try:
        return nip19.pubkey_of(text)
    except Nip19Error as error:
        raise ServiceError(
            Reason.PEER_INVALID, "the peer is no public key: neither hex nor npub nor nprofile"
        ) from error
