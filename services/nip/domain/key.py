"""Keys that the service holds: what may be told of them, and what is stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A held key without its private part. `owner` is a user's public key in hex, or a service's SPIFFE id."""

    key_id: str
    owner: str
    pubkey: str
    display_name: str
    create_time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key and its sealed private part, as the database holds them."""

    key: Key
    sealed: bytes
