"""The conversation with a relay, without any I/O: each thing that happens."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from services.nostr.event import Event
from services.relays import Filter, OutcomeKind
from services.relays.messages import (
    AuthMessage,
    ClosedMessage,
    EoseMessage,
    EventMessage,
    NoticeMessage,
    OkMessage,
    Unreadable,
)
from services.relays.protocol import (
    OVERLAP_SECONDS,
    Action,
    AskAgain,
    Deliver,
    Noticed,
    Session,
    Settled,
    SignChallenge,
    Stored,
    Unasked,
)
from support.relay_sessions import AUTH, HEARD_AT, NOTE, NOTES, PROOF, event, sent

ACCEPTED, DUPLICATE, REJECTED = OutcomeKind.ACCEPTED, OutcomeKind.DUPLICATE, OutcomeKind.REJECTED


def settled(actions: Iterable[Action]) -> list[tuple[str, OutcomeKind, str]]:
    return [(one.event_id, one.outcome.kind, one.outcome.reason) for one in actions if isinstance(one, Settled)]


@pytest.fixture
def session() -> Session:
    """A session that is connected."""
    made = Session()
    assert made.opened() == []
    return made


def test_nothing_is_sent_before_there_is_a_connection() -> None:
    session = Session()
    assert session.subscribe("s1", NOTES) == []
    assert session.publish(NOTE) == []
    assert session.ask_again("s1") == []
    assert (session.idle, session.subscriptions, session.publishes, session.was_sent(NOTE.id)) == (False, 1, 1, False)
    assert sent(session.opened()) == [["REQ", "s1", {"kinds": [1]}], ["EVENT", NOTE.id]]
    assert session.was_sent(NOTE.id)
    session.lost(HEARD_AT)
    assert session.unsubscribe("s1") == []
    session.give_up(NOTE.id)
    assert session.idle
    assert session.opened() == []


@pytest.mark.parametrize(
    ("accepted", "reason", "kind"),
    [
        (True, "", ACCEPTED),
        (True, "duplicate: have it", DUPLICATE),
        (False, "duplicate: have it", DUPLICATE),
        (False, "blocked: no", REJECTED),
        (False, "", REJECTED),
    ],
)
def test_what_a_relay_says_of_an_event(session: Session, accepted: bool, reason: str, kind: OutcomeKind) -> None:
    assert sent(session.publish(NOTE)) == [["EVENT", NOTE.id]]
    assert session.publish(NOTE) == [], "it is on its way"
    assert settled(session.received(OkMessage(NOTE.id, accepted, reason))) == [(NOTE.id, kind, reason)]
    assert session.received(OkMessage(NOTE.id, accepted, reason)) == [], "said once more"
    assert session.idle


def test_events_are_handed_out_to_whoever_asked_for_such(session: Session) -> None:
    session.subscribe("s1", NOTES)
    assert session.received(EventMessage("s1", NOTE)) == [Deliver("s1", NOTE)]
    assert session.received(EventMessage("s1", event(2, kind=7))) == [Unasked()]
    assert session.received(EventMessage("s2", NOTE)) == [Unasked()]
    assert session.received(EoseMessage("s1")) == [Stored("s1")]
    assert session.received(EoseMessage("s2")) == []
    assert sent(session.unsubscribe("s1")) == [["CLOSE", "s1"]]
    assert session.unsubscribe("s1") == []
    assert session.received(EventMessage("s1", NOTE)) == [Unasked()]


def test_what_means_nothing_is_for_the_log(session: Session) -> None:
    assert session.received(NoticeMessage("slow down")) == [Noticed("slow down")]
    assert session.received(Unreadable("not JSON")) == [Noticed("not JSON")]
    assert session.received(ClosedMessage("s1", "error: gone")) == []


def test_a_subscription_resumes_a_little_before_the_relay_was_last_heard(session: Session) -> None:
    session.subscribe("s1", (Filter(kinds=(1,), limit=5),))
    session.subscribe("s2", NOTES)
    session.received(EoseMessage("s1"))
    session.lost(HEARD_AT)
    assert sent(session.opened()) == [
        ["REQ", "s1", {"kinds": [1], "since": HEARD_AT - OVERLAP_SECONDS}],
        ["REQ", "s2", {"kinds": [1]}],
    ], "what was never read to its end begins anew"


def test_what_is_lost_again_before_it_was_read_resumes_where_it_did(session: Session) -> None:
    """The relay says something, and is gone before it sends what came in between: the second loss must not move the place."""
    session.subscribe("s1", NOTES)
    session.received(EoseMessage("s1"))
    session.lost(HEARD_AT)
    session.opened()
    session.received(NoticeMessage("restarting"))
    session.lost(HEARD_AT + 3_600)
    assert sent(session.opened()) == [["REQ", "s1", {"kinds": [1], "since": HEARD_AT - OVERLAP_SECONDS}]]
    session.received(EoseMessage("s1"))
    session.lost(HEARD_AT + 7_200)
    assert sent(session.opened())[0][2]["since"] == HEARD_AT + 7_200 - OVERLAP_SECONDS


def test_stored_events_are_asked_for_again_from_the_earliest_place(session: Session) -> None:
    long_ago = HEARD_AT - 10 * OVERLAP_SECONDS
    session.subscribe("s1", NOTES)
    session.received(EoseMessage("s1"))
    assert sent(session.read_again("s1", long_ago, HEARD_AT)) == [["REQ", "s1", {"kinds": [1], "since": long_ago}]]
    assert session.read_again("s1", long_ago + 5, HEARD_AT) == []
    assert session.read_again("s1", long_ago - 5, HEARD_AT) == []
    assert sent(session.received(EoseMessage("s1"))) == [["REQ", "s1", {"kinds": [1], "since": long_ago - 5}]]
    assert session.received(EoseMessage("s1")) == [Stored("s1")]
    assert session.read_again("s2", long_ago, HEARD_AT) == []
    assert sent(session.subscribe("s1", NOTES)) == [["REQ", "s1", {"kinds": [1]}]], "other wishes, from the beginning"


def test_reading_again_does_not_end_a_reading_that_goes_on(session: Session) -> None:
    """A relay sends the newest first: asked for the newer ones again, it would never send the older ones."""
    session.subscribe("s1", NOTES)
    assert session.read_again("s1", HEARD_AT - 500, HEARD_AT) == []
    stored, *again = session.received(EoseMessage("s1"))
    assert stored == Stored("s1")
    assert sent(again) == [["REQ", "s1", {"kinds": [1], "since": HEARD_AT - 500}]]


@pytest.mark.parametrize("created_at", [HEARD_AT, HEARD_AT + 10**9])
def test_the_time_of_an_event_that_was_dropped_does_not_shut_out_what_is_new(session: Session, created_at: int) -> None:
    """Its author chose it. Nor does the place move there, when the connection is lost before all is read again."""
    session.subscribe("s1", NOTES)
    session.received(EoseMessage("s1"))
    asked = [["REQ", "s1", {"kinds": [1], "since": HEARD_AT - OVERLAP_SECONDS}]]
    assert sent(session.read_again("s1", created_at, HEARD_AT)) == asked
    session.lost(HEARD_AT + 3_600)
    assert sent(session.opened()) == asked


def test_what_is_to_be_read_again_outlives_a_lost_connection(session: Session) -> None:
    session.subscribe("s1", NOTES)
    session.subscribe("s2", NOTES)
    session.received(EoseMessage("s1"))
    session.lost(HEARD_AT)
    assert session.read_again("s1", HEARD_AT - 500, HEARD_AT) == []
    assert session.read_again("s2", HEARD_AT - 500, HEARD_AT) == []
    resumed, anew = sent(session.opened())
    assert resumed == ["REQ", "s1", {"kinds": [1], "since": HEARD_AT - 500}]
    assert anew == ["REQ", "s2", {"kinds": [1]}], "it was never read to its end"
    assert session.received(EoseMessage("s1")) == [Stored("s1")], "once"


def test_what_the_relay_ended_is_missed_until_it_is_read_again(session: Session) -> None:
    session.subscribe("s1", NOTES)
    session.received(EoseMessage("s1"))
    session.lost(HEARD_AT)
    session.opened()
    session.received(EoseMessage("s1"))
    session.received(ClosedMessage("s1", "error: busy"))
    session.received(NoticeMessage("something else goes on"))
    session.lost(HEARD_AT + 3_600)
    assert sent(session.opened()) == [["REQ", "s1", {"kinds": [1], "since": HEARD_AT - OVERLAP_SECONDS}]]


def test_a_subscription_that_the_relay_ends_is_asked_for_again_later(session: Session) -> None:
    session.subscribe("s1", NOTES)
    for failures in (1, 2):
        assert session.received(ClosedMessage("s1", "error: busy"))[1:] == [AskAgain("s1", failures)]
    session.received(EoseMessage("s1"))
    assert session.received(ClosedMessage("s1", "error: busy"))[1:] == [AskAgain("s1", 1)], "it had worked meanwhile"


def test_events_outlive_a_lost_connection(session: Session) -> None:
    session.publish(NOTE)
    session.lost(HEARD_AT)
    assert session.was_sent(NOTE.id)
    assert sent(session.opened()) == [["EVENT", NOTE.id]]
    assert settled(session.received(OkMessage(NOTE.id, False, "duplicate: sent before"))) == [
        (NOTE.id, DUPLICATE, "duplicate: sent before")
    ]


def test_what_can_never_be_sent_is_settled() -> None:
    session, late = Session(), event(2)
    session.opened()
    session.publish(NOTE)
    session.lost(HEARD_AT)
    session.publish(late)
    assert settled(session.unreachable("private")) == [(late.id, OutcomeKind.UNREACHABLE, "private")]
    assert session.publishes == 1, "what was sent may have arrived"


# Who we are (NIP-42)


def test_nobody_says_who_they_are_before_it_is_asked_for(session: Session) -> None:
    assert session.received(AuthMessage("c1")) == []
    session.publish(NOTE)
    assert session.received(OkMessage(NOTE.id, False, AUTH)) == [SignChallenge("c1")]
    session.subscribe("s1", NOTES)
    assert session.received(ClosedMessage("s1", AUTH)) == [], "one signature is enough"
    assert sent(session.signed("c1", PROOF)) == [["AUTH", PROOF.id]]
    assert session.received(ClosedMessage("s1", AUTH)) == []
    assert sent(session.received(OkMessage(PROOF.id, True, ""))) == [["REQ", "s1", {"kinds": [1]}], ["EVENT", NOTE.id]]
    assert settled(session.received(OkMessage(NOTE.id, False, AUTH))) == [(NOTE.id, REJECTED, AUTH)], "once"
    assert session.received(ClosedMessage("s1", AUTH))[1:] == [AskAgain("s1", 1)]


def test_a_challenge_may_come_after_the_refusal(session: Session) -> None:
    session.publish(NOTE)
    assert session.received(OkMessage(NOTE.id, False, AUTH)) == []
    assert session.received(AuthMessage("c1")) == [SignChallenge("c1")]
    session.signed("c1", PROOF)
    other = event(2)
    session.publish(other)
    session.received(OkMessage(PROOF.id, True, ""))
    assert sent(session.received(OkMessage(other.id, False, AUTH))) == [["EVENT", other.id]], "we are known by now"


@pytest.mark.parametrize("signed", [None, PROOF])
def test_who_stays_a_stranger_is_told(session: Session, signed: Event | None) -> None:
    """Nobody signs, or the relay does not take the signature."""
    session.received(AuthMessage("c1"))
    session.publish(NOTE)
    session.subscribe("s1", NOTES)
    session.received(OkMessage(NOTE.id, False, AUTH))
    session.received(ClosedMessage("s1", AUTH))
    actions = session.signed("c1", signed)
    if signed is not None:
        actions = session.received(OkMessage(PROOF.id, False, "restricted: not you"))
    ((event_id, kind, reason),) = settled(actions)
    assert (event_id, kind) == (NOTE.id, REJECTED)
    assert reason.startswith("auth-required: ")
    assert actions[-1] == AskAgain("s1", 1)
    session.publish(event(2))
    assert settled(session.received(OkMessage(event(2).id, False, AUTH))) == [(event(2).id, REJECTED, AUTH)]
    session.lost(HEARD_AT)
    session.opened()
    session.received(AuthMessage("c2"))
    assert session.received(ClosedMessage("s1", AUTH)) == [SignChallenge("c2")], "another connection, another try"


def test_what_a_connection_before_wanted_to_know_is_not_told_to_the_next(session: Session) -> None:
    session.publish(NOTE)
    session.subscribe("s1", NOTES)
    session.received(OkMessage(NOTE.id, False, AUTH))
    session.received(ClosedMessage("s1", AUTH))
    session.lost(HEARD_AT)
    session.opened()
    assert session.received(AuthMessage("c1")) == [], "this time the relay may ask for nothing"
    assert session.received(ClosedMessage("s1", AUTH)) == [SignChallenge("c1")]


def test_only_the_newest_challenge_is_answered(session: Session) -> None:
    session.received(AuthMessage("c1"))
    session.publish(NOTE)
    assert session.received(OkMessage(NOTE.id, False, AUTH)) == [SignChallenge("c1")]
    assert session.received(AuthMessage("c2")) == [SignChallenge("c2")]
    newest, late = event(10, kind=22242), event(11, kind=22242)
    assert sent(session.signed("c2", newest)) == [["AUTH", newest.id]]
    assert session.signed("c1", late) == [], "the relay would refuse it"
    assert sent(session.received(OkMessage(newest.id, True, ""))) == [["EVENT", NOTE.id]]


@pytest.mark.parametrize("signed", [None, PROOF])
def test_a_signature_for_the_connection_before_is_not_sent(session: Session, signed: Event | None) -> None:
    session.received(AuthMessage("c1"))
    session.publish(NOTE)
    session.received(OkMessage(NOTE.id, False, AUTH))
    session.lost(HEARD_AT)
    assert session.signed("c1", signed) == []
    session.opened()
    assert session.signed("c1", signed) == []
    session.received(AuthMessage("c2"))
    assert session.received(OkMessage(NOTE.id, False, AUTH)) == [SignChallenge("c2")]
    assert sent(session.signed("c2", PROOF)) == [["AUTH", PROOF.id]]
