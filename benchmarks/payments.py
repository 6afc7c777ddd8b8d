"""Payments per second inside the mesh, against an echo and against a nest of as many empty calls, by the same callers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import grpc.aio
from coincurve import PrivateKey

from benchmarks.mesh import BenchmarkMesh
from nipmesh.invoice.v1.invoice_service_pb2 import CreateInvoiceRequest
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.payment.v1.payment_service_pb2 import CreateAccountRequest, DepositRequest, PayInvoiceRequest
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub

CALLERS = 16
CALLS = 1_500
NEST_CALLS = 3
"""PayInvoice makes so many calls to other services: LockInvoice, CommitInvoice, SignEvent."""
PAY_SECONDS_MAX = 60
ECHO = "/benchmark.v1.EchoService/Echo"
NEST = "/benchmark.v1.NestService/Nest"

Metadata = tuple[tuple[str, str], ...]
Bytes = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


async def per_second(call: Callable[[int], Awaitable[object]], calls: int) -> float:
    """Calls per second of CALLERS loops that share `calls` calls."""
    numbers = iter(range(calls))

    async def loop() -> None:
        for number in numbers:
            await call(number)

    start = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(CALLERS)))
    return calls / (time.perf_counter() - start)


async def measure(mesh: BenchmarkMesh) -> dict[str, float]:
    """Echo, nest, CreateInvoice and PayInvoice per second, and their ratios."""
    user, operator = PrivateKey().public_key_xonly.format().hex(), PrivateKey().public_key_xonly.format().hex()
    metadata = bearer(mesh.token(user))
    async with grpc.aio.insecure_channel(mesh.gateway) as channel:
        echo: Bytes = channel.unary_unary(ECHO)
        nest: Bytes = channel.unary_unary(NEST)
        invoices, payments = InvoiceServiceStub(channel), PaymentServiceStub(channel)
        payer, payee = [await open_account(channel, metadata) for _ in range(2)]
        await deposit(channel, bearer(mesh.token(operator, "--role", "operator")), payer)
        requests: list[str] = []

        async def create(_: int) -> None:
            request = CreateInvoiceRequest(request_id=str(uuid.uuid4()), account_id=payee, amount_msat=1_000)
            response = await invoices.CreateInvoice(request, metadata=metadata, timeout=30)
            requests.append(response.invoice.payment_request)

        async def pay(number: int) -> None:
            request = PayInvoiceRequest(
                request_id=str(uuid.uuid4()), account_id=payer, payment_request=requests[number]
            )
            await payments.PayInvoice(request, metadata=metadata, timeout=PAY_SECONDS_MAX)

        body = bytes([8, NEST_CALLS])
        figures = {
            "echo_per_s": await per_second(lambda _: echo(b"", metadata=metadata, timeout=30), CALLS),
            "nest_per_s": await per_second(lambda _: nest(body, metadata=metadata, timeout=30), CALLS),
            "create_invoice_per_s": await per_second(create, CALLS),
            "pay_invoice_per_s": await per_second(pay, CALLS),
        }
    return figures | {
        "create_to_echo": figures["create_invoice_per_s"] / figures["echo_per_s"],
        "pay_to_echo": figures["pay_invoice_per_s"] / figures["echo_per_s"],
        "pay_to_nest": figures["pay_invoice_per_s"] / figures["nest_per_s"],
    }


def bearer(token: str) -> Metadata:
    """Call metadata with a token."""
    return (("authorization", f"Bearer {token}"),)


async def open_account(channel: grpc.aio.Channel, metadata: Metadata) -> str:
    """A new account of the caller."""
    request = CreateAccountRequest(request_id=str(uuid.uuid4()))
    response = await AccountServiceStub(channel).CreateAccount(request, metadata=metadata, timeout=30)
    return str(response.account.account_id)


async def deposit(channel: grpc.aio.Channel, metadata: Metadata, account_id: str) -> None:
    """Money for every payment of the run."""
    request = DepositRequest(request_id=str(uuid.uuid4()), account_id=account_id, amount_msat=CALLS * 1_000)
    await LedgerServiceStub(channel).Deposit(request, metadata=metadata, timeout=30)
