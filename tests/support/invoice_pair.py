"""Two replicas of the invoice service as processes, which can be killed; calls go to one that lives."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2_grpc, simulated_network_service_pb2_grpc
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import simulated_network_service_pb2 as outside_pb
from services.chassis.failpoints import EXIT_CODE
from services.chassis.testing import as_service, as_user

ROOT = Path(__file__).resolve().parents[2]
ALICE = "aa" * 32
AS_ALICE, AS_OPERATOR, AS_PAYMENT = as_user(ALICE), as_user("0f" * 32, role="operator"), as_service("payment")


def _id() -> str:
    return str(uuid.uuid4())


class Two:
    """Two replicas as processes; calls go to the first, and to the second once that is dead, as a sidecar would send them."""

    def __init__(self, folder: Path, accounts: Any, node_key: Path) -> None:
        self.folder = folder
        self.accounts = accounts
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        self._node_key = node_key
        self.channels = [grpc.aio.insecure_channel(f"unix:{folder}/r{at}/app.sock") for at in range(2)]

    async def start(self, at: int, failpoint: str = "") -> None:
        """Start replica 0 or 1, or start it again."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("NIPMESH_", "INVOICE_"))},
            "PYTHONPATH": f"{ROOT / 'protos'}:{ROOT}",
            "NIPMESH_SERVICE": "invoice",
            "NIPMESH_LISTEN": f"unix:{self.folder}/r{at}/app.sock",
            "NIPMESH_EGRESS": f"unix:{self.folder}/egress/app.sock",
            "NIPMESH_DATA_DIRECTORY": str(self.folder / "data"),
            "INVOICE_NODE_KEY_FILE": str(self._node_key),
            "NIPMESH_LOG_LEVEL": "error",
            "NIPMESH_FAILPOINT": failpoint,
        }
        self.processes[at] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.invoice", env=environment
        )

    async def kill(self, at: int) -> None:
        """`kill -9`."""
        self.processes[at].kill()
        await self.processes[at].wait()

    async def close(self) -> None:
        """End everything."""
        for channel in self.channels:
            await channel.close()
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()

    def living(self) -> int:
        """Which replica is called."""
        first = self.processes.get(0)
        return 0 if first is not None and first.returncode is None else 1

    async def call(self, make: Callable[[Any], Any], method: str, request: Any, metadata: Any) -> Any:
        """Call a living replica; again another, when it died meanwhile."""
        async with asyncio.timeout(60):
            while True:
                stub = make(self.channels[self.living()])
                try:
                    return await getattr(stub, method)(request, metadata=metadata, timeout=10, wait_for_ready=True)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise
                    await asyncio.sleep(0.05)

    async def invoices(self, method: str, request: Any) -> Any:
        return await self.call(invoice_service_pb2_grpc.InvoiceServiceStub, method, request, AS_ALICE)

    async def settlement(self, method: str, request: Any) -> Any:
        make = invoice_service_pb2_grpc.InvoiceSettlementServiceStub
        return await self.call(make, method, request, AS_PAYMENT)

    async def outside(self, text: str) -> None:
        make = simulated_network_service_pb2_grpc.SimulatedNetworkServiceStub
        await self.call(make, "PayInvoice", outside_pb.PayInvoiceRequest(payment_request=text), AS_OPERATOR)

    async def create(self, **changes: Any) -> invoice_pb2.Invoice:
        account_id = self.accounts.open(ALICE)
        request = pb.CreateInvoiceRequest(request_id=_id(), account_id=account_id, amount_msat=1_000, **changes)
        invoice: invoice_pb2.Invoice = (await self.invoices("CreateInvoice", request)).invoice
        return invoice

    async def until(self, invoice_id: str, done: Callable[[Any], bool]) -> invoice_pb2.Invoice:
        async with asyncio.timeout(60):
            while True:
                invoice: invoice_pb2.Invoice
                invoice = (await self.invoices("GetInvoice", pb.GetInvoiceRequest(invoice_id=invoice_id))).invoice
                if done(invoice):
                    return invoice
                await asyncio.sleep(0.02)

    async def died(self) -> None:
        """Wait until the first replica has died at its failpoint."""
        async with asyncio.timeout(60):
            assert await self.processes[0].wait() == EXIT_CODE

    async def pay_inside(self, invoice: invoice_pb2.Invoice) -> str:
        """Lock and commit as a payment; its id."""
        payment_id = _id()
        lock = pb.LockInvoiceRequest(
            payment_id=payment_id, payment_request=invoice.payment_request, amount_msat=1_000, actor_pubkey=ALICE
        )
        await self.settlement("LockInvoice", lock)
        await self.settlement("CommitInvoice", pb.CommitInvoiceRequest(payment_id=payment_id))
        return payment_id


@asynccontextmanager
async def two_replicas(
    folder: Path, accounts: Any, node_key: Path, failpoint: str = "", *, heir: bool = False
) -> AsyncIterator[Two]:
    """The first dies at the failpoint. With `heir` the second starts only then: nobody else can have done the step."""
    pair = Two(folder, accounts, node_key)
    await pair.start(0, failpoint)

    async def inherit() -> None:
        await pair.processes[0].wait()
        await pair.start(1)

    if not heir:
        await pair.start(1)
    inheriting = asyncio.create_task(inherit()) if heir else None
    try:
        yield pair
    finally:
        if inheriting is not None and not inheriting.done():
            inheriting.cancel()
            await asyncio.gather(inheriting, return_exceptions=True)
        await pair.close()
