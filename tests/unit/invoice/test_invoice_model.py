"""The store beside a simple model: any sequence of calls by several payments and owners leaves both in the same state."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import apsw
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nipmesh.events.v1 import events_pb2
from services.chassis.secret import SecretBytes
from services.invoice import store
from services.invoice.domain.invoice import Invoice, State
from services.invoice.domain.rules import LockOrder, OtherInvoiceError, RefusedError
from services.invoice.issuing import Terms, issue
from services.invoice.service import MIGRATIONS
from services.invoice.store import InvoiceNotFoundError, Key
from services.lightning.node_key import NodeKey
from services.storage.events import events_after
from services.storage.migrations import STORAGE_MIGRATIONS, load_migrations, migrate

KEY = NodeKey(SecretBytes(b"\x01" * 32))
OWNERS = ("aa" * 32, "bb" * 32)
START_MS = 1_700_000_000_000

indexes = st.integers(0, 3)
payments = st.sampled_from(["payment-1", "payment-2", "payment-3", "payment-4"])
amounts = st.sampled_from([500, 1_000])


@dataclass(slots=True)
class ModelInvoice:
    """What the machine believes of an invoice."""

    invoice: Invoice
    state: str = "OPEN"
    holder: str | None = None
    paid_msat: int = 0


class Machine(RuleBasedStateMachine):
    """Calls the store and the model alike. The model is written from the API's words, not from the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = apsw.Connection(":memory:")
        migrate(self.connection, "storage", load_migrations(STORAGE_MIGRATIONS))
        migrate(self.connection, "service", load_migrations(MIGRATIONS))
        self.now_ms = START_MS
        self.invoices: list[ModelInvoice] = []
        self.payments: dict[str, tuple[str, int, int]] = {}
        self.changes = 0

    def teardown(self) -> None:
        self.connection.close()

    def _pick(self, index: int) -> ModelInvoice | None:
        return self.invoices[index] if index < len(self.invoices) else None

    def _refuses(self, reason: str) -> contextlib.AbstractContextManager[None]:
        return _refusal(reason)

    def _moved(self, model: ModelInvoice, state: str, holder: str | None = None) -> None:
        model.state, model.holder = state, holder
        self.changes += 1

    @rule(owner=st.sampled_from(OWNERS), amount=st.none() | amounts, expiry_s=st.sampled_from([1, 5, 3_600]))
    def create(self, owner: str, amount: int | None, expiry_s: int) -> None:
        if len(self.invoices) > 3:
            return
        terms = Terms(
            owner_pubkey=owner,
            account_id="customer:1",
            amount_msat=amount,
            description="",
            description_hash="",
            expiry_s=expiry_s,
        )
        invoice = store.insert_invoice(self.connection, issue(terms, KEY, self.now_ms))
        self.invoices.append(ModelInvoice(invoice=invoice))
        self.changes += 1

    @rule(seconds=st.sampled_from([1, 3, 10]))
    def time_passes(self, seconds: int) -> None:
        self.now_ms += seconds * 1_000

    @rule()
    def sweep(self) -> None:
        due = [
            model for model in self.invoices if model.state == "OPEN" and self.now_ms >= model.invoice.expire_time_ms
        ]
        assert store.expire_invoices(self.connection, self.now_ms) == len(due)
        for model in due:
            self._moved(model, "EXPIRED")

    @rule(index=indexes, owner=st.sampled_from(OWNERS))
    def cancel(self, index: int, owner: str) -> None:
        model = self._pick(index)
        if model is None:
            return
        key = Key(column="invoice_id", value=model.invoice.invoice_id)

        def call() -> None:
            store.cancel_invoice(self.connection, key, owner, self.now_ms)

        if owner != model.invoice.owner_pubkey:
            with _missing():
                call()
        elif model.state in ("ACCEPTED", "SETTLED"):
            with self._refuses("INVOICE_LOCKED" if model.state == "ACCEPTED" else "INVOICE_ALREADY_SETTLED"):
                call()
        else:
            call()
            if model.state == "OPEN":
                self._moved(model, "CANCELED")

    @rule(index=indexes, payment=payments, amount=amounts)
    def lock(self, index: int, payment: str, amount: int) -> None:
        model = self._pick(index)
        if model is None:
            return
        order = LockOrder(payment_id=payment, amount_msat=amount, actor_pubkey="cc" * 32)

        def call() -> None:
            invoice = model.invoice
            store.lock_invoice(self.connection, invoice.payment_request, invoice.payment_hash, order, self.now_ms)

        known = self.payments.get(payment)
        wrong = self._lock_refusal(model, amount)
        if known is not None and known[0] == "released":
            with self._refuses("INVOICE_NOT_LOCKED"):
                call()
        elif known is not None and known[1] != index:
            with _other():
                call()
        elif known is not None:
            if known[2] == amount:
                call()
                return
            with self._refuses("INVOICE_AMOUNT_MISMATCH"):
                call()
        elif wrong:
            with self._refuses(wrong):
                call()
        else:
            call()
            self.payments[payment] = ("held", index, amount)
            self._moved(model, "ACCEPTED", payment)

    def _lock_refusal(self, model: ModelInvoice, amount: int) -> str:
        by_state = {
            "ACCEPTED": "INVOICE_LOCKED",
            "SETTLED": "INVOICE_ALREADY_SETTLED",
            "CANCELED": "INVOICE_ALREADY_CANCELED",
            "EXPIRED": "INVOICE_EXPIRED",
        }
        if model.state != "OPEN":
            return by_state[model.state]
        if self.now_ms >= model.invoice.expire_time_ms:
            return "INVOICE_EXPIRED"
        return "" if model.invoice.amount_msat in (None, amount) else "INVOICE_AMOUNT_MISMATCH"

    @rule(payment=payments)
    def commit(self, payment: str) -> None:
        known = self.payments.get(payment)
        if known is None or known[0] == "released":
            with self._refuses("INVOICE_NOT_LOCKED"):
                store.commit_invoice(self.connection, payment, self.now_ms)
            return
        state, index, amount = known
        model = self.invoices[index]
        invoice = store.commit_invoice(self.connection, payment, self.now_ms)
        assert invoice.preimage == model.invoice.preimage
        if state == "held":
            self.payments[payment] = ("committed", index, amount)
            self._moved(model, "SETTLED", payment)
            model.paid_msat = amount

    @rule(payment=payments)
    def release(self, payment: str) -> None:
        known = self.payments.get(payment)
        if known is not None and known[0] == "committed":
            with self._refuses("INVOICE_ALREADY_SETTLED"):
                store.release_invoice(self.connection, payment, self.now_ms)
            return
        freed = store.release_invoice(self.connection, payment, self.now_ms)
        assert (freed is not None) == (known is not None and known[0] == "held")
        if known is not None and known[0] == "held":
            model = self.invoices[known[1]]
            self._moved(model, "EXPIRED" if self.now_ms >= model.invoice.expire_time_ms else "OPEN")
        self.payments[payment] = ("released", *(known or ("", -1, 0))[1:])

    @invariant()
    def the_store_agrees(self) -> None:
        for model in self.invoices:
            stored = store.find_invoice(self.connection, Key(column="invoice_id", value=model.invoice.invoice_id))
            assert (stored.state.name, stored.locked_by, stored.amount_paid_msat) == (
                model.state,
                model.holder,
                model.paid_msat,
            )

    @invariant()
    def every_change_has_one_event_and_they_chain(self) -> None:
        events = events_after(self.connection, 0)
        assert len(events) == self.changes
        last: dict[str, int] = {}
        for event in events:
            changed = events_pb2.InvoiceChanged.FromString(event.payload)
            assert changed.previous_state == last.get(event.subject, 0)
            assert changed.invoice.preimage == ""
            assert event.kind == f"nipmesh.invoice.v1.{State(changed.invoice.state).name.lower()}"
            last[event.subject] = changed.invoice.state


@contextlib.contextmanager
def _refusal(reason: str):  # type: ignore[no-untyped-def]
    try:
        yield
    except RefusedError as error:
        assert error.reason == reason, (error.reason, reason)  # noqa: PT017  # the machine says which reason it expects
    else:
        raise AssertionError(f"was not refused with {reason}")


@contextlib.contextmanager
def _missing():  # type: ignore[no-untyped-def]
    try:
        yield
    except InvoiceNotFoundError:
        return
    raise AssertionError("another's invoice was found")


@contextlib.contextmanager
def _other():  # type: ignore[no-untyped-def]
    try:
        yield
    except OtherInvoiceError:
        return
    raise AssertionError("one payment locked two invoices")


def test_the_store_behaves_as_the_model() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
