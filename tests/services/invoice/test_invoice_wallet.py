"""WalletInvoiceService: the NIP service makes and decides on invoices for users who gave an app leave, in a scope of its own."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import wallet_service_pb2 as wallet_pb
from services.chassis.testing import as_service, as_user
from tests.services.invoice.conftest import ALICE, AS_ALICE, BOB, Replica

NIP = as_service("nip")
METHODS = {
    "CreateInvoiceFor": wallet_pb.CreateInvoiceForRequest,
    "GetInvoiceFor": wallet_pb.GetInvoiceForRequest,
    "ListInvoicesFor": wallet_pb.ListInvoicesForRequest,
    "SettleInvoiceFor": wallet_pb.SettleInvoiceForRequest,
    "CancelInvoiceFor": wallet_pb.CancelInvoiceForRequest,
}


async def do(replica: Replica, name: str, request: Any, user: str = ALICE) -> Any:
    wrapped = METHODS[f"{name}For"](actor_pubkey=user, request=request)
    return (await getattr(replica.wallet, f"{name}For")(wrapped, metadata=NIP)).response


async def test_only_the_nip_service_acts_for_users(replica: Replica, refused: Any) -> None:
    for name, request_type in METHODS.items():
        for metadata in (AS_ALICE, as_service("payment"), as_user(ALICE, role="operator")):
            call = getattr(replica.wallet, name)(request_type(), metadata=metadata)
            assert (await refused(call))[1] == "CALLER_NOT_ALLOWED", (name, metadata)


async def test_an_invoice_for_a_user_is_made_once_and_is_theirs(replica: Replica, refused: Any) -> None:
    request = replica.creation(metadata={"nwc.0": "{}"})
    made = await do(replica, "CreateInvoice", request)
    again = await do(replica, "CreateInvoice", request)
    assert (again.replayed, again.invoice.invoice_id) == (True, made.invoice.invoice_id)
    invoice = await replica.get(made.invoice.invoice_id)
    assert (invoice.state, dict(invoice.metadata)) == (invoice_pb2.Invoice.STATE_OPEN, {"nwc.0": "{}"})
    by_hash = pb.GetInvoiceRequest(payment_hash=invoice.payment_hash)
    assert (await do(replica, "GetInvoice", by_hash)).invoice == invoice
    assert (await refused(do(replica, "GetInvoice", by_hash, BOB)))[1] == "INVOICE_NOT_FOUND"
    assert list((await do(replica, "ListInvoices", pb.ListInvoicesRequest())).invoices) == [invoice]
    assert not (await do(replica, "ListInvoices", pb.ListInvoicesRequest(), BOB)).invoices
    theft = do(replica, "CreateInvoice", replica.creation(account_id=request.account_id), BOB)
    assert (await refused(theft))[1] == "ACCOUNT_NOT_FOUND"


async def test_requests_of_a_wallet_never_meet_those_of_its_user(replica: Replica) -> None:
    identifier = str(uuid.uuid4())
    own = await replica.create(request_id=identifier)
    made = await do(replica, "CreateInvoice", replica.creation(request_id=identifier, amount_msat=7_000))
    assert not made.replayed
    assert (made.invoice.amount_msat, own.amount_msat) == (7_000, 1_000)


async def test_a_hold_invoice_is_settled_and_canceled_for_its_user(replica: Replica, refused: Any) -> None:
    for decision in ("SettleInvoice", "CancelInvoice"):
        preimage = uuid.uuid4().bytes * 2
        creation = replica.creation(hold=pb.HoldTerms(payment_hash=hashlib.sha256(preimage).hexdigest()))
        invoice = (await do(replica, "CreateInvoice", creation)).invoice
        await replica.lock(invoice.payment_request, payment_id := str(uuid.uuid4()))
        await replica.commit(payment_id)
        if decision == "SettleInvoice":
            values = {"preimage": preimage.hex(), "payment_hash": invoice.payment_hash}
            request: Any = pb.SettleInvoiceRequest(request_id=str(uuid.uuid4()), **values)
        else:
            request = pb.CancelInvoiceRequest(request_id=str(uuid.uuid4()), payment_hash=invoice.payment_hash)
        assert (await refused(do(replica, decision, request, BOB)))[1] == "INVOICE_NOT_FOUND"
        decided = await do(replica, decision, request)
        assert (await do(replica, decision, request)).replayed
        states = {
            "SettleInvoice": invoice_pb2.Invoice.STATE_SETTLED,
            "CancelInvoice": invoice_pb2.Invoice.STATE_CANCELED,
        }
        assert decided.invoice.state == states[decision]
