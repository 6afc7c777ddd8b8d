"""The signer's own keys, one for each connection: sealed in the key store like users' keys, used for the outer layer of messages alone."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final

from services.chassis.errors import unavailable
from services.chassis.secret import SecretBytes
from services.nip.domain import nip44
from services.nip.domain.remote_signer.connection import Connection
from services.nip.keys import Keys, NewKey
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event

KIND_REMOTE_SIGNING: Final = 24_133
KIND_CHALLENGE: Final = 22_242
AGREED_KEYS_MAX: Final = 4_096
"""Keys agreed on with apps that are kept ready: computing one takes as long as the rest of a message."""


def owner_of(connection_id: str) -> str:
    """As whose key it is kept: nobody's who can call."""
    return f"remote-signer:{connection_id}"


class SignerKeys:
    """Makes them, and speaks with them. Used from one event loop."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._agreed: OrderedDict[tuple[str, str], SecretBytes] = OrderedDict()

    async def create(self, connection_id: str) -> tuple[str, str]:
        """Make the key of a new connection; return its id and public key. Again: the same ones."""
        new = NewKey(owner=owner_of(connection_id), request_id=connection_id, display_name="", secret_key=None)
        key, _ = await self._keys.create(new)
        return key.key_id, key.pubkey

    async def decrypt(self, connection: Connection, client_pubkey: str, payload: str) -> str:
        """Open a message, whose outer signature was verified. Raises DecryptionError, InvalidPeerError."""
        return nip44.decrypt(payload, await self._agreed_key(connection, client_pubkey))

    async def encrypt(self, connection: Connection, client_pubkey: str, text: str) -> str:
        """Close a message. Raises PlaintextError when it is too long, InvalidPeerError."""
        return nip44.encrypt(text, await self._agreed_key(connection, client_pubkey))

    async def event(self, connection: Connection, client_pubkey: str, text: str, *, created_at: int) -> Event:
        """Return a message as a signed event for an app. Raises PlaintextError and MalformedEventError when it is too long."""
        content = await self.encrypt(connection, client_pubkey, text)
        template = Template(
            kind=KIND_REMOTE_SIGNING, tags=(("p", client_pubkey),), content=content, created_at=created_at
        )
        return await self._signed(connection, template, created_at)

    async def prove(self, connection: Connection, relay: str, challenge: str, *, created_at: int) -> Event:
        """Return the answer to a relay's challenge (NIP-42): the signer is who it says it is. Raises MalformedEventError."""
        tags = (("relay", relay), ("challenge", challenge))
        return await self._signed(
            connection, Template(kind=KIND_CHALLENGE, tags=tags, content="", created_at=created_at), created_at
        )

    async def _signed(self, connection: Connection, template: Template, created_at: int) -> Event:
        signer = await self._signer(connection)
        return sign_event(signer, template, created_at=created_at, auxiliary_key=secrets.token_bytes(32))

    async def _agreed_key(self, connection: Connection, client_pubkey: str) -> SecretBytes:
        name = (connection.connection_id, client_pubkey)
        found = self._agreed.get(name)
        if found is None:
            signer = await self._signer(connection)
            found = nip44.conversation_key(signer.secret_key(), client_pubkey)
            self._agreed[name] = found
        self._agreed.move_to_end(name)
        while len(self._agreed) > AGREED_KEYS_MAX:
            self._agreed.popitem(last=False)
        return found

    async def _signer(self, connection: Connection) -> Signer:
        """The opened key; used before the caller awaits again. Raises BACKEND_UNAVAILABLE: nobody locks these keys."""
        signer = await self._keys.signer(owner_of(connection.connection_id), connection.signer_key_id)
        if signer is None:
            raise unavailable("the signer's key cannot be used")
        return signer
