"""The calls that are measured, through the gateway: echo, nest, CreateInvoice, PayInvoice inside the mesh, SignEvent, VerifyEvents."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import grpc.aio
from coincurve import PrivateKey

from benchmarks.figures import Call, Load
from benchmarks.mesh import BenchmarkMesh
from nipmesh.invoice.v1.invoice_service_pb2 import CreateInvoiceRequest
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.nip.v1.nip_pb2 import EventTemplate
from nipmesh.nip.v1.nip_service_pb2 import (
    CreateKeyRequest,
    SignEventRequest,
    SignEventResponse,
    VerifyEventsRequest,
    VerifyEventsResponse,
)
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from nipmesh.payment.v1.payment_pb2 import Payment
from nipmesh.payment.v1.payment_service_pb2 import CreateAccountRequest, DepositRequest, PayInvoiceRequest
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub

CALLS: Final = {
    "echo": 1_500,
    "nest": 600,
    "create_invoice": 600,
    "pay_invoice": 600,
    "sign_event": 900,
    "verify_events": 900,
}
"""Calls of one round, by kind: some seconds each. Each payment takes an invoice that was created before it."""
NEST_CALLS: Final = 3
"""PayInvoice makes so many calls to other services: LockInvoice, CommitInvoice, SignEvent."""
CALL_S_MAX: Final = 60
AMOUNT_MSAT: Final = 1_000
DEPOSIT_MSAT: Final = 1_000_000_000_000
"""Money for every payment of the longest run."""
ECHO: Final = "/benchmark.v1.EchoService/Echo"
CONTENT: Final = "x" * 280
"""Of the note that is signed and verified: as long as people write."""
NEST: Final = "/benchmark.v1.NestService/Nest"

Metadata = tuple[tuple[str, str], ...]
Bytes = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@asynccontextmanager
async def mesh_loads(mesh: BenchmarkMesh) -> AsyncIterator[dict[str, Load]]:
    """The loads by name, in the order in which a round makes them: an invoice is created before it is paid."""
    user, operator = _pubkey(), _pubkey()
    metadata = bearer(mesh.token(user))
    async with grpc.aio.insecure_channel(mesh.gateway) as channel:
        payer, payee = [await open_account(channel, metadata) for _ in range(2)]
        await deposit(channel, bearer(mesh.token(operator, "--role", "operator")), payer)
        open_requests: deque[str] = deque()
        calls = {
            "echo": _bytes_call(channel.unary_unary(ECHO), b"", metadata),
            "nest": _bytes_call(channel.unary_unary(NEST), bytes([8, NEST_CALLS]), metadata),
            "create_invoice": _create(channel, payee, metadata, open_requests.append),
            "pay_invoice": _pay(channel, payer, metadata, open_requests.popleft),
            **await _nostr(channel, metadata),
        }
        yield {name: Load(call=call, calls=CALLS[name]) for name, call in calls.items()}


def _pubkey() -> str:
    key: bytes = PrivateKey().public_key_xonly.format()
    return key.hex()


def _bytes_call(method: Bytes, body: bytes, metadata: Metadata) -> Call:
    async def call() -> object:
        return await method(body, metadata=metadata, timeout=CALL_S_MAX)

    return call


def _create(channel: grpc.aio.Channel, payee: str, metadata: Metadata, keep: Callable[[str], None]) -> Call:
    invoices = InvoiceServiceStub(channel)

    async def call() -> object:
        request = CreateInvoiceRequest(request_id=str(uuid.uuid4()), account_id=payee, amount_msat=AMOUNT_MSAT)
        response = await invoices.CreateInvoice(request, metadata=metadata, timeout=CALL_S_MAX)
        keep(response.invoice.payment_request)
        return response

    return call


def _pay(channel: grpc.aio.Channel, payer: str, metadata: Metadata, take: Callable[[], str]) -> Call:
    payments = PaymentServiceStub(channel)

    async def call() -> object:
        request = PayInvoiceRequest(request_id=str(uuid.uuid4()), account_id=payer, payment_request=take())
        response = await payments.PayInvoice(request, metadata=metadata, timeout=CALL_S_MAX)
        assert response.payment.state == Payment.STATE_SUCCEEDED, "a payment that is still under way is not a payment"
        return response

    return call


async def _nostr(channel: grpc.aio.Channel, metadata: Metadata) -> dict[str, Call]:
    """A note is signed with a key of the caller's, and one such note verified."""
    stub = NipServiceStub(channel)
    create = CreateKeyRequest(request_id=str(uuid.uuid4()), fresh=True)
    key = (await stub.CreateKey(create, metadata=metadata, timeout=CALL_S_MAX)).key
    template = EventTemplate(kind=1, content=CONTENT, created_at=int(time.time()))
    wanted = SignEventRequest(key_id=key.key_id, template=template)

    async def sign() -> SignEventResponse:
        return await stub.SignEvent(wanted, metadata=metadata, timeout=CALL_S_MAX)

    signed = VerifyEventsRequest(events=[(await sign()).event])

    async def verify() -> object:
        response = await stub.VerifyEvents(signed, metadata=metadata, timeout=CALL_S_MAX)
        assert list(response.results) == [VerifyEventsResponse.RESULT_VALID]
        return response

    return {"sign_event": sign, "verify_events": verify}


def bearer(token: str) -> Metadata:
    """Call metadata with a token."""
    return (("authorization", f"Bearer {token}"),)


async def open_account(channel: grpc.aio.Channel, metadata: Metadata) -> str:
    """A new account of the caller."""
    request = CreateAccountRequest(request_id=str(uuid.uuid4()))
    response = await AccountServiceStub(channel).CreateAccount(request, metadata=metadata, timeout=CALL_S_MAX)
    return str(response.account.account_id)


async def deposit(channel: grpc.aio.Channel, metadata: Metadata, account_id: str) -> None:
    """Give an account the money of the whole run."""
    request = DepositRequest(request_id=str(uuid.uuid4()), account_id=account_id, amount_msat=DEPOSIT_MSAT)
    await LedgerServiceStub(channel).Deposit(request, metadata=metadata, timeout=CALL_S_MAX)
