"""Invoices for zap requests: what they commit to, what is refused, and that the settled event carries the request."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
import pytest

from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.errors import reason_of, rich_status
from services.chassis.testing import as_user
from services.lightning.bolt11 import decode
from support.zaps import RECIPIENT, zap_text

AS_ALICE, AS_BOB = as_user("aa" * 32), as_user("bb" * 32)


async def refusal(replica: Any, **changes: Any) -> tuple[str | None, str]:
    """The reason of a refused invoice, and what its details say was checked."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replica.create(**changes)
    status = rich_status(refused.value)
    assert status is not None
    return reason_of(refused.value), str(status)


async def test_the_invoice_commits_to_the_text_and_keeps_it(replica: Any) -> None:
    text = zap_text(("amount", "1000"), relays=("wss://a.example.com", "wss://b.example.com"))
    made = await replica.create(zap_request=text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert (made.zap_request, made.description_hash, made.description) == (text, digest, "")
    assert decode(made.payment_request).description_hash == digest
    assert (await replica.get(made.invoice_id)).zap_request == text


async def test_the_settled_event_carries_the_request(replica: Any) -> None:
    text = zap_text()
    made = await replica.create(zap_request=text)
    stream = replica.invoices.WatchInvoices(
        pb.WatchInvoicesRequest(resume_after_sequence=0, payment_hash=made.payment_hash), metadata=AS_ALICE
    )
    await replica.pay_outside(made.payment_request)
    async for change in stream:
        if change.invoice.state == change.invoice.STATE_SETTLED:
            assert change.invoice.zap_request == text
            assert not change.invoice.preimage
            break
    stream.cancel()


@pytest.mark.parametrize("amount", [{"amount_msat": 1_000}, {"any_amount": True}])
async def test_a_request_without_an_amount(replica: Any, amount: dict[str, Any]) -> None:
    assert (await replica.create(zap_request=zap_text(), **amount)).zap_request


@pytest.mark.parametrize(
    ("text", "changes", "check"),
    [
        ("{}", {}, "NOT_AN_EVENT"),
        (zap_text(("amount", "999")), {}, "WRONG_AMOUNT"),
        (zap_text(("amount", "1000")), {"any_amount": True}, "WRONG_AMOUNT"),
        (zap_text(("p", RECIPIENT)), {}, "WRONG_RECIPIENT"),
        (zap_text(relays=()), {}, "NO_RELAYS"),
        (zap_text().replace("Zap!", "more"), {}, "WRONG_ID"),
        (zap_text()[:-3] + '0"}', {}, "WRONG_SIGNATURE"),
    ],
)
async def test_what_is_no_zap_request(replica: Any, text: str, changes: dict[str, Any], check: str) -> None:
    reason, details = await refusal(replica, zap_request=text, **changes)
    assert reason == "ZAP_REQUEST_INVALID"
    assert check in details


@pytest.mark.parametrize("other", [{"description": "tea"}, {"description_hash": "00" * 32}])
async def test_it_excludes_other_descriptions(replica: Any, other: dict[str, Any]) -> None:
    assert (await refusal(replica, zap_request=zap_text(), **other))[0] == "REQUEST_INVALID"


async def test_a_wrong_author_of_the_receipt_is_not_taken_on_trust(replica: Any) -> None:
    reason, _ = await refusal(replica, zap_request=zap_text(("P", "ef" * 32)))
    assert reason == "BACKEND_UNAVAILABLE", "the key service is not there to be asked"


async def test_the_same_request_id_with_another_zap(replica: Any) -> None:
    request = replica.creation(zap_request=zap_text())
    first = await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    again = await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    assert again.replayed
    assert again.invoice.zap_request == first.invoice.zap_request
    request.zap_request = zap_text(("k", "1"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replica.invoices.CreateInvoice(request, metadata=AS_ALICE)
    assert reason_of(refused.value) == "REQUEST_ID_REUSED"
