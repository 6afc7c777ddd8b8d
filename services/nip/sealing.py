"""What of a stored key is sealed, and with what: opened for use, and sealed anew when the master key is rotated."""

from __future__ import annotations

from services.chassis.secret import SecretBytes
from services.nip.domain.key import Key, StoredKey
from services.nip.domain.keystore import Keystore
from services.nip.domain.life import Condition, State

_WITH_PASSWORD = frozenset({Condition.LOCKED, Condition.DISABLED_LOCKED})


def open_usable(keystore: Keystore, stored: StoredKey, now_us: int) -> SecretBytes | None:
    """Return the private key of a key that may be used at this moment, None of any other. Raises SealBrokenError."""
    key = stored.key
    match key.state(now_us):
        case State.ACTIVE:
            return keystore.open(stored.sealed, key_id=key.key_id, pubkey=key.pubkey, owner=key.owner)
        case State.UNLOCKED:
            assert stored.unlock_sealed is not None, "the database holds both or neither"
            assert key.unlock_expire_time_us is not None, "the same"
            return keystore.open_unlocked(
                stored.unlock_sealed, key.unlock_expire_time_us, key_id=key.key_id, pubkey=key.pubkey, owner=key.owner
            )
    return None


def open_encrypted(keystore: Keystore, stored: StoredKey) -> bytes:
    """Return the ncryptsec of a key that has a password. Raises SealBrokenError."""
    key = stored.key
    assert has_password(key), "only such a key has one"
    return keystore.open_locked(stored.sealed, key_id=key.key_id, pubkey=key.pubkey, owner=key.owner)


def has_password(key: Key) -> bool:
    """Whether the key is sealed with a password, too; also when it is unlocked or disabled."""
    return key.condition in _WITH_PASSWORD


def resealed(stored: StoredKey, old: Keystore, new: Keystore) -> tuple[bytes, bytes | None]:
    """Return both seals of a key, made anew with `new`. Raises SealBrokenError."""
    key = stored.key
    row = {"key_id": key.key_id, "pubkey": key.pubkey, "owner": key.owner}
    if has_password(key):
        sealed = new.seal_locked(old.open_locked(stored.sealed, **row), **row)
    else:
        sealed = new.seal(old.open(stored.sealed, **row), **row)
    if stored.unlock_sealed is None or key.unlock_expire_time_us is None:
        return sealed, None
    secret_key = old.open_unlocked(stored.unlock_sealed, key.unlock_expire_time_us, **row)
    return sealed, new.seal_unlocked(secret_key, key.unlock_expire_time_us, **row)
