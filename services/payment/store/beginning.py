"""The first transaction of many payments at once: what `begin_payment` does, in one round trip that reads and one that writes.

A set holds what goes smoothly: new requests of owners whose accounts cover them, for invoices that nobody pays. Whatever else comes
up (a repeated request, a refusal, a balance that does not suffice) is left to `begin_payment`, which knows what to answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Final

from services.payment.domain import transfers
from services.payment.domain.chain import hold_body, placed
from services.payment.domain.ledger import DAY_MS, Delta, apply, check_shape, net_deltas, refusal
from services.payment.domain.model import (
    AMOUNT_MSAT_MAX,
    NODE_ACCOUNT,
    UNLIMITED,
    Account,
    Payment,
    PaymentState,
    Purpose,
    Transfer,
    TransferKind,
    numbered,
)
from services.payment.domain.saga import Saga
from services.payment.domain.saga_words import Step
from services.payment.store import changes, payments, sagas
from services.payment.store.entries import find_head
from services.payment.store.ledger import ACCOUNT_COLUMNS, account_of_row
from services.payment.store.transactions import Begun, begin_payment
from services.payment.wire import reserved_payload
from services.storage.events import current_traceparent
from services.storage.idempotency import RequestKey
from services.storage.sequence import ask_newest, newest_of
from services.storage.sets import find_rows, insert_rows, update_rows
from services.storage.sql import Connection
from services.storage.writing import ONE_BY_ONE, BatchKind, BatchWrite, OneByOne

_TAKEN: Final = "SELECT payment_hash FROM payment WHERE state IN (2, 3, 4, 6) AND payment_hash"
_KNOWN: Final = "SELECT scope, request_id FROM payment WHERE request_id"
_ACCOUNTS: Final = f"SELECT {ACCOUNT_COLUMNS} FROM account WHERE account_id"  # noqa: S608 - built from constants
_COUNTERS: Final = (
    "account_id",
    "debits_pending_msat",
    "debits_posted_msat",
    "credits_pending_msat",
    "credits_posted_msat",
    "spent_day",
    "spent_msat",
)
_PAYMENT_COLUMNS: Final = (
    "payment_id, account_id, scope, request_id, payment_request, payment_hash, amount_msat, fee_limit_msat, create_time_ms,"
    " update_time_ms, request_sha256, sequence"
)
_PAYMENT_FIXED: Final = f"state = {PaymentState.RESERVED.value}"
_LATER: Final = attrgetter(*(name for name in payments.COLUMNS if name not in {"state", *_PAYMENT_COLUMNS.split(", ")}))
"""What a payment gets later: all of it 0 or "", as the columns are by default."""
_TRANSFER_COLUMNS: Final = "number, transfer_id, debit_account_id, amount_msat, payment_id, create_time_ms, sha256"
_TRANSFER_FIXED: Final = (
    f"kind = {TransferKind.PENDING.value}, purpose = {Purpose.PAYMENT.value}, credit_account_id = '{NODE_ACCOUNT}'"
)
"""All that a reservation has; its other columns are empty by default."""
_SAGA_COLUMNS: Final = "id, owner, lease_until, next_run_at, data"
_SAGA_FIXED: Final = (
    f"kind = '{sagas.KIND}', step = '{Step.LOCK_INVOICE.value}', state = {sagas.RUNNING}, fence = 1, attempt = 0"
)
_EVENT_COLUMNS: Final = "sequence, subject, payload, traceparent, create_time_ms"
_EVENT_FIXED: Final = f"kind = '{changes.kind_name(PaymentState.RESERVED)}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginOrder:
    """The arguments of `begin_payment`, and the trace that its event belongs to.

    What follows from them alone is made with the order, by whoever asks: the transaction, for which all replicas wait, is short.
    """

    key: RequestKey
    draft: Payment
    saga: Saga
    lease: sagas.Lease
    lease_until_ms: int
    traceparent: str = field(default_factory=current_traceparent)
    asked: tuple[str, str] = field(init=False)
    """Caller and id of the request."""
    actor: str = field(init=False)
    payment_row: tuple[str | int | bytes, ...] = field(init=False)
    """But for its last column, the sequence."""
    hold_row: tuple[str | int, ...] = field(init=False)
    """But for what the ledger gives it: the first column, and the last two."""
    hold_body: bytes = field(init=False)
    """What is hashed of it, but for its place."""
    saga_row: tuple[str | int, ...] = field(init=False)
    payload: bytes = field(init=False)
    """Of its event."""

    def __post_init__(self) -> None:
        """Make what follows."""
        draft, put = self.draft, object.__setattr__
        assert draft.state is PaymentState.RESERVED
        assert draft.update_time_ms == draft.create_time_ms, "it begins now"
        assert not any(_LATER(draft)), "nothing is known yet of how the payment goes"
        put(self, "asked", (draft.scope, draft.request_id))
        put(self, "actor", draft.actor)
        put(self, "payment_row", _payment_row(draft, self.key))
        hold_row = _hold_row(draft)
        put(self, "hold_row", hold_row)
        put(self, "hold_body", hold_body(*hold_row))
        put(self, "saga_row", _saga_row(self.saga, self.lease, self.lease_until_ms, draft.create_time_ms))
        put(self, "payload", reserved_payload(draft))

    @property
    def hold(self) -> Transfer:
        """What `hold_row` and `hold_body` are of."""
        hold = transfers.hold(self.draft, self.draft.create_time_ms)
        check_shape(hold, None)
        return hold


def _payment_row(draft: Payment, key: RequestKey) -> tuple[str | int | bytes, ...]:
    """The values of _PAYMENT_COLUMNS, but for the last."""
    return (
        draft.payment_id,
        draft.account_id,
        draft.scope,
        draft.request_id,
        draft.payment_request,
        draft.payment_hash,
        draft.amount_msat,
        draft.fee_limit_msat,
        draft.create_time_ms,
        draft.create_time_ms,
        key.sha256,
    )


def _hold_row(draft: Payment) -> tuple[str, str, int, str]:
    """The values of _TRANSFER_COLUMNS for `transfers.hold`, but for the first and the last two; as `check_shape` wants them."""
    assert draft.account_id != NODE_ACCOUNT, "an account cannot pay itself"
    assert 0 < draft.amount_msat <= AMOUNT_MSAT_MAX
    return (transfers.hold_id(draft.payment_id), draft.account_id, draft.amount_msat, draft.payment_id)


def _saga_row(saga: Saga, lease: sagas.Lease, lease_until_ms: int, now_ms: int) -> tuple[str | int, ...]:
    """The values of _SAGA_COLUMNS."""
    assert (saga.step, saga.attempt, lease.fence) == (Step.LOCK_INVOICE, 0, 1), "it begins at the beginning"
    return (saga.payment_id, lease.owner, lease_until_ms, now_ms, sagas.saga_data(saga))


def begin_write(
    key: RequestKey, draft: Payment, saga: Saga, lease: sagas.Lease, lease_until_ms: int
) -> BatchWrite[BeginOrder, Begun]:
    """`begin_payment` as a write for `database.write`, made in the caller's context."""
    order = BeginOrder(key=key, draft=draft, saga=saga, lease=lease, lease_until_ms=lease_until_ms)
    return BatchWrite(BEGIN_PAYMENT, order)


