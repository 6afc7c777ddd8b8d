"""The life of a key cell by cell, password attempts, relays and the caches of opened secrets: all that is decided without a database."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nip.domain import attempts, life, relays
from services.nip.domain.attempts import Attempts
from services.nip.domain.ciphers import Cipher
from services.nip.domain.life import STAYS, Action, Condition, Refusal, State, condition_of, decide, state_of
from services.nip.domain.relays import Relay, RelayError
from services.nip.domain.signers import AgreedKey, ConversationCache

# What each action comes to, written down a second time: state by state, in words.
EXPECTED = {
    State.ACTIVE: "use=stays seal=LOCKED relock=!NOT_LOCKED unlock=!NOT_LOCKED unseal=!NOT_LOCKED disable=DISABLED enable=stays"
    " export=stays delete=DELETED",
    State.LOCKED: "use=!LOCKED seal=!LOCKED relock=stays unlock=UNLOCKED unseal=ACTIVE disable=DISABLED_LOCKED enable=stays"
    " export=stays delete=DELETED",
    State.UNLOCKED: "use=stays seal=!LOCKED relock=LOCKED unlock=UNLOCKED unseal=ACTIVE disable=DISABLED_LOCKED enable=stays"
    " export=stays delete=DELETED",
    State.DISABLED: "use=!NOT_ACTIVE seal=!NOT_ACTIVE relock=!NOT_ACTIVE unlock=!NOT_ACTIVE unseal=!NOT_ACTIVE disable=stays"
    " enable=ACTIVE export=!NOT_ACTIVE delete=DELETED",
    State.DISABLED_LOCKED: "use=!NOT_ACTIVE seal=!NOT_ACTIVE relock=!NOT_ACTIVE unlock=!NOT_ACTIVE unseal=!NOT_ACTIVE"
    " disable=stays enable=LOCKED export=!NOT_ACTIVE delete=DELETED",
    State.DELETED: "use=!DELETED seal=!DELETED relock=!DELETED unlock=!DELETED unseal=!DELETED disable=!DELETED enable=!DELETED"
    " export=!DELETED delete=stays",
}
CELLS = [
    (state, Action[name.upper()], outcome)
    for state, row in EXPECTED.items()
    for name, outcome in (cell.split("=") for cell in row.split())
]


def test_every_cell_is_expected() -> None:
    assert len(CELLS) == len(State) * len(Action) == 54
    assert {(state, action) for state, action, _ in CELLS} == set(itertools.product(State, Action))


@pytest.mark.parametrize(("state", "action", "expected"), CELLS, ids=lambda part: getattr(part, "name", part))
def test_cell(state: State, action: Action, expected: str) -> None:
    outcome = decide(state, action)
    if expected == "stays":
        assert outcome == STAYS
    elif expected.startswith("!"):
        assert outcome is Refusal[expected[1:]]
    else:
        assert outcome is State[expected]


def test_nothing_comes_back_from_deletion_and_a_password_is_lost_by_unsealing_alone() -> None:
    with_password = {State.LOCKED, State.UNLOCKED, State.DISABLED_LOCKED}
    for state, action in itertools.product(State, Action):
        outcome = decide(state, action)
        if isinstance(outcome, State):
            assert state is not State.DELETED
            lost = state in with_password and outcome not in with_password
            assert not lost or action in (Action.UNSEAL, Action.DELETE)


@given(condition=st.sampled_from(Condition), until=st.none() | st.integers(0, 100), now=st.integers(0, 100))
def test_an_unlocking_ends_by_itself(condition: Condition, until: int | None, now: int) -> None:
    state = state_of(condition, until, now)
    unlocked = condition is Condition.LOCKED and until is not None and now < until
    assert state is (State.UNLOCKED if unlocked else State[condition.name])
    assert condition_of(state) is condition


def test_the_longest_unlocking_is_a_day() -> None:
    assert life.UNLOCK_US_MAX == 86_400_000_000


# Attempts


def test_mistyping_is_free_and_guessing_is_slow() -> None:
    pauses = [attempts.pause_us(wrong) // 1_000_000 for wrong in range(14)]
    assert pauses == [0, 0, 0, 0, 0, 30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]
    assert attempts.pause_us(10_000) == attempts.PAUSE_US_MAX


@given(steps=st.lists(st.integers(0, 4_000_000_000), max_size=60))
def test_no_schedule_of_guesses_beats_the_pauses(steps: list[int]) -> None:
    state, now, made = Attempts(), 0, []
    for step in steps:
        now += step
        if attempts.wait_us(state, now) == 0:
            state = attempts.counted(state, now)
            made.append(now)
    for number in range(attempts.FREE_ATTEMPTS, len(made)):
        assert made[number] - made[number - 1] >= attempts.PAUSE_US_MIN
    hour = 3_600_000_000
    assert all(sum(1 for each in made if start <= each < start + hour) <= 5 + 8 for start in made)


# Relays


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("wss://Relay.Example", "wss://relay.example"),
        ("WSS://relay.example/", "wss://relay.example"),
        ("wss://relay.example:443/", "wss://relay.example"),
        ("ws://relay.example:80", "ws://relay.example"),
        ("ws://relay.example:443", "ws://relay.example:443"),
        ("wss://relay.example/Path/?x=Y", "wss://relay.example/Path?x=Y"),
        ("ws://[2001:DB8::0:1]:7000/", "ws://[2001:db8::1]:7000"),
        ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080"),
    ],
)
def test_urls_have_one_spelling(url: str, expected: str) -> None:
    assert relays.normalized_url(url) == expected
    assert relays.normalized_url(expected) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "wss://", "relay.example", "https://relay.example", "wss://a b", "wss://user@relay.example", "wss://relay.example#x",
        "wss://relay.example#", "wss://relay.example:99999", "wss://relay.example:x", "ws://[::1", "ws://[::g]", "wss://é.example",
        "wss://-a.example", "wss://a..b", "wss://" + "a" * 250, "wss://relay.example/\n", "wss://%41.example",
    ],
)  # fmt: skip
def test_what_is_no_relay_is_refused(url: str) -> None:
    with pytest.raises(RelayError):
        relays.normalized_url(url)


@given(url=st.text(max_size=60) | st.from_regex(r"wss?://[a-z0-9.:\[\]@/#?%-]{0,40}", fullmatch=True))
def test_a_normalized_url_stays_as_it_is_and_noise_is_refused(url: str) -> None:
    try:
        found = relays.normalized_url(url)
    except RelayError:
        return
    assert relays.normalized_url(found) == found
    assert len(found) <= relays.URL_CHARACTERS_MAX


def test_neither_is_both_and_no_url_stands_there_twice() -> None:
    wanted = (
        Relay(url="wss://A.example/", read=False, write=False),
        Relay(url="wss://b.example", read=True, write=False),
    )
    assert relays.normalized(wanted) == (
        Relay(url="wss://a.example", read=True, write=True),
        Relay(url="wss://b.example", read=True, write=False),
    )
    with pytest.raises(RelayError):
        relays.normalized((*wanted, Relay(url="wss://a.example:443", read=True, write=True)))


# What was agreed on


def test_agreed_keys_are_wiped_with_their_key() -> None:
    cache = ConversationCache(2)
    kept = {number: AgreedKey(SecretBytes(bytes([number]) * 32)) for number in (1, 2, 3)}
    cache.put(("alice", "1", Cipher.NIP44, "p"), kept[1])
    cache.put(("alice", "2", Cipher.NIP04, "p"), kept[2])
    cache.put(("alice", "2", Cipher.NIP44, "p"), kept[3])
    assert cache.get(("alice", "1", Cipher.NIP44, "p")) is None
    assert kept[1].reveal().reveal() == bytes(32), "pushed out and wiped"
    cache.remove(lambda name: name[:2] == ("alice", "2"))
    assert len(cache) == 0
    assert {kept[number].reveal().reveal() for number in (2, 3)} == {bytes(32)}
    assert repr(kept[2]) == "AgreedKey([redacted])"
