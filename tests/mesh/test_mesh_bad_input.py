"""Oversized, empty, truncated and hostile messages: each gets a clear error and nothing else."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from nipmesh.payment.v1 import payment_service_pb2
from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet, request_id

pytestmark = pytest.mark.mesh

SECONDS_MAX = 5
SIGN = "/nipmesh.nip.v1.NipService/SignEvent"


async def fail(call: grpc.aio.UnaryUnaryCall) -> grpc.aio.AioRpcError:
    """The error of a call that must fail, soon."""
    start = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert time.monotonic() - start < SECONDS_MAX
    return error.value


async def test_an_invalid_field_is_named(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    request = payment_service_pb2.PayInvoiceRequest(request_id="no uuid", account_id="x", payment_request="")
    error = await fail(wallet.payments.PayInvoice(request, metadata=alice.metadata, timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # aio errors have the same shape
    assert isinstance(status, status_pb2.Status)
    bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert any(detail.Unpack(info) for detail in status.details)
    assert {item.field for item in bad_request.field_violations} == {"request_id", "account_id", "payment_request"}
    assert (info.domain, info.reason) == ("nipmesh", "REQUEST_INVALID")


@pytest.mark.parametrize("body", [b"\x0a", b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x02\xc3\x28"])
async def test_truncated_bytes_are_refused_at_once(channel: grpc.aio.Channel, alice: User, body: bytes) -> None:
    error = await fail(channel.unary_unary(SIGN)(body, metadata=alice.metadata, timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in str(error.details())


async def test_an_empty_message_is_refused(channel: grpc.aio.Channel, alice: User) -> None:
    error = await fail(channel.unary_unary(SIGN)(b"", metadata=alice.metadata, timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_oversized_message_is_refused(mesh: RunningMesh, alice: User) -> None:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(mesh.gateway, options=options) as channel:
        body = nip_service_pb2.VerifyEventsRequest(events=[nip_pb2.Event(content="x" * 60_000)] * 90)
        wallet = Wallet(channel, alice)
        error = await fail(wallet.nip.VerifyEvents(body, metadata=alice.metadata, timeout=10))
    assert error.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize(
    "text", ["lnbcrt1", "lnbc" + "q" * 500, "\u0000", "💸" * 100, "LNBCRT1PVJLUEZ", "../../etc/passwd"]
)
async def test_a_hostile_payment_request_is_refused(channel: grpc.aio.Channel, alice: User, text: str) -> None:
    wallet = Wallet(channel, alice)
    account = await wallet.open_account()
    request = payment_service_pb2.PayInvoiceRequest(request_id=request_id(), account_id=account, payment_request=text)
    error = await fail(wallet.payments.PayInvoice(request, metadata=alice.metadata, timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_reused_request_id_is_refused(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    identifier = request_id()
    first = nip_service_pb2.CreateKeyRequest(request_id=identifier, display_name="one", fresh=True)
    again = await wallet.call(wallet.nip.CreateKey, first), await wallet.call(wallet.nip.CreateKey, first)
    assert (again[0].replayed, again[1].replayed) == (False, True)
    assert again[0].key == again[1].key
    other = nip_service_pb2.CreateKeyRequest(request_id=identifier, display_name="two", fresh=True)
    error = await fail(wallet.nip.CreateKey(other, metadata=alice.metadata, timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
