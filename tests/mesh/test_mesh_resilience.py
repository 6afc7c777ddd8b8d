"""Replicas die, scale, restart and renew their certificates under load, and no idempotent call fails."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from nipmesh.invoice.v1 import invoice_service_pb2
from nipmesh.nip.v1 import nip_service_pb2
from nipmesh.payment.v1 import payment_service_pb2
from support.load import Outcome, run_load
from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet, funded

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

LOAD_SECONDS = 20
CALLS_PER_SECOND = 550
CALLERS = 24

Call = Callable[[int], Awaitable[Any]]


@pytest.fixture
async def calls(channel: grpc.aio.Channel, alice: User, operator: User) -> dict[str, Call]:
    """One idempotent call of each service."""
    wallet = Wallet(channel, alice)
    account_id = await funded(wallet, Wallet(channel, operator), 1_000)
    key = nip_service_pb2.GetKeyRequest(key_id=await wallet.create_key())
    invoice = invoice_service_pb2.GetInvoiceRequest(invoice_id=(await wallet.invoice(account_id, 1_000)).invoice_id)
    account = payment_service_pb2.GetAccountRequest(account_id=account_id)
    return {
        "nip": lambda _: wallet.call(wallet.nip.GetKey, key),
        "invoice": lambda _: wallet.call(wallet.invoices.GetInvoice, invoice),
        "payment": lambda _: wallet.call(wallet.accounts.GetAccount, account),
    }


async def load_while(call: Call, disturb: Callable[[], Awaitable[object]], seconds: float = LOAD_SECONDS) -> Outcome:
    """Load from before the disturbance until `seconds` are over; the disturbance itself must succeed too."""
    load = asyncio.create_task(run_load(call, seconds=seconds, callers=CALLERS, per_second=CALLS_PER_SECOND))
    await asyncio.sleep(seconds / 4)
    await disturb()
    return await load


def assert_no_call_failed(outcome: Outcome) -> None:
    assert not outcome.failures, f"{outcome.failures.total()} of {outcome.calls} calls failed: {outcome.failures}"
    assert outcome.calls >= 500 * LOAD_SECONDS * 0.9, f"too little load to mean anything: {outcome.per_second:.0f}/s"


async def kill_with_calls_in_flight(pid: int, outcome: Outcome) -> None:
    """SIGKILL at a moment when at least 8 calls are under way."""
    deadline = time.monotonic() + 10
    while outcome.in_flight < 8:
        assert time.monotonic() < deadline, "never 8 calls in flight"
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("process", ["pid", "sidecar_pid"], ids=["app", "sidecar"])
@pytest.mark.parametrize("service", ["nip", "invoice", "payment"])
async def test_a_killed_process_fails_no_idempotent_call(
    mesh: RunningMesh, calls: dict[str, Call], service: str, process: str
) -> None:
    mesh.wait_ready()
    victim = mesh.replicas(service)[0][process]
    burst = asyncio.Event()

    async def call(number: int) -> None:
        await calls[service](number)

    async def kill() -> None:
        outcome = Outcome()
        tasks = [asyncio.create_task(_counted(calls[service], outcome)) for _ in range(16)]
        await kill_with_calls_in_flight(victim, outcome)
        burst.set()
        await asyncio.gather(*tasks)
        assert not outcome.failures, outcome.failures

    outcome = await load_while(call, kill)
    assert burst.is_set()
    assert_no_call_failed(outcome)
    await asyncio.to_thread(mesh.wait_ready)
    assert mesh.replicas(service)[0][process] != victim


async def _counted(call: Call, outcome: Outcome) -> None:
    outcome.in_flight += 1
    try:
        await call(0)
    except grpc.RpcError as error:
        outcome.failures[f"{error.code().name}: {error.details()}"] += 1
    finally:
        outcome.in_flight -= 1


async def test_scaling_up_and_down_fails_no_call(mesh: RunningMesh, calls: dict[str, Call]) -> None:
    mesh.wait_ready()

    async def scale() -> None:
        await asyncio.to_thread(mesh.succeed, "scale", "nip", "3")
        assert len(mesh.replicas("nip")) == 3
        await asyncio.to_thread(mesh.succeed, "scale", "nip", "2")

    assert_no_call_failed(await load_while(calls["nip"], scale))
    assert len(mesh.replicas("nip")) == 2


@pytest.mark.parametrize("service", ["nip", "payment"])
async def test_a_rolling_restart_fails_no_call(mesh: RunningMesh, calls: dict[str, Call], service: str) -> None:
    mesh.wait_ready()
    before = {replica["pid"] for replica in mesh.replicas(service)}

    async def restart() -> None:
        await asyncio.to_thread(mesh.succeed, "restart", service)

    assert_no_call_failed(await load_while(calls[service], restart))
    assert before.isdisjoint({replica["pid"] for replica in mesh.replicas(service)})
