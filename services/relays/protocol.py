"""The conversation with one relay, without any I/O: what happened goes in, what is to be done comes out.

A `Session` outlives connections: it knows which subscriptions there are, which events wait for the relay's OK, and whether the relay wants
to know who we are. After a connection is lost its subscriptions resume and its events are sent again: a relay that has one says so.

| what the relay says | what follows |
|---|---|
| EVENT | handed out if it matches a subscription |
| OK true / "duplicate:" / false | ACCEPTED / DUPLICATE / REJECTED |
| OK or CLOSED with "auth-required:" | the challenge is signed, then the event or the subscription goes out again, once |
| CLOSED otherwise | asked for again, later |
| AUTH | kept; signed when something needs it |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.nostr.event import Event
from services.relays.filter import Filter
from services.relays.messages import (
    AuthMessage,
    ClosedMessage,
    EoseMessage,
    EventMessage,
    NoticeMessage,
    OkMessage,
    RelayMessage,
    Unreadable,
    auth_message,
    close_message,
    event_message,
    request_message,
)
from services.relays.outcome import Outcome, OutcomeKind

OVERLAP_SECONDS: Final = 120
"""A resumed subscription looks so far back: clocks of authors differ, and relays store late."""
AUTH_REQUIRED: Final = "auth-required:"
DUPLICATE: Final = "duplicate:"


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message."""

    text: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the event to a subscription's reader."""

    subscription: str
    event: Event


@dataclass(frozen=True, slots=True)
class Stored:
    """The relay has sent what it has stored for a subscription: from here on it sends what is new."""

    subscription: str


@dataclass(frozen=True, slots=True)
class Unasked:
    """The relay sent an event that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome of an event is known."""

    event_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SignChallenge:
    """Have the challenge signed, then call `signed`."""

    challenge: str


@dataclass(frozen=True, slots=True)
class AskAgain:
    """After a while, call `ask_again`; `failures` says how often the relay has refused in a row."""

    subscription: str
    failures: int


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something for the log."""

    text: str


Action = Send | Deliver | Stored | Unasked | Settled | SignChallenge | AskAgain | Noticed


@dataclass(slots=True)
class _Wanted:
    """A subscription. `since` is where it resumes; None: it was never read to the end of what is stored.

    `stored_read`: since it was last asked for it was. `again_since`: once it is, it is read again from there.
    """

    filters: tuple[Filter, ...]
    since: int | None = None
    stored_read: bool = False
    again_since: int | None = None
    failures: int = 0
    waits_for_auth: bool = False


@dataclass(slots=True)
class _Waiting:
    """An event that waits for the relay's OK."""

    event: Event
    sent: bool = False
    waits_for_auth: bool = False
    repeated: bool = False


@dataclass(slots=True)
class _Auth:
    """Who we are on this connection."""

    challenge: str = ""
    event_id: str = ""
    signing: bool = False
    done: bool = False
    refused: str = ""


