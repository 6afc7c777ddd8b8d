"""Works on what is to be done for connections, and publishes what comes of it; the rows say how far each piece is (`tasks`).

Any number of replicas run this on one database. A request is worked on by the replica that took it in; should that die, by another one
once the lease is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NoReturn, Protocol

from services.chassis.errors import ServiceError
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.nip.domain.encryption import DecryptionError, InvalidPeerError
from services.nip.domain.nip47 import envelope as envelopes
from services.nip.domain.nip47 import results
from services.nip.domain.nip47.connection import WalletConnection, authorize
from services.nip.domain.nip47.envelope import Envelope, envelope_of
from services.nip.domain.nip47.words import Cipher, Code, Failure
from services.nip.keys import KeyNotFoundError, KeyRefusedError
from services.nip.wallet import store, tasks
from services.nip.wallet.backend import Backend, CallRefusedError, NoAnswerError
from services.nip.wallet.handler import Answer, Asked, Handler, Spent, UndecidedError, is_pending
from services.nip.wallet.notifying import notification_of
from services.nip.wallet.tasks import Accepted, Outcome, Task, TaskKind, TaskState
from services.nip.wallet.vault import Vault
from services.nostr.event import Event
from services.nostr.event_json import event_of_json, json_of_event
from services.storage.database import Database
from services.storage.sql import Connection

WORK_S_MAX: Final = 15.0
"""Work is cut off after so long; what was begun goes on and is found again."""
RENEW_S: Final = 1.0
"""How often leases are renewed: two renewals may be lost before one is over."""
TASKS_MAX: Final = 64
"""Rows that one replica works on at the same time."""
IDLE_S_MAX: Final = 1.0
"""Longest wait between two looks for rows whose time has come: another replica's may have been left behind."""
BACKOFF_MS: Final = (200, 500, 1_000, 2_000, 4_000, 8_000)
"""Pauses between attempts; the last one from then on."""
GIVE_UP_MS: Final = 30_000
"""A request that moves no money is answered INTERNAL when nothing helped for so long."""
ATTEMPTS_MAX: Final = 5
"""So often may a fault of ours end the work on a row before it is left alone."""
PUBLISH_MS_MAX: Final = {
    TaskKind.REQUEST: 600_000,
    TaskKind.NOTIFICATION: 24 * 3_600_000,
    TaskKind.INFO: 7 * 24 * 3_600_000,
}
"""So long is an event offered to a relay that cannot be reached: after 10 minutes nobody waits for an answer any more."""

_log = get_logger("nip")


