"""The chain from its first entry to its newest, and every account against what its entries add up to."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from services.payment.domain.chain import Head, recorded_sha256
from services.payment.domain.model import Account, AccountEvent, Transfer
from services.payment.store.entries import (
    ACCOUNT_EVENT_COLUMNS,
    TRANSFER_COLUMNS,
    account_event_of_row,
    head_of,
    transfer_of_row,
)
from services.payment.store.ledger import list_accounts_after
from services.payment.verification.books import Book, Books
from services.payment.verification.report import Report
from services.storage.sql import Connection

EntryT = TypeVar("EntryT", Transfer, AccountEvent)
Row = Sequence[object]

ROWS_MAX: Final = 1_000
"""Rows read at a time."""


def check_ledger(connection: Connection, report: Report, noted: Head | None) -> Books:
    """Walk all entries, then all accounts. `noted`: the number and hash of an entry, written down elsewhere before."""
    walk = _Walk(report, noted)
    transfers = _entries(connection, "transfer", TRANSFER_COLUMNS)
    events = _entries(connection, "account_event", ACCOUNT_EVENT_COLUMNS)
    for table, row in heapq.merge(transfers, events, key=lambda pair: pair[1][0]):  # type: ignore[arg-type,return-value]
        if table == "transfer":
            walk.transfer(row)
        else:
            walk.event(row)
    report.head = walk.head
    _check_noted(report, noted)
    _check_accounts(connection, report, walk.books)
    return walk.books


def _entries(connection: Connection, table: str, columns: str) -> Iterator[tuple[str, Row]]:
    """All rows of a table by number, a page at a time."""
    sql = f"SELECT {columns} FROM {table} WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608 - built from constants
    after = -(2**63)
    while rows := connection.execute(sql, (after, ROWS_MAX)).fetchall():
        after = rows[-1][0]
        for row in rows:
            yield table, row


@dataclass(slots=True)
class _Walk:
    """Where the walk is. A hash is held against the stored one before it, so that one changed row is one violation, not all after it."""

    report: Report
    noted: Head | None
    head: Head = field(default_factory=Head)
    books: Books = field(init=False)
    timed: bool = False
    """Entries from the first account event on are as old as the chain: their time never falls."""

    def __post_init__(self) -> None:
        self.books = Books(self.report)

    def transfer(self, row: Row) -> None:
        """The next entry is this transfer."""
        transfer = self._read(row, transfer_of_row)
        if transfer is not None:
            self.report.checked["transfers"] += 1
            self._link(transfer, transfer.transfer_id)
            self.books.book_transfer(transfer)

    def event(self, row: Row) -> None:
        """The next entry is this event of an account."""
        event = self._read(row, account_event_of_row)
        if event is None:
            return
        self.report.checked["account events"] += 1
        self._link(event, event.account_id)
        self.timed = True
        try:
            self.books.book_event(event)
        except (ValueError, KeyError, TypeError):
            self.report.violate("entry.readable", "its details are none of ours", f"entry {event.number}")

    def _read(self, row: Row, of_row: Callable[[Row], EntryT]) -> EntryT | None:
        """The entry of a row; None when a column holds what this program never writes."""
        try:
            return of_row(row)
        except (ValueError, AssertionError):
            number = row[0] if isinstance(row[0], int) else 0
            self.report.violate("entry.readable", "a column holds what was never written there", f"entry {number}")
            if number == self.head.number + 1:
                self.head = Head(number=number, sha256=self.head.sha256, create_time_ms=self.head.create_time_ms)
            return None

    def _link(self, entry: Transfer | AccountEvent, subject: str) -> None:
        report, before = self.report, self.head
        if entry.number != before.number + 1:
            missing = f"entries {before.number + 1} to {entry.number - 1} are missing, or a number is there twice"
            report.violate("chain.number", missing, f"entry {entry.number}", subject)
        elif entry.sha256 != recorded_sha256(before.sha256, entry):
            meaning = (
                "its hash does not follow from its content and the entry before: it was changed, swapped or put in"
            )
            report.violate("chain.hash", meaning, f"entry {entry.number}", subject)
        if self.timed and entry.create_time_ms < before.create_time_ms:
            report.violate("chain.time", "it is older than the entry before", f"entry {entry.number}", subject)
        if self.noted is not None and entry.number == self.noted.number and entry.sha256 != self.noted.sha256:
            report.violate("chain.head", "its hash is not the one that was noted", f"entry {entry.number}", subject)
        self.head = head_of(entry)


def _check_noted(report: Report, noted: Head | None) -> None:
    if noted is None:
        return
    report.checked["noted heads"] += 1
    meaning = f"the ledger ends at entry {report.head.number}: newer ones were removed"
    report.expect(noted.number <= report.head.number, "chain.head", meaning, f"entry {noted.number}")


def _check_accounts(connection: Connection, report: Report, books: Books) -> None:
    """Each account against its book, and both sides of all of them."""
    left, after = dict(books.accounts), 0
    sums = [0, 0, 0, 0]
    while found := list_accounts_after(connection, after, ROWS_MAX):
        after = found[-1][0]
        for _, account in found:
            report.checked["accounts"] += 1
            _check_account(report, account, left.pop(account.account_id, Book()))
            for index, value in enumerate(_counters(account)):
                sums[index] += value
    for account_id in left:
        report.violate("account.kept", "the ledger has entries of it, but the account is gone", account_id)
    report.expect(sums[0] == sums[2], "sums.pending", f"pending debits {sums[0]}, credits {sums[2]}", "all accounts")
    report.expect(sums[1] == sums[3], "sums.posted", f"posted debits {sums[1]}, credits {sums[3]}", "all accounts")


def _counters(account: Account | Book) -> tuple[int, int, int, int]:
    return (
        account.debits_pending_msat,
        account.debits_posted_msat,
        account.credits_pending_msat,
        account.credits_posted_msat,
    )


def _check_account(report: Report, account: Account, book: Book) -> None:
    name = account.account_id
    report.expect(book.opened, "account.opened", "the ledger does not know who opened it", name)
    meaning = (
        f"debits and credits, pending and posted, are {_counters(account)}; its transfers add up to {_counters(book)}"
    )
    report.expect(_counters(account) == _counters(book), "account.counters", meaning, name)
    covered = not account.must_cover or account.available_msat >= 0
    report.expect(covered, "account.covered", f"{account.available_msat} msat are available", name)
    facts = (account.owner, account.must_cover, account.state, account.quota)
    meaning = "owner, cover, state or quota are not what the ledger says"
    report.expect(facts == (book.owner, book.must_cover, book.state, book.quota), "account.facts", meaning, name)
    spent = f"{account.spent_msat} msat on day {account.spent_day}; transfers say {book.spent_msat} on {book.spent_day}"
    same = (account.spent_day, account.spent_msat) == (book.spent_day, book.spent_msat)
    report.expect(same, "account.spent", spent, name)
