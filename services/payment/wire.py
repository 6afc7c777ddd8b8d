"""Between the messages of nipmesh.payment.v1 and the domain; nothing is decided here."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.events.v1 import events_pb2
from nipmesh.nip.v1 import nip_pb2
from nipmesh.payment.v1 import payment_pb2
from services.payment.domain.chain import quota_of_details
from services.payment.domain.model import (
    CUSTOMER_PREFIX,
    NODE_ACCOUNT,
    ROUTING_FEES_ACCOUNT,
    SERVICE_FEES_ACCOUNT,
    SUSPENSE_ACCOUNT,
    UNLIMITED,
    Account,
    AccountEvent,
    AccountEventKind,
    Payment,
    Quota,
    Transfer,
)
from services.payment.store.sagas import StepRecord
from services.payment.store.statements import Line

_Kind = payment_pb2.Account.Kind
KINDS: Final = {
    NODE_ACCOUNT: _Kind.KIND_NODE,
    ROUTING_FEES_ACCOUNT: _Kind.KIND_ROUTING_FEES,
    SERVICE_FEES_ACCOUNT: _Kind.KIND_SERVICE_FEES,
    SUSPENSE_ACCOUNT: _Kind.KIND_SUSPENSE,
}
"""The accounts of the house; all others are customers'."""

RECEIPTS_KEPT_MAX: Final = 256
"""Receipts that need not be read again, 2 KiB each: a payment's event, its stored answer and its caller get one at almost the same time."""