class Delivery(Enum):
    """What a relay did with an event."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


class Publisher(Protocol):
    """Where events are published."""

    async def publish(self, event: Event, relays: Sequence[str]) -> Mapping[str, Delivery]:
        """Offer an event to relays, and wait for what each says, within some seconds. Raises nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What the work on a row came to."""

    outcome: Outcome
    spent: Spent | None = None


class Engine:
    """One replica's share of the work."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        backend: Backend,
        handler: Handler,
        publisher: Publisher,
        clock: Callable[[], int],
    ) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._vault = vault
        self._backend = backend
        self._handler = handler
        self._publisher = publisher
        self._clock = clock
        self._running: dict[asyncio.Task[None], Task] = {}

    async def receive(self, event: Event) -> None:
        """Take a request in, whose id and signature were verified, and begin to work on it; whatever else it is, is ignored."""
        envelope = envelope_of(event)
        if envelope is None or not envelopes.is_timely(envelope, self._clock() // 1_000):
            return
        text, now_ms = json_of_event(event), self._clock()
        try:
            accepted = await self._database.write(lambda found: tasks.accept_request(found, envelope, text, now_ms))
        except ServiceError as error:
            _log.warning("request not taken in", event_id=event.id, reason=error.reason)
            return
        failpoint("wallet_accept.done")
        if accepted is not None and accepted.fresh:
            self._start(accepted.task, accepted.wallet)

    async def run(self) -> NoReturn:
        """Work on what is due, for ever."""
        changes = self._database.changes()
        while True:
            wait_s = IDLE_S_MAX
            try:
                wait_s = await self._look()
            except ServiceError as error:
                _log.warning("no look at what is due", reason=error.reason)
            if wait_s > 0:
                await changes.wait(timeout_s=wait_s)

    async def renew(self) -> NoReturn:
        """Keep what takes longer than a moment, for ever: most work is done before the first renewal."""
        while True:
            before = {task.task_id for task in self._running.values()}
            await asyncio.sleep(RENEW_S)
            long = [(task.task_id, task.fence) for task in self._running.values() if task.task_id in before]
            if not long:
                continue
            try:
                await self._database.write(lambda connection: tasks.renew(connection, long, self._clock()))  # noqa: B023  # awaited here
            except ServiceError as error:
                _log.warning("leases not renewed", reason=error.reason)

    async def stop(self) -> None:
        """Give what is worked on back at once."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _look(self) -> float:
        """Begin with what is due; return in how many seconds the next look is worth it."""
        room = TASKS_MAX - len(self._running)
        due_ms = await self._database.read(tasks.next_due_ms)
        now_ms = self._clock()
        if room <= 0 or due_ms is None:
            return IDLE_S_MAX
        if due_ms > now_ms:
            return min(IDLE_S_MAX, (due_ms - now_ms) / 1_000)

        def work(connection: Connection) -> list[Accepted]:
            claimed = tasks.claim_due(connection, now_ms, room)
            return [Accepted(task=task, wallet=_wallet(connection, task), fresh=False) for task in claimed]

        for claimed in await self._database.write(work):
            self._start(claimed.task, claimed.wallet)
        return 0.0

    def _start(self, task: Task, wallet: WalletConnection) -> None:
        running = asyncio.create_task(self._drive(task, wallet), name=f"wallet {task.kind.name.lower()}")
        self._running[running] = task
        running.add_done_callback(lambda ended: self._running.pop(ended, None))

    async def _drive(self, task: Task, wallet: WalletConnection) -> None:
        """One row, as far as it gets; what goes wrong is logged, and the row is due again."""
        try:
            if task.state is TaskState.WORK:
                answered = await self._work(task, wallet)
                if answered is None:
                    return
                task = answered
            await self._publish(task, wallet)
        except asyncio.CancelledError:
            await asyncio.shield(self._postpone(task, 0))
            raise
        except ServiceError as error:
            _log.warning("wallet task put off", task_id=task.task_id, reason=error.reason)
        except Exception:  # noqa: BLE001  # a fault of ours with one row must not end the work on all others
            _log.exception("wallet task failed", task_id=task.task_id)
            await self._give_up(task)

    async def _work(self, task: Task, wallet: WalletConnection) -> Task | None:
        """Do it and store what is to be published. None: the row is put off, or another replica has it."""
        try:
            async with asyncio.timeout(WORK_S_MAX):
                done = await self._done(task, wallet)
        except (UndecidedError, NoAnswerError, TimeoutError) as error:
            done_late = await self._late(task, wallet, str(error))
            if done_late is None:
                return None
            done = done_late
        except (KeyNotFoundError, KeyRefusedError, CallRefusedError) as error:
            _log.warning("wallet task given up", task_id=task.task_id, error=str(error))
            done = _Done(outcome=Outcome(output=()))
        stored = await self._store(task, done)
        failpoint("wallet_answer.done")
        return stored

    async def _done(self, task: Task, wallet: WalletConnection) -> _Done:
        match task.kind:
            case TaskKind.REQUEST:
                return await self._request(task, wallet)
            case TaskKind.NOTIFICATION:
                return await self._notification(task, wallet)
            case TaskKind.INFO:
                return await self._info(task, wallet)

    async def _request(self, task: Task, wallet: WalletConnection) -> _Done:
        """Decrypt, authorize, do, encrypt, sign."""
        envelope = envelope_of(event_of_json(task.input))
        assert envelope is not None, "only requests are taken in"
        reserved = await self._is_reserved(task)
        method = ""
        try:
            if not reserved:
                self._check(task, wallet, envelope)
            text = await self._text(wallet, envelope)
            asked = Asked(event_id=task.task_id, wallet=wallet, text=text, reserved=reserved)
            method, answer = await self._handler.handle(asked)
        except Failure as failure:
            answer = Answer(text=results.failure_text(method, failure))
        return await self._answered(wallet, envelope, method, answer)

    async def _is_reserved(self, task: Task) -> bool:
        """Whether an earlier attempt reserved the budget; there is none before the first."""
        if task.fence == 1:
            return False
        return await self._database.read(lambda found: store.find_spend(found, task.task_id)) is not None

    def _check(self, task: Task, wallet: WalletConnection, envelope: Envelope) -> None:
        """What can be refused without opening the request. Raises Failure."""
        authorize(wallet, envelope.client_pubkey, task.create_time_ms)
        if task.code == Code.RATE_LIMITED:
            raise Failure(Code.RATE_LIMITED, f"at most {tasks.RATE_MAX} requests a minute")
        if envelope.cipher is None:
            raise Failure(Code.UNSUPPORTED_ENCRYPTION, f"the wallet knows {' and '.join(Cipher)}")

    async def _text(self, wallet: WalletConnection, envelope: Envelope) -> str:
        """The decrypted request. Raises Failure."""
        assert envelope.cipher is not None, "checked before"
        try:
            return await self._vault.decrypt(wallet, envelope.client_pubkey, envelope.content, envelope.cipher)
        except (DecryptionError, InvalidPeerError) as error:
            raise Failure(Code.OTHER, f"the content does not open with {envelope.cipher}") from error

    async def _answered(self, wallet: WalletConnection, envelope: Envelope, method: str, answer: Answer) -> _Done:
        cipher = envelopes.answer_cipher(envelope)
        content = await self._vault.encrypt(wallet, envelope.client_pubkey, answer.text, cipher)
        event = await self._vault.sign(wallet, envelopes.response_template(envelope, content, self._clock() // 1_000))
        code = results.code_of(answer.text)
        _log.info("wallet request", connection_id=wallet.connection_id, method=method[:40], code=code)
        return _Done(outcome=Outcome(output=(event,), method=method[:40], code=code), spent=answer.spent)

    async def _late(self, task: Task, wallet: WalletConnection, why: str) -> _Done | None:
        """Put the row off; None. A request that moves no money is answered INTERNAL in the end."""
        now_ms = self._clock()
        row = await self._database.read(lambda found: store.find_spend(found, task.task_id))
        hopeless = task.kind is TaskKind.REQUEST and now_ms - task.create_time_ms >= GIVE_UP_MS
        if hopeless and not is_pending(row):
            envelope = envelope_of(event_of_json(task.input))
            assert envelope is not None, "only requests are taken in"
            failure = Failure(Code.INTERNAL, "the wallet's services do not answer")
            return await self._answered(wallet, envelope, "", Answer(text=results.failure_text("", failure)))
        _log.info("wallet task waits", task_id=task.task_id, attempt=task.attempt, why=why)
        await self._postpone(task, _backoff_ms(task.attempt))
        return None

    async def _notification(self, task: Task, wallet: WalletConnection) -> _Done:
        """Sign a notification for each cipher; none for a connection that has ended."""
        now_ms = self._clock()
        if not wallet.is_live(now_ms):
            return _Done(outcome=Outcome(output=(), method=task.method))
        _, text = await notification_of(self._backend, self._database, wallet, task)
        events = []
        for cipher in Cipher:
            content = await self._vault.encrypt(wallet, wallet.client_pubkey, text, cipher)
            template = envelopes.notification_template(wallet.client_pubkey, cipher, content, now_ms // 1_000)
            events.append(await self._vault.sign(wallet, template))
        return _Done(outcome=Outcome(output=tuple(events), method=task.method))

    async def _info(self, task: Task, wallet: WalletConnection) -> _Done:
        """Sign the info event of the newest terms; older ones are not published any more."""
        if int(task.input) != wallet.revision:
            return _Done(outcome=Outcome(output=()))
        live = wallet.revoke_time_ms is None
        methods, topics = (wallet.terms.methods, wallet.terms.topics) if live else ((), ())
        template = envelopes.info_template(methods, topics, wallet.update_time_ms // 1_000)
        return _Done(outcome=Outcome(output=(await self._vault.sign(wallet, template),)))

    async def _store(self, task: Task, done: _Done) -> Task | None:
        """Store the answer and settle the budget, in one transaction. None: another replica has the row by now."""
        now_ms, spent = self._clock(), done.spent

        def work(connection: Connection) -> Task | None:
            answered = tasks.answer(connection, task, done.outcome, now_ms)
            if spent is not None and (answered or spent.msat is not None):
                store.settle_spend(connection, task.task_id, spent.msat, now_ms)
            return tasks.find_task(connection, task.task_id) if answered else None

        return await self._database.write(work)

    async def _publish(self, task: Task, wallet: WalletConnection) -> None:
        """Offer the events to the connection's relays until each has taken or refused them, or nobody waits any more."""
        missed = False
        for event in task.output:
            deliveries = await self._publisher.publish(event, wallet.relays)
            missed = missed or Delivery.UNREACHABLE in deliveries.values()
            if Delivery.REFUSED in deliveries.values():
                _log.warning("event refused", event_id=event.id, kind=event.kind)
        failpoint("wallet_publish.done")
        now_ms = self._clock()
        if missed and now_ms - (task.answer_time_ms or now_ms) < PUBLISH_MS_MAX[task.kind]:
            await self._postpone(task, _backoff_ms(task.attempt))
            return
        await self._database.write(lambda connection: tasks.finish(connection, task))

    async def _give_up(self, task: Task) -> None:
        """Let go of a row that fails time and again, unless money may still leave for it: that is never left alone."""
        row = await self._database.read(lambda found: store.find_spend(found, task.task_id))
        if task.attempt >= ATTEMPTS_MAX and not is_pending(row):
            await self._database.write(lambda connection: tasks.finish(connection, task))

    async def _postpone(self, task: Task, delay_ms: int) -> None:
        now_ms = self._clock()
        await self._database.write(
            lambda connection: tasks.postpone(connection, task, next_run_ms=now_ms + delay_ms, now_ms=now_ms)
        )


def _wallet(connection: Connection, task: Task) -> WalletConnection:
    found = store.find_connection(connection, "connection_id", task.connection_id)
    assert found is not None, "connections are never deleted"
    return found


def _backoff_ms(attempt: int) -> int:
    return BACKOFF_MS[min(attempt, len(BACKOFF_MS) - 1)]
