"""Unix sockets that only their owner reaches: in a 0700 directory, themselves 0600, stale ones removed, live ones respected."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

from services.chassis.errors import StartError

UNIX: Final = "unix:"
SOCKET_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700


class ListenError(StartError):
    """The service cannot listen where it was told to; the text says why and what to do."""


def unix_path(target: str) -> Path | None:
    """The path of a unix: target, None for another."""
    return Path(target.removeprefix(UNIX)) if target.startswith(UNIX) else None


def prepare_socket(path: Path) -> None:
    """Make the directory, check that it is private, remove a socket that nobody listens on. Raises ListenError."""
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.parent.stat().st_mode)
    if mode & ~DIRECTORY_MODE:
        raise ListenError(f"the socket's directory {path.parent} has mode {mode:04o}. Run: chmod 700 {path.parent}")
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ListenError(f"{path} exists and is no socket; choose another path")
    if _answers(path):
        raise ListenError(f"another process listens on {path}; stop it or choose another path")
    path.unlink(missing_ok=True)


def protect_socket(path: Path) -> int:
    """Give the bound socket mode 0600; return its inode, by which `remove_socket` knows it again."""
    path.chmod(SOCKET_MODE)
    return path.lstat().st_ino


def remove_socket(path: Path, inode: int) -> None:
    """Remove our socket, unless another process has put its own there."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return


def listen_unix(path: Path) -> socket.socket:
    """A listening, non-blocking Unix socket, 0600 from its first moment on."""
    prepare_socket(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(before)
        server.setblocking(False)
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def _answers(path: Path) -> bool:
    """Whether somebody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
