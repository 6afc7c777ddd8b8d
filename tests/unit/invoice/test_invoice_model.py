"""The store beside a simple model: any sequence of calls by payments, owners, clocks and a Lightning node leaves both in the same state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import apsw
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nipmesh.events.v1 import events_pb2
from services.chassis.secret import SecretBytes
from services.invoice import holds, store, work
from services.invoice.domain import rules
from services.invoice.domain.invoice import NODE, HoldState, Invoice, Phase, State
from services.invoice.domain.rules import LockOrder, OtherInvoiceError, PreimageMissingError, RefusedError
from services.invoice.domain.transitions import TRANSITIONS, Event, Move
from services.invoice.issuing import Secret, Terms, new_invoice, secret_for
from services.invoice.service import MIGRATIONS
from services.invoice.store import InvoiceNotFoundError, Key
from services.storage.events import events_after
from services.storage.migrations import SQLITE, STORAGE_MIGRATIONS, load_migrations, migrate
from services.storage.sqlite.migrating import FileMigrator

OWNERS = ("aa" * 32, "bb" * 32)
START_MS = 1_700_000_000_000
SETTLE_S = 4

INVOICES = 3
indexes = st.integers(0, INVOICES - 1)
payments = st.sampled_from(["payment-1", "payment-2", "payment-3", "payment-4"])
amounts = st.sampled_from([500, 1_000])


@dataclass(slots=True)
class ModelInvoice:
    """What the machine believes of an invoice. `stage` says what the invoice waits for while it is ACCEPTED."""

    invoice: Invoice
    preimage: bytes
    known: bool
    state: str = "OPEN"
    stage: str = ""
    holder: str | None = None
    held_msat: int = 0
    paid_msat: int = 0
    deadline_ms: int = 0


class Machine(RuleBasedStateMachine):
    """Calls the store and the model alike. The model is written from the API's words, not from the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = apsw.Connection(":memory:")
        migrate(FileMigrator(self.connection), "storage", load_migrations(STORAGE_MIGRATIONS / SQLITE))
        migrate(FileMigrator(self.connection), "service", load_migrations(MIGRATIONS / SQLITE))
        self.now_ms = START_MS
        self.invoices: list[ModelInvoice] = []
        self.payments: dict[str, tuple[str, int, int]] = {}
        self.changes = 0

    def teardown(self) -> None:
        self.connection.close()

    def _moved(self, model: ModelInvoice, state: str, *, stage: str = "", told: bool = True) -> None:
        if state == "SETTLED":
            model.paid_msat = model.held_msat
        elif state != "ACCEPTED":
            model.holder = None
        if state != "ACCEPTED":
            model.held_msat = 0
        model.state, model.stage = state, stage
        self.changes += told

    def _held(self, model: ModelInvoice, holder: str, amount_msat: int, stage: str) -> None:
        model.holder, model.held_msat = holder, amount_msat
        self._moved(model, "ACCEPTED", stage=stage)

    def _decided(self, model: ModelInvoice, fate: str) -> None:
        """A decision on a hold invoice: at once inside, by way of the node outside."""
        if model.stage == "reserved":
            assert model.holder is not None
            _, index, amount = self.payments[model.holder]
            self.payments[model.holder] = ("committed" if fate == "SETTLED" else "returned", index, amount)
            self._moved(model, fate)
        else:
            self._moved(model, "ACCEPTED", stage="settling" if fate == "SETTLED" else "canceling", told=False)

    @initialize(
        made=st.lists(
            st.tuples(
                st.sampled_from(OWNERS),
                st.none() | amounts,
                st.sampled_from([3, 3_600]),
                st.sampled_from(["plain", "hold", "hash"]),
            ),
            min_size=INVOICES,
            max_size=INVOICES,
        )
    )
    def begin(self, made: list[tuple[str, int | None, int, str]]) -> None:
        for each in made:
            self._create(*each)

    def _create(self, owner: str, amount: int | None, expiry_s: int, kind: str) -> None:
        preimage = bytes([len(self.invoices) + 1]) * 32
        terms = Terms(
            owner_pubkey=owner,
            account_id="customer:1",
            amount_msat=amount,
            description="",
            description_hash="",
            expiry_s=expiry_s,
            settle_duration_s=0 if kind == "plain" else SETTLE_S,
            payment_hash=hashlib.sha256(preimage).hexdigest() if kind == "hash" else "",
            metadata={"order": "7"},
        )
        secret: Secret = secret_for(terms)
        known = secret.preimage is not None
        text, expire_time_ms = f"lnbcrt{len(self.invoices)}", self.now_ms + expiry_s * 1_000
        invoice = new_invoice(terms, secret, text, self.now_ms, expire_time_ms=expire_time_ms)
        stored = store.insert_invoice(self.connection, invoice)
        bytes_ = secret.preimage.reveal() if secret.preimage else preimage
        self.invoices.append(ModelInvoice(invoice=stored, preimage=bytes_, known=known))
        self.changes += 1

    @rule(seconds=st.sampled_from([1, 3]))
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
        model = self.invoices[index]
        key = Key(column="invoice_id", value=model.invoice.invoice_id)
        call = partial(holds.cancel_invoice, self.connection, key, owner, self.now_ms)
        if owner != model.invoice.owner_pubkey:
            with _missing():
                call()
        elif model.state == "SETTLED" or model.stage == "posting":
            with _refusal("INVOICE_ALREADY_SETTLED"):
                call()
        elif model.stage in ("locked", "arrived", "settling"):
            with _refusal("INVOICE_LOCKED"):
                call()
        else:
            call()
            if model.state == "OPEN":
                self._moved(model, "CANCELED")
            elif model.stage in ("reserved", "held"):
                self._decided(model, "CANCELED")

    @rule(index=indexes, said=st.sampled_from(["right", "wrong", "nothing"]))
    def settle(self, index: int, said: str) -> None:
        model = self.invoices[index]
        key = Key(column="payment_hash", value=model.invoice.payment_hash)
        preimage = {"right": SecretBytes(model.preimage), "wrong": SecretBytes(bytes(32)), "nothing": None}[said]
        owner = model.invoice.owner_pubkey
        call = partial(holds.settle_invoice, self.connection, key, owner, preimage, self.now_ms)
        refusal = self._settle_refusal(model)
        if said == "wrong" or refusal:
            with _refusal("PREIMAGE_MISMATCH" if said == "wrong" else refusal):
                call()
        elif said == "nothing" and not model.known:
            with _secret():
                call()
        else:
            call()
            model.known = True
            if model.stage in ("reserved", "held"):
                self._decided(model, "SETTLED")

    def _settle_refusal(self, model: ModelInvoice) -> str:
        if model.state == "OPEN" or model.stage in ("locked", "arrived"):
            return "INVOICE_NOT_ACCEPTED"
        if model.state == "EXPIRED":
            return "INVOICE_EXPIRED"
        return (
            "INVOICE_ALREADY_CANCELED" if model.state == "CANCELED" or model.stage in ("canceling", "voiding") else ""
        )

    @rule()
    def deadlines_pass(self) -> None:
        for invoice in work.claim(self.connection, self.now_ms):
            work.advance(self.connection, invoice.invoice_id, rules.miss_deadline, self.now_ms)
        for model in self.invoices:
            if model.stage in ("reserved", "held") and self.now_ms >= model.deadline_ms:
                self._decided(model, "CANCELED")

    @rule(index=indexes, amount=amounts)
    def money_arrives(self, index: int, amount: int) -> None:
        model = self.invoices[index]
        call = partial(work.arrive, self.connection, model.invoice.payment_hash, amount, self.now_ms)
        refusal = self._lock_refusal(model, amount)
        if model.holder == NODE and model.state == "ACCEPTED":
            before, after = call()
            assert before is after, "heard of twice"
        elif refusal:
            with _refusal(refusal):
                call()
        else:
            call()
            self._held(model, NODE, amount, "arrived")

    def _happens(self, index: int, event: Event, moves: dict[str, Callable[[ModelInvoice], None]]) -> None:
        model = self.invoices[index]
        rule_: work.Rule = lambda invoice, now_ms: rules.apply(invoice, event, now_ms)  # noqa: E731
        before, after = work.advance(self.connection, model.invoice.invoice_id, rule_, self.now_ms)
        assert (after is before) == (model.stage not in moves), "a late replica changes nothing"
        if model.stage in moves:
            moves[model.stage](model)

    def _stage(self, stage: str) -> Callable[[ModelInvoice], None]:
        return lambda model: self._moved(model, "ACCEPTED", stage=stage, told=False)

    @rule(index=indexes, deadline_s=st.none() | st.sampled_from([2, 3_600]))
    def ledger_reserves(self, index: int, deadline_s: int | None) -> None:
        model = self.invoices[index]
        if not model.invoice.hold:
            self._happens(index, Event.CREDIT, {"arrived": self._stage("settling")})
            return
        node_ms = None if deadline_s is None else self.now_ms + deadline_s * 1_000
        rule_: work.Rule = lambda invoice, now_ms: rules.credited(invoice, node_ms, now_ms)  # noqa: E731
        work.advance(self.connection, model.invoice.invoice_id, rule_, self.now_ms)
        if model.stage == "arrived":
            model.deadline_ms = self.now_ms + (1_000 if deadline_s == 2 else SETTLE_S * 1_000)
            self._moved(model, "ACCEPTED", stage="held")

    @rule(index=indexes)
    def ledger_refuses(self, index: int) -> None:
        self._happens(index, Event.CREDIT_REFUSED, {"arrived": self._stage("canceling")})

    @rule(index=indexes)
    def node_takes(self, index: int) -> None:
        self._happens(index, Event.TAKEN, {"settling": self._stage("posting")})

    @rule(index=indexes)
    def node_gives_back(self, index: int) -> None:
        stages = ("arrived", "held", "settling", "canceling")
        self._happens(index, Event.GONE, dict.fromkeys(stages, self._stage("voiding")))

    @rule(index=indexes)
    def ledger_posts(self, index: int) -> None:
        self._happens(index, Event.POSTED, {"posting": lambda model: self._moved(model, "SETTLED")})

    @rule(index=indexes)
    def ledger_voids(self, index: int) -> None:
        self._happens(index, Event.VOIDED, {"voiding": lambda model: self._moved(model, "CANCELED")})

    @rule(index=indexes, payment=payments, amount=amounts)
    def lock(self, index: int, payment: str, amount: int) -> None:
        model = self.invoices[index]
        order = LockOrder(payment_id=payment, amount_msat=amount, actor_pubkey="cc" * 32)

        def call() -> None:
            invoice = model.invoice
            holds.lock_invoice(self.connection, invoice.payment_request, order, self.now_ms)

        known = self.payments.get(payment)
        wrong = self._lock_refusal(model, amount)
        if known is not None and known[0] in ("released", "returned"):
            with _refusal("INVOICE_NOT_LOCKED"):
                call()
        elif known is not None and known[1] != index:
            with _other():
                call()
        elif known is not None:
            if known[2] == amount:
                call()
                return
            with _refusal("INVOICE_AMOUNT_MISMATCH"):
                call()
        elif wrong:
            with _refusal(wrong):
                call()
        else:
            call()
            self.payments[payment] = ("held", index, amount)
            self._held(model, payment, amount, "locked")

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
            with _refusal("INVOICE_NOT_LOCKED"):
                holds.commit_invoice(self.connection, payment, self.now_ms)
            return
        state, index, amount = known
        model = self.invoices[index]
        invoice, _ = holds.commit_invoice(self.connection, payment, self.now_ms)
        if state == "held" and model.invoice.hold:
            self.payments[payment] = ("reserved", index, amount)
            model.deadline_ms = self.now_ms + SETTLE_S * 1_000
            self._moved(model, "ACCEPTED", stage="reserved")
        elif state == "held":
            self.payments[payment] = ("committed", index, amount)
            self._moved(model, "SETTLED")
        assert invoice.state.name == model.state

    @rule(payment=payments)
    def release(self, payment: str) -> None:
        known = self.payments.get(payment)
        if known is not None and known[0] in ("committed", "reserved"):
            with _refusal("INVOICE_ALREADY_SETTLED" if known[0] == "committed" else "INVOICE_LOCKED"):
                holds.release_invoice(self.connection, payment, self.now_ms)
            return
        freed = holds.release_invoice(self.connection, payment, self.now_ms)
        assert (freed is not None) == (known is not None and known[0] == "held")
        if known is not None and known[0] == "held":
            model = self.invoices[known[1]]
            self._moved(model, "EXPIRED" if self.now_ms >= model.invoice.expire_time_ms else "OPEN")
        if known is None or known[0] != "returned":
            self.payments[payment] = ("released", *(known or ("", -1, 0))[1:])

    @invariant()
    def what_payments_are_told_agrees(self) -> None:
        names = {HoldState.HELD: "held", HoldState.COMMITTED: "committed", HoldState.RELEASED: "released"}
        names |= {HoldState.RESERVED: "reserved", HoldState.RETURNED: "returned"}
        for payment, (state, index, _) in self.payments.items():
            hold, invoice = holds.held_invoice(self.connection, payment)
            assert names[hold.state] == state
            assert (invoice is None) == (index == -1)
            if state == "committed":
                assert invoice is not None
                assert invoice.preimage == SecretBytes(self.invoices[index].preimage)

    @invariant()
    def the_store_agrees(self) -> None:
        for model in self.invoices:
            stored = store.find_invoice(self.connection, Key(column="invoice_id", value=model.invoice.invoice_id))
            stage = stored.phase.name.lower() if stored.state is State.ACCEPTED else ""
            assert (stored.state.name, stage) == (model.state, model.stage)
            assert stored.locked_by == model.holder
            assert (stored.amount_held_msat, stored.amount_paid_msat) == (model.held_msat, model.paid_msat)
            assert stored.metadata == {"order": "7"}

    @invariant()
    def every_change_has_one_event_and_they_chain(self) -> None:
        events = events_after(self.connection, 0)
        assert len(events) == self.changes
        last: dict[str, int] = {}
        for event in events:
            changed = events_pb2.InvoiceChanged.FromString(event.payload)
            assert changed.previous_state == last.get(event.subject, 0)
            assert (changed.invoice.preimage, dict(changed.invoice.metadata)) == ("", {})
            inside = changed.previous_state == changed.invoice.state
            word = "held" if inside else State(changed.invoice.state).name.lower()
            assert event.kind == f"nipmesh.invoice.v1.{word}"
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
def _secret():  # type: ignore[no-untyped-def]
    try:
        yield
    except PreimageMissingError:
        return
    raise AssertionError("an invoice was settled without its preimage")


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
    run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=50))


