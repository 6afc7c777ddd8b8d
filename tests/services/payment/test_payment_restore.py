"""Backed up under load, destroyed, restored elsewhere: nothing that was answered before the backup is lost, and the mesh goes on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import grpc
import pytest

from nipmesh.payment.v1 import payment_pb2
from support.payment_mesh import REPOSITORY, PaymentMesh, eventually, payment_mesh, refused, request_id

from .conftest import short_folder

ALICE, BOB = "a1" * 32, "b0" * 32
MONEY_MSAT, AMOUNT_MSAT = 10_000_000, 1_000
CALLERS = 6
ANSWERED_MIN = 12
"""Payments that are answered before the backup begins."""
DATA = ("data", "nip-data", "invoice-data")
SECRETS = ("token.pem", "keystore.key", "node.key")
SUCCEEDED = payment_pb2.Payment.STATE_SUCCEEDED


@dataclass(slots=True)
class Attempt:
    """One payment as its caller knows it."""

    request_id: str
    payment_request: str
    answered: bool = False


async def _load(mesh: PaymentMesh, payer: str, payee: str, attempts: list[Attempt]) -> None:
    """Bob asks, Alice pays, again and again."""
    while True:
        attempt = Attempt(request_id(), await mesh.create_invoice(BOB, payee, AMOUNT_MSAT))
        attempts.append(attempt)
        response = await mesh.pay(ALICE, payer, attempt.payment_request, attempt.request_id)
        attempt.answered = response.payment.state == SUCCEEDED


async def _wait_for_answers(attempts: list[Attempt], number: int) -> None:
    async def enough() -> bool:
        return sum(attempt.answered for attempt in attempts) >= number

    await eventually(enough, 60)


async def _command(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def _backed_up_under_load(folder: Path, backup: Path) -> tuple[str, str, list[Attempt], list[Attempt]]:
    """Payer, payee, all attempts, and those that were answered before the backup began; the mesh is gone afterwards."""
    async with payment_mesh(folder, real_invoices=True) as mesh:
        payer, payee = await mesh.open_account(ALICE, MONEY_MSAT), await mesh.open_account(BOB)
        attempts: list[Attempt] = []
        callers = [asyncio.create_task(_load(mesh, payer, payee, attempts)) for _ in range(CALLERS)]
        try:
            await _wait_for_answers(attempts, ANSWERED_MIN)
            before = [attempt for attempt in attempts if attempt.answered]
            await _command("services.storage", "backup", str(folder), str(backup))
            await _command("services.payment", "verify", "--database", str(backup / "data" / "payment.sqlite3"))
            await _wait_for_answers(attempts, len(before) + CALLERS)  # it was live, and went on
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        for name in SECRETS:
            shutil.copy2(folder / name, backup / name)
    return payer, payee, attempts, before


def _restore(backup: Path, folder: Path) -> None:
    for name in DATA:
        shutil.copytree(backup / name, folder / name)
    for name in SECRETS:
        shutil.copy2(backup / name, folder / name)


def _rows(path: Path, sql: str) -> dict[str, Any]:
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
        return dict(connection.execute(sql))


@pytest.mark.timeout(300)
async def test_a_live_backup_restores_to_a_mesh_that_goes_on() -> None:
    with short_folder() as first, short_folder() as second, short_folder() as third:
        payer, payee, attempts, before = await _backed_up_under_load(first, third / "backup")
        shutil.rmtree(first / "data")
        mesh = PaymentMesh(second, real_invoices=True)
        _restore(third / "backup", second)
        try:
            await mesh.start()
            await _check(mesh, payer, payee, attempts, before)
        finally:
            await mesh.stop()


async def _check(mesh: PaymentMesh, payer: str, payee: str, attempts: list[Attempt], before: list[Attempt]) -> None:
    invoices = mesh.folder / "invoice-data" / "invoice.sqlite3"
    known = _rows(invoices, "SELECT payment_request, state FROM invoice")
    assert {attempt.payment_request for attempt in before} <= known.keys()
    for attempt in before:
        response = await mesh.pay(ALICE, payer, attempt.payment_request, attempt.request_id)
        assert (response.payment.state, response.replayed) == (SUCCEEDED, True)
    interrupted = [attempt for attempt in attempts if attempt.payment_request in known]
    for attempt in interrupted:
        response = await mesh.pay(ALICE, payer, attempt.payment_request, attempt.request_id)
        assert response.payment.state == SUCCEEDED
    for _ in range(3):  # and on it goes
        response = await mesh.pay(ALICE, payer, await mesh.create_invoice(BOB, payee, AMOUNT_MSAT))
        assert response.payment.state == SUCCEEDED
    mesh.check_books(MONEY_MSAT)
    assert (await mesh.account(payee)).balance_msat == (len(interrupted) + 3) * AMOUNT_MSAT
    settled = _rows(invoices, "SELECT payment_hash, locked_by FROM invoice WHERE state = 3")
    assert settled == dict(mesh.query("SELECT payment_hash, payment_id FROM payment WHERE state = 4"))

    async def signed() -> bool:
        return mesh.query("SELECT count(*) FROM payment WHERE state = 4 AND receipt_json = ''") == [(0,)]

    await eventually(signed, 30)
    await _command("services.payment", "verify", "--database", str(mesh.folder / "data" / "payment.sqlite3"))


async def _paid_between_two_backups(first: Path, backups: Path) -> tuple[str, str, str]:
    """Payer, payee, and the invoice that is open in `backups`/early and paid in `backups`/late."""
    async with payment_mesh(first, real_invoices=True) as mesh:
        payer, payee = await mesh.open_account(ALICE, MONEY_MSAT), await mesh.open_account(BOB)
        text = await mesh.create_invoice(BOB, payee, AMOUNT_MSAT)
        await _command("services.storage", "backup", str(first), str(backups / "early"))
        assert (await mesh.pay(ALICE, payer, text)).payment.state == SUCCEEDED
        await _command("services.storage", "backup", str(first), str(backups / "late"))
        for name in SECRETS:
            shutil.copy2(first / name, backups / name)
    return payer, payee, text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("older", ["payment", "invoice"])
async def test_databases_of_different_moments(older: str) -> None:
    """What docs/operating.md says of them: the ledger is sound in itself, nothing is paid twice, and one is not credited or not SETTLED."""
    with short_folder() as first, short_folder() as second, short_folder() as backups:
        payer, payee, text = await _paid_between_two_backups(first, backups)
        mesh = PaymentMesh(second, real_invoices=True)
        shutil.copytree(backups / ("early" if older == "payment" else "late") / "data", second / "data")
        for name in ("nip-data", "invoice-data"):
            shutil.copytree(backups / ("late" if older == "payment" else "early") / name, second / name)
        for name in SECRETS:
            shutil.copy2(backups / name, second / name)
        try:
            await mesh.start()
            if older == "payment":
                again = (await mesh.pay(ALICE, payer, text)).payment
                assert again.failure_reason == payment_pb2.Payment.FAILURE_REASON_INVOICE_NOT_PAYABLE
            else:
                code, reason = await refused(mesh.pay(ALICE, payer, text))
                assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "PAYMENT_ALREADY_PAID")
            credited = 0 if older == "payment" else AMOUNT_MSAT
            assert (await mesh.account(payee)).balance_msat == credited
            assert (await mesh.account(payer)).balance_msat == MONEY_MSAT - credited
            states = _rows(second / "invoice-data" / "invoice.sqlite3", "SELECT payment_request, state FROM invoice")
            assert states == {text: 3 if older == "payment" else 1}
            await _command("services.payment", "verify", "--database", str(second / "data" / "payment.sqlite3"))
        finally:
            await mesh.stop()