def begin_one(connection: Connection, order: BeginOrder) -> Begun:
    """One, by itself."""
    return begin_payment(connection, order.key, order.draft, order.saga, order.lease, order.lease_until_ms)


def begin_many(connection: Connection, orders: Sequence[BeginOrder]) -> list[Begun | Exception | OneByOne]:
    """All that go smoothly, as `begin_one` would do them in this order; ONE_BY_ONE for the others."""
    known = find_rows(connection, _KNOWN, [order.draft.request_id for order in orders])
    taken = find_rows(connection, _TAKEN, [order.draft.payment_hash for order in orders])
    return _begin(_read(connection, orders, known, (row[0] for row in taken)), connection, orders)


def begin_hopefully(connection: Connection, orders: Sequence[BeginOrder]) -> list[Begun | Exception | OneByOne]:
    """`begin_many`; unique indexes tell of requests that were made before and of invoices that are paid, instead of a look at them."""
    return _begin(_read(connection, orders, (), ()), connection, orders)


def _begin(begun: _Set, connection: Connection, orders: Sequence[BeginOrder]) -> list[Begun | Exception | OneByOne]:
    results: list[Begun | Exception | OneByOne] = []
    for order in orders:
        payment = begun.add(order)
        results.append(ONE_BY_ONE if payment is None else Begun(payment=payment, fresh=True))
    begun.write(connection)
    return results