@dataclass(slots=True)
class Session:
    """See the module. Each method changes the state and returns what is to be done now."""

    connected: bool = False
    _wanted: dict[str, _Wanted] = field(default_factory=dict)
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _auth: _Auth = field(default_factory=_Auth)

    @property
    def idle(self) -> bool:
        """Whether a connection is of no use now."""
        return not self._wanted and not self._waiting

    @property
    def subscriptions(self) -> int:
        """How many there are."""
        return len(self._wanted)

    @property
    def publishes(self) -> int:
        """Events that wait."""
        return len(self._waiting)

    def filters_of(self, name: str) -> tuple[Filter, ...]:
        """What a subscription asked for."""
        return self._wanted[name].filters

    def opened(self) -> list[Action]:
        """The connection is there: subscriptions resume, waiting events go out."""
        self.connected = True
        for wanted in self._wanted.values():
            wanted.waits_for_auth = False
            if wanted.since is not None and wanted.again_since is not None:
                wanted.since = min(wanted.since, wanted.again_since)
            wanted.again_since = None
        for waiting in self._waiting.values():
            waiting.waits_for_auth = waiting.repeated = False
        asked: list[Action] = [self._request(name) for name in self._wanted]
        return [*asked, *(self._event(waiting) for waiting in self._waiting.values())]

    def lost(self, heard_at: int) -> list[Action]:
        """The connection is gone; the relay was last heard at that second."""
        self.connected = False
        self._auth = _Auth()
        for wanted in self._wanted.values():
            if wanted.stored_read:
                wanted.since, wanted.stored_read = heard_at - OVERLAP_SECONDS, False
        return []

    def subscribe(self, name: str, filters: Sequence[Filter]) -> list[Action]:
        """Want events, or from now on others under the same name."""
        assert filters, "a subscription to nothing"
        self._wanted[name] = _Wanted(tuple(filters))
        return [self._request(name)] if self.connected else []

    def unsubscribe(self, name: str) -> list[Action]:
        """Want them no more."""
        if self._wanted.pop(name, None) is None or not self.connected:
            return []
        return [Send(close_message(name))]

    def ask_again(self, name: str) -> list[Action]:
        """The time after a refusal is over."""
        return [self._request(name)] if self.connected and name in self._wanted else []

    def read_again(self, name: str, since: int, heard_at: int) -> list[Action]:
        """Stored events from `since` on are wanted again, once the relay has sent all that it sends now; it was last heard at `heard_at`.

        Never only from a later place: that would shut out what is new. `since` is from an event, whose author may say any time.
        """
        wanted = self._wanted.get(name)
        if wanted is None:
            return []
        place = min(since, heard_at - OVERLAP_SECONDS)
        wanted.again_since = place if wanted.again_since is None else min(place, wanted.again_since)
        return self._reread(name) if self.connected and wanted.stored_read else []

    def publish(self, event: Event) -> list[Action]:
        """Send an event, or, when it waits already, nothing more."""
        if event.id in self._waiting:
            return []
        waiting = self._waiting[event.id] = _Waiting(event)
        return [self._event(waiting)] if self.connected else []

    def was_sent(self, event_id: str) -> bool:
        """Whether the event went out on a connection."""
        waiting = self._waiting.get(event_id)
        return waiting is not None and waiting.sent

    def give_up(self, event_id: str) -> None:
        """Nobody waits for this event any more."""
        self._waiting.pop(event_id, None)

    def unreachable(self, reason: str) -> list[Action]:
        """There will be no connection: whatever was not sent is settled."""
        unsent = [event_id for event_id, waiting in self._waiting.items() if not waiting.sent]
        return [self._settled(event_id, OutcomeKind.UNREACHABLE, reason) for event_id in unsent]

    def signed(self, challenge: str, event: Event | None) -> list[Action]:
        """A challenge was signed, or (None) nobody signs for us; nothing, when the relay has sent another since, or is connected anew."""
        if not self._auth.signing or challenge != self._auth.challenge:
            return []
        self._auth.signing = False
        if event is None:
            return self._refused("this client does not tell who it is")
        self._auth.event_id = event.id
        return [Send(auth_message(event))] if self.connected else []

    def received(self, message: RelayMessage) -> list[Action]:
        """The relay said something; an EVENT's signature was verified."""
        match message:
            case EventMessage():
                return [self._delivered(message)]
            case OkMessage():
                return self._answered(message)
            case EoseMessage(name):
                return self._read_stored(name)
            case ClosedMessage():
                return self._closed(message)
            case AuthMessage(challenge):
                return self._challenged(challenge)
            case NoticeMessage(text):
                return [Noticed(text)]
            case Unreadable(problem):
                return [Noticed(problem)]

    def _delivered(self, message: EventMessage) -> Action:
        wanted = self._wanted.get(message.subscription)
        if wanted is None or not any(one.matches(message.event) for one in wanted.filters):
            return Unasked()
        return Deliver(message.subscription, message.event)

    def _read_stored(self, name: str) -> list[Action]:
        if name not in self._wanted:
            return []
        self._wanted[name].stored_read = True
        self._wanted[name].failures = 0
        return [Stored(name), *self._reread(name)]

    def _reread(self, name: str) -> list[Action]:
        """Ask for what is wanted again."""
        wanted = self._wanted[name]
        if wanted.again_since is None:
            return []
        wanted.since, wanted.again_since, wanted.stored_read = wanted.again_since, None, False
        return [self._request(name)]

    def _answered(self, ok: OkMessage) -> list[Action]:
        if ok.event_id == self._auth.event_id and ok.event_id:
            return self._authenticated() if ok.accepted else self._refused(ok.reason)
        waiting = self._waiting.get(ok.event_id)
        if waiting is None:
            return []
        if not ok.accepted and ok.reason.startswith(AUTH_REQUIRED) and not waiting.repeated and not self._auth.refused:
            waiting.waits_for_auth = True
            return self._identify()
        return [self._settled(ok.event_id, *_kind(ok))]

    def _closed(self, closed: ClosedMessage) -> list[Action]:
        wanted = self._wanted.get(closed.subscription)
        if wanted is None:
            return []
        wanted.stored_read = False  # from here on something may be missed
        if closed.reason.startswith(AUTH_REQUIRED) and not self._auth.done and not self._auth.refused:
            wanted.waits_for_auth = True
            return self._identify()
        wanted.failures += 1
        return [Noticed(f"subscription closed: {closed.reason}"), AskAgain(closed.subscription, wanted.failures)]

    def _challenged(self, challenge: str) -> list[Action]:
        """NIP-42: the challenge is valid "until another challenge is sent by the relay"."""
        self._auth = _Auth(challenge=challenge)
        return self._identify() if self._anything_waits_for_auth() else []

    def _identify(self) -> list[Action]:
        """Begin to answer the challenge, unless that runs, or there is none yet."""
        auth = self._auth
        if auth.done:
            return self._authenticated()
        if not auth.challenge or auth.signing or auth.event_id:
            return []
        auth.signing = True
        return [SignChallenge(auth.challenge)]

    def _authenticated(self) -> list[Action]:
        """The relay knows us: what waited for that goes out again, once."""
        self._auth.done, self._auth.event_id = True, ""
        actions: list[Action] = []
        for name, wanted in self._wanted.items():
            if wanted.waits_for_auth:
                wanted.waits_for_auth = False
                actions.append(self._request(name))
        for waiting in self._waiting.values():
            if waiting.waits_for_auth:
                waiting.waits_for_auth, waiting.repeated = False, True
                actions.append(self._event(waiting))
        return actions

    def _refused(self, reason: str) -> list[Action]:
        """We stay strangers on this connection."""
        self._auth.refused, self._auth.event_id = reason or "refused", ""
        events = [event_id for event_id, waiting in self._waiting.items() if waiting.waits_for_auth]
        actions: list[Action] = [
            self._settled(one, OutcomeKind.REJECTED, f"{AUTH_REQUIRED} {reason}") for one in events
        ]
        for name, wanted in self._wanted.items():
            if wanted.waits_for_auth:
                wanted.waits_for_auth = False
                wanted.failures += 1
                actions.append(AskAgain(name, wanted.failures))
        return actions

    def _anything_waits_for_auth(self) -> bool:
        both: Iterable[_Wanted | _Waiting] = (*self._wanted.values(), *self._waiting.values())
        return any(one.waits_for_auth for one in both)

    def _request(self, name: str) -> Send:
        wanted = self._wanted[name]
        since = wanted.since
        filters = wanted.filters if since is None else [one.resumed(since) for one in wanted.filters]
        return Send(request_message(name, filters))

    def _event(self, waiting: _Waiting) -> Send:
        waiting.sent = True
        return Send(event_message(waiting.event))

    def _settled(self, event_id: str, kind: OutcomeKind, reason: str) -> Settled:
        del self._waiting[event_id]
        return Settled(event_id, Outcome(kind=kind, reason=reason))


def _kind(ok: OkMessage) -> tuple[OutcomeKind, str]:
    """What an OK means; some relays say false to a duplicate."""
    if ok.reason.startswith(DUPLICATE):
        return OutcomeKind.DUPLICATE, ok.reason
    return (OutcomeKind.ACCEPTED if ok.accepted else OutcomeKind.REJECTED), ok.reason
