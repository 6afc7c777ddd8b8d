"""What adapters have in common: a connection that is made anew whenever it is lost, the words about what is wrong, credentials, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from services.chassis.errors import StartError
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes, load_secret
from services.events.bus import BusHealth, BusSettingsError, BusUnavailableError

T = TypeVar("T")

CONNECT_S_MAX: Final = 5.0
"""One attempt: TCP, TLS and the server's first answers."""
CLOSE_S_MAX: Final = 0.5
"""Saying good-bye; a server that is gone does not answer."""
ANSWER_S_MAX: Final = 15.0
"""A server that does not answer for so long is taken for lost; a sync takes milliseconds, an election some seconds."""
RETRY_S: Final = 0.1
"""Pause after the first attempt that failed; it doubles."""
RETRY_S_MAX: Final = 5.0
"""Longest pause: that late a server that came back may be noticed."""
LOST: Final = "the connection was lost"
REFUSED: Final = "the server refuses the credential: is the file of NIPMESH_EVENTS_CREDENTIALS_FILE the right one?"
NOBODY: Final = "nobody listens there"
SILENT: Final = "the server does not answer"

_log = get_logger("events")


class Closable(Protocol):
    """A live connection."""

    @property
    def closed(self) -> asyncio.Event:
        """Set when it is over."""


LinkT = TypeVar("LinkT", bound=Closable)


class Keeper(Generic[LinkT]):
    """Keeps a link up. `link` waits for one; whoever needs another asks again."""

    def __init__(self, server: str, connect: Callable[[], AbstractAsyncContextManager[LinkT]]) -> None:
        """`connect` makes one connection and raises BusUnavailableError, or StartError when a file went bad."""
        self._server = server
        self._connect = connect
        self._link: LinkT | None = None
        self._ready = asyncio.Event()
        self._error = "not connected yet"
        self._links = 0

    @property
    def health(self) -> BusHealth:
        """As far as is known."""
        connected = self._link is not None
        error = "" if connected else self._error
        return BusHealth(connected=connected, server=self._server, error=error, connections=self._links)

    async def link(self, *, wait_s: float = 2.0) -> LinkT:
        """The live connection, waited for a moment. Raises BusUnavailableError with what is wrong."""
        if self._link is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ready.wait()
        if self._link is None:
            raise BusUnavailableError(self._error)
        return self._link

    async def run(self) -> None:
        """Connect for ever, with growing pauses. Says once what is wrong, and again only when that changes."""
        pause_s = RETRY_S
        while True:
            try:
                async with self._connect() as link:
                    self._link, self._links, pause_s = link, self._links + 1, RETRY_S
                    self._ready.set()
                    _log.info("event bus connected", server=self._server)
                    await link.closed.wait()
                self._failed(LOST)
            except (BusUnavailableError, StartError) as error:
                self._failed(str(error))
            finally:
                self._link = None
                self._ready.clear()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
            pause_s = min(2 * pause_s, RETRY_S_MAX)

    def _failed(self, error: str) -> None:
        if error != self._error:
            _log.warning("event bus away", server=self._server, error=error)
        self._error = error


async def answer_of(asked: Awaitable[T], closed: asyncio.Event, *, wait_s: float = ANSWER_S_MAX) -> T:
    """What the server answers. Raises BusUnavailableError when it does not, or is lost before; and what `asked` raises."""
    answer = asyncio.ensure_future(asked)
    over = asyncio.ensure_future(closed.wait())
    try:
        await asyncio.wait((answer, over), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise BusUnavailableError(LOST if over.done() else SILENT)
    finally:
        for each in (answer, over):
            each.cancel()
        await asyncio.gather(answer, over, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A name and a password, which is never shown."""

    user: str
    password: SecretBytes


def load_login(path: Path | None) -> Login | None:
    """`user:password` of a file that its owner alone may read. Raises SecretFileError and BusSettingsError; neither shows the content."""
    if path is None:
        return None
    text = load_secret(path).reveal().strip().decode(errors="replace")
    user, _, password = text.partition(":")
    if not user or not password or "\n" in text:
        raise BusSettingsError(f"the credential file {path} holds no user:password")
    return Login(user=user, password=SecretBytes(password.encode()))


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trusts what the file says, else the system's authorities. Raises BusSettingsError."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:  # also ssl.SSLError
        raise BusSettingsError(f"cannot read the certificates in {ca_file}: {error.strerror or error}") from error


def explained_failure(error: BaseException) -> str:
    """What went wrong with TCP or TLS, also where a client wrapped it; empty when it was something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the server's certificate is not trusted ({cause.verify_message}):"
                " is NIPMESH_EVENTS_CA_FILE the right one?"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS fails: {getattr(cause, 'reason', '') or cause}"
        if isinstance(cause, ConnectionRefusedError):
            return NOBODY
        if isinstance(cause, TimeoutError):
            return SILENT
        cause = cause.__cause__ or cause.__context__
    return ""


def place_of(host_port: str, default_port: int) -> tuple[str, int]:
    """Host and port of `host[:port]`, also of `[::1]:port`. Raises BusSettingsError."""
    host, colon, port = host_port.rpartition(":")
    if not colon or host_port.endswith("]"):
        host, port = host_port, str(default_port)
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise BusSettingsError(f"NIPMESH_EVENTS_URL: {host_port!r} is not a host and a port")
    return host.strip("[]"), int(port)
