"""The catalogue covers what the services say, and the audit event says who did what."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import nipmesh.events.v1 as package
from nipmesh.events.v1 import audit_events_pb2, options_pb2
from services.chassis.caller import Caller, CallInfo, set_current_call
from services.events.audit import append_audit
from services.events.catalogue import catalogue, message_name
from services.events.filters import is_type
from services.invoice.domain.invoice import State as InvoiceState
from services.invoice.wire import event_kind
from services.payment.domain.model import PaymentState
from services.storage.database import Database
from services.storage.events import events_after
from services.storage.sql import Connection

SUPPORTING = {"EventType", "EventOptions"}
"""Messages of the package that are no payload."""


def test_every_message_says_which_events_it_is_the_payload_of() -> None:
    names = [each.name for each in pkgutil.iter_modules(package.__path__) if each.name.endswith("_pb2")]
    for name in names:
        for message in importlib.import_module(f"{package.__name__}.{name}").DESCRIPTOR.message_types_by_name.values():
            options = message.GetOptions().Extensions[options_pb2.event]
            assert message.name in SUPPORTING or (options.types and options.subject), message.full_name


def test_every_type_can_be_published_and_says_when() -> None:
    assert catalogue()
    for name, entry in catalogue().items():
        assert name == entry.type
        assert is_type(name)
        assert entry.message.startswith("nipmesh.events.v1.")
        assert entry.when.endswith(".")


def test_every_state_of_an_invoice_and_of_a_payment_has_its_type() -> None:
    for state in InvoiceState:
        assert message_name(event_kind(state, None)) == "nipmesh.events.v1.InvoiceChanged"
    decided = event_kind(InvoiceState.ACCEPTED, InvoiceState.ACCEPTED)
    assert message_name(decided) == "nipmesh.events.v1.InvoiceChanged"
    assert decided not in {event_kind(state, None) for state in InvoiceState}
    for payment_state in PaymentState:
        assert message_name(f"nipmesh.payment.v1.{payment_state.name.lower()}") == "nipmesh.events.v1.PaymentChanged"
    assert message_name("nipmesh.invoice.v1.unknown") == ""


async def test_an_audit_event_says_who_called_what_on_what(tmp_path: Path) -> None:
    user = Caller(peer="spiffe://nip.mesh/gateway", gateway=True, subject="ab" * 32, roles=frozenset({"operator"}))
    async with await Database.open(tmp_path / "a.db") as database:

        def work(connection: Connection) -> None:
            set_current_call(CallInfo(method="/nipmesh.payment.v1.LedgerService/FreezeAccount", caller=user))
            append_audit(connection, object_id="customer:1", request_id="r", details={"reason": "x" * 1_000})
            append_audit(connection, object_id="customer:2", outcome="ACCOUNT_CLOSED", actor="cd" * 32, method="/m")

        await database.write(work)
        done, refused = await database.read(lambda connection: events_after(connection, 0))
    assert (done.kind, done.subject, refused.kind) == (
        "nipmesh.audit.v1.succeeded",
        "customer:1",
        "nipmesh.audit.v1.refused",
    )
    audited = audit_events_pb2.CallAudited.FromString(done.payload)
    assert audited == audit_events_pb2.CallAudited(
        actor="ab" * 32,
        peer="spiffe://nip.mesh/gateway",
        operator=True,
        method="/nipmesh.payment.v1.LedgerService/FreezeAccount",
        object_id="customer:1",
        outcome="OK",
        request_id="r",
        details={"reason": "x" * 200},
    )
    other = audit_events_pb2.CallAudited.FromString(refused.payload)
    assert (other.actor, other.method, other.outcome) == ("cd" * 32, "/m", "ACCOUNT_CLOSED")
