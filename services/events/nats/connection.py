"""The connection to NATS: made in the background, made anew whenever it is lost, and never a reason for the service to stop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from services.chassis.errors import StartError
from services.chassis.logs import get_logger
from services.chassis.settings import ChassisSettings
from services.events.bus import BusHealth, BusSettingsError, BusUnavailableError
from services.events.nats.credentials import PUBLIC_KEY, load_credentials
from services.events.nats.sending import BatchClient
from services.events.nats.stream import Stream, ensure_stream, kept_stream

T = TypeVar("T")

CONNECT_S_MAX: Final = 5.0
"""One attempt: TCP, TLS and the server's first answer."""
CLOSE_S_MAX: Final = 0.5
"""Saying good-bye; a server that is gone does not answer."""
RETRY_S: Final = 0.1
"""Pause after the first attempt that failed; it doubles."""
RETRY_S_MAX: Final = 5.0
"""Longest pause: that late a server that came back may be noticed."""
ANSWER_S_MAX: Final = 15.0
"""A server that does not answer for so long is taken for lost; a batch's sync takes milliseconds, an election some seconds."""
QUESTION_S: Final = 2.0
"""A question is asked again after so long: a cluster that elects a leader answers nothing, and does not remember what it was asked."""
STREAM_OFFLINE, CONSUMER_OFFLINE = 10118, 10119
"""The server's codes: all its copies are on servers that are away."""
PING_S: Final = 20
"""A dead connection is noticed after three of these pings, should TCP not tell."""

