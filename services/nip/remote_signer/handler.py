"""Requests of apps, answered: the same way whether they come over a relay or by a call, on whatever replica.

take (transaction) -> do it -> record the answer with its effect (transaction) -> the answer may go out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.chassis.errors import ServiceError
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.nip.domain.encryption import DecryptionError, InvalidPeerError, PlaintextError
from services.nip.domain.remote_signer.connection import Connection, Step, Will, decide
from services.nip.domain.remote_signer.log import Recorded
from services.nip.domain.remote_signer.message import (
    AUTH_URL,
    Answer,
    MalformedRequestError,
    Request,
    answer_of_text,
    request_of,
    text_of_answer,
    text_of_request,
)
from services.nip.domain.remote_signer.permission import Permission
from services.nip.keys import MICROSECONDS_PER_SECOND, Clock, Keys, wall_clock
from services.nip.remote_signer import recording, store
from services.nip.remote_signer.operations import CannotDoError, perform
from services.nip.remote_signer.recording import ATTEMPTS_MAX, Earlier, Incoming, NotOurs, Result, Taken
from services.nip.remote_signer.signer_keys import SignerKeys
from services.nostr.event import Event, MalformedEventError
from services.nostr.event_json import event_of_json, json_of_event
from services.storage.database import Database

DECISIONS_MAX: Final = 5
"""So often a request begins anew because its permissions were changed while it was answered."""
APPROVAL_ID: Final = "{approval_id}"
"""In the template of the URL that users are asked at."""

_log = get_logger("remote_signer")


class UnreadableError(Exception):
    """The message is not for us, or no request: silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """The user's decision on one request; `allow_for_us`: its like are allowed for so long."""

    will: Will
    allow_for_us: int | None = None


