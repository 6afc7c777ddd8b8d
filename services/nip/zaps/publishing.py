"""The publisher of a replica: brings receipts to relays, again and again until each has answered, or a day is over.

What is due is claimed for a while by one replica, tried, and written down. A replica that dies leaves its claims to the others. A relay may
see a receipt twice, which is the same event: it keeps one.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from nipmesh.events.v1.nip_events_pb2 import ZapReceiptPublished
from services.chassis.errors import ServiceError
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.nip.zaps import store
from services.nip.zaps.receipts import now_ms
from services.nip.zaps.store import Publication, State
from services.nostr.event import Event
from services.storage.database import Database
from services.storage.events import append_event
from services.storage.sql import Connection

RECEIPT_PUBLISHED: Final = "nipmesh.nip.v1.zap_receipt_published"

TOGETHER_MAX: Final = 32
"""Relays that a replica calls at once: each costs a socket."""
LOOK_S_MAX: Final = 0.5
"""A look for work at least this often: another replica may have left some."""
RETRY_MS_MIN: Final = 2_000
RETRY_MS_MAX: Final = 3_600_000
RETRY_DOUBLINGS_MAX: Final = 12
"""2 s doubled 12 times is above an hour; more would only grow the number."""
MS_PER_SECOND: Final = 1_000
PROBLEM_CHARACTERS_MAX: Final = 200

_OUTCOMES: Final = {
    State.ACCEPTED: ZapReceiptPublished.OUTCOME_ACCEPTED,
    State.REFUSED: ZapReceiptPublished.OUTCOME_REFUSED,
    State.GIVEN_UP: ZapReceiptPublished.OUTCOME_GIVEN_UP,
}
_log = get_logger("nip")


class Answer(enum.Enum):
    """What came of one attempt."""

    ACCEPTED = "the relay has the event"
    REFUSED = "the relay does not want it, and never will"
    LATER = "no answer, or one that may be another the next time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one attempt, and what was wrong, in the relay's words or ours."""

    answer: Answer
    problem: str = ""


class Caller(Protocol):
    """Brings an event to a relay, once, in less time than a lease."""

    async def publish(self, event: Event, relay_url: str) -> Attempt:
        """Raises nothing."""


class Publisher:
    """See the module."""

    def __init__(self, database: Database, caller: Caller, *, clock: Callable[[], int] = now_ms) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._caller = caller
        self._clock = clock

    async def run(self) -> NoReturn:
        """Publish for ever. A database that is busy or locked is tried again."""
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                for due in await self._claimed(TOGETHER_MAX - len(running)):
                    task = group.create_task(self._try(due))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.sleep(await self._pause_s())

    async def publish_due(self) -> int:
        """Try what is due, once; return how many that were."""
        due = await self._claimed(TOGETHER_MAX)
        await asyncio.gather(*(self._try(each) for each in due))
        return len(due)

    async def _claimed(self, limit: int) -> list[Publication]:
        try:
            next_ms = await self._database.read(store.next_run_ms)
            if limit == 0 or next_ms is None or next_ms > self._clock():
                return []
            return await self._database.write(lambda connection: store.claim(connection, self._clock(), limit=limit))
        except ServiceError as error:
            _log.warning("publications postponed", reason=error.reason)
            return []

    async def _pause_s(self) -> float:
        """Until the next one is due, at most LOOK_S_MAX."""
        try:
            next_ms = await self._database.read(store.next_run_ms)
        except ServiceError:
            return LOOK_S_MAX
        left_s = LOOK_S_MAX if next_ms is None else (next_ms - self._clock()) / MS_PER_SECOND
        return min(LOOK_S_MAX, max(left_s, 0.01))

    async def _try(self, publication: Publication) -> None:
        failpoint("publish_receipt")
        attempt = await self._caller.publish(publication.event, publication.relay_url)
        failpoint("publish_receipt.done")
        try:
            await self._database.write(lambda connection: _finish(connection, publication, attempt, self._clock()))
        except ServiceError as error:  # its lease ends, and it is tried again
            _log.warning("outcome of a publication not stored", relay=publication.relay_url, reason=error.reason)


def _finish(connection: Connection, tried: Publication, attempt: Attempt, now: int) -> None:
    """Write down what came of an attempt, and tell of an end."""
    again_ms = now + retry_ms(tried.attempts)
    state = _state_after(tried, attempt.answer, again_ms)
    problem = cleaned(attempt.problem)
    run_ms = again_ms if state is State.PENDING else None
    if not store.finish(connection, tried, state, run_ms, problem) or state is State.PENDING:
        return
    told = ZapReceiptPublished(
        invoice_id=tried.invoice_id,
        event_id=tried.event.id,
        relay_url=tried.relay_url,
        outcome=_OUTCOMES[state],
        problem=problem,
        attempts=tried.attempts,
    )
    payload = told.SerializeToString(deterministic=True)
    append_event(connection, kind=RECEIPT_PUBLISHED, subject=tried.invoice_id, payload=payload)


def _state_after(tried: Publication, answer: Answer, again_ms: int) -> State:
    """Where a publication stands after an attempt; `again_ms` is when it could be tried again."""
    if answer is Answer.ACCEPTED:
        return State.ACCEPTED
    if answer is Answer.REFUSED:
        return State.REFUSED
    return State.GIVEN_UP if again_ms >= tried.give_up_time_ms else State.PENDING


def retry_ms_min(attempts: int) -> int:
    """The pause after so many attempts, without the chance."""
    doublings = min(attempts - 1, RETRY_DOUBLINGS_MAX)
    return int(min(RETRY_MS_MIN << doublings, RETRY_MS_MAX))


def retry_ms(attempts: int) -> int:
    """The pause, up to half longer, so that what failed together is not tried together."""
    least = retry_ms_min(attempts)
    return least + int(least * random.random() / 2)  # noqa: S311  # no secret


def cleaned(text: str) -> str:
    """A relay's words, fit for a column and a log: printable, and not many."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:PROBLEM_CHARACTERS_MAX]
