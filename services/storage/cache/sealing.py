"""Sealing: what lies in the cache can be read and made by the replicas alone, under its own name alone."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Callable
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.chassis.secret import SecretBytes
from services.storage.database import Database
from services.storage.sql import Connection, value_of

DAY_S: Final = 86_400
"""Each day has a key of its own: a key is good for 2^32 messages with random nonces, some 50,000 a second for a day."""
_DAY_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_FIND: Final = "SELECT value FROM storage_fact WHERE name = 'cache_key'"
_MAKE: Final = "INSERT INTO storage_fact (name, value) VALUES ('cache_key', ?) ON CONFLICT (name) DO NOTHING"


class Sealer:
    """AES-256-GCM with keys derived from the one of the database, by day."""

    def __init__(self, key: SecretBytes, now_s: Callable[[], float] = time.time) -> None:
        """`key`: 32 random bytes."""
        assert len(key) == _KEY_BYTES
        self._key = key
        self._now_s = now_s
        self._ciphers: dict[bytes, AESGCM] = {}

    @classmethod
    async def open(cls, database: Database) -> Self:
        """With the key of this database, which the first replica that wants one makes."""
        found = await database.read(lambda connection: value_of(connection.execute(_FIND)))
        return cls(SecretBytes(await database.write(_make_key) if found is None else found))

    def seal(self, name: str, content: bytes) -> bytes:
        """What may leave the process under this name."""
        day = (int(self._now_s()) // DAY_S).to_bytes(_DAY_BYTES, "big")
        nonce = os.urandom(_NONCE_BYTES)
        return day + nonce + self._cipher(day).encrypt(nonce, content, day + name.encode())

    def open_sealed(self, name: str, sealed: bytes) -> bytes | None:
        """The content that was sealed under this name; None when it was not, or was tampered with."""
        day, nonce = sealed[:_DAY_BYTES], sealed[_DAY_BYTES : _DAY_BYTES + _NONCE_BYTES]
        age = int(self._now_s()) // DAY_S - int.from_bytes(day, "big")
        if (
            len(nonce) < _NONCE_BYTES or abs(age) > 1
        ):  # nothing lives that long; no key is derived for whoever makes days up
            return None
        try:
            return self._cipher(day).decrypt(nonce, sealed[_DAY_BYTES + _NONCE_BYTES :], day + name.encode())
        except InvalidTag:
            return None

    def _cipher(self, day: bytes) -> AESGCM:
        """The cipher of a day near today."""
        cipher = self._ciphers.get(day)
        if cipher is None:
            key = hmac.digest(self._key.reveal(), b"nipmesh cache" + day, "sha256")
            for oldest in tuple(self._ciphers)[:-2]:  # yesterday, today, tomorrow
                del self._ciphers[oldest]
            cipher = self._ciphers[day] = AESGCM(key)
        return cipher


def _make_key(connection: Connection) -> bytes:
    """Make the key unless another replica did; return it."""
    connection.execute(_MAKE, (secrets.token_bytes(_KEY_BYTES),))
    return bytes(value_of(connection.execute(_FIND)))
