"""The transactions of a request: it is taken, and what came of it is recorded with its effect.

A request is taken by writing its event's id and the app's id of it; both are unique over all replicas. Whoever took it has a lease; when
that is over without an answer, another replica goes on.

What was decided when it was taken is decided again in the transaction that records the answer: permissions may have been changed, used up
or revoked meanwhile, and then nothing that was computed is let out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from services.nip.domain.remote_signer.connection import Connection, Decision, Step, Will, after, decide
from services.nip.domain.remote_signer.log import OUTCOMES, Outcome, Recorded
from services.nip.domain.remote_signer.message import METHOD_CHARACTERS_MAX, Request, kind_of
from services.nip.domain.remote_signer.permission import Effect, Permission, granted
from services.nip.remote_signer import announcing, store
from services.storage import sql
from services.storage.ids import new_id

LEASE_US: Final = 5_000_000
"""So long a replica has for a request before another goes on: an answer takes milliseconds."""
PUBLISH_US: Final = 300_000_000
"""An answer that no relay took for so long is given up: its app has shown an error long ago."""
ASK_US: Final = 600_000_000
"""So long a user has to decide; then the answer is no."""
ATTEMPTS_MAX: Final = 5
"""A request that so many replicas began and did not end is answered with an error."""
SEEN_US: Final = 3_600_000_000
"""An event's id is remembered for an hour: several times as long as events are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A request that came: `message` is its encrypted form; `relay` and `event_id` are empty for a call."""

    connection_id: str
    client_pubkey: str
    request: Request
    message: str
    message_time_s: int
    relay: str = ""
    event_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The request is ours: do what was decided, then `record`."""

    recorded: Recorded
    connection: Connection
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The app asked with this id before; what was recorded, with the answer if there is one."""

    recorded: Recorded


@dataclass(frozen=True, slots=True)
class NotOurs:
    """The event was taken before, or another replica works on the request, or the connection is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was done by a decision: the answer as an event (None: silence), and whether it went wrong."""

    decision: Decision
    answer: str | None
    failed: bool


def take(rows: sql.Connection, incoming: Incoming, replica: str, now_us: int) -> Taken | Earlier | NotOurs:
    """Take a request, unless it was taken before."""
    if incoming.event_id and not store.see(rows, incoming.event_id, now_us + SEEN_US):
        return NotOurs()
    found = store.find_request(rows, incoming.connection_id, incoming.client_pubkey, incoming.request.id)
    if found is not None:
        return _taken_before(rows, *found, incoming, replica, now_us)
    connection = store.find_connection(rows, incoming.connection_id)
    if connection is None:
        return NotOurs()
    recorded = _new(connection, incoming, now_us)
    store.insert_request(rows, recorded, replica, now_us + LEASE_US)
    announcing.announce_request(rows, announcing.REQUEST, recorded)
    decision = decide(connection, incoming.client_pubkey, incoming.request, now_us)
    return Taken(recorded=recorded, connection=connection, decision=decision)


def record(
    rows: sql.Connection, taken: Taken, request: Request, result: Result, replica: str, now_us: int
) -> Recorded | Taken:
    """Write down what came of a request; a Taken as a result: it is decided otherwise by now, do that instead."""
    current = store.request_by_id(rows, taken.recorded.approval_id)
    connection = store.find_connection(rows, taken.connection.connection_id)
    assert current is not None, "requests are kept for weeks"
    assert connection is not None, "connections are kept"
    if current.outcome.final:
        return current  # another replica took it for left, and was first
    decision = decide(connection, current.client_pubkey, request, now_us, current.will)
    if decision.step is not result.decision.step:
        return Taken(recorded=current, connection=connection, decision=decision)
    if not result.failed:
        _change_connection(rows, connection, decision, current.client_pubkey, request, now_us)
    done = _done(current, result, now_us)
    store.update_request(rows, done, replica, now_us + (LEASE_US if done.unpublished else ASK_US))
    announcing.announce_request(rows, announcing.ASKED if done.outcome is Outcome.ASKED else announcing.RESPONSE, done)
    return done


def take_over(rows: sql.Connection, replica: str, now_us: int, limit: int) -> list[Recorded]:
    """Take what others left, under a lease of our own; return what is to be gone on with: an answer to publish, or a request to answer."""
    left = []
    for recorded in store.overdue_requests(rows, now_us, limit):
        next_one = _next(recorded, now_us)
        store.update_request(rows, next_one, replica, now_us + LEASE_US)
        if next_one.unpublished or next_one.outcome is Outcome.RUNNING:
            left.append(next_one)
    return left


