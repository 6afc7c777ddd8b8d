"""Lock, commit, release over gRPC: once each, in any order, from two replicas at once, across a crash."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import random
import uuid
from typing import Any

import grpc
import pytest

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.errors import reason_of
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_service
from services.lightning.bolt11 import encode
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import PaymentRequest

State = invoice_pb2.Invoice
LOCKED = ("FAILED_PRECONDITION", "INVOICE_LOCKED")
NOT_LOCKED = ("FAILED_PRECONDITION", "INVOICE_NOT_LOCKED")
SETTLED = ("FAILED_PRECONDITION", "INVOICE_ALREADY_SETTLED")
MISMATCH = ("INVALID_ARGUMENT", "INVOICE_AMOUNT_MISMATCH")


def _id() -> str:
    return str(uuid.uuid4())


async def test_lock_answers_with_the_payee_and_never_the_preimage(replica: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    locked = await replica.lock(invoice.payment_request, payment_id)
    assert locked == pb.LockInvoiceResponse(
        invoice_id=invoice.invoice_id,
        account_id=invoice.account_id,
        payment_hash=invoice.payment_hash,
        amount_msat=1_000,
    )
    assert (await replica.get(invoice.invoice_id)).state == State.STATE_ACCEPTED


async def test_each_step_repeated_gives_the_same_answer(replicas: Any) -> None:
    one, other = replicas
    invoice, payment_id = await one.create(), _id()
    locks = [await each.lock(invoice.payment_request, payment_id) for each in (one, other, one)]
    commits = [await each.commit(payment_id) for each in (one, other, one)]
    locks.append(await other.lock(invoice.payment_request.upper(), payment_id))
    assert [lock == locks[0] for lock in locks] == [True] * 4
    assert [commit == commits[0] for commit in commits] == [True] * 3
    assert hashlib.sha256(bytes.fromhex(commits[0].preimage)).hexdigest() == invoice.payment_hash
    settled = commits[0].invoice
    assert (settled.state, settled.amount_paid_msat, settled.preimage) == (State.STATE_SETTLED, 1_000, "")
    assert settled.settle_time == commits[0].settle_time == settled.update_time


def foreign_request(payment_hash: str) -> str:
    """A request that another node signed over this hash."""
    key = NodeKey(SecretBytes(b"\x09" * 32))
    request = PaymentRequest(
        currency="bcrt",
        payee_pubkey=key.public_key,
        payment_hash=payment_hash,
        payment_secret="cd" * 32,
        amount_msat=1_000,
        create_time_s=1_700_000_000,
        description="another node's",
    )
    return encode(request, key)


async def test_a_payment_request_that_is_not_ours_is_not_found(replica: Any, refused: Any) -> None:
    await replica.create()
    assert await refused(replica.lock(foreign_request("ef" * 32), _id())) == ("NOT_FOUND", "INVOICE_NOT_FOUND")


async def test_a_request_forged_over_our_hash_is_refused_for_certain(replica: Any, refused: Any) -> None:
    invoice = await replica.create()
    forged = foreign_request(invoice.payment_hash)
    for text in (forged, "lnbcrt1", invoice.payment_request[:-1] + "!"):
        assert await refused(replica.lock(text, _id())) == ("INVALID_ARGUMENT", "PAYMENT_REQUEST_INVALID")
    assert (await replica.get(invoice.invoice_id)).state == State.STATE_OPEN


async def test_another_payment_is_refused_in_every_state(replica: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    await replica.lock(invoice.payment_request, payment_id)
    assert await refused(replica.lock(invoice.payment_request, _id())) == LOCKED
    await replica.commit(payment_id)
    assert await refused(replica.lock(invoice.payment_request, _id())) == SETTLED
    canceled = await replica.create()
    await replica.cancel(canceled.invoice_id)
    assert await refused(replica.lock(canceled.payment_request, _id())) == (
        "FAILED_PRECONDITION",
        "INVOICE_ALREADY_CANCELED",
    )


async def test_amount_rules(replica: Any, refused: Any) -> None:
    fixed, open_, payment_id = await replica.create(), await replica.create(any_amount=True), _id()
    for wrong in (999, 1_001):
        assert await refused(replica.lock(fixed.payment_request, _id(), wrong)) == MISMATCH
    assert (await replica.lock(open_.payment_request, payment_id, 77)).amount_msat == 77
    assert await refused(replica.lock(open_.payment_request, payment_id, 78)) == MISMATCH
    assert (await replica.commit(payment_id)).invoice.amount_paid_msat == 77
    request_invalid = ("INVALID_ARGUMENT", "REQUEST_INVALID")
    assert await refused(replica.lock(fixed.payment_request, _id(), 0)) == request_invalid


async def test_one_payment_locks_one_invoice(replica: Any, refused: Any) -> None:
    first, second, payment_id = await replica.create(), await replica.create(), _id()
    await replica.lock(first.payment_request, payment_id)
    assert await refused(replica.lock(second.payment_request, payment_id)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")
    assert (await replica.get(second.invoice_id)).state == State.STATE_OPEN


async def test_release_frees_the_invoice_for_another_payment(replica: Any, refused: Any) -> None:
    invoice, first, second = await replica.create(), _id(), _id()
    await replica.lock(invoice.payment_request, first)
    assert (await replica.release(first)).invoice.state == State.STATE_OPEN
    assert not (await replica.release(first)).HasField("invoice")
    assert await refused(replica.commit(first)) == NOT_LOCKED
    assert await refused(replica.lock(invoice.payment_request, first)) == NOT_LOCKED
    await replica.lock(invoice.payment_request, second)
    assert not (await replica.release(first)).HasField("invoice")
    assert (await replica.commit(second)).invoice.state == State.STATE_SETTLED


async def test_a_release_that_overtakes_its_lock_leaves_a_tombstone(replicas: Any, refused: Any) -> None:
    one, other = replicas
    invoice, payment_id = await one.create(), _id()
    assert not (await one.release(payment_id)).HasField("invoice")
    assert await refused(other.lock(invoice.payment_request, payment_id)) == NOT_LOCKED
    assert (await one.get(invoice.invoice_id)).state == State.STATE_OPEN
    assert (await other.lock(invoice.payment_request, _id())).invoice_id == invoice.invoice_id


async def test_commit_without_lock_and_release_after_commit_are_refused(replica: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    assert await refused(replica.commit(payment_id)) == NOT_LOCKED
    await replica.lock(invoice.payment_request, payment_id)
    await replica.commit(payment_id)
    assert await refused(replica.release(payment_id)) == SETTLED
    assert (await replica.get(invoice.invoice_id)).state == State.STATE_SETTLED


@pytest.mark.parametrize("round_", range(3))
async def test_of_sixteen_locks_over_two_replicas_one_wins(replicas: Any, round_: int) -> None:
    invoice, payments = await replicas[0].create(), [_id() for _ in range(16)]

    async def lock(at: int) -> str:
        try:
            await replicas[at % 2].lock(invoice.payment_request, payments[at])
        except grpc.aio.AioRpcError as error:
            return str(reason_of(error))
        return "won"

    outcomes = collections.Counter(await asyncio.gather(*(lock(at) for at in range(16))))
    assert outcomes == {"won": 1, "INVOICE_LOCKED": 15}
    assert (await replicas[1].get(invoice.invoice_id)).state == State.STATE_ACCEPTED


async def test_lock_cancel_and_expiry_race_and_exactly_one_wins(replicas: Any) -> None:
    one, other = replicas
    for _ in range(10):
        invoice, payment_id = await one.create(), _id()
        outcomes = await asyncio.gather(
            one.lock(invoice.payment_request, payment_id), other.cancel(invoice.invoice_id), return_exceptions=True
        )
        failed = [isinstance(outcome, Exception) for outcome in outcomes]
        assert sorted(failed) == [False, True], outcomes
        state = (await one.get(invoice.invoice_id)).state
        assert state == (State.STATE_CANCELED if failed[0] else State.STATE_ACCEPTED)


async def test_random_steps_from_two_replicas_leave_every_payment_with_one_fate(replicas: Any) -> None:
    """Retries in any order: a payment that was committed owns its invoice, one that was released never does."""
    generator = random.Random(7)
    invoices = [await replicas[0].create(any_amount=True) for _ in range(4)]
    payments = [(_id(), generator.choice(invoices)) for _ in range(12)]
    fates: dict[str, set[str]] = collections.defaultdict(set)
    refusals: list[str | None] = []

    async def step(payment_id: str, invoice: Any) -> None:
        replica, kind = generator.choice(replicas), generator.choice(["lock", "commit", "release"])
        try:
            if kind == "lock":
                await replica.lock(invoice.payment_request, payment_id, 5)
            else:
                await getattr(replica, kind)(payment_id)
        except grpc.aio.AioRpcError as error:
            refusals.append(reason_of(error))
        else:
            fates[payment_id].add(kind)

    for _ in range(20):
        await asyncio.gather(*(step(*generator.choice(payments)) for _ in range(12)))
    assert [reason for reason in refusals if not str(reason).startswith("INVOICE_")] == []
    winners: dict[str, str] = {}
    for payment_id, invoice in payments:
        assert not {"commit", "release"} <= fates[payment_id], "committed and released"
        if "commit" in fates[payment_id]:
            assert invoice.invoice_id not in winners, "two payments settled one invoice"
            winners[invoice.invoice_id] = payment_id
    for invoice in invoices:
        state = (await replicas[0].get(invoice.invoice_id)).state
        assert (state == State.STATE_SETTLED) == (invoice.invoice_id in winners)


async def test_the_payer_s_key_is_required_for_the_audit(replica: Any, refused: Any) -> None:
    invoice = await replica.create()
    request = pb.LockInvoiceRequest(payment_id=_id(), payment_request=invoice.payment_request, amount_msat=1_000)
    call = replica.settlement.LockInvoice(request, metadata=as_service("payment"))
    assert await refused(call) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


async def test_what_a_payment_holds_can_be_asked(replica: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    stub, metadata = replica.settlement, as_service("payment")
    request = pb.GetHoldRequest(payment_id=payment_id)
    assert await refused(stub.GetHold(request, metadata=metadata)) == NOT_LOCKED
    await replica.lock(invoice.payment_request, payment_id)
    assert (await stub.GetHold(request, metadata=metadata)).state == pb.GetHoldResponse.STATE_HELD
    committed = await replica.commit(payment_id)
    held = await stub.GetHold(request, metadata=metadata)
    assert (held.state, held.preimage) == (pb.GetHoldResponse.STATE_SETTLED, committed.preimage)
    assert held.settle_time == committed.settle_time
    other = pb.GetHoldRequest(payment_id=_id())
    await replica.release(other.payment_id)
    assert (await stub.GetHold(other, metadata=metadata)).state == pb.GetHoldResponse.STATE_RELEASED
