"""`python -m services.nip rotate-key`: a new master key for the key store, while the service runs.

1. The new key is written to FILE.new (0600) and synced; one that an interrupted rotation left is taken.
2. One transaction seals every held key anew and replaces the check value. Running replicas notice with their next call, see `keyring`.
3. FILE.new becomes FILE. A SQLite file is written anew, because its free pages and its WAL still hold what was sealed before.

Wherever it is interrupted, the key file or FILE.new fits the database, and running it again completes the rotation: what was committed is
found by the check value. FILE.new is never written over once it is complete, because the outcome of a commit may not be known.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from services.chassis.errors import ServiceError, StartError
from services.chassis.failpoints import failpoint
from services.chassis.logs import configure_logs
from services.chassis.secret import SecretBytes
from services.chassis.settings import ChassisSettings, load_settings
from services.nip.domain.keystore import MASTER_KEY_BYTES, Keystore, SealBrokenError, check_value_of
from services.nip.keyring import load_master_key, successor_of
from services.nip.store import DATABASE_NAME, MIGRATIONS, KeystoreRow, MasterKeyRotatedError, NipStore
from services.storage.database import Database
from services.storage.places import Place, place_of, shown
from services.storage.sqlite.rewriting import rewrite


class RotationError(StartError):
    """The key cannot be rotated as things are; the text says what to do."""


class RotationSettings(ChassisSettings):
    """What of the NIP service's environment a rotation needs."""

    keystore_key_file: Path = Field(validation_alias="NIP_KEYSTORE_KEY_FILE", description="The key file.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """What was done: `keys` were sealed anew, or (None) a rotation was completed whose transaction was committed before.

    `clean` tells whether the old seals are gone from the file, too.
    """

    keys: int | None
    clean: bool


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 when the key is rotated, 2 when it cannot be, 1 when the database or disk failed: then run it again."""
    settings = load_settings(RotationSettings, **_options(arguments))
    configure_logs(settings)
    key_file = settings.keystore_key_file
    try:
        place = place_of(settings, DATABASE_NAME)
        done = asyncio.run(rotate(place, key_file))
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (ServiceError, OSError) as error:
        sys.stderr.write(f"error: {error}: whether the key was rotated is not known; run the command again\n")
        return 1
    sys.stdout.write(_summary(done, place, key_file))
    if not done.clean:
        sys.stderr.write(f"warning: {shown(place)} was busy; until it is rewritten its free pages hold old seals\n")
    return 0


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m services.nip rotate-key",
        description="Give the key store a new master key, while the service runs. Without options the service's environment says where.",
    )
    parser.add_argument("--key-file", type=Path, dest="keystore_key_file", help="instead of NIP_KEYSTORE_KEY_FILE")
    parser.add_argument("--data-directory", type=Path, help="instead of NIPMESH_DATA_DIRECTORY")
    parser.add_argument("--database-url-file", type=Path, help="instead of NIPMESH_DATABASE_URL_FILE")
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


def _summary(done: Rotated, place: Place, key_file: Path) -> str:
    if done.keys is None:
        return f"the interrupted rotation is complete: {shown(place)} opens with {key_file}\n"
    return f"{done.keys} keys in {shown(place)} are sealed with the new key in {key_file}\n"


async def rotate(place: Place, key_file: Path) -> Rotated:
    """Rotate, or complete a rotation. Raises StartError and, when the database fails, ServiceError."""
    if isinstance(place, Path) and not place.exists():
        raise RotationError(f"there is no database {place}")
    with _alone(key_file.parent):
        master_key = load_master_key(key_file)
        async with await Database.open(place, migrations=MIGRATIONS) as database:
            store = NipStore(database)
            row = await store.keystore()
            if row is None:
                raise RotationError(f"no service has used {shown(place)} yet")
            keys = await _sealed_anew(store, row, master_key, key_file)
        _replace(key_file)
    return Rotated(keys=keys, clean=not isinstance(place, Path) or rewrite(place))


async def _sealed_anew(store: NipStore, row: KeystoreRow, master_key: SecretBytes, key_file: Path) -> int | None:
    """Let the database fit FILE.new; how many keys were sealed for that, None when it did already."""
    if not row.fits(check_value_of(master_key)):
        if successor_of(key_file).exists() and row.fits(check_value_of(load_master_key(successor_of(key_file)))):
            return None
        raise RotationError(f"the database was sealed with another key than the one in {key_file}: bring back its file")
    new = Keystore(_next_key(successor_of(key_file)))
    failpoint("rotate_key.file_written")
    try:
        keys = await store.reseal(Keystore(master_key, row.sealed_lasting), new)
    except MasterKeyRotatedError as error:
        raise RotationError("somebody else rotated the key at this moment, on another host") from error
    except SealBrokenError as error:
        raise RotationError(f"{error}; nothing was changed") from error
    failpoint("rotate_key.committed")
    return keys


def _next_key(path: Path) -> SecretBytes:
    """The key in this file, which is made unless it is complete. Raises SecretFileError, OSError."""
    if not path.exists() or path.stat().st_size != MASTER_KEY_BYTES:
        path.unlink(missing_ok=True)  # one that was not written to its end was never used
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(MASTER_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
    with path.open("rb") as file:
        os.fsync(file.fileno())  # complete is not synced, when an earlier command made it
    _sync_folder(path.parent)
    return load_master_key(path)


def _replace(key_file: Path) -> None:
    """Let FILE.new become FILE."""
    successor_of(key_file).replace(key_file)
    failpoint("rotate_key.replaced")
    _sync_folder(key_file.parent)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other rotations of the key files in this folder out. Raises RotationError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RotationError(f"cannot open the folder {folder}: {error.strerror}") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RotationError(f"another rotation of a key in {folder} runs") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
