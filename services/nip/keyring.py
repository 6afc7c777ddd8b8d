"""The keystore in use: it follows the key file and the database, so that a running replica lives through a rotation of the master key.

During a rotation two files lie beside each other: the key file, and the one that takes its place (its name with `.new`). The database says
which of them its keys are sealed with; the transaction that seals them anew is the moment of the change.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

from services.chassis.errors import unavailable
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes, SecretFileError, load_secret
from services.nip.domain.keystore import MASTER_KEY_BYTES, Keystore, check_value_of
from services.nip.store import KeystoreRow, NipStore

_log = get_logger("nip")


class WrongMasterKeyError(Exception):
    """The database was made with another key file."""


def load_master_key(key_file: Path) -> SecretBytes:
    """Read a key file. Raises SecretFileError."""
    return load_secret(key_file, length=MASTER_KEY_BYTES)


def successor_of(key_file: Path) -> Path:
    """Where the next master key lies until the rotation is complete."""
    return key_file.with_name(key_file.name + ".new")


class Keyring:
    """Gives the keystore, and a newer one after a rotation. Used from one event loop."""

    def __init__(self, store: NipStore, key_file: Path, keystore: Keystore) -> None:
        """For `open` only."""
        self._store = store
        self._key_file = key_file
        self._keystore = keystore
        self._reloading = asyncio.Lock()

    @classmethod
    async def open(cls, store: NipStore, key_file: Path, master_key: SecretBytes) -> Self:
        """Take the key file's `master_key`; a new database becomes its own. Raises WrongMasterKeyError, SealBrokenError."""
        row = await store.claim(check_value_of(master_key))
        if not row.fits(check_value_of(master_key)):
            found = await asyncio.to_thread(_fitting, key_file, row)
            if found is None:
                raise WrongMasterKeyError("the keys in the database were sealed with another key file")
            master_key = found
        return cls(store, key_file, Keystore(master_key, row.sealed_lasting))

    @property
    def current(self) -> Keystore:
        """The keystore as it was last seen to fit the database."""
        return self._keystore

    async def renew(self, outdated: Keystore) -> None:
        """Read the key file again, unless that was done since `outdated` was current. Raises BACKEND_UNAVAILABLE.

        Called when the database is found to be sealed with another master key than that of `outdated`.
        """
        async with self._reloading:
            if self._keystore is not outdated:
                return
            row = await self._store.keystore()
            found = None if row is None else await asyncio.to_thread(_fitting, self._key_file, row)
            if row is None or found is None:
                _log.error("the key file does not fit the database", file=str(self._key_file))
                raise unavailable("the key store is being given a new key")
            self._keystore = Keystore(found, row.sealed_lasting)
            _log.info("the master key was rotated")


def _fitting(key_file: Path, row: KeystoreRow) -> SecretBytes | None:
    """The master key that the database is sealed with, if one of the files holds it.

    The next one first: if it is gone already, then it has taken the key file's place.
    """
    for file in (successor_of(key_file), key_file):
        try:
            master_key = load_master_key(file)
        except SecretFileError as error:
            _log.debug("no key in the file", file=str(file), error=str(error))
            continue
        if row.fits(check_value_of(master_key)):
            return master_key
    return None
