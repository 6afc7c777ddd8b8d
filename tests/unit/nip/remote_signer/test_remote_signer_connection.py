"""A connection's life against a simple model: whatever anyone sends, only one app ever gets in, and only by the secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.nip.domain.remote_signer.connection import (
    Connection,
    ConnectionState,
    Decision,
    Step,
    Will,
    after,
    decide,
    secret_sha256_of,
)
from services.nip.domain.remote_signer.limits import BUCKETS_MAX, Buckets
from services.nip.domain.remote_signer.message import Request
from services.nip.domain.remote_signer.permission import Effect, Method, Permission

SIGNER, SECRET, NOW = "5a" * 32, "secret", 1_000
APPS = ["aa" * 32, "bb" * 32, "cc" * 32]
NOTE = '{"kind":1,"content":"","tags":[],"created_at":1}'
OPEN = {
    "get_public_key": Step.PUBLIC_KEY,
    "ping": Step.PONG,
    "switch_relays": Step.RELAYS,
    "connect": Step.ACKNOWLEDGE,
    "logout": Step.LOGOUT,
}


def connection(**changes: Any) -> Connection:
    return Connection(
        **{
            "connection_id": "c",
            "owner": "00" * 32,
            "key_id": "k",
            "user_pubkey": "11" * 32,
            "signer_key_id": "s",
            "signer_pubkey": SIGNER,
            "state": ConnectionState.PENDING,
            "create_time_us": 0,
            "secret_sha256": secret_sha256_of(SECRET),
            **changes,
        }
    )


def connected(*permissions: Permission, **changes: Any) -> Connection:
    return connection(state=ConnectionState.CONNECTED, client_pubkey=APPS[0], permissions=permissions, **changes)


def request(method: str, *params: str) -> Request:
    return Request(id="1", method=method, params=params)


def step(held: Connection, asked: Request, app: str = APPS[0], will: Will = Will.UNSAID) -> Step:
    return decide(held, app, asked, NOW, will).step


@pytest.mark.parametrize("method", [*OPEN, *Method, "unknown"])
@pytest.mark.parametrize("state", [ConnectionState.PENDING, ConnectionState.REVOKED, ConnectionState.LOGGED_OUT])
def test_silence_before_and_after(method: str, state: ConnectionState) -> None:
    assert step(connection(state=state, client_pubkey=APPS[0]), request(method, NOTE)) is Step.IGNORE


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ((SIGNER, SECRET), Step.CONNECT),
        ((SIGNER.upper(), SECRET), Step.CONNECT),
        ((SIGNER, "Secret"), Step.IGNORE),
        ((SIGNER, ""), Step.IGNORE),
        ((SIGNER,), Step.IGNORE),
        (("11" * 32, SECRET), Step.IGNORE),
        ((), Step.IGNORE),
    ],
)
def test_the_secret_opens_a_pending_connection(params: tuple[str, ...], expected: Step) -> None:
    assert step(connection(), request("connect", *params)) is expected


def test_a_connection_without_a_secret_is_opened_by_nobody() -> None:
    assert step(connection(secret_sha256=b""), request("connect", SIGNER, "")) is Step.IGNORE


@pytest.mark.parametrize("method", OPEN)
def test_what_needs_no_permission(method: str) -> None:
    assert step(connected(), request(method)) is OPEN[method]
    assert step(connected(), request(method), app=APPS[1]) is Step.IGNORE


@pytest.mark.parametrize("expire_time_us", [NOW, NOW - 1])
def test_a_connection_is_over_with_its_time(expire_time_us: int) -> None:
    assert step(connected(expire_time_us=expire_time_us), request("ping")) is Step.IGNORE
    assert step(connected(expire_time_us=NOW + 1), request("ping")) is Step.PONG


@pytest.mark.parametrize(
    ("effect", "will", "expected"),
    [
        (None, Will.UNSAID, Step.REFUSE),
        (None, Will.ALLOW, Step.REFUSE),
        (Effect.DENY, Will.UNSAID, Step.REFUSE),
        (Effect.DENY, Will.ALLOW, Step.REFUSE),
        (Effect.ALLOW, Will.UNSAID, Step.PERFORM),
        (Effect.ALLOW, Will.DENY, Step.REFUSE),
        (Effect.ASK, Will.UNSAID, Step.ASK),
        (Effect.ASK, Will.ALLOW, Step.PERFORM),
        (Effect.ASK, Will.DENY, Step.REFUSE),
    ],
)
@pytest.mark.parametrize("method", list(Method))
def test_permissions_and_the_users_word(method: Method, effect: Effect | None, will: Will, expected: Step) -> None:
    held = connected(*([Permission(method=method, effect=effect)] if effect else []))
    assert step(held, request(method, NOTE), will=will) is expected


class ConnectionMachine(RuleBasedStateMachine):
    """Apps send what they like, the owner revokes when they like; the model knows who is in, and how many notes are left."""

    @initialize(uses=st.integers(min_value=0, max_value=5))
    def begin(self, uses: int) -> None:
        permission = Permission(method=Method.SIGN_EVENT, effect=Effect.ALLOW, kind=1, uses_left=uses)
        self.held = connection(permissions=(permission,))
        self.inside: str | None = None
        self.ended = False
        self.left = uses

    def send(self, app: str, asked: Request) -> Decision:
        decision = decide(self.held, app, asked, NOW)
        self.held = after(self.held, decision, app, asked, NOW)
        return decision

    @rule(app=st.sampled_from(APPS), secret=st.sampled_from([SECRET, "wrong", ""]))
    def connect(self, app: str, secret: str) -> None:
        found = self.send(app, request("connect", SIGNER, secret)).step
        if self.ended or self.inside not in (None, app):
            assert found is Step.IGNORE
        elif self.inside == app:
            assert found is Step.ACKNOWLEDGE
        else:
            assert found is (Step.CONNECT if secret == SECRET else Step.IGNORE)
            self.inside = app if secret == SECRET else None

    @rule(app=st.sampled_from(APPS))
    def sign(self, app: str) -> None:
        found = self.send(app, request("sign_event", NOTE)).step
        if self.ended or app != self.inside:
            assert found is Step.IGNORE
        else:
            assert found is (Step.PERFORM if self.left else Step.REFUSE)
            self.left = max(0, self.left - 1)

    @rule(app=st.sampled_from(APPS))
    def logout(self, app: str) -> None:
        found = self.send(app, request("logout")).step
        if not self.ended and app == self.inside:
            assert found is Step.LOGOUT
            self.ended = True
        else:
            assert found is Step.IGNORE

    @rule(app=st.sampled_from(APPS), method=st.sampled_from(["ping", "get_public_key", "nip44_decrypt", "nonsense"]))
    def ask(self, app: str, method: str) -> None:
        found = self.send(app, request(method, "ab" * 32, "x")).step
        assert (found is Step.IGNORE) == (self.ended or app != self.inside)

    @invariant()
    def only_one_is_inside(self) -> None:
        if hasattr(self, "held"):
            assert self.held.client_pubkey == (self.inside or "")
            assert self.held.permissions[0].uses_left == self.left


ConnectionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestConnectionMachine = ConnectionMachine.TestCase


def test_buckets_refill_evenly_and_forget() -> None:
    buckets = Buckets(per_second=2, burst=3)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [buckets.take("a", 0.5) for _ in range(2)] == [True, False]
    assert buckets.take("b", 0.5)
    for number in range(BUCKETS_MAX + 1):
        buckets.take(str(number), 0.6)
    assert len(buckets._buckets) == BUCKETS_MAX
