"""A user of the mesh, written without the services' own code: keys, NIP-98 events and login."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from coincurve import PrivateKey

from nipmesh.nip.v1 import nip_service_pb2 as nip_pb2
from nipmesh.nip.v1 import nip_service_pb2_grpc as nip_grpc

LOGIN_PATH = "/nipmesh.nip.v1.AuthService/Login"


@dataclass(slots=True)
class User:
    """A Nostr key pair and, after `login`, the metadata of its calls."""

    private_key: PrivateKey = field(default_factory=PrivateKey)
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def pubkey(self) -> str:
        """32 bytes, x-only, lower-case hex."""
        return self.private_key.public_key_xonly.format().hex()

    def event(
        self, kind: int, tags: list[list[str]], *, created_at: int | None = None, content: str = ""
    ) -> dict[str, Any]:
        """A signed NIP-01 event."""
        created_at = int(time.time()) if created_at is None else created_at
        body = json.dumps([0, self.pubkey, created_at, kind, tags, content], separators=(",", ":"), ensure_ascii=False)
        identifier = hashlib.sha256(body.encode()).digest()
        return {
            "id": identifier.hex(),
            "pubkey": self.pubkey,
            "created_at": created_at,
            "kind": kind,
            "tags": tags,
            "content": content,
            "sig": self.private_key.sign_schnorr(identifier, secrets.token_bytes(32)).hex(),
        }

    def authorization(self, gateway_url: str, **changes: Any) -> str:
        """`Nostr <base64>` of a kind 27235 event for Login; `changes` replace fields after signing."""
        event = self.event(27235, [["u", gateway_url + LOGIN_PATH], ["method", "POST"]])
        return encode_authorization({**event, **changes})

    async def login(self, channel: grpc.aio.Channel, gateway_url: str) -> str:
        """Get a token and keep it for later calls."""
        stub = nip_grpc.AuthServiceStub(channel)
        response = await stub.Login(nip_pb2.LoginRequest(authorization=self.authorization(gateway_url)), timeout=10)
        self.metadata = bearer(response.access_token)
        return str(response.access_token)


def encode_authorization(event: dict[str, Any]) -> str:
    """The HTTP Authorization value of NIP-98."""
    return "Nostr " + base64.b64encode(json.dumps(event).encode()).decode()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)