BEGIN_PAYMENT: Final = BatchKind(
    name="begin_payment", run_one=begin_one, run_many=begin_many, run_hopeful=begin_hopefully
)


def _read(
    connection: Connection,
    orders: Sequence[BeginOrder],
    known: Iterable[tuple[Any, ...]],
    taken: Iterable[str],
) -> _Set:
    """What stands in the database; on PostgreSQL with one round trip: nothing is awaited before all is asked."""
    names = {NODE_ACCOUNT, *(order.draft.account_id for order in orders)}
    accounts = find_rows(connection, _ACCOUNTS, sorted(names))
    newest = ask_newest(connection)
    head = find_head(connection)
    return _Set(
        number=head.number,
        sha256=head.sha256,
        time_ms=head.create_time_ms,
        known={(scope, request_id) for scope, request_id in known},
        taken=set(taken),
        purses=_purses(map(account_of_row, accounts), orders),
        sequence=newest_of(newest),
    )


@dataclass(slots=True)
class _Purse:
    """An account, and what the set has reserved since `account` was its state: only that is counted as long as it is `loose`.

    `loose`: all that the set wants to reserve together is not refused, so neither is any part of it. No rule but a quota looks at
    single reservations.
    """

    account: Account
    loose: bool
    debits_msat: int = 0
    credits_msat: int = 0
    spent_day: int = 0
    spent_msat: int = 0

    def spend(self, amount_msat: int, day: int) -> None:
        """Reserve for another account."""
        self.debits_msat += amount_msat
        self.spent_msat = amount_msat + (self.spent_msat if day == self.spent_day else 0)
        self.spent_day = day

    def after(self) -> Account:
        """The account as it is now."""
        account = self.account
        if not (self.debits_msat or self.credits_msat):
            return account
        return replace(
            account,
            debits_pending_msat=account.debits_pending_msat + self.debits_msat,
            credits_pending_msat=account.credits_pending_msat + self.credits_msat,
            spent_day=self.spent_day,
            spent_msat=self.spent_msat,
        )


def _purse(account: Account, delta: Delta) -> _Purse:
    """With all that a set wants of it."""
    loose = account.quota == UNLIMITED and refusal(account, delta) is None
    return _Purse(account, loose, spent_day=account.spent_day, spent_msat=account.spent_msat)


def _purses(accounts: Iterable[Account], orders: Sequence[BeginOrder]) -> dict[str, _Purse]:
    """Those that there are, by their account's id."""
    wanted_msat: dict[str, int] = {}
    for order in orders:
        draft = order.draft
        wanted_msat[draft.account_id] = wanted_msat.get(draft.account_id, 0) + draft.amount_msat
    total_msat = sum(wanted_msat.values())
    purses = {}
    for account in accounts:
        name, msat = account.account_id, wanted_msat.get(account.account_id, 0)
        credits_msat = total_msat if name == NODE_ACCOUNT else 0
        delta = Delta(account_id=name, debits_pending_msat=msat, credits_pending_msat=credits_msat, spent_msat=msat)
        purses[name] = _purse(account, delta)
    return purses


