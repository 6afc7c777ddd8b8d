"""Secrets: a type whose every text form is `[redacted]`, and a loader that insists on the file's mode."""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path
from typing import Final, NoReturn

from services.chassis.errors import StartError

SECRET_BYTES_MAX: Final = 65_536
"""Longest secret file that is read: keys are 32 bytes to a few KiB, anything larger is the wrong file."""
SECRET_MODE: Final = 0o600
"""The widest mode a secret file may have: its owner reads and writes, nobody else sees it."""

CREDENTIAL_MODE: Final = 0o440
"""What a credential of systemd's shows: an access list lets the unit's user in, and its mask stands where a group's bits are."""
CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"


class SecretFileError(StartError):
    """A secret file is missing, too open, empty or too large; the text says how to mend it and never shows the content."""


class SecretBytes:
    """Bytes that are never shown. `reveal()` is the only way to them, so that each use can be found by name."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        """Hold a copy of `value`."""
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes themselves; never log, store or send them."""
        return self._value

    def __len__(self) -> int:
        """Length in bytes."""
        return len(self._value)

    def __repr__(self) -> str:
        """`[redacted]`, also inside a dataclass, a format string or a traceback."""
        return "[redacted]"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        """`[redacted]`, whatever the format."""
        return "[redacted]"

    def __eq__(self, other: object) -> bool:
        """Compare in constant time, by content."""
        return isinstance(other, SecretBytes) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a secret is no key of a dictionary

    def __reduce__(self) -> NoReturn:
        """Refuse: a secret is never pickled."""
        raise TypeError("a secret cannot be serialized")


def load_secret(path: Path, *, length: int | None = None) -> SecretBytes:
    """Read a secret from `path`, which nobody but its owner may read (0600 or narrower).

    `length` demands an exact number of bytes. Raises SecretFileError; its text says what to do.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SecretFileError(f"cannot read the secret file {path}: {error.strerror}") from error
    try:
        _check_mode(path, os.fstat(descriptor))
        value = os.read(descriptor, SECRET_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    return _checked(path, value, length)


def _check_mode(path: Path, status: os.stat_result) -> None:
    """Refuse what is no regular file, or open to others."""
    if not stat.S_ISREG(status.st_mode):
        raise SecretFileError(f"the secret file {path} is not a regular file")
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~(SECRET_MODE | CREDENTIAL_MODE if _is_credential(path) else SECRET_MODE):
        raise SecretFileError(
            f"the secret file {path} has mode {mode:04o}; others could read it. Run: chmod 600 {path}"
        )


def _is_credential(path: Path) -> bool:
    """Whether systemd put it where this unit alone can look (systemd.exec(5), CREDENTIALS)."""
    directory = os.environ.get(CREDENTIALS_DIRECTORY)
    return bool(directory) and path.resolve().is_relative_to(Path(str(directory)).resolve())


def _checked(path: Path, value: bytes, length: int | None) -> SecretBytes:
    """The secret, when its size is right."""
    if not value or len(value) > SECRET_BYTES_MAX:
        raise SecretFileError(f"the secret file {path} is empty or longer than {SECRET_BYTES_MAX} bytes")
    if length is not None and len(value) != length:
        raise SecretFileError(f"the secret file {path} holds {len(value)} bytes, needed are {length}")
    return SecretBytes(value)
