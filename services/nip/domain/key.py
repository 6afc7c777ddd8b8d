"""Keys that the service holds: what may be told of them, and what is stored."""

from __future__ import annotations

from dataclasses import dataclass

from services.nip.domain.life import Condition, State, state_of
from services.nip.domain.nip49 import KeySecurity


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A held key without its private part. `owner` is a user's public key in hex, or a service's SPIFFE id.

    `unlock_expire_time_us` may be over: ask `state`. `delete_time_us` is set for a deleted key alone.
    """

    key_id: str
    owner: str
    pubkey: str
    display_name: str
    create_time_us: int
    condition: Condition = Condition.ACTIVE
    unlock_expire_time_us: int | None = None
    delete_time_us: int | None = None
    security: KeySecurity = KeySecurity.UNKNOWN

    def state(self, now_us: int) -> State:
        """Return the state at this moment (microseconds since 1970)."""
        return state_of(self.condition, self.unlock_expire_time_us, now_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key and its sealed private part, as the database holds them: `sealed` is empty for a deleted key.

    `sealed` holds the private key or, when the key has a password, its ncryptsec; `unlock_sealed` the private key of an unlocked one.
    """

    key: Key
    sealed: bytes
    unlock_sealed: bytes | None = None