@dataclass(slots=True, kw_only=True)
class _Set:
    """The state as it becomes with each payment that is added, and the rows that make it so."""

    number: int
    sha256: bytes
    time_ms: int
    """Number, hash and time of the ledger's newest entry."""
    known: set[tuple[str, str]]
    """Caller and id of requests."""
    taken: set[str]
    purses: Mapping[str, _Purse]
    sequence: int
    orders: list[BeginOrder] = field(default_factory=list)
    payments: list[Sequence[Any]] = field(default_factory=list)
    holds: list[Sequence[Any]] = field(default_factory=list)
    events: list[Sequence[Any]] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    now_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def add(self, order: BeginOrder) -> Payment | None:
        """Add a payment; None when it is not one that goes smoothly."""
        draft, asked = order.draft, order.asked
        if not draft.request_id or asked in self.known or draft.payment_hash in self.taken:
            return None
        payer = self.purses.get(draft.account_id)
        if payer is None or payer.account.owner != order.actor or not order.actor:
            return None
        time_ms = max(self.time_ms, draft.create_time_ms)
        if not self._reserve(payer, order, time_ms):
            return None
        self.known.add(asked)
        self.taken.add(draft.payment_hash)
        self._record(order, time_ms)
        return numbered(draft, self.sequence)

    def _reserve(self, payer: _Purse, order: BeginOrder, time_ms: int) -> bool:
        """Reserve the amount; False when that is refused."""
        amount_msat, node = order.draft.amount_msat, self.purses[NODE_ACCOUNT]
        if not (payer.loose and node.loose):
            return self._reserve_carefully(payer, node, replace(order.hold, create_time_ms=time_ms))
        payer.spend(amount_msat, time_ms // DAY_MS)  # the day on which it counts is that of the ledger
        node.credits_msat += amount_msat
        self.touched.add(order.draft.account_id)
        return True

    def _reserve_carefully(self, payer: _Purse, node: _Purse, hold: Transfer) -> bool:
        """With all rules for this one."""
        deltas = {delta.account_id: delta for delta in net_deltas((hold,), {})}
        both = [(purse, purse.after(), deltas[purse.account.account_id]) for purse in (payer, node)]
        if any(refusal(account, delta) is not None for _, account, delta in both):
            return False
        for purse, account, delta in both:
            purse.account = after = apply(account, delta)
            purse.debits_msat = purse.credits_msat = 0
            purse.spent_day, purse.spent_msat = after.spent_day, after.spent_msat
        self.touched.add(payer.account.account_id)
        return True

    def _record(self, order: BeginOrder, time_ms: int) -> None:
        """Append the reservation to the ledger, and number the event."""
        self.number = number = self.number + 1
        self.sha256 = sha256 = hashlib.sha256(self.sha256 + placed(order.hold_body, number, time_ms)).digest()
        self.time_ms = time_ms
        self.sequence = sequence = self.sequence + 1
        self.payments.append((*order.payment_row, sequence))
        self.holds.append((number, *order.hold_row, time_ms, sha256))
        self.events.append((sequence, order.draft.payment_id, order.payload, order.traceparent, self.now_ms))
        self.orders.append(order)

    def write(self, connection: Connection) -> None:
        """Write it all; on PostgreSQL the answers are awaited together."""
        if not self.orders:
            return
        insert_rows(connection, "payment", _PAYMENT_COLUMNS, self.payments, _PAYMENT_FIXED)
        insert_rows(connection, "transfer", _TRANSFER_COLUMNS, self.holds, _TRANSFER_FIXED)
        insert_rows(connection, "saga", _SAGA_COLUMNS, [order.saga_row for order in self.orders], _SAGA_FIXED)
        insert_rows(connection, "storage_event", _EVENT_COLUMNS, self.events, _EVENT_FIXED)
        counters = attrgetter(*_COUNTERS)
        names = sorted({NODE_ACCOUNT, *self.touched})
        update_rows(connection, "account", _COUNTERS, [counters(self.purses[name].after()) for name in names])
