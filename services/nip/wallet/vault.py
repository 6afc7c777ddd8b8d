"""The wallet's keys of connections: held keys, each of an owner that nobody else can be. They decrypt, encrypt and sign here."""

from __future__ import annotations

from typing import Final

from services.chassis.secret import SecretBytes
from services.nip.domain import ciphers
from services.nip.domain.key import Key
from services.nip.domain.nip47.connection import KEY_OWNER_PREFIX, WalletConnection
from services.nip.domain.nip47.words import Cipher
from services.nip.keys import Keys, NewKey, Signing
from services.nostr.event import Event, Template

WAY: Final = "nip47"
"""What the keys' audit calls the way in."""
_CIPHERS: Final = {Cipher.NIP44: ciphers.Cipher.NIP44, Cipher.NIP04: ciphers.Cipher.NIP04}


class Vault:
    """What a connection's key does; it leaves only as signatures and texts."""

    def __init__(self, keys: Keys) -> None:
        """`keys` holds them."""
        self._keys = keys

    async def create(self, connection_id: str) -> Key:
        """Make the key of a connection, once."""
        new = NewKey(
            owner=KEY_OWNER_PREFIX + connection_id,
            request_id=connection_id,
            display_name="wallet connection",
            secret_key=None,
        )
        key, _ = await self._keys.create(new)
        return key

    def client_secret(self, owner_pubkey: str, request_id: str, connection_id: str) -> SecretBytes:
        """Return the app's secret key of a connection: a keyed hash, so that it need not be kept."""
        return self._keys.derived_secret("wallet client", owner_pubkey, request_id.lower(), connection_id)

    async def decrypt(self, wallet: WalletConnection, peer_pubkey: str, payload: str, cipher: Cipher) -> str:
        """Return the text of a payload whose event was verified. Raises DecryptionError, InvalidPeerError."""
        return await self._keys.decrypt(
            wallet.key_owner, wallet.key_id, peer_pubkey, payload, _CIPHERS[cipher], actor=peer_pubkey, method=WAY
        )

    async def encrypt(self, wallet: WalletConnection, peer_pubkey: str, text: str, cipher: Cipher) -> str:
        """Return the payload of a text. Raises InvalidPeerError."""
        return await self._keys.encrypt(
            wallet.key_owner, wallet.key_id, peer_pubkey, text, _CIPHERS[cipher], actor=peer_pubkey, method=WAY
        )

    async def sign(self, wallet: WalletConnection, template: Template) -> Event:
        """Sign an event of the wallet; the template has a time."""
        event, _ = await self._keys.sign(
            Signing(
                owner=wallet.key_owner,
                request_id="",
                key_id=wallet.key_id,
                template=template,
                actor=wallet.client_pubkey,
                method=WAY,
            )
        )
        return event
