"""`python -m services.payment verify` on what the service wrote, and on copies that somebody edited by hand."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import grpc
import psycopg
import pytest

from nipmesh.payment.v1 import invoice_ledger_service_pb2 as credit_pb
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.testing import as_service, as_user
from services.payment.domain.chain import Head, recorded_sha256
from services.payment.store.entries import TRANSFER_COLUMNS, find_head, transfer_of_row
from services.payment.verification import command
from services.payment.verification.command import main, verify
from support.folders import short_folder
from support.payment_mesh import refused, request_id
from support.payment_service import ALICE, BOB, DESK, EVE, Service, serving
from support.postgresql import running_server
from support.settlement import payment_request

State = payment_pb2.Payment
TRIGGERS = (
    "transfer_is_immutable",
    "transfer_is_kept",
    "account_event_is_immutable",
    "account_event_is_kept",
)


async def live(service: Service) -> None:
    """A payment in each state, inside and outside, with refunds, a frozen account and money that came and went."""
    alice, bob, eve = await service.open(ALICE, 500_000), await service.open(BOB, 10_000), await service.open(EVE, 7)
    inside = await service.pay(ALICE, alice, service.settlement.create(bob, 4_000))
    whole = await service.pay(ALICE, alice, service.settlement.create(bob, 3_000))
    await service.refund(as_user(BOB), inside.payment_id, amount_msat=1_500)
    await service.refund(as_user(BOB), whole.payment_id, all=True)
    outside = await service.pay(ALICE, alice, payment_request(amount_msat=50_000))
    assert outside.fee_msat > 0
    failed = await service.pay(ALICE, alice, payment_request(amount_msat=1_000, description="simulated:fail"))
    hanging = await service.pay(ALICE, alice, payment_request(amount_msat=2_000, description="simulated:hang"))
    assert (await refused(service.pay(EVE, eve, service.settlement.create(bob, 8))))[1] == "INSUFFICIENT_BALANCE"
    service.settlement.faults["lock"] = [grpc.StatusCode.UNAVAILABLE] * 100
    waiting = await service.pay(BOB, bob, service.settlement.create(alice, 100))
    for end in ("", "PostCredit", "VoidCredit"):
        await receive(service, alice, end)
    withdraw = pb.WithdrawRequest(request_id=request_id(), account_id=bob, amount_msat=1_000)
    await service.ledger.Withdraw(withdraw, metadata=DESK)
    freeze = pb.FreezeAccountRequest(request_id=request_id(), account_id=eve, reason="a court's order")
    await service.ledger.FreezeAccount(freeze, metadata=DESK)
    states = [payment.state for payment in (inside, outside, failed, hanging, waiting)]
    wanted = [State.STATE_SUCCEEDED, State.STATE_SUCCEEDED, State.STATE_FAILED]
    assert states == [*wanted, State.STATE_IN_FLIGHT, State.STATE_RESERVED]


async def receive(service: Service, account_id: str, end: str) -> None:
    """Somebody outside pays an invoice: the money is held, and then moved or freed."""
    invoice_id, invoices = request_id(), as_service("invoice")
    hold = credit_pb.HoldCreditRequest(invoice_id=invoice_id, account_id=account_id, amount_msat=600)
    await service.credits.HoldCredit(hold, metadata=invoices)
    if end:
        request = getattr(credit_pb, f"{end}Request")(invoice_id=invoice_id)
        await getattr(service.credits, end)(request, metadata=invoices)
    never_held = credit_pb.VoidCreditRequest(invoice_id=request_id())
    await service.credits.VoidCredit(never_held, metadata=invoices)


@pytest.fixture(scope="module")
def written() -> Iterator[Path]:
    """The file that the service left behind."""
    with short_folder() as folder:

        async def write() -> None:
            async with serving(folder) as service:
                await live(service)

        asyncio.run(write())
        yield folder / "data" / "payment.sqlite3"


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> apsw.Connection:
    """A copy without the triggers and foreign keys that stand in the way of somebody who means harm."""
    shutil.copy(written, tmp_path / "copy.sqlite3")
    for suffix in ("-wal", "-shm"):
        if written.with_name(written.name + suffix).exists():
            shutil.copy(written.with_name(written.name + suffix), tmp_path / f"copy.sqlite3{suffix}")
    connection = apsw.Connection(str(tmp_path / "copy.sqlite3"))
    for name in TRIGGERS:
        connection.execute(f"DROP TRIGGER {name}")
    return connection


def rules(connection: apsw.Connection, head: Head | None = None) -> set[str]:
    report = verify(connection, head)
    assert report.violation_count == len(report.violations)
    return {violation.rule for violation in report.violations}


def test_what_the_service_writes_is_sound(copy: apsw.Connection) -> None:
    report = verify(copy)
    assert report.violations == []
    assert report.head == find_head(copy)
    counts = {
        "transfers": "SELECT count(*) FROM transfer",
        "account events": "SELECT count(*) FROM account_event",
        "accounts": "SELECT count(*) FROM account",
        "payments": "SELECT count(*) FROM payment",
        "sagas": "SELECT count(*) FROM saga",
        "invoice credits": "SELECT count(*) FROM invoice_credit",
        "events": "SELECT count(*) FROM storage_event",
    }
    assert dict(report.checked) == {name: copy.execute(sql).get for name, sql in counts.items()}
    assert min(report.checked.values()) > 0


NEWEST = "(SELECT max(number) FROM transfer)"
DEPOSIT = "number = (SELECT min(number) FROM transfer)"
SUCCEEDED = "payment_id = (SELECT payment_id FROM payment WHERE state = 4 AND internal = 0)"
MUTATIONS: list[tuple[str, str]] = [
    (f"UPDATE transfer SET amount_msat = amount_msat + 1 WHERE {DEPOSIT}", "chain.hash"),
    (f"UPDATE transfer SET credit_account_id = 'suspense' WHERE {DEPOSIT}", "chain.hash"),
    (f"UPDATE transfer SET reference = 'nothing to see' WHERE {DEPOSIT}", "chain.hash"),
    (f"UPDATE transfer SET create_time_ms = create_time_ms - 86400000 WHERE {DEPOSIT}", "chain.time"),
    (f"UPDATE transfer SET purpose = 99 WHERE {DEPOSIT}", "entry.readable"),
    (f"UPDATE transfer SET sha256 = zeroblob(32) WHERE {DEPOSIT}", "chain.hash"),
    (f"UPDATE transfer SET number = number + 1000 WHERE number = {NEWEST}", "chain.number"),
    (f"DELETE FROM transfer WHERE {DEPOSIT}", "chain.number"),
    (f"DELETE FROM transfer WHERE number = {NEWEST}", "account.counters"),
    (f"DELETE FROM transfer WHERE number > {NEWEST} - 4", "account.counters"),
    ("DELETE FROM transfer WHERE kind = 4", "payment.money"),
    ("UPDATE transfer SET amount_msat = amount_msat - 1 WHERE kind = 4", "reservation.amount"),
    ("UPDATE transfer SET amount_msat = amount_msat + 100000 WHERE kind = 3", "reservation.amount"),
    (
        "UPDATE transfer SET pending_transfer_id = 'none' WHERE number = (SELECT max(number) FROM transfer WHERE kind = 4)",
        "reservation.once",
    ),
    ("UPDATE transfer SET payment_id = NULL WHERE kind = 3", "reservation.accounts"),
    ("UPDATE transfer SET payment_id = 'nobody' WHERE purpose = 3", "payment.kept"),
    ("UPDATE account SET credits_posted_msat = credits_posted_msat + 5 WHERE must_cover = 1", "account.counters"),
    ("UPDATE account SET credits_posted_msat = credits_posted_msat + 5 WHERE must_cover = 1", "sums.posted"),
    ("UPDATE account SET debits_pending_msat = debits_pending_msat - 1 WHERE debits_pending_msat > 0", "sums.pending"),
    ("UPDATE account SET must_cover = 0 WHERE must_cover = 1", "account.facts"),
    ("UPDATE account SET owner = 'eve' WHERE must_cover = 1", "account.facts"),
    ("UPDATE account SET state = 1 WHERE state = 2", "account.facts"),
    ("UPDATE account SET quota_day_msat = 1 WHERE must_cover = 1", "account.facts"),
    ("UPDATE account SET spent_msat = 0 WHERE must_cover = 1", "account.spent"),
    ("DELETE FROM account WHERE state = 2", "account.kept"),
    (
        "INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES ('customer:x', 'o', 1, 1, 1)",
        "account.opened",
    ),
    ("DELETE FROM account_event WHERE number = (SELECT max(number) FROM account_event)", "account.facts"),
    ("DELETE FROM account_event WHERE kind = 2", "account.facts"),
    ("UPDATE account_event SET actor = 'somebody else' WHERE kind = 2", "chain.hash"),
    ("UPDATE account_event SET reason = '' WHERE kind = 2", "chain.hash"),
    ("UPDATE account_event SET details = '{}' WHERE kind = 1 AND number > 5", "entry.readable"),
    ("UPDATE account_event SET kind = 3 WHERE kind = 2", "account.state_follows"),
    ("UPDATE account_event SET kind = 4 WHERE kind = 2", "account.closed_empty"),
    (f"UPDATE payment SET amount_msat = amount_msat + 1 WHERE {SUCCEEDED}", "payment.money"),
    (f"UPDATE payment SET fee_msat = fee_msat + 1 WHERE {SUCCEEDED}", "payment.money"),
    (f"UPDATE payment SET fee_msat = fee_limit_msat + 1 WHERE {SUCCEEDED}", "payment.fee"),
    (f"UPDATE payment SET state = 5 WHERE {SUCCEEDED}", "payment.money"),
    (f"UPDATE payment SET state = 3 WHERE {SUCCEEDED}", "saga.state"),
    (f"UPDATE payment SET state = 77 WHERE {SUCCEEDED}", "payment.readable"),
    ("UPDATE payment SET state = 5 WHERE state = 2", "payment.money"),
    ("UPDATE payment SET state = 2 WHERE state = 3", "payment.money"),
    ("UPDATE payment SET fee_limit_msat = 1 WHERE state = 3", "payment.money"),
    ("UPDATE payment SET refunded_msat = 0 WHERE state = 4", "payment.refunds"),
    ("UPDATE payment SET state = 4 WHERE state = 6", "payment.refunded"),
    ("UPDATE payment SET account_id = 'suspense' WHERE state = 4", "payment.accounts"),
    (f"DELETE FROM payment WHERE {SUCCEEDED}", "payment.kept"),
    (f"DELETE FROM payment WHERE {SUCCEEDED}", "saga.payment"),
    ("DELETE FROM saga WHERE step = 'lock_invoice'", "saga.kept"),
    ("UPDATE saga SET state = 2, step = 'done' WHERE step = 'lock_invoice'", "saga.state"),
    ("UPDATE invoice_credit SET state = 2 WHERE state = 1", "credit.transfer"),
    ("UPDATE invoice_credit SET state = 1 WHERE state = 2", "credit.transfer"),
    ("UPDATE invoice_credit SET amount_msat = amount_msat + 1 WHERE account_id IS NOT NULL", "credit.transfer"),
    ("DELETE FROM invoice_credit WHERE state = 1", "credit.kept"),
    ("DELETE FROM storage_event WHERE sequence = 2", "events.kept"),
    ("DELETE FROM storage_event WHERE sequence = 1", "events.kept"),
    (
        (
            "DELETE FROM storage_event WHERE sequence ="
            " (SELECT max(sequence) FROM storage_event WHERE kind LIKE 'nipmesh.payment.%')"
        ),
        "events.of_payment",
    ),
    ("DELETE FROM storage_event", "events.of_payment"),
    ("UPDATE storage_event SET subject = 'other'", "events.of_payment"),
]


@pytest.mark.parametrize(("sql", "rule"), MUTATIONS)
def test_whatever_is_edited_by_hand_is_found(copy: apsw.Connection, sql: str, rule: str) -> None:
    copy.execute(sql)
    assert copy.changes() > 0, "the edit changed something"
    assert rule in rules(copy)


def test_two_transfers_that_change_places_are_found(copy: apsw.Connection) -> None:
    first, second = (row[0] for row in copy.execute("SELECT number FROM transfer ORDER BY number LIMIT 2"))
    for number, place in ((first, -1), (second, first), (-1, second)):
        copy.execute("PRAGMA ignore_check_constraints = 1")
        copy.execute("UPDATE transfer SET number = ? WHERE number = ?", (place, number))
    assert "chain.hash" in rules(copy)


def rehash(connection: apsw.Connection, number: int, *, to_the_end: bool) -> None:
    """What somebody does who knows how the chain is made."""
    last = find_head(connection).number if to_the_end else number
    for one in range(number, last + 1):
        sql = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE number = ?"
        row = connection.execute(sql, (one,)).fetchone()
        before = (
            "SELECT sha256 FROM transfer WHERE number = ?1 UNION ALL SELECT sha256 FROM account_event WHERE number = ?1"
        )
        previous = connection.execute(before, (one - 1,)).get
        assert row is not None
        sha256 = recorded_sha256(previous, transfer_of_row(row))
        connection.execute("UPDATE transfer SET sha256 = ? WHERE number = ?", (sha256, one))


def test_a_changed_entry_with_a_hash_that_fits_breaks_the_next(copy: apsw.Connection) -> None:
    number = copy.execute("SELECT min(number) FROM transfer WHERE kind = 1").get
    copy.execute("UPDATE transfer SET reference = 'x' WHERE number = ?", (number,))
    rehash(copy, number, to_the_end=False)
    (violation,) = verify(copy).violations
    assert (violation.rule, violation.ids[0]) == ("chain.hash", f"entry {number + 1}")


def test_only_a_noted_head_shows_that_the_end_was_written_anew(copy: apsw.Connection) -> None:
    """The last entries are one withdrawal and a freeze: without these nothing else would tell."""
    noted = find_head(copy)
    assert rules(copy, noted) == set()
    copy.execute("DELETE FROM account_event WHERE number = ?", (noted.number,))
    copy.execute("UPDATE account SET state = 1 WHERE state = 2")
    assert rules(copy) == set()
    assert rules(copy, noted) == {"chain.head"}
    shorter = find_head(copy)
    copy.execute("UPDATE transfer SET reference = 'x' WHERE number = ?", (shorter.number,))
    rehash(copy, shorter.number, to_the_end=True)
    assert rules(copy) == set()
    assert rules(copy, shorter) == {"chain.head"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command_line = (sys.executable, "-m", "services.payment", "verify", *arguments)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIPMESH_")}
    return subprocess.run(
        command_line, capture_output=True, text=True, timeout=120, check=False, env=kept | environment
    )


def test_the_command_says_what_it_checked(written: Path) -> None:
    sound = run("--output", "json", NIPMESH_DATA_DIRECTORY=str(written.parent))
    assert (sound.returncode, sound.stderr) == (0, "")
    answer = json.loads(sound.stdout)
    assert (answer["sound"], answer["violations"], answer["violation_count"]) == (True, [], 0)
    assert answer["checked"]["payments"] == 7
    text = run("--database", str(written), "--head", answer["head"])
    assert text.returncode == 0
    assert text.stdout.endswith(f"head {answer['head']}\nsound: no violation\n")


def test_the_command_says_what_is_wrong(
    copy: apsw.Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.execute("UPDATE account SET credits_posted_msat = credits_posted_msat + 5 WHERE account_id = 'suspense'")
    copy.close()
    assert main(["--database", str(tmp_path / "copy.sqlite3")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 violations"
    assert (
        "account.counters: suspense: debits and credits, pending and posted, are (0, 0, 0, 5); its transfers add up"
        in ("\n".join(lines))
    )
    assert main(["--database", str(tmp_path / "copy.sqlite3"), "--output", "json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [one["ids"] for one in answer["violations"]] == [["suspense"], ["all accounts"]]


def test_the_command_says_what_it_cannot_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("not a database, but long enough to look at" * 50)
    apsw.Connection(str(tmp_path / "empty.sqlite3")).execute("CREATE TABLE t (x)")
    for arguments, words in (
        ([], "there is no file .nipmesh/data/payment.sqlite3"),
        (["--database", str(tmp_path / "missing")], "there is no file"),
        (["--database", str(tmp_path / "other.txt")], "not a database"),
        (["--database", str(tmp_path / "empty.sqlite3")], "no such table"),
        (["--head", "12"], "--head is NUMBER:HASH"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_a_ledger_without_a_chain_is_not_called_sound(copy: apsw.Connection) -> None:
    copy.execute("INSERT INTO memory VALUES ('ledger_unchained', 'transfer_unchained')")
    with pytest.raises(command.CannotVerifyError, match="not chained"):
        verify(copy)


async def test_a_running_service_can_be_verified(tmp_path: Path) -> None:
    with short_folder() as folder:
        async with serving(folder) as service:
            alice, bob = await service.open(ALICE, 100_000), await service.open(BOB)

            async def pay() -> None:
                for _ in range(20):
                    await service.pay(ALICE, alice, service.settlement.create(bob, 100))

            paying = asyncio.create_task(pay())
            while not paying.done():
                found = await asyncio.to_thread(run, "--database", str(folder / "data" / "payment.sqlite3"))
                assert found.returncode == 0, found.stdout + found.stderr
            await paying


async def test_on_postgresql_as_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with short_folder() as folder, running_server() as server:
        url = server.new_database()
        async with serving(folder, database_url=url) as service:
            await live(service)
            assert await asyncio.to_thread(main, ["--database", url, "--output", "json"]) == 0
            sound = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(("{", "")))
        monkeypatch.setenv("NIPMESH_DATABASE_URL", url)
        with psycopg.connect(url, autocommit=True) as connection:
            for sql in ("UPDATE payment.transfer SET amount_msat = 1", "DELETE FROM payment.account_event"):
                with pytest.raises(psycopg.errors.RestrictViolation, match="is immutable"):
                    connection.execute(sql)
            assert main(["--head", sound["head"]]) == 0
            connection.execute("ALTER TABLE payment.account_event DISABLE TRIGGER USER")
            connection.execute("UPDATE payment.account_event SET actor = 'somebody else' WHERE kind = 2")
        assert main([]) == 1
        assert "chain.hash" in capsys.readouterr().out
        server.stop()
        assert main([]) == 2
