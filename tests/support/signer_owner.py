"""Owners of keys that apps sign with: what they call, and permissions in few words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nipmesh.nip.v1 import nip_service_pb2 as nip_pb
from nipmesh.nip.v1 import nip_service_pb2_grpc as nip_grpc
from nipmesh.nip.v1 import remote_signer_pb2 as words
from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from nipmesh.nip.v1 import remote_signer_service_pb2_grpc as pb_grpc
from services.chassis.testing import as_user
from support.bunker import request_id
from support.nostr import User
from support.nostr_relay import NostrRelay

ALLOW = words.RemoteSignerPermission.EFFECT_ALLOW
ASK = words.RemoteSignerPermission.EFFECT_ASK
SIGN = words.REMOTE_SIGNER_METHOD_SIGN_EVENT
AUTH_URL = "https://nip.example/ask?request={approval_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Somebody with a key in the service, and stubs to call it with."""

    user: User
    key_id: str
    key_pubkey: str
    signer: Any
    nip: Any
    relay: str

    @property
    def metadata(self) -> Any:
        return as_user(self.user.pubkey)

    async def connection(self, *permissions: words.RemoteSignerPermission, **more: Any) -> Any:
        request = pb.CreateBunkerConnectionRequest(
            **{"request_id": request_id(), "key_id": self.key_id, "permissions": permissions, **more}
        )
        return await self.signer.CreateBunkerConnection(request, metadata=self.metadata)


def allow(method: int = SIGN, **more: Any) -> words.RemoteSignerPermission:
    return words.RemoteSignerPermission(**{"method": method, "effect": ALLOW, **more})


def ask(method: int = SIGN, **more: Any) -> words.RemoteSignerPermission:
    return allow(method, effect=ASK, **more)


async def owner_at(channel: Any, relay: NostrRelay) -> Owner:
    user, nip = User(), nip_grpc.NipServiceStub(channel)
    made = await nip.CreateKey(
        nip_pb.CreateKeyRequest(request_id=request_id(), fresh=True), metadata=as_user(user.pubkey)
    )
    return Owner(
        user=user,
        key_id=made.key.key_id,
        key_pubkey=made.key.pubkey,
        signer=pb_grpc.RemoteSignerServiceStub(channel),
        nip=nip,
        relay=relay.url,
    )