def resolve(
    rows: sql.Connection, recorded: Recorded, will: Will, grant: Permission | None, replica: str, now_us: int
) -> Recorded:
    """The user has decided: the request runs again, and its like are allowed for a time."""
    connection = store.find_connection(rows, recorded.connection_id)
    assert connection is not None, "connections are kept"
    if grant is not None:
        permissions = granted(connection.permissions, grant, now_us)
        store.update_connection(rows, replace(connection, permissions=permissions), noticed=False)
    running = replace(
        recorded, outcome=Outcome.RUNNING, will=will, answer=None, unpublished=False, update_time_us=now_us
    )
    store.update_request(rows, running, replica, now_us + LEASE_US)
    announcing.announce_request(rows, announcing.RESOLVED, running)
    return running


def grant_of(recorded: Recorded, request: Request, expire_time_us: int) -> Permission:
    """The permission that allows a request's like for a time."""
    assert request.key_method is not None, "only those are asked for"
    return Permission(method=request.key_method, kind=recorded.kind, effect=Effect.ALLOW, expire_time_us=expire_time_us)


def _taken_before(
    rows: sql.Connection, recorded: Recorded, lease_until_us: int, incoming: Incoming, replica: str, now_us: int
) -> Taken | Earlier | NotOurs:
    """An answer is given again; a request that nobody works on any more is ours."""
    if recorded.outcome is not Outcome.RUNNING:
        return Earlier(recorded=recorded)
    connection = store.find_connection(rows, recorded.connection_id)
    same = recorded.method == _method(incoming.request) and recorded.kind == kind_of(incoming.request)
    if lease_until_us > now_us or connection is None or not same:
        return NotOurs()
    again = replace(recorded, attempts=recorded.attempts + 1, message=incoming.message)
    store.update_request(rows, again, replica, now_us + LEASE_US)
    decision = decide(connection, recorded.client_pubkey, incoming.request, now_us, recorded.will)
    return Taken(recorded=again, connection=connection, decision=decision)


def _new(connection: Connection, incoming: Incoming, now_us: int) -> Recorded:
    return Recorded(
        approval_id=new_id(),
        connection_id=connection.connection_id,
        owner=connection.owner,
        client_pubkey=incoming.client_pubkey,
        request_id=incoming.request.id,
        method=_method(incoming.request),
        kind=kind_of(incoming.request),
        outcome=Outcome.RUNNING,
        will=Will.UNSAID,
        message=incoming.message,
        message_time_s=incoming.message_time_s,
        relay=incoming.relay,
        answer=None,
        unpublished=False,
        attempts=1,
        create_time_us=now_us,
        update_time_us=now_us,
    )


def _method(request: Request) -> str:
    return request.method[:METHOD_CHARACTERS_MAX]


def _change_connection(
    rows: sql.Connection, connection: Connection, decision: Decision, client_pubkey: str, request: Request, now_us: int
) -> None:
    """The effect of a request on its connection."""
    changed = after(connection, decision, client_pubkey, request, now_us)
    if changed == connection:
        return
    ended = decision.step is Step.LOGOUT
    store.update_connection(rows, changed, noticed=changed.state is not connection.state)
    if decision.step is Step.CONNECT:
        announcing.announce_connection(rows, announcing.CONNECTED, changed)
    if ended:
        store.revoke(rows, changed)
        announcing.announce_connection(rows, announcing.REVOKED, changed)


def _done(current: Recorded, result: Result, now_us: int) -> Recorded:
    """The request with its answer. What waits for its user keeps its message: it is not done yet."""
    outcome = Outcome.FAILED if result.failed else OUTCOMES.get(result.decision.step, Outcome.DONE)
    return replace(
        current,
        outcome=outcome,
        answer=result.answer,
        unpublished=result.answer is not None and current.relay != "",
        message=None if outcome.final else current.message,
        update_time_us=now_us,
    )


def _next(recorded: Recorded, now_us: int) -> Recorded:
    """What happens to a request that was left."""
    if recorded.unpublished and now_us - recorded.update_time_us > PUBLISH_US:
        recorded = replace(recorded, unpublished=False)
    if recorded.outcome is Outcome.RUNNING:
        return replace(recorded, attempts=recorded.attempts + 1)
    if recorded.outcome is Outcome.ASKED and not recorded.unpublished:
        return replace(recorded, outcome=Outcome.RUNNING, will=Will.DENY, answer=None, update_time_us=now_us)
    return recorded
