"""The connection to one relay: opens it when it is needed, moves messages between it and the session, opens it again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from services.chassis.logs import get_logger
from services.nostr.event import Event, Verdict
from services.nostr.verification import Verifier
from services.relays.backoff import delay_s
from services.relays.filter import Filter
from services.relays.guard import AddressRefusedError, open_socket
from services.relays.messages import EventMessage, RelayMessage, relay_message
from services.relays.metrics import EventResult, RelayMetrics
from services.relays.options import RelayOptions
from services.relays.outcome import Outcome, OutcomeKind
from services.relays.protocol import (
    Action,
    AskAgain,
    Deliver,
    Noticed,
    Send,
    Session,
    Settled,
    SignChallenge,
    Stored,
    Unasked,
)

BATCH_MESSAGES_MAX: Final = 256
"""Messages that are read before the first of them is verified: so many signatures share a hand-over to the threads."""
STEADY_S: Final = 10.0
"""A connection that lived so long was a good one: the next attempt after it does not wait long."""
CLOSE_S: Final = 2.0
"""So long a closing handshake may take."""
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}

_log = get_logger("relays")


class RelayConnection:
    """One relay. Used from one event loop; `run` is its task."""

    def __init__(
        self,
        url: str,
        options: RelayOptions,
        *,
        verifier: Verifier,
        metrics: RelayMetrics,
        tls: ssl.SSLContext | None,
        deliver: Callable[[str, str, Event | None], None],
    ) -> None:
        """`url` in normal form; `deliver` takes (subscription, relay, event), None when the stored ones are all there."""
        self.url = url
        self.session = Session()
        self._options = options
        self._verifier = verifier
        self._metrics = metrics
        self._tls = tls
        self._deliver = deliver
        self._needed = asyncio.Event()
        self._outbox: deque[str] = deque()
        self._to_send = asyncio.Event()
        self._futures: dict[str, list[asyncio.Future[Outcome]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempt = 0
        self._problem = "not connected"
        self._heard_at = int(time.time())

    def subscribe(self, name: str, filters: Sequence[Filter]) -> None:
        """Want events; they come through `deliver`."""
        self._perform(self.session.subscribe(name, filters))
        self._needed.set()

    def unsubscribe(self, name: str) -> None:
        """Want them no more."""
        self._perform(self.session.unsubscribe(name))

    def read_again(self, name: str, since: int) -> None:
        """Ask for a subscription's stored events again."""
        self._perform(self.session.read_again(name, since, self._heard_at))

    async def publish(self, event: Event, timeout_s: float) -> Outcome:
        """Send an event and wait for the relay's answer, over a lost connection if need be."""
        if self.session.publishes >= self._options.publishes_max:
            return Outcome(kind=OutcomeKind.UNREACHABLE, reason="too many events wait for this relay")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(event.id, []).append(future)
        self._perform(self.session.publish(event))
        self._needed.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return self._late(event.id)
        finally:
            self._forget(event.id, future)

    async def run(self) -> None:
        """Be connected while that is of use; endless, cancelled at the end."""
        try:
            while True:
                await self._needed.wait()
                began_s = time.monotonic()
                await self._connect_once()
                if self.session.idle:
                    self._needed.clear()
                    continue
                self._attempt = 0 if time.monotonic() - began_s >= STEADY_S else self._attempt + 1
                await asyncio.sleep(self._delay_s(self._attempt))
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect_once(self) -> None:
        """Open, converse, note why it ended."""
        try:
            websocket = await self._opened()
        except AddressRefusedError as error:
            self._metrics.connects.labels("refused").inc()
            self._problem = str(error)
            self._perform(self.session.unreachable(self._problem))
            return
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, ValueError) as error:
            self._metrics.connects.labels("failed").inc()
            self._problem = f"cannot connect: {type(error).__name__}"
            _log.info("relay not reached", relay=self.url, problem=str(error)[:200])
            return
        self._metrics.connects.labels("opened").inc()
        with self._metrics.connections.track_inprogress():
            await self._converse(websocket)

    async def _opened(self) -> ClientConnection:
        """A WebSocket over a socket whose address was looked at. Raises what opening can raise."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None, "checked where the URL came in"
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        async with asyncio.timeout(self._options.open_timeout_s):
            private_allowed = self._options.private_allowed_for(self.url)
            connection = await open_socket(parts.hostname, port, private_allowed=private_allowed)
            try:
                return await connect(
                    self.url,
                    sock=connection,  # with a socket of ours neither proxies nor redirects lead elsewhere
                    ssl=self._tls if parts.scheme == "wss" else None,
                    proxy=None,
                    compression=None,
                    max_size=self._options.message_bytes_max,
                    open_timeout=None,
                    ping_interval=self._options.ping_s,
                    ping_timeout=self._options.ping_s,
                    close_timeout=CLOSE_S,
                    user_agent_header=None,
                )
            except BaseException:
                connection.close()
                raise

    async def _converse(self, websocket: ClientConnection) -> None:
        """Until the connection is lost, or of no use any more."""
        inbox: asyncio.Queue[str | bytes] = asyncio.Queue(BATCH_MESSAGES_MAX)
        self._outbox.clear()
        self._perform(self.session.opened())
        parts = (self._read(websocket, inbox), self._handle(inbox), self._write(websocket), self._until_idle())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._note_end(done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._perform(self.session.lost(self._heard_at))
            with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
                await websocket.close()

    def _note_end(self, done: set[asyncio.Task[None]]) -> None:
        """Why the conversation ended; what is not a lost connection is a fault of ours, and raised."""
        errors = [error for task in done if (error := task.exception()) is not None]
        for error in errors:
            if not isinstance(error, ConnectionClosed | OSError):
                raise error
        if errors:  # who reads and who writes may both have noticed
            self._metrics.connects.labels("lost").inc()
            self._problem = "connection lost"
            _log.info("relay lost", relay=self.url, problem=str(errors[0])[:200])

    async def _read(self, websocket: ClientConnection, inbox: asyncio.Queue[str | bytes]) -> None:
        while True:
            await inbox.put(await websocket.recv())

    async def _handle(self, inbox: asyncio.Queue[str | bytes]) -> None:
        """Take all that was read, verify its events together, and let the session decide in the order of arrival."""
        while True:
            texts = [await inbox.get()]
            while not inbox.empty():
                texts.append(inbox.get_nowait())
            self._heard_at = int(time.time())
            for message in await self._verified([relay_message(text) for text in texts]):
                self._perform(self.session.received(message))

    async def _verified(self, messages: list[RelayMessage]) -> list[RelayMessage]:
        """The messages without those whose event is not genuine."""
        events = [message.event for message in messages if isinstance(message, EventMessage)]
        verdicts = iter(await self._verifier.verify(events)) if events else iter(())
        genuine: list[RelayMessage] = []
        for message in messages:
            if not isinstance(message, EventMessage) or next(verdicts) is Verdict.VALID:
                genuine.append(message)
            else:
                self._metrics.events.labels(EventResult.INVALID.value).inc()
        return genuine

    async def _write(self, websocket: ClientConnection) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._outbox:
                await websocket.send(self._outbox.popleft())

    async def _until_idle(self) -> None:
        """Return when the connection was of no use for a while."""
        idle_since_s: float | None = None
        while idle_since_s is None or time.monotonic() - idle_since_s < self._options.idle_s:
            await asyncio.sleep(self._options.idle_s / 4)
            if not self.session.idle:
                idle_since_s = None
            elif idle_since_s is None:
                idle_since_s = time.monotonic()

    def _perform(self, actions: Sequence[Action]) -> None:
        """Do what the session decided."""
        for action in actions:
            match action:
                case Send(text):
                    self._outbox.append(text)
                    self._to_send.set()
                case Deliver(name, event):
                    self._deliver(name, self.url, event)
                case Stored(name):
                    self._deliver(name, self.url, None)
                case Settled(event_id, outcome):
                    self._settle(event_id, outcome)
                case Unasked():
                    self._metrics.events.labels(EventResult.UNASKED.value).inc()
                case SignChallenge(challenge):
                    self._spawn(self._sign(challenge))
                case AskAgain(name, failures):
                    self._spawn(self._ask_later(name, failures))
                case Noticed(text):
                    _log.debug("relay says", relay=self.url, text=text)

    async def _sign(self, challenge: str) -> None:
        sign = self._options.authenticator
        event = None
        if sign is not None:
            try:
                event = await sign(self.url, challenge)
            except Exception:  # noqa: BLE001  # the caller's own: without a signature we stay strangers
                _log.exception("the relay's challenge was not signed", relay=self.url)
        self._perform(self.session.signed(challenge, event))

    async def _ask_later(self, name: str, failures: int) -> None:
        await asyncio.sleep(self._delay_s(failures))
        self._perform(self.session.ask_again(name))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _settle(self, event_id: str, outcome: Outcome) -> None:
        for future in self._futures.get(event_id, ()):
            if not future.done():
                future.set_result(outcome)

    def _late(self, event_id: str) -> Outcome:
        """What is known when the time is over."""
        if self.session.was_sent(event_id):
            return Outcome(kind=OutcomeKind.TIMED_OUT, reason="the relay did not answer in time")
        return Outcome(kind=OutcomeKind.UNREACHABLE, reason=self._problem)

    def _forget(self, event_id: str, future: asyncio.Future[Outcome]) -> None:
        """A caller leaves, answered, late or cancelled; the last one takes the event along."""
        waiting = self._futures[event_id]
        waiting.remove(future)
        if not waiting:
            del self._futures[event_id]
            self.session.give_up(event_id)

    def _delay_s(self, attempt: int) -> float:
        options = self._options
        return delay_s(attempt, least_s=options.backoff_s_min, most_s=options.backoff_s_max)
