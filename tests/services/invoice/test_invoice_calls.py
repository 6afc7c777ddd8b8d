"""InvoiceService over gRPC: making, reading, listing, cancelling, decoding; who may see what; what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from typing import Any

import apsw
import bolt11 as second
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.payment.v1 import payment_pb2
from services.chassis.caller import PEER_HEADER
from services.chassis.errors import Reason, ServiceError, reason_of, rich_status, unavailable
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_gateway, as_service, as_user
from services.invoice.accounts import REMEMBERED_MAX, REMEMBERED_S, Accounts
from services.lightning.bolt11 import decode
from services.lightning.node_key import NodeKey
from services.lightning.simulated.node_file import FILE_NAME as NODE_FILE_NAME

ALICE, BOB = "aa" * 32, "bb" * 32
AS_ALICE, AS_BOB, AS_OPERATOR = as_user(ALICE), as_user(BOB), as_user("0f" * 32, role="operator")
NODE = NodeKey(SecretBytes(b"\x07" * 32)).public_key
NOT_FOUND = ("NOT_FOUND", "INVOICE_NOT_FOUND")
State = invoice_pb2.Invoice


def _id() -> str:
    return str(uuid.uuid4())


# Creating


async def test_an_invoice_is_real_bolt11_signed_by_the_node(replica: Any) -> None:
    before = time.time()
    invoice = await replica.create(amount_msat=250_000_001, description="Kaffee ☕")
    request = decode(invoice.payment_request)
    theirs = second.decode(invoice.payment_request, strict=True)
    assert (request.currency, request.payee_pubkey, theirs.payee) == ("bcrt", NODE, NODE)
    assert (request.amount_msat, theirs.amount_msat, invoice.amount_msat) == (250_000_001,) * 3
    assert (request.description, theirs.description, invoice.description) == ("Kaffee ☕",) * 3
    assert request.payment_hash == theirs.payment_hash == invoice.payment_hash
    assert (request.expiry_s, request.min_final_cltv_expiry_delta) == (86_400, 80)
    assert invoice.expire_time == Timestamp(seconds=request.expire_time_s)
    assert int(before) <= request.create_time_s <= time.time()
    assert (invoice.state, invoice.preimage, invoice.amount_paid_msat) == (State.STATE_OPEN, "", 0)
    assert invoice.sequence > 0


async def test_an_invoice_may_leave_the_amount_and_the_description_open(replica: Any) -> None:
    invoice = await replica.create(any_amount=True, description_hash="ef" * 32, expiry_duration=Duration(seconds=90))
    request = decode(invoice.payment_request)
    assert (invoice.any_amount, request.amount_msat) == (True, None)
    assert (request.description, request.description_hash, invoice.description_hash) == (None, "ef" * 32, "ef" * 32)
    assert request.expiry_s == 90


async def test_the_same_request_id_makes_one_invoice(replica: Any) -> None:
    request = replica.creation()
    responses = await asyncio.gather(*(replica.invoices.CreateInvoice(request, metadata=AS_ALICE) for _ in range(8)))
    assert len({response.invoice.payment_request for response in responses}) == 1
    assert sorted(response.replayed for response in responses) == [False] + [True] * 7


async def test_a_replay_needs_no_payment_service_and_shows_the_invoice_as_it_was_made(replica: Any) -> None:
    request = replica.creation()
    first = await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    await replica.cancel(first.invoice.invoice_id)
    replica.accounts.faults.append(unavailable("down"))
    again = await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    assert (again.invoice, again.replayed) == (first.invoice, True)
    assert len(replica.accounts.calls) == 1


async def test_a_request_id_of_another_request_is_refused_and_another_caller_s_is_its_own(
    replica: Any, refused: Any
) -> None:
    request = replica.creation()
    await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    other = replica.creation(request_id=request.request_id, amount_msat=5)
    assert await refused(replica.invoices.CreateInvoice(other, metadata=AS_ALICE)) == (
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
    )
    bobs = replica.creation(request_id=request.request_id, account_id=replica.accounts.open(BOB))
    assert not (await replica.invoices.CreateInvoice(bobs, metadata=AS_BOB)).replayed


async def test_another_s_account_a_closed_one_and_none_cannot_be_told_apart(replica: Any) -> None:
    accounts = [
        replica.accounts.open(BOB),
        replica.accounts.open(BOB, "STATE_FROZEN"),
        replica.accounts.open(ALICE, "STATE_CLOSED"),
        f"customer:{_id()}",
    ]
    seen = set()
    for account_id in accounts:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await replica.create(account_id=account_id)
        status = rich_status(error.value)
        assert status is not None
        seen.add((error.value.code(), error.value.details(), status.SerializeToString(deterministic=True)))
    assert len(seen) == 1
    assert next(iter(seen))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_frozen_account_of_the_caller_gets_no_invoice(replica: Any, refused: Any) -> None:
    frozen = replica.accounts.open(ALICE, "STATE_FROZEN")
    assert await refused(replica.create(account_id=frozen)) == ("FAILED_PRECONDITION", "ACCOUNT_FROZEN")


@pytest.mark.parametrize(
    "fault", [unavailable("down"), ServiceError(Reason.CALLER_NOT_ALLOWED, "no"), ServiceError(Reason.INTERNAL, "oops")]
)
async def test_an_account_that_cannot_be_asked_for_is_unavailable_and_makes_nothing(
    replica: Any, refused: Any, fault: ServiceError
) -> None:
    request = replica.creation()
    replica.accounts.faults.append(fault)
    assert await refused(replica.invoices.CreateInvoice(request, metadata=AS_ALICE)) == (
        "UNAVAILABLE",
        "BACKEND_UNAVAILABLE",
    )
    response = await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    assert not response.replayed


async def test_the_callers_deadline_is_passed_on_to_the_payment_service(replica: Any) -> None:
    await replica.invoices.CreateInvoice(replica.creation(), metadata=AS_ALICE, timeout=0.9)
    assert 0 < replica.accounts.calls[0][1] < 0.9


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x"}, "request_id"),
        ({"account_id": "node:lightning"}, "account_id"),
        ({"account_id": "customer:../x"}, "account_id"),
        ({"amount_msat": 0}, "amount_msat"),
        ({"amount_msat": -1}, "amount_msat"),
        ({"amount_msat": 2_100_000_000_000_000_001}, "amount_msat"),
        ({"any_amount": False}, "any_amount"),
        ({"description": "ä" * 320}, "description"),
        ({"description": "a", "description_hash": "ef" * 32}, ""),
        ({"description_hash": "EF" * 32}, "description_hash"),
        ({"expiry_duration": Duration(seconds=0)}, "expiry_duration"),
        ({"expiry_duration": Duration(nanos=999_999_999)}, "expiry_duration"),
        ({"expiry_duration": Duration(seconds=-5)}, "expiry_duration"),
        ({"expiry_duration": Duration(seconds=31_536_001)}, "expiry_duration"),
    ],
)
async def test_a_wrong_request_names_the_field(replica: Any, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await replica.create(**changes)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status, details = rich_status(error.value), error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(details) for detail in status.details)
    assert field in [violation.field for violation in details.field_violations]
    assert replica.accounts.calls == []


async def test_an_invoice_without_an_amount_choice_is_refused(replica: Any, refused: Any) -> None:
    request = replica.creation()
    request.ClearField("amount_msat")
    call = replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    assert await refused(call) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


@pytest.mark.parametrize(
    "description",
    ["", "a" * 639, "'; DROP TABLE invoice; --", "\x01\n\u202e<script>"],
    ids=["empty", "longest", "quotes", "hostile"],
)
async def test_any_description_that_fits_survives(replica: Any, description: str) -> None:
    invoice = await replica.create(description=description)
    assert (await replica.get(invoice.invoice_id)).description == description
    assert decode(invoice.payment_request).description == description


async def test_a_zero_character_is_refused_because_postgresql_cannot_keep_it(replica: Any, refused: Any) -> None:
    for terms in ({"description": "a\x00"}, {"metadata": {"a": "\x00"}}, {"metadata": {"\x00": "a"}}):
        assert await refused(replica.create(**terms)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


# Accounts that are remembered


async def test_an_account_is_not_asked_for_again_at_once_but_soon(replica: Any) -> None:
    account_id = replica.accounts.open(ALICE)
    for _ in range(3):
        await replica.create(account_id=account_id)
    assert 1 <= len(replica.accounts.calls) <= 3
    replica.accounts.accounts[account_id].state = payment_pb2.Account.STATE_FROZEN
    await asyncio.sleep(REMEMBERED_S)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await replica.create(account_id=account_id)
    assert reason_of(error.value) == "ACCOUNT_FROZEN"


async def test_what_is_remembered_of_an_account_is_for_its_owner_alone(replica: Any, refused: Any) -> None:
    account_id = replica.accounts.open(ALICE)
    await replica.create(account_id=account_id)
    for _ in range(2):
        call = replica.create(AS_BOB, account_id=account_id)
        assert await refused(call) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_what_is_remembered_is_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        accounts = Accounts(channel)
        for number in range(REMEMBERED_MAX + 5):
            accounts.remember(f"customer:{number}", ALICE)
        kept = [number for number in range(REMEMBERED_MAX + 5) if accounts.is_remembered(f"customer:{number}", ALICE)]
        assert kept == list(range(5, REMEMBERED_MAX + 5))
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + REMEMBERED_S)
        assert not accounts.is_remembered(f"customer:{REMEMBERED_MAX}", ALICE)


@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_a_repeated_creation_makes_nothing_and_leaves_nothing_at_the_node(replica: Any, tmp_path: Any) -> None:
    request = replica.creation()
    first, again = [await replica.invoices.CreateInvoice(request, metadata=AS_ALICE) for _ in range(2)]
    assert (again.invoice, again.replayed) == (first.invoice, True)
    listing = await replica.invoices.ListInvoices(pb.ListInvoicesRequest(), metadata=AS_ALICE)
    assert [invoice.invoice_id for invoice in listing.invoices] == [first.invoice.invoice_id]
    with contextlib.closing(apsw.Connection(str(tmp_path / "data" / NODE_FILE_NAME))) as connection:
        canceled = connection.execute("SELECT payment_hash FROM received WHERE state = 4").fetchall()
    assert len(canceled) <= 1
    assert (first.invoice.payment_hash,) not in canceled


# Who may call


@pytest.mark.parametrize(
    "method", ["CreateInvoice", "GetInvoice", "ListInvoices", "CancelInvoice", "DecodePaymentRequest"]
)
async def test_users_need_a_token_and_services_have_no_business_here(replica: Any, refused: Any, method: str) -> None:
    call = getattr(replica.invoices, method)
    request = getattr(pb, f"{method}Request")()
    assert await refused(call(request)) == ("UNAUTHENTICATED", "NOT_AUTHENTICATED")
    assert await refused(call(request, metadata=as_gateway())) == ("UNAUTHENTICATED", "NOT_AUTHENTICATED")
    forged = (*as_service("nip"), ("x-nipmesh-subject", ALICE))
    assert await refused(call(request, metadata=forged)) == ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")


@pytest.mark.parametrize("method", ["LockInvoice", "CommitInvoice", "ReleaseInvoice"])
@pytest.mark.parametrize(
    "metadata",
    [
        as_service("nip"),
        as_service("payment/x"),
        AS_ALICE,
        AS_OPERATOR,
        ((PEER_HEADER, "URI=spiffe://other.mesh/service/payment"),),
        ((PEER_HEADER, "URI=spiffe://nip.mesh/service/payment,URI=spiffe://nip.mesh/service/nip"),),
    ],
)
async def test_only_the_payment_service_settles(replica: Any, refused: Any, method: str, metadata: Any) -> None:
    call = getattr(replica.settlement, method)(getattr(pb, f"{method}Request")(), metadata=metadata)
    assert (await refused(call))[0] in ("PERMISSION_DENIED", "UNAUTHENTICATED")


# Reading


async def test_an_invoice_is_found_by_each_key_and_only_by_its_owner(replica: Any, refused: Any) -> None:
    invoice = await replica.create()
    keys = [
        pb.GetInvoiceRequest(invoice_id=invoice.invoice_id),
        pb.GetInvoiceRequest(payment_hash=invoice.payment_hash),
        pb.GetInvoiceRequest(payment_request=invoice.payment_request),
        pb.GetInvoiceRequest(payment_request=invoice.payment_request.upper()),
    ]
    for key in keys:
        assert (await replica.invoices.GetInvoice(key, metadata=AS_ALICE)).invoice == invoice
        assert (await replica.invoices.GetInvoice(key, metadata=AS_OPERATOR)).invoice == invoice
        assert await refused(replica.invoices.GetInvoice(key, metadata=AS_BOB)) == NOT_FOUND
    for missing in (pb.GetInvoiceRequest(invoice_id=_id()), pb.GetInvoiceRequest(payment_request="lnbcrt1x")):
        assert await refused(replica.invoices.GetInvoice(missing, metadata=AS_ALICE)) == NOT_FOUND


async def test_someone_else_s_invoice_looks_exactly_like_none(replica: Any) -> None:
    invoice, seen = await replica.create(), set()
    for invoice_id in (invoice.invoice_id, _id()):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await replica.get(invoice_id, AS_BOB)
        status = rich_status(error.value)
        assert status is not None
        seen.add((error.value.details(), status.SerializeToString(deterministic=True)))
    assert len(seen) == 1


async def test_the_preimage_is_for_the_owner_once_it_is_settled(replica: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    await replica.lock(invoice.payment_request, payment_id)
    assert (await replica.get(invoice.invoice_id)).preimage == ""
    committed = await replica.commit(payment_id)
    assert committed.invoice.preimage == ""
    mine = await replica.get(invoice.invoice_id)
    assert mine.preimage == committed.preimage
    assert hashlib.sha256(bytes.fromhex(mine.preimage)).hexdigest() == invoice.payment_hash
    assert (await replica.get(invoice.invoice_id, AS_OPERATOR)).preimage == ""
    listing = pb.ListInvoicesRequest()
    assert (await replica.invoices.ListInvoices(listing, metadata=AS_ALICE)).invoices[0].preimage == mine.preimage
    assert (await replica.invoices.ListInvoices(listing, metadata=AS_OPERATOR)).invoices[0].preimage == ""


# Cancelling


async def test_an_open_invoice_is_cancelled_once_and_again(replica: Any) -> None:
    invoice, request_id = await replica.create(), _id()
    first = await replica.cancel(invoice.invoice_id, request_id=request_id)
    again = await replica.cancel(invoice.invoice_id, request_id=request_id)
    other = await replica.cancel(invoice.invoice_id)
    assert [response.invoice.state for response in (first, again, other)] == [State.STATE_CANCELED] * 3
    assert [response.replayed for response in (first, again, other)] == [False, True, False]
    assert first.invoice.sequence == other.invoice.sequence


async def test_only_the_owner_cancels(replica: Any, refused: Any) -> None:
    invoice = await replica.create()
    assert await refused(replica.cancel(invoice.invoice_id, AS_BOB)) == NOT_FOUND
    assert await refused(replica.cancel(invoice.invoice_id, AS_OPERATOR)) == NOT_FOUND
    assert (await replica.get(invoice.invoice_id)).state == State.STATE_OPEN


async def test_a_locked_or_settled_invoice_is_not_cancelled(replica: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    await replica.lock(invoice.payment_request, payment_id)
    assert await refused(replica.cancel(invoice.invoice_id)) == ("FAILED_PRECONDITION", "INVOICE_LOCKED")
    await replica.commit(payment_id)
    assert await refused(replica.cancel(invoice.invoice_id)) == ("FAILED_PRECONDITION", "INVOICE_ALREADY_SETTLED")


# Decoding


async def test_any_node_s_payment_request_is_decoded(replica: Any) -> None:
    text = (
        "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq"
        "5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh"
        "8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
    )
    for form in (text, text.upper()):
        decoded = await replica.invoices.DecodePaymentRequest(
            pb.DecodePaymentRequestRequest(payment_request=form), metadata=AS_BOB
        )
        assert (decoded.currency, decoded.amount_msat, decoded.description) == ("bc", 250_000_000, "1 cup coffee")
        assert decoded.expire_time.seconds - decoded.create_time.seconds == 60
        assert list(decoded.feature_bits) == [8, 14]
        assert decoded.payee_pubkey == "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"


@pytest.mark.parametrize(
    "text", ["x", "lnbc1", "lightning:lnbc1", "ü" * 100, "lnbc1" + "q" * 7_000], ids=lambda text: text[:15]
)
async def test_what_is_no_payment_request_is_refused_with_the_place(replica: Any, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await replica.invoices.DecodePaymentRequest(
            pb.DecodePaymentRequestRequest(payment_request=text), metadata=AS_BOB
        )
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "bech32" in (error.value.details() or "")
