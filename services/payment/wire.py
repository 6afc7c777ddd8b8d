"""Between the messages of nipmesh.payment.v1 and the domain; nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.events.v1 import events_pb2
from nipmesh.nip.v1 import nip_pb2
from nipmesh.payment.v1 import payment_pb2
from services.payment.domain.model import (
    CUSTOMER_PREFIX,
    NODE_ACCOUNT,
    ROUTING_FEES_ACCOUNT,
    SERVICE_FEES_ACCOUNT,
    SUSPENSE_ACCOUNT,
    Account,
    Payment,
    Transfer,
)
from services.payment.store.sagas import StepRecord

_Kind = payment_pb2.Account.Kind
KINDS: Final = {
    NODE_ACCOUNT: _Kind.KIND_NODE,
    ROUTING_FEES_ACCOUNT: _Kind.KIND_ROUTING_FEES,
    SERVICE_FEES_ACCOUNT: _Kind.KIND_SERVICE_FEES,
    SUSPENSE_ACCOUNT: _Kind.KIND_SUSPENSE,
}
"""The accounts of the house; all others are customers'."""


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
    )


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
    """The receipt of a payment, or None before it was signed."""
    if not receipt_json:
        return None
    fields = json.loads(receipt_json)
    fields["tags"] = [nip_pb2.Tag(values=tag) for tag in fields["tags"]]
    return nip_pb2.Event(**fields)