_log = get_logger("events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the servers are and how to prove oneself."""

    urls: tuple[str, ...]
    stream: str
    inbox: str
    """The stream of what this service hears, kept by others; empty: the mesh's stream, which is made when there is none."""
    service: str
    tls: ssl.SSLContext | None
    credentials_file: Path | None
    ca_file: Path | None

    @classmethod
    def of(cls, settings: ChassisSettings) -> Server:
        """Raises BusSettingsError and SecretFileError: what a person has to mend, before anything starts."""
        scheme, _, rest = settings.events_url.partition("://")
        urls = tuple(f"{scheme}://{each.removeprefix(f'{scheme}://')}" for each in rest.split(","))
        load_credentials(settings.events_credentials_file)
        return cls(
            urls=urls,
            stream=settings.events_stream or settings.mesh,
            inbox=settings.events_inbox,
            service=settings.service,
            tls=_tls(settings.events_ca_file) if scheme == "tls" or settings.events_ca_file else None,
            credentials_file=settings.events_credentials_file,
            ca_file=settings.events_ca_file,
        )


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:  # also ssl.SSLError
        raise BusSettingsError(f"cannot read the certificates in {ca_file}: {error.strerror or error}") from error


class SilentError(BusUnavailableError):
    """No answer came in time."""


def _is_away(error: APIError) -> bool:
    """Whether it says that too few servers of a cluster are there, or that JetStream is off: no refusal, it may be better soon."""
    return isinstance(error, ServiceUnavailableError) or error.err_code in (STREAM_OFFLINE, CONSUMER_OFFLINE)


@dataclass(slots=True, kw_only=True, eq=False)
class Link:
    """A live connection. `closed` is set when it is over."""

    client: BatchClient
    js: JetStreamContext
    stream: Stream
    closed: asyncio.Event
    number: int

    async def asked(self, question: Callable[[], Awaitable[T]], *, wait_s: float = ANSWER_S_MAX) -> T:
        """What the server answers to what may be asked any number of times. Raises what `answered` does, SilentError above all."""
        until_s = asyncio.get_running_loop().time() + wait_s
        while True:
            try:
                return await self.answered(question(), wait_s=QUESTION_S)
            except SilentError:
                if asyncio.get_running_loop().time() >= until_s:
                    raise

    async def answered(self, asked: Awaitable[T], *, wait_s: float = ANSWER_S_MAX) -> T:
        """What the server answers. Raises BusUnavailableError when it does not, cannot, or is lost before; APIError when it refuses."""
        answer = asyncio.ensure_future(asked)
        over = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait((answer, over), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if over.done():
                raise BusUnavailableError("the connection was lost")
            raise SilentError("the server does not answer")
        except (nats.errors.Error, NoStreamResponseError, OSError, TimeoutError) as error:
            if isinstance(error, APIError) and not _is_away(error):
                raise
            raise BusUnavailableError(explained(error)) from error
        finally:
            for each in (answer, over):
                each.cancel()
            await asyncio.gather(answer, over, return_exceptions=True)


class Connection:
    """Keeps a link up. `link` waits for one; whoever needs another asks again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._error = "not connected yet"
        self._links = 0

    @property
    def health(self) -> BusHealth:
        """As far as is known."""
        return BusHealth(
            connected=self._link is not None,
            server=",".join(self._server.urls),
            error="" if self._link else self._error,
            connections=self._links,
        )

    async def link(self, *, wait_s: float = 2.0) -> Link:
        """The live connection, waited for a moment. Raises BusUnavailableError with what is wrong."""
        if self._link is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # wait_for may swallow a cancellation before Python 3.12
                    await self._ready.wait()
        if self._link is None:
            raise BusUnavailableError(self._error)
        return self._link

    async def run(self) -> None:
        """Connect for ever, with growing pauses. Says once what is wrong, and again only when that changes."""
        pause_s = RETRY_S
        while True:
            try:
                async with self._connected() as link:
                    pause_s = RETRY_S
                    _log.info(
                        "event bus connected", server=link.client.connected_url and link.client.connected_url.netloc
                    )
                    await link.closed.wait()
                self._failed("the connection was lost")
            except (BusUnavailableError, StartError) as error:
                self._failed(str(error))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
            pause_s = min(2 * pause_s, RETRY_S_MAX)

    def _failed(self, error: str) -> None:
        if error != self._error:
            _log.warning("event bus away", server=",".join(self._server.urls), error=error)
        self._error = error

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Link]:
        """One connection, with the stream at its other end."""
        closed = asyncio.Event()
        troubles: list[Exception] = []
        client = await self._connect(closed, troubles)
        try:
            js = client.jetstream(timeout=ANSWER_S_MAX)
            link = Link(client=client, js=js, stream=Stream(name=""), closed=closed, number=self._links + 1)
            link.stream = await self._stream(link, troubles)
            self._link, self._links = link, link.number
            self._ready.set()
            yield link
        finally:
            self._link = None
            self._ready.clear()
            await _close(client)

    async def _stream(self, link: Link, troubles: list[Exception]) -> Stream:
        if self._server.inbox:
            return kept_stream(self._server.stream, self._server.inbox, link.client.max_payload)
        try:
            return await link.asked(lambda: ensure_stream(link.js, self._server.stream, len(self._server.urls)))
        except (BusUnavailableError, APIError) as error:
            told = "; ".join(dict.fromkeys(explained(each) for each in troubles)) or explained(error)
            raise BusUnavailableError(f"the stream {self._server.stream} cannot be used: {told}") from error

    async def _connect(self, closed: asyncio.Event, troubles: list[Exception]) -> BatchClient:
        """A connected client. Raises BusUnavailableError, and StartError when the credential file went bad."""
        client = BatchClient()

        async def on_error(error: Exception) -> None:
            troubles.append(error)
            del troubles[:-4]

        async def on_closed() -> None:
            closed.set()

        credentials = dict(load_credentials(self._server.credentials_file))  # each time: it may have been renewed
        client._public_nkey = credentials.pop(PUBLIC_KEY, None)  # noqa: SLF001  # nats-py has no argument for it
        try:
            async with asyncio.timeout(CONNECT_S_MAX * len(self._server.urls)):
                await client.connect(
                    list(self._server.urls),
                    name=f"nipmesh {self._server.service}",
                    allow_reconnect=False,  # `run` does it, also where the client would give up
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=int(CONNECT_S_MAX),
                    ping_interval=PING_S,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    tls=self._server.tls,
                    **credentials,
                )
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await _close(client)
            worst = next((each for each in troubles if isinstance(each, ssl.SSLError)), None) or (
                troubles[-1] if troubles and isinstance(error, nats.errors.NoServersError | TimeoutError) else error
            )
            raise BusUnavailableError(explained(worst)) from error
        troubles.clear()  # those of servers that did not answer, where another did
        return client


async def _close(client: Client) -> None:
    """Whatever state it is in: a TLS connection that failed half-way never says that it is closed."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_S_MAX):
            await client.close()


def explained(error: BaseException) -> str:
    """What went wrong in an operator's words, without secrets."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({error.verify_message}): is NIPMESH_EVENTS_CA_FILE the right one?"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {error.reason or error}"
    text = (error.description if isinstance(error, APIError) else None) or str(error)
    lower = text.lower()
    if isinstance(error, nats.errors.AuthorizationError) or "authorization violation" in lower:
        return "the server refuses the credential: is the file of NIPMESH_EVENTS_CREDENTIALS_FILE the right one?"
    if isinstance(error, ConnectionRefusedError | nats.errors.NoServersError):
        return "nobody listens there"
    if "tls required" in lower or "secure connection" in lower:
        return "the server wants TLS: write tls:// in NIPMESH_EVENTS_URL"
    if isinstance(error, NoStreamResponseError | nats.errors.NoRespondersError):
        return "nobody answers for the stream: is JetStream on?"
    if isinstance(error, TimeoutError | nats.errors.TimeoutError):
        return "the server does not answer"
    return text.removeprefix("nats: ") or type(error).__name__


Ready = Callable[[], Awaitable[Link]]
"""How the parts of the adapter come to the live connection."""
