"""Any bytes to every method of every service, with and without a right to call: no crash, no hang, no INTERNAL, nothing of our insides.

NIPMESH_RPC_CASES sets how many, NIPMESH_RPC_SEED which; NIPMESH_RPC_CASE=seed:number makes that call alone, and
NIPMESH_RPC_CASE=seed:first-last those calls one after the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nipmesh.payment.v1.payment_service_pb2 import GetAccountRequest
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub
from services.chassis.testing import as_user
from support.fuzzing import setting
from support.payment_mesh import payment_mesh
from support.rpc_bytes import ALICE, case_of
from support.rpc_fuzz import Fuzzer, all_methods

SEED = setting("NIPMESH_RPC_SEED", 1)
CASES = setting("NIPMESH_RPC_CASES", 700)
BATCH = 200
"""After this many cases the processes are looked at."""
SHOWN_MAX = 5


@pytest.fixture
async def fuzzer() -> AsyncIterator[Fuzzer]:
    folder = Path(tempfile.mkdtemp(prefix="nm-"))
    try:
        async with payment_mesh(folder, real_invoices=True) as mesh:
            found = Fuzzer(mesh)
            await found.prepare()
            yield found
            await found.close()
    finally:
        shutil.rmtree(folder)


def test_every_method_of_the_descriptors_is_known() -> None:
    services = {method.containing_service.name for method in all_methods()}
    assert {"AuthService", "NipService", "InvoiceService", "InvoiceSettlementService"} <= services
    assert {"PaymentService", "AccountService", "LedgerService"} <= services


def test_a_case_can_be_made_again() -> None:
    methods, pool = all_methods(), {"account_id": ["customer:x"]}
    first = [case_of(1, number, methods, pool) for number in range(200)]
    assert [case_of(1, number, methods, pool) for number in range(200)] == first
    assert {case.method.full_name for case in first} == {method.full_name for method in methods}


def numbers() -> tuple[int, list[range]]:
    """The seed, and the batches."""
    wanted = os.environ.get("NIPMESH_RPC_CASE", "")
    if not wanted:
        return SEED, [range(first, min(first + BATCH, CASES)) for first in range(0, CASES, BATCH)]
    seed, _, span = wanted.partition(":")
    first, _, last = span.partition("-")
    return int(seed), [range(number, number + 1) for number in range(int(first), int(last or first) + 1)]


@pytest.mark.timeout(120 + CASES // 5)
async def test_any_bytes_get_a_decent_answer(fuzzer: Fuzzer) -> None:
    seed, batches = numbers()
    complaints: list[str] = []
    made = 0
    for batch in batches:
        cases = [case_of(seed, number, fuzzer.methods, fuzzer.pool) for number in batch]
        made += len(cases)
        complaints += await fuzzer.run(cases)
        if len(complaints) >= SHOWN_MAX:
            break
    print(f"seed {seed}: {made} calls of {len(fuzzer.methods)} methods, {dict(sorted(fuzzer.codes.items()))}")
    assert not complaints, f"{len(complaints)} complaints, seed {seed}:\n" + "\n".join(complaints[:SHOWN_MAX])
    await still_well(fuzzer)


async def still_well(fuzzer: Fuzzer) -> None:
    """Afterwards the services work, and the ledger's debits equal its credits."""
    mesh = fuzzer.mesh
    rich = fuzzer.pool["account_id"][0]
    stub = AccountServiceStub(mesh.channel(0))
    answer = await stub.GetAccount(GetAccountRequest(account_id=rich), metadata=as_user(ALICE), timeout=15)
    assert answer.account.account_id == rich
    sql = "SELECT sum(debits_posted_msat) - sum(credits_posted_msat), sum(debits_pending_msat) - sum(credits_pending_msat) FROM account"
    assert mesh.query(sql) == [(0, 0)]
    assert mesh.query(
        "SELECT count(*) FROM account WHERE must_cover = 1 AND credits_posted_msat < debits_posted_msat"
    ) == [(0,)]
