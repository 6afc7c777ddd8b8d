"""The conversation with a relay, by models: all orders in which things may happen, and a relay whose events must all be seen."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.nostr.event import Event
from services.relays import Filter
from services.relays.messages import (
    AuthMessage,
    ClosedMessage,
    EoseMessage,
    EventMessage,
    NoticeMessage,
    OkMessage,
    RelayMessage,
)
from services.relays.protocol import (
    OVERLAP_SECONDS,
    Action,
    AskAgain,
    Deliver,
    Send,
    Session,
    Settled,
    SignChallenge,
    Stored,
    Unasked,
)
from support.relay_sessions import AUTH, HEARD_AT, NOTES, PROOF, event, sent


class SessionModel(RuleBasedStateMachine):
    """Whatever happens in whatever order: who waits is told once, and the relay hears of everything that is wanted."""

    NAMES = st.sampled_from(("s1", "s2", "s3"))
    EVENTS = st.sampled_from([event(number) for number in range(3)])
    REASONS = st.sampled_from(("", "blocked: no", "duplicate: have it", AUTH))

    def __init__(self) -> None:
        super().__init__()
        self.session = Session()
        self.connected = False
        self.wanted: set[str] = set()
        self.waiting: set[str] = set()
        self.signing: set[str] = set()
        self.challenges = 0

    def do(self, actions: list[Action]) -> list[Action]:
        """Note what comes of it."""
        for action in actions:
            match action:
                case Send():
                    assert self.connected
                case Settled(event_id, _):
                    self.waiting.remove(event_id)
                case Deliver(name, _) | Stored(name) | AskAgain(name, _):
                    assert name in self.wanted
                case SignChallenge(challenge):
                    assert challenge == f"c{self.challenges}", "only the newest is worth it"
                    assert challenge not in self.signing, "once"
                    self.signing.add(challenge)
        return actions

    @precondition(lambda self: not self.connected)
    @rule()
    def open(self) -> None:
        self.connected = True
        said = sent(self.do(self.session.opened()))
        assert sorted(one[1] for one in said if one[0] == "REQ") == sorted(self.wanted)
        assert sorted(one[1] for one in said if one[0] == "EVENT") == sorted(self.waiting)

    @precondition(lambda self: self.connected)
    @rule(heard_at=st.integers(HEARD_AT, HEARD_AT + 9))
    def lose(self, heard_at: int) -> None:
        self.do(self.session.lost(heard_at))
        self.connected = False

    @rule(name=NAMES)
    def subscribe(self, name: str) -> None:
        self.wanted.add(name)
        assert len(sent(self.do(self.session.subscribe(name, NOTES)))) == self.connected

    @rule(name=NAMES)
    def unsubscribe(self, name: str) -> None:
        known = name in self.wanted
        self.wanted.discard(name)
        assert len(sent(self.do(self.session.unsubscribe(name)))) == (self.connected and known)

    @rule(note=EVENTS)
    def publish(self, note: Event) -> None:
        new = note.id not in self.waiting
        self.waiting.add(note.id)
        assert len(sent(self.do(self.session.publish(note)))) == (self.connected and new)

    @rule(note=EVENTS)
    def give_up(self, note: Event) -> None:
        self.session.give_up(note.id)
        self.waiting.discard(note.id)

    @precondition(lambda self: not self.connected)
    @rule()
    def never(self) -> None:
        self.do(self.session.unreachable("private"))

    @precondition(lambda self: self.connected)
    @rule(note=EVENTS, accepted=st.booleans(), reason=REASONS)
    def say_ok(self, note: Event, accepted: bool, reason: str) -> None:
        self.do(self.session.received(OkMessage(note.id, accepted, reason)))
        if accepted or not reason.startswith("auth-required:"):
            assert note.id not in self.waiting, "told at once"

    @precondition(lambda self: self.connected)
    @rule(name=NAMES, reason=REASONS)
    def close(self, name: str, reason: str) -> None:
        self.do(self.session.received(ClosedMessage(name, reason)))

    @precondition(lambda self: self.connected)
    @rule(name=NAMES, note=EVENTS)
    def send(self, name: str, note: Event) -> None:
        said = self.do(self.session.received(EventMessage(name, note)))
        assert said == ([Deliver(name, note)] if name in self.wanted else [Unasked()])
        self.do(self.session.received(EoseMessage(name)))

    @precondition(lambda self: self.connected)
    @rule()
    def challenge(self) -> None:
        self.challenges += 1
        self.do(self.session.received(AuthMessage(f"c{self.challenges}")))

    @precondition(lambda self: self.signing)
    @rule(data=st.data(), someone=st.booleans())
    def sign(self, data: st.DataObject, someone: bool) -> None:
        challenge = data.draw(st.sampled_from(sorted(self.signing)))
        self.signing.discard(challenge)
        said = sent(self.do(self.session.signed(challenge, PROOF if someone else None)))
        assert not said or challenge == f"c{self.challenges}"

    @precondition(lambda self: self.connected)
    @rule(accepted=st.booleans())
    def know(self, accepted: bool) -> None:
        self.do(self.session.received(OkMessage(PROOF.id, accepted, "")))

    @invariant()
    def it_counts_what_there_is(self) -> None:
        session = self.session
        assert (session.subscriptions, session.publishes) == (len(self.wanted), len(self.waiting))
        assert session.idle == (not self.wanted and not self.waiting)
        assert session.connected == self.connected


TestSessionModel = SessionModel.TestCase
TestSessionModel.settings = settings(max_examples=300, stateful_step_count=40)


class MissedNothing(RuleBasedStateMachine):
    """A relay keeps events and sends the newest first; whatever is lost, closed and dropped, in the end each was handed out.

    Time passes only while nothing is under way: a client that reads minutes late is behind any overlap.
    """

    SLOW_S, FAST_S = OVERLAP_SECONDS // 2, 600
    """So much the clocks of authors are behind and ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session()
        self.session.subscribe("s1", NOTES)
        self.now = self.heard_at = HEARD_AT
        self.kept: list[Event] = []
        self.under_way: deque[RelayMessage] = deque()
        self.asked: Filter | None = None
        self.asking_later = False
        self.seen: set[str] = set()

    def relay_hears(self, actions: list[Action]) -> None:
        """REQ is answered with what is kept from then on; the subscription is open from there."""
        for message in sent(actions):
            if message[0] == "REQ":
                self.asked = Filter(kinds=(1,), since=message[2].get("since"))
                found = [one for one in self.kept if self.asked.matches(one)]
                newest_first = sorted(found, key=lambda one: one.created_at, reverse=True)
                self.under_way += [EventMessage("s1", one) for one in newest_first]
                self.under_way.append(EoseMessage("s1"))

    @precondition(lambda self: not self.session.connected)
    @rule()
    def open(self) -> None:
        self.relay_hears(self.session.opened())

    @precondition(lambda self: self.session.connected)
    @rule()
    def lose(self) -> None:
        self.under_way.clear()
        self.asked = None
        self.session.lost(self.heard_at)

    @rule(skew_s=st.integers(-SLOW_S, FAST_S))
    def keep(self, skew_s: int) -> None:
        """Somebody publishes."""
        one = event(len(self.kept), created_at=self.now + skew_s)
        self.kept.append(one)
        if self.asked is not None and self.asked.matches(one):
            self.under_way.append(EventMessage("s1", one))

    @precondition(lambda self: not self.under_way)
    @rule(seconds=st.integers(1, 3_600))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.session.connected)
    @rule()
    def say_something(self) -> None:
        self.under_way.append(NoticeMessage("hello"))

    @precondition(lambda self: self.asked is not None)
    @rule()
    def close(self) -> None:
        self.asked = None
        self.under_way.append(ClosedMessage("s1", "error: busy"))

    @precondition(lambda self: self.under_way)
    @rule(count=st.integers(1, 5), dropped=st.booleans())
    def read(self, count: int, dropped: bool) -> None:
        """The reader takes what comes, or has no room for the first."""
        for _ in range(min(count, len(self.under_way))):
            self.heard_at = self.now
            actions = self.session.received(self.under_way.popleft())
            self.relay_hears(actions)
            for action in actions:
                if isinstance(action, Deliver) and dropped:
                    self.relay_hears(self.session.read_again("s1", action.event.created_at, self.heard_at))
                elif isinstance(action, Deliver):
                    self.seen.add(action.event.id)
                elif isinstance(action, AskAgain):
                    self.asking_later = True
            dropped = False

    @precondition(lambda self: self.asking_later)
    @rule()
    def ask_again(self) -> None:
        self.asking_later = False
        if self.asked is None:
            self.relay_hears(self.session.ask_again("s1"))

    def teardown(self) -> None:
        """The relay behaves, and the reader is quick."""
        if not self.session.connected:
            self.open()
        while self.under_way or self.asking_later:
            if self.under_way:
                self.read(len(self.under_way), dropped=False)
            else:
                self.ask_again()
        assert self.seen == {one.id for one in self.kept}


TestMissedNothing = MissedNothing.TestCase
TestMissedNothing.settings = settings(max_examples=300, stateful_step_count=40)