class Handler:
    """Answers requests, with the keys of the key store."""

    def __init__(
        self,
        database: Database,
        keys: Keys,
        signer_keys: SignerKeys,
        *,
        replica: str,
        auth_url: str,
        clock: Clock = wall_clock,
    ) -> None:
        """`replica`: a name for leases, of this process alone; `auth_url`: where users decide, with APPROVAL_ID in it, or empty."""
        self._database = database
        self._keys = keys
        self._signer_keys = signer_keys
        self._replica = replica
        self._auth_url = auth_url
        self._clock = clock

    def now_us(self) -> int:
        """The time, in microseconds since 1970."""
        return self._clock()

    async def from_event(self, connection: Connection, event: Event, relay: str) -> Recorded | None:
        """Answer an event whose id and signature were verified; None when there is nothing to publish. Raises UnreadableError."""
        request = await self._read(connection, event.pubkey, event.content)
        incoming = Incoming(
            connection_id=connection.connection_id,
            client_pubkey=event.pubkey,
            request=request,
            message=event.content,
            message_time_s=event.created_at,
            relay=relay,
            event_id=event.id,
        )
        taken = await self._take(incoming)
        failpoint("nip46.taken")
        if isinstance(taken, NotOurs):
            return None
        recorded = taken.recorded if isinstance(taken, Earlier) else await self._answer(taken, request)
        failpoint("nip46.recorded")
        return recorded if recorded.answer is not None else None

    async def from_call(self, connection: Connection, client_pubkey: str, request: Request) -> Recorded | None:
        """Answer a call; None while another replica works on it. Its answer is in `answer_text`."""
        message = await self._signer_keys.encrypt(connection, client_pubkey, text_of_request(request))
        incoming = Incoming(
            connection_id=connection.connection_id,
            client_pubkey=client_pubkey,
            request=request,
            message=message,
            message_time_s=self._clock() // MICROSECONDS_PER_SECOND,
        )
        taken = await self._take(incoming)
        if isinstance(taken, NotOurs):
            return None
        return taken.recorded if isinstance(taken, Earlier) else await self._answer(taken, request)

    async def go_on(self, recorded: Recorded) -> Recorded | None:
        """Answer a request that was left, or whose user has decided; None when it cannot be, or has no answer."""
        connection = await self._database.read(lambda rows: store.find_connection(rows, recorded.connection_id))
        assert connection is not None, "connections are kept"
        assert recorded.message is not None, "kept until the request is answered"
        request = await self._read(connection, recorded.client_pubkey, recorded.message)
        decision = decide(connection, recorded.client_pubkey, request, self._clock(), recorded.will)
        done = await self._answer(Taken(recorded=recorded, connection=connection, decision=decision), request)
        return done if done.answer is not None else None

    async def resolve(self, recorded: Recorded, asking: Asking) -> Permission | None:
        """The permission that a decision adds, None when it adds none. Raises UnreadableError."""
        if asking.allow_for_us is None or recorded.message is None:
            return None
        connection = await self._database.read(lambda rows: store.find_connection(rows, recorded.connection_id))
        assert connection is not None, "connections are kept"
        request = await self._read(connection, recorded.client_pubkey, recorded.message)
        return recording.grant_of(recorded, request, self._clock() + asking.allow_for_us)

    async def answer_text(self, connection: Connection, recorded: Recorded) -> Answer | None:
        """Read a recorded answer again; None where there is none."""
        if recorded.answer is None:
            return None
        content = event_of_json(recorded.answer).content
        return answer_of_text(await self._signer_keys.decrypt(connection, recorded.client_pubkey, content))

    async def _read(self, connection: Connection, client_pubkey: str, payload: str) -> Request:
        """Decrypt and read. Raises UnreadableError."""
        try:
            return request_of(await self._signer_keys.decrypt(connection, client_pubkey, payload))
        except (DecryptionError, InvalidPeerError, MalformedRequestError) as error:
            raise UnreadableError(type(error).__name__) from error

    async def _take(self, incoming: Incoming) -> Taken | Earlier | NotOurs:
        now_us = self._clock()
        return await self._database.write(lambda rows: recording.take(rows, incoming, self._replica, now_us))

    async def _answer(self, taken: Taken, request: Request) -> Recorded:
        """Do what was decided and record it; anew when it is decided otherwise by then."""
        for _ in range(DECISIONS_MAX):
            result = await self._done(taken, request)
            outcome = await self._record(taken, request, result)
            if isinstance(outcome, Recorded):
                return outcome
            taken = outcome
        raise ServiceError("OVERLOADED", "the permissions change all the time")

    async def _record(self, taken: Taken, request: Request, result: Result) -> Recorded | Taken:
        now_us = self._clock()
        return await self._database.write(
            lambda rows: recording.record(rows, taken, request, result, self._replica, now_us)
        )

    async def _done(self, taken: Taken, request: Request) -> Result:
        """Do it, and write the answer as an event."""
        recorded, connection, decision = taken.recorded, taken.connection, taken.decision
        failed = False
        try:
            answer = await self._attempted(taken, request)
        except CannotDoError as error:
            answer, failed = Answer(error=str(error)), True
        if decision.step is Step.ASK and self._auth_url:
            answer = Answer(result=AUTH_URL, error=self._auth_url.replace(APPROVAL_ID, recorded.approval_id))
        event = None if answer is None else await self._event(connection, recorded, answer)
        return Result(decision=decision, answer=event, failed=failed)

    async def _attempted(self, taken: Taken, request: Request) -> Answer | None:
        """Do it, unless it killed several replicas. Raises CannotDoError."""
        recorded = taken.recorded
        if recorded.attempts > ATTEMPTS_MAX and taken.decision.step is Step.PERFORM:
            raise CannotDoError("the signer failed")
        moment_s = recorded.message_time_s
        return await perform(self._keys, taken.connection, taken.decision, recorded.client_pubkey, request, moment_s)

    async def _event(self, connection: Connection, recorded: Recorded, answer: Answer) -> str:
        """The answer as it is published: an event as JSON. One that is too long becomes an error."""
        created_at = self._clock() // MICROSECONDS_PER_SECOND
        for text in (answer, Answer(error="the answer is too long for an event")):
            try:
                event = await self._signer_keys.event(
                    connection,
                    recorded.client_pubkey,
                    text_of_answer(recorded.request_id, text),
                    created_at=created_at,
                )
            except (MalformedEventError, PlaintextError):
                _log.info("an answer is too long", connection_id=connection.connection_id)
                continue
            return json_of_event(event)
        raise AssertionError("a short text fits")
