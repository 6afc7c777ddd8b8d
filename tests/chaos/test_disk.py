"""A disk that is full, or does not sync: writes are refused with a clear code, nothing is half done, and it goes on without a restart."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from support.cluster import Cluster, running_cluster
from support.payment_mesh import OPERATOR, refused, request_id
from support.settlement import payment_request

from .bank import check_snapshot

ALICE = "a1" * 32
DISK_MIB = 24
SPARE_BYTES = 256 * 1024
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def small_disk(short_folder: Path) -> Iterator[Path]:
    """A file system of its own for the payment service's data."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    folder = short_folder / "payment-data"
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def faulty_sync(short_folder: Path) -> dict[str, str]:
    """The environment of a process whose syncs fail while `broken` exists."""
    if shutil.which("cc") is None:
        pytest.skip("the shim that makes syncs fail needs a C compiler")
    library = short_folder / "faulty_sync.so"
    source = Path(__file__).with_name("faulty_sync.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "FAULTY_SYNC": str(short_folder / "broken")}


async def deposit(cluster: Cluster, account: str, identifier: str) -> Any:
    request = pb.DepositRequest(request_id=identifier, account_id=account, amount_msat=1_000, reference="r" * 200)
    return await cluster.call(LedgerServiceStub, "Deposit", request, OPERATOR, role="operator", attempts=1)


async def open_account(cluster: Cluster) -> str:
    request = pb.CreateAccountRequest(request_id=request_id())
    return str((await cluster.call(AccountServiceStub, "CreateAccount", request, ALICE)).account.account_id)


async def balance(cluster: Cluster, account: str) -> int:
    request = pb.ListAccountsRequest(page_size=1_000)
    listed = await cluster.call(AccountServiceStub, "ListAccounts", request, OPERATOR, role="operator")
    check_snapshot(listed)
    return next(found.balance_msat for found in listed.accounts if found.account_id == account)


def fill(folder: Path) -> Path:
    """Take what is left of the disk, but for some writes' worth."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4_096)
        except OSError:
            file.truncate(file.tell() - SPARE_BYTES)
            return filler


async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(short_folder: Path, small_disk: Path) -> None:
    async with running_cluster(short_folder) as cluster:
        account = await open_account(cluster)
        await deposit(cluster, account, request_id())
        filler = fill(small_disk)
        identifiers = [request_id() for _ in range(200)]
        answers = [await outcome(deposit(cluster, account, identifier)) for identifier in identifiers]
        assert set(answers) == {"ok", "there is no room to store this"}, (
            "refused for want of room, and nothing said of where"
        )
        accepted = answers.count("ok") + 1
        assert await balance(cluster, account) == accepted * 1_000, "reads go on, and nothing was half done"
        full = await refused(deposit(cluster, account, identifiers[-1]))
        assert full == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        text = payment_request(amount_msat=100)
        payment = pb.PayInvoiceRequest(request_id=request_id(), account_id=account, payment_request=text)
        pay = partial(cluster.call, PaymentServiceStub, "PayInvoice", payment, ALICE)
        assert (await refused(pay()))[1] == "STORAGE_FULL"
        filler.unlink()
        for identifier in identifiers:
            await deposit(cluster, account, identifier)
        assert await balance(cluster, account) == 1_000 * (1 + len(identifiers)), "each once, without a restart"
        assert (await pay()).payment.state == payment_pb2.Payment.STATE_SUCCEEDED


async def outcome(call: Awaitable[Any]) -> str:
    """ "ok", or what the error says."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.details() or ""
    return "ok"


async def test_syncs_that_fail_acknowledge_nothing(short_folder: Path, faulty_sync: dict[str, str]) -> None:
    broken = Path(faulty_sync["FAULTY_SYNC"])
    async with running_cluster(short_folder, **faulty_sync) as cluster:
        account = await open_account(cluster)
        await deposit(cluster, account, request_id())
        broken.touch()
        identifiers = [request_id() for _ in range(20)]
        for identifier in identifiers:
            code, reason = await refused(deposit(cluster, account, identifier))
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")
        assert await balance(cluster, account) == 1_000
        broken.unlink()
        await asyncio.gather(*(deposit(cluster, account, identifier) for identifier in identifiers))
        assert await balance(cluster, account) == 21_000
