"""WatchPayments: the outbox as a stream for one caller, resumable by sequence."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from nipmesh.events.v1 import events_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.caller import Caller, current_caller
from services.chassis.draining import Draining
from services.chassis.errors import Reason, not_found
from services.payment.border import sees_payment, visible_account
from services.payment.store.changes import KIND_PREFIX
from services.payment.store.ledger import find_account
from services.payment.store.payments import find_payment
from services.payment.wire import payment_message, timestamp
from services.storage.database import Database
from services.storage.events import HEARTBEAT_S, Event, Heartbeat, watch
from services.storage.sql import Connection


class PaymentWatcher:
    """Makes streams of changes."""

    def __init__(self, database: Database, draining: Draining) -> None:
        self._database = database
        self._draining = draining

    async def watch(self, request: pb.WatchPaymentsRequest) -> AsyncIterator[pb.WatchPaymentsResponse]:
        """Changes that the filters and the caller's rights let through, with heartbeats, until the drain."""
        caller = current_caller()
        await self._database.read(lambda connection: _check(connection, request, caller))
        stream = _Stream(self._database, request, caller)
        resume = request.resume_after_sequence if request.HasField("resume_after_sequence") else None
        async for item in watch(self._database, draining=self._draining, resume_after_sequence=resume):
            response = await stream.next(item)
            if response is not None:
                yield response


def _check(connection: Connection, request: pb.WatchPaymentsRequest, caller: Caller) -> None:
    """Raise PAYMENT_NOT_FOUND or ACCOUNT_NOT_FOUND when the caller may not see what the filters name."""
    if request.account_id:
        visible_account(connection, request.account_id, caller)
    if request.payment_id:
        payment = find_payment(connection, request.payment_id)
        if payment is None or not sees_payment(connection, payment, caller):
            raise not_found(Reason.PAYMENT_NOT_FOUND, "payment")


class _Stream:
    """What one watcher has been sent, and what it may be sent next."""

    def __init__(self, database: Database, request: pb.WatchPaymentsRequest, caller: Caller) -> None:
        self._database = database
        self._request = request
        self._caller = caller
        self._sequence = 0
        self._sent_s = time.monotonic()
        self._started = False

    async def next(self, item: Event | Heartbeat) -> pb.WatchPaymentsResponse | None:
        """The message for one item of the outbox, or None."""
        if not self._started:
            self._started = True
            response = await self._first(item)
        elif isinstance(item, Heartbeat):
            response = self._beat(item.sequence, item.time_ms)
        else:
            response = await self._change(item)
        if response is not None:
            self._sequence = response.sequence
            self._sent_s = time.monotonic()
        return response

    async def _first(self, item: Event | Heartbeat) -> pb.WatchPaymentsResponse | None:
        """Where the stream begins: the payment as it is, or for a stream from now its position. A resumed stream knows it."""
        if self._request.HasField("resume_after_sequence"):
            return None
        if not self._request.payment_id:
            return self._beat(item.sequence, time.time_ns() // 1_000_000)
        payment = await self._database.read(lambda connection: find_payment(connection, self._request.payment_id))
        assert payment is not None, "payments are never deleted"
        return pb.WatchPaymentsResponse(
            sequence=payment.sequence,
            payment=payment_message(payment, with_preimage=False),
            event_time=timestamp(payment.update_time_ms),
        )

    def _beat(self, sequence: int, time_ms: int) -> pb.WatchPaymentsResponse:
        return pb.WatchPaymentsResponse(sequence=max(sequence, self._sequence), event_time=timestamp(time_ms))

    async def _change(self, event: Event) -> pb.WatchPaymentsResponse | None:
        """An event that was not sent yet and is the watcher's; a heartbeat when there was none of those for long."""
        if event.sequence <= self._sequence:
            return None
        changed = events_pb2.PaymentChanged()
        if event.kind.startswith(KIND_PREFIX):
            changed.ParseFromString(event.payload)
        if not changed.HasField("payment") or not await self._matches(changed):
            silent_s = time.monotonic() - self._sent_s
            return self._beat(event.sequence, time.time_ns() // 1_000_000) if silent_s >= HEARTBEAT_S else None
        changed.payment.sequence = event.sequence
        return pb.WatchPaymentsResponse(
            sequence=event.sequence,
            payment=changed.payment,
            previous_state=changed.previous_state,
            event_time=timestamp(event.create_time_ms),
        )

    async def _matches(self, changed: events_pb2.PaymentChanged) -> bool:
        """Whether filters and rights let a change through; what the filters name was checked at the start."""
        payment, request = changed.payment, self._request
        if request.payment_id and payment.payment_id != request.payment_id:
            return False
        if request.account_id and payment.account_id != request.account_id:
            return False
        if request.payment_id or request.account_id or self._caller.operator:
            return True
        return bool(self._caller.subject) and await self._owner(changed) == self._caller.subject

    async def _owner(self, changed: events_pb2.PaymentChanged) -> str:
        """Whose payment it is; an event that was kept from before it said so names the account."""
        if changed.owner_pubkey:
            return changed.owner_pubkey
        account = await self._database.read(lambda connection: find_account(connection, changed.payment.account_id))
        return account.owner if account is not None else ""
