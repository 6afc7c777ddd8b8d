"""`python -m services.invoice` as a process: exit codes, a kill in the middle of locking, what its log must never hold."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2_grpc
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.testing import as_service, as_user


@pytest.fixture
def database_settings(tmp_path: Path) -> dict[str, Any]:
    """Files: what these tests look into."""
    return {"data_directory": tmp_path / "data"}


ROOT = Path(__file__).resolve().parents[3]
ALICE = "aa" * 32
AS_ALICE, AS_PAYMENT = as_user(ALICE), as_service("payment")


def _environment(folder: Path, name: str) -> dict[str, str]:
    key = folder / "node.key"
    if not key.exists():
        key.write_bytes(b"\x07" * 32)
        key.chmod(0o600)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NIPMESH_", "INVOICE_", "OTEL_"))},
        "PYTHONPATH": f"{ROOT / 'protos'}:{ROOT}",
        "NIPMESH_SERVICE": "invoice",
        "NIPMESH_LISTEN": f"unix:{folder}/{name}/app.sock",
        "NIPMESH_EGRESS": f"unix:{folder}/egress/app.sock",
        "NIPMESH_DATA_DIRECTORY": str(folder / "data"),
        "INVOICE_NODE_KEY_FILE": str(key),
        "NIPMESH_LOG_LEVEL": "debug",
    }


@asynccontextmanager
async def _process(environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.invoice",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _create(channel: Any, account_id: str) -> invoice_pb2.Invoice:
    request = pb.CreateInvoiceRequest(request_id=str(uuid.uuid4()), account_id=account_id, amount_msat=1_000)
    stub = invoice_service_pb2_grpc.InvoiceServiceStub(channel)
    response = await stub.CreateInvoice(request, metadata=AS_ALICE, timeout=20, wait_for_ready=True)
    invoice: invoice_pb2.Invoice = response.invoice
    return invoice


async def test_it_serves_drains_and_logs_no_secret(tmp_path: Path, accounts: Any) -> None:
    environment = _environment(tmp_path, "r0")
    async with _process(environment) as process:
        async with grpc.aio.insecure_channel(environment["NIPMESH_LISTEN"]) as channel:
            invoice = await _create(channel, accounts.open(ALICE))
            payment_id, settlement = str(uuid.uuid4()), invoice_service_pb2_grpc.InvoiceSettlementServiceStub(channel)
            lock = pb.LockInvoiceRequest(
                payment_id=payment_id, payment_request=invoice.payment_request, amount_msat=1_000, actor_pubkey=ALICE
            )
            await settlement.LockInvoice(lock, metadata=AS_PAYMENT)
            commit = await settlement.CommitInvoice(pb.CommitInvoiceRequest(payment_id=payment_id), metadata=AS_PAYMENT)
        process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    assert b"LockInvoice" in output, "the log that was searched is the right one"
    assert [secret for secret in (commit.preimage, "07" * 32) if secret.encode() in output] == []
    assert not (tmp_path / "r0" / "app.sock").exists()


async def test_it_does_not_start_without_its_key(tmp_path: Path) -> None:
    environment = _environment(tmp_path, "r0")
    del environment["INVOICE_NODE_KEY_FILE"]
    async with _process(environment) as process:
        output, _ = await process.communicate()
    assert process.returncode == 2
    assert b"INVOICE_NODE_KEY_FILE" in output
    assert b"Traceback" not in output


async def test_a_wrong_key_file_is_said_in_one_line(tmp_path: Path) -> None:
    environment, key = _environment(tmp_path, "r0"), tmp_path / "node.key"
    for content, mode, words in (
        (bytes(16), 0o600, b"16 bytes"),
        (bytes(32), 0o600, b"no key"),
        (b"\x07" * 32, 0o644, b"chmod"),
    ):
        key.write_bytes(content)
        key.chmod(mode)
        async with _process(environment) as process:
            output, _ = await process.communicate()
        assert process.returncode == 2, output
        assert len(output.splitlines()) == 1, output
        assert words in output


async def test_a_replica_killed_while_it_locks_loses_nothing_that_it_answered(tmp_path: Path, accounts: Any) -> None:
    """The other replica repeats every call of the dead one: each payment ends with exactly its own invoice."""
    first, second = _environment(tmp_path, "r0"), _environment(tmp_path, "r1")
    account_id, count = accounts.open(ALICE), 60
    async with (
        _process(first) as dying,
        _process(second),
        grpc.aio.insecure_channel(first["NIPMESH_LISTEN"]) as to_first,
        grpc.aio.insecure_channel(second["NIPMESH_LISTEN"]) as to_second,
    ):
        invoices = [await _create((to_first, to_second)[at % 2], account_id) for at in range(count)]
        locks = [
            pb.LockInvoiceRequest(
                payment_id=str(uuid.uuid4()),
                payment_request=each.payment_request,
                amount_msat=1_000,
                actor_pubkey=ALICE,
            )
            for each in invoices
        ]
        stubs = [invoice_service_pb2_grpc.InvoiceSettlementServiceStub(channel) for channel in (to_first, to_second)]
        answered: list[int] = []
        eight_at_once = asyncio.Semaphore(8)

        async def lock(at: int) -> None:
            async with eight_at_once:
                await stubs[0].LockInvoice(locks[at], metadata=AS_PAYMENT, timeout=10)
            answered.append(at)
            if len(answered) == 5:
                dying.kill()

        results = await asyncio.gather(*(lock(at) for at in range(count)), return_exceptions=True)
        assert [result for result in results if result is not None], "the kill came in the middle"
        again = await asyncio.gather(*(stubs[1].LockInvoice(each, metadata=AS_PAYMENT, timeout=10) for each in locks))
        assert [lock.invoice_id for lock in again] == [invoice.invoice_id for invoice in invoices]
        stub = invoice_service_pb2_grpc.InvoiceServiceStub(to_second)
        listing = await stub.ListInvoices(
            pb.ListInvoicesRequest(page_size=1_000, states=["STATE_ACCEPTED"]), metadata=AS_ALICE, timeout=10
        )
        assert len(listing.invoices) == count
