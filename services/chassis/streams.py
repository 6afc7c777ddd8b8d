"""What a stream may take: a place on the replica, and no longer than the token that opened it is good for.

A unary call is over soon, a stream stays as long as its client likes: so streams have a limit for each user and one for all, and unary
calls always find room.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from services.chassis.errors import Reason, ServiceError, unavailable

STREAMS_PER_SUBJECT_MAX: Final = 16
"""Streams that one user has open at once on a replica: enough for several devices that watch several accounts each, and little enough
that it takes more than 60 users to fill the places of a replica."""
TOO_MANY_STREAMS_RETRY_MS: Final = 1_000
"""When to try again after TOO_MANY_STREAMS: streams last, so there is no hurry."""
OVERLOAD_RETRY_MS: Final = 200
"""When to try again after OVERLOADED: another replica may have room at once."""


class Streams:
    """The places for streams of one server."""

    def __init__(self, streams_max: int) -> None:
        """At most `streams_max` run at once, whoever opened them."""
        self._max = streams_max
        self._open = 0
        self._of_subject: Counter[str] = Counter()

    def enter(self, subject: str) -> None:
        """Take a place; `leave` gives it back. Raises TOO_MANY_STREAMS and OVERLOADED.

        Services have no subject: only the limit for all holds for them.
        """
        self._refuse_too_many(subject)
        self._open += 1
        self._of_subject[subject] += 1

    def leave(self, subject: str) -> None:
        """Give a place back: when the call is over to the last byte, else clients that read nothing would gather calls."""
        self._open -= 1
        self._of_subject[subject] -= 1
        if not self._of_subject[subject]:
            del self._of_subject[subject]  # else every user who ever came would be remembered

    def _refuse_too_many(self, subject: str) -> None:
        """The user's own limit first: another replica would not help a client that opens too many."""
        if subject and self._of_subject[subject] >= STREAMS_PER_SUBJECT_MAX:
            raise ServiceError(
                Reason.TOO_MANY_STREAMS,
                f"a user may have {STREAMS_PER_SUBJECT_MAX} streams open at once; end one first",
                retry_delay_ms=TOO_MANY_STREAMS_RETRY_MS,
            )
        if self._open >= self._max:
            raise unavailable("too many streams at once", reason=Reason.OVERLOADED, retry_delay_ms=OVERLOAD_RETRY_MS)


@contextlib.asynccontextmanager
async def until(expire_time_s: float | None) -> AsyncIterator[None]:
    """Cancel what runs inside when its token expires and raise TOKEN_INVALID, at once if it has expired; None: never."""
    if expire_time_s is None:
        yield
        return
    left_s = expire_time_s - time.time()
    if left_s <= 0:
        raise _expired()
    try:
        async with asyncio.timeout(left_s) as limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise _expired() from error
        raise  # the servicer's own


def _expired() -> ServiceError:
    """The error that ends a stream with its token."""
    return ServiceError(Reason.TOKEN_INVALID, "the access token expired; log in again and resume")