def test_long_random_walks_pass_every_way_through_the_phases() -> None:
    generator, seen = random.Random(11), set()
    for _ in range(120):
        machine = Machine()
        machine.begin([_some(generator) for _ in range(INVOICES)])
        for _ in range(40):
            stages = [(model.state, model.stage) for model in machine.invoices]
            _random_step(machine, generator)
            machine.the_store_agrees()
            seen |= {
                (before, (model.state, model.stage)) for before, model in zip(stages, machine.invoices, strict=True)
            }
        machine.what_payments_are_told_agrees()
        machine.every_change_has_one_event_and_they_chain()
        machine.teardown()
    names = {phase: _name(phase) for phase in Phase}
    wanted = {
        (names[phase], names[outcome.to]) for (phase, _), outcome in TRANSITIONS.items() if isinstance(outcome, Move)
    }
    assert wanted - seen == set(), "a way that no walk took"


def _name(phase: Phase) -> tuple[str, str]:
    return phase.state.name, phase.name.lower() if phase.state is State.ACCEPTED else ""


def _some(generator: random.Random) -> tuple[str, int | None, int, str]:
    kind = generator.choice(["plain", "hold", "hash"])
    return generator.choice(OWNERS), generator.choice([None, 500, 1_000]), generator.choice([3, 3_600]), kind


def _random_step(machine: Machine, generator: random.Random) -> None:
    index, payment = generator.randrange(INVOICES), f"payment-{generator.randint(1, 4)}"
    amount, owner = generator.choice([500, 1_000]), generator.choice(OWNERS)
    steps: list[Callable[[], None]] = [
        lambda: machine.time_passes(generator.choice([1, 3])),
        machine.sweep,
        machine.deadlines_pass,
        lambda: machine.cancel(index, owner),
        lambda: machine.settle(index, generator.choice(["right", "wrong", "nothing"])),
        lambda: machine.lock(index, payment, amount),
        lambda: machine.lock(index, payment, amount),
        lambda: machine.commit(payment),
        lambda: machine.release(payment),
        lambda: machine.money_arrives(index, amount),
        lambda: machine.ledger_reserves(index, generator.choice([None, 2, 3_600])),
        lambda: machine.ledger_refuses(index),
        lambda: machine.node_takes(index),
        lambda: machine.node_gives_back(index),
        lambda: machine.ledger_posts(index),
        lambda: machine.ledger_voids(index),
    ]
    generator.choice(steps)()