def timestamp(time_ms: int) -> Timestamp | None:
    """Milliseconds since 1970; 0 is unset."""
    if time_ms == 0:
        return None
    return Timestamp(seconds=time_ms // 1_000, nanos=time_ms % 1_000 * 1_000_000)


def time_ms_of(message: Message, field: str) -> int | None:
    """A Timestamp field in milliseconds since 1970, or None when it is unset."""
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    return value.seconds * 1_000 + value.nanos // 1_000_000


def account_message(account: Account) -> payment_pb2.Account:
    """An account with all its sums."""
    balance_msat = account.credits_posted_msat - account.debits_posted_msat
    kind = _Kind.KIND_CUSTOMER if account.account_id.startswith(CUSTOMER_PREFIX) else KINDS[account.account_id]
    return payment_pb2.Account(
        account_id=account.account_id,
        kind=kind,
        state=payment_pb2.Account.State.ValueType(account.state),
        owner_pubkey=account.owner,
        balance_msat=balance_msat,
        available_msat=account.available_msat,
        debits_pending_msat=account.debits_pending_msat,
        debits_posted_msat=account.debits_posted_msat,
        credits_pending_msat=account.credits_pending_msat,
        credits_posted_msat=account.credits_posted_msat,
        create_time=timestamp(account.create_time_ms),
        quota=quota_message(account.quota),
        spent_msat=account.spent_msat,
        spent_date=date_of_day(account.spent_day),
    )


def date_of_day(day: int) -> str:
    """A day since 1970 as ISO 8601 writes it; 0 is none."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat() if day else ""


def quota_message(quota: Quota) -> payment_pb2.Quota | None:
    """The limits that there are; None when there is none."""
    if quota == UNLIMITED:
        return None
    return payment_pb2.Quota(
        payment_msat_max=quota.payment_msat_max,
        day_msat_max=quota.day_msat_max,
        pending_msat_max=quota.pending_msat_max,
    )


def quota_of(message: payment_pb2.Quota) -> Quota:
    """The limits that a message names."""
    return Quota(
        payment_msat_max=message.payment_msat_max if message.HasField("payment_msat_max") else None,
        day_msat_max=message.day_msat_max if message.HasField("day_msat_max") else None,
        pending_msat_max=message.pending_msat_max if message.HasField("pending_msat_max") else None,
    )


def transfer_message(transfer: Transfer) -> payment_pb2.Transfer:
    """A transfer, as it is for ever."""
    return payment_pb2.Transfer(
        transfer_id=transfer.transfer_id,
        kind=payment_pb2.Transfer.Kind.ValueType(transfer.kind),
        purpose=payment_pb2.Transfer.Purpose.ValueType(transfer.purpose),
        debit_account_id=transfer.debit_account_id,
        credit_account_id=transfer.credit_account_id,
        amount_msat=transfer.amount_msat,
        pending_transfer_id=transfer.pending_transfer_id,
        payment_id=transfer.payment_id,
        reference=transfer.reference,
        create_time=timestamp(transfer.create_time_ms),
        number=transfer.number,
        sha256=transfer.sha256.hex(),
    )


def line_message(line: Line) -> payment_pb2.StatementLine:
    """One line of a statement."""
    return payment_pb2.StatementLine(
        transfer=transfer_message(line.transfer), change_msat=line.change_msat, balance_msat=line.balance_msat
    )


def account_event_message(event: AccountEvent) -> payment_pb2.AccountEvent:
    """What happened to an account."""
    limited = event.kind is AccountEventKind.QUOTA_SET
    return payment_pb2.AccountEvent(
        number=event.number,
        account_id=event.account_id,
        kind=payment_pb2.AccountEvent.Kind.ValueType(event.kind),
        actor=event.actor,
        reason=event.reason,
        quota=quota_message(quota_of_details(event.details)) if limited else None,
        create_time=timestamp(event.create_time_ms),
        sha256=event.sha256.hex(),
    )


def payment_message(
    payment: Payment, steps: Sequence[StepRecord] = (), *, with_preimage: bool = True
) -> payment_pb2.Payment:
    """A payment for its payer; without its preimage for events and streams."""
    return payment_pb2.Payment(
        payment_id=payment.payment_id,
        request_id=payment.request_id,
        account_id=payment.account_id,
        state=payment_pb2.Payment.State.ValueType(payment.state),
        failure_reason=payment_pb2.Payment.FailureReason.ValueType(payment.failure),
        payment_request=payment.payment_request,
        payment_hash=payment.payment_hash,
        preimage=payment.preimage if with_preimage else "",
        amount_msat=payment.amount_msat,
        fee_limit_msat=payment.fee_limit_msat,
        fee_msat=payment.fee_msat,
        refunded_msat=payment.refunded_msat,
        internal=payment.internal,
        simulated=payment.simulated,
        create_time=timestamp(payment.create_time_ms),
        update_time=timestamp(payment.update_time_ms),
        settle_time=timestamp(payment.settle_time_ms),
        receipt=receipt_message(payment.receipt_json),
        sequence=payment.sequence,
        steps=[step_message(step) for step in steps],
    )


def step_message(step: StepRecord) -> payment_pb2.SagaStep:
    """One step of a payment's history."""
    return payment_pb2.SagaStep(
        step=step.step,
        state=payment_pb2.SagaStep.State.ValueType(step.state),
        attempt=step.attempt,
        start_time=timestamp(step.start_time_ms),
        end_time=timestamp(step.end_time_ms),
        error=step.error,
    )


def changed_message(payment: Payment, previous_state: int) -> events_pb2.PaymentChanged:
    """What the outbox keeps: no preimage, no steps; the outbox itself numbers it."""
    return events_pb2.PaymentChanged(
        payment=payment_message(payment, with_preimage=False),
        previous_state=payment_pb2.Payment.State.ValueType(previous_state),
        owner_pubkey=payment.actor,
    )


def reserved_payload(payment: Payment) -> bytes:
    """`changed_message` of a payment that was just reserved, of which nothing else is known, as bytes: every payment has one.

    Fields that are set one by one in the message where they belong take half the time of messages that are made and copied into it.
    """
    message = events_pb2.PaymentChanged()
    reserved = message.payment
    reserved.payment_id = payment.payment_id
    reserved.request_id = payment.request_id
    reserved.account_id = payment.account_id
    reserved.state = payment_pb2.Payment.STATE_RESERVED
    reserved.payment_request = payment.payment_request
    reserved.payment_hash = payment.payment_hash
    reserved.amount_msat = payment.amount_msat
    reserved.fee_limit_msat = payment.fee_limit_msat
    assert payment.update_time_ms == payment.create_time_ms > 0, "it was just made"
    seconds, ms = divmod(payment.create_time_ms, 1_000)
    for time in (reserved.create_time, reserved.update_time):
        time.seconds, time.nanos = seconds, ms * 1_000_000
    message.owner_pubkey = payment.actor
    return message.SerializeToString()


def event_json(event: nip_pb2.Event) -> str:
    """A Nostr event as NIP-01 writes it."""
    return json.dumps(
        {
            "id": event.id,
            "pubkey": event.pubkey,
            "created_at": event.created_at,
            "kind": event.kind,
            "tags": [list(tag.values) for tag in event.tags],
            "content": event.content,
            "sig": event.sig,
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )


def receipt_message(receipt_json: str) -> nip_pb2.Event | None:
    """The receipt of a payment, or None before it was signed. Others hold the same message: put it into another, which copies it."""
    return _read_receipt(receipt_json) if receipt_json else None


@functools.lru_cache(RECEIPTS_KEPT_MAX)
def _read_receipt(receipt_json: str) -> nip_pb2.Event:
    fields = json.loads(receipt_json)
    fields["tags"] = [nip_pb2.Tag(values=tag) for tag in fields["tags"]]
    return nip_pb2.Event(**fields)
