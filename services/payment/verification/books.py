"""Booking every entry of the ledger a second time, without the code that booked it first: what the accounts must say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from services.payment.domain.chain import quota_of_details
from services.payment.domain.ledger import DAY_MS
from services.payment.domain.model import (
    SPENDING,
    UNLIMITED,
    AccountEvent,
    AccountEventKind,
    AccountState,
    Purpose,
    Quota,
    Transfer,
    TransferKind,
)
from services.payment.verification.report import Report


@dataclass(slots=True)
class Book:
    """One account, as the entries so far say. `opened`: there was an OPENED."""

    opened: bool = False
    owner: str = ""
    must_cover: bool = True
    state: AccountState = AccountState.ACTIVE
    quota: Quota = UNLIMITED
    debits_pending_msat: int = 0
    debits_posted_msat: int = 0
    credits_pending_msat: int = 0
    credits_posted_msat: int = 0
    spent_day: int = 0
    spent_msat: int = 0

    @property
    def empty(self) -> bool:
        """Neither money nor reservations."""
        balance_msat = self.credits_posted_msat - self.debits_posted_msat
        return balance_msat == self.debits_pending_msat == self.credits_pending_msat == 0


@dataclass(slots=True)
class Books:
    """All accounts and the reservations that are open. Only what breaks no rule is booked twice or more."""

    report: Report
    accounts: dict[str, Book] = field(default_factory=dict)
    open: dict[str, Transfer] = field(default_factory=dict)
    last_void_payment: str = ""
    """The payment whose reservation the entry before voided: a transfer of the same payment goes on with that money."""

    def book_transfer(self, transfer: Transfer) -> None:
        """Move the counters of both accounts."""
        debit = self._account(transfer.debit_account_id)
        credit = self._account(transfer.credit_account_id)
        self._check_states(transfer, debit, credit)
        amount_msat = transfer.amount_msat
        if transfer.kind is TransferKind.PENDING:
            self.open[transfer.transfer_id] = transfer
            debit.debits_pending_msat += amount_msat
            credit.credits_pending_msat += amount_msat
        elif transfer.kind is not TransferKind.POSTED:
            self._end(transfer, debit, credit)
        if transfer.kind in (TransferKind.POSTED, TransferKind.POST_PENDING):
            debit.debits_posted_msat += amount_msat
            credit.credits_posted_msat += amount_msat
        if transfer.kind in (TransferKind.POSTED, TransferKind.PENDING) and transfer.purpose in SPENDING:
            _spend(debit, transfer)
        self.last_void_payment = transfer.payment_id if transfer.kind is TransferKind.VOID_PENDING else ""

    def book_event(self, event: AccountEvent) -> None:
        """Change what an account is."""
        book = self._account(event.account_id)
        ids = (f"entry {event.number}", event.account_id)
        match event.kind:
            case AccountEventKind.OPENED:
                self.report.expect(not book.opened, "account.opened_once", "the account was opened before", *ids)
                details = json.loads(event.details)
                book.opened, book.owner, book.must_cover = True, details["owner"], bool(details["must_cover"])
            case AccountEventKind.FROZEN:
                self._change(book, AccountState.ACTIVE, AccountState.FROZEN, ids)
            case AccountEventKind.UNFROZEN:
                self._change(book, AccountState.FROZEN, AccountState.ACTIVE, ids)
            case AccountEventKind.CLOSED:
                self.report.expect(book.empty, "account.closed_empty", "it was closed while it held money", *ids)
                self._change(book, book.state, AccountState.CLOSED, ids)
            case AccountEventKind.QUOTA_SET:
                book.quota = quota_of_details(event.details)
        self.last_void_payment = ""

    def _change(self, book: Book, before: AccountState, after: AccountState, ids: tuple[str, str]) -> None:
        allowed = book.state is before and book.state is not AccountState.CLOSED
        meaning = f"the account was {book.state.name} and cannot become {after.name}"
        self.report.expect(allowed, "account.state_follows", meaning, *ids)
        book.state = after

    def _account(self, account_id: str) -> Book:
        return self.accounts.setdefault(account_id, Book())

    def _check_states(self, transfer: Transfer, debit: Book, credit: Book) -> None:
        ids = (f"entry {transfer.number}", transfer.transfer_id)
        closed = AccountState.CLOSED in (debit.state, credit.state)
        self.report.expect(not closed, "account.closed_for_good", "one of its accounts was closed before", *ids)
        leaves = transfer.kind in (TransferKind.POSTED, TransferKind.PENDING)
        goes_on = transfer.purpose is Purpose.ROUTING_FEE or self.last_void_payment == (transfer.payment_id or None)
        if leaves and debit.state is AccountState.FROZEN and not goes_on:
            self.report.violate("account.frozen", "money left an account while it was frozen", *ids)

    def _end(self, transfer: Transfer, debit: Book, credit: Book) -> None:
        """End a reservation, when there is one."""
        ids = (f"entry {transfer.number}", transfer.transfer_id, transfer.pending_transfer_id)
        held = self.open.pop(transfer.pending_transfer_id, None)
        if held is None:
            return self.report.violate("reservation.once", "it ends a reservation that is ended or never was", *ids)
        whole = transfer.amount_msat == held.amount_msat
        fits = whole or (transfer.kind is TransferKind.POST_PENDING and transfer.amount_msat < held.amount_msat)
        self.report.expect(fits, "reservation.amount", f"reserved were {held.amount_msat} msat", *ids)
        between = (held.debit_account_id, held.credit_account_id, held.payment_id)
        same = between == (transfer.debit_account_id, transfer.credit_account_id, transfer.payment_id)
        self.report.expect(same, "reservation.accounts", "it is between other accounts, or of another payment", *ids)
        debit.debits_pending_msat -= held.amount_msat
        credit.credits_pending_msat -= held.amount_msat
        if held.purpose in SPENDING and debit.spent_day == held.create_time_ms // DAY_MS:
            moved_msat = transfer.amount_msat if transfer.kind is TransferKind.POST_PENDING else 0
            debit.spent_msat -= held.amount_msat - moved_msat
        return None


def _spend(debit: Book, transfer: Transfer) -> None:
    day = transfer.create_time_ms // DAY_MS
    if debit.spent_day != day:
        debit.spent_day, debit.spent_msat = day, 0
    debit.spent_msat += transfer.amount_msat
