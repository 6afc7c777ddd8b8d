"""The choreographed saga of zaps: a settled invoice with a zap request makes a receipt, which is published; nobody orders it.

The event of the invoice is all that is needed. Its effect (the receipt, what is to be published, and the event that tells of it) is one
transaction together with the mark that the event was handled, so that each invoice has one receipt. The receipt follows from the invoice
alone, its time is the settle time: made again by whomever, it is the same event, and a relay keeps it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nipmesh.events.v1.events_pb2 import InvoiceChanged
from nipmesh.events.v1.nip_events_pb2 import ZapReceiptMade
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.nip import wire
from services.nip.domain.zap_receipts import receipt_template
from services.nip.keys import Keys, NewKey
from services.nip.zaps.store import Receipt, insert_receipt
from services.nostr.bip340 import Signer
from services.nostr.event import Event, MalformedEventError, Template, sign_event
from services.nostr.zaps import ZapError, ZapRequest, parse_zap_request
from services.storage.events import append_event
from services.storage.sql import Connection

RECEIPT_MADE: Final = "nipmesh.nip.v1.zap_receipt_made"

KEY_REQUEST_ID: Final = "6d7b1b8c-0f39-5a0e-9a4c-5e1d2a7c9f57"
"""Fixed, so that replicas that start at once make one key."""
KEY_NAME: Final = "zap receipts"
NANOSECONDS_PER_MS: Final = 1_000_000

_log = get_logger("nip")


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // NANOSECONDS_PER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class ZapKey:
    """The key of this mesh's receipts, open as long as the service runs."""

    signer: Signer
    auxiliary_key: bytes

    @property
    def pubkey(self) -> str:
        """`nostrPubkey`: 64 lower-case hex digits."""
        return self.signer.public_key.hex()

    def sign(self, template: Template) -> Event:
        """Sign what has a time. Raises MalformedEventError."""
        assert template.created_at is not None
        return sign_event(self.signer, template, created_at=template.created_at, auxiliary_key=self.auxiliary_key)


async def open_zap_key(keys: Keys, owner: str, auxiliary_key: bytes) -> ZapKey:
    """Return the key, made by whichever replica starts first; `owner` is this service's SPIFFE id."""
    new = NewKey(owner=owner, request_id=KEY_REQUEST_ID, display_name=KEY_NAME, secret_key=None)
    key, _ = await keys.create(new)
    opened = await keys.open(owner, key.key_id)
    assert opened.secret_key is not None, "nobody but this service could lock its key"
    return ZapKey(signer=Signer(opened.secret_key), auxiliary_key=auxiliary_key)


class Receipts:
    """Makes receipts of settled invoices."""

    def __init__(self, key: ZapKey, relays_max: int, *, clock: Callable[[], int] = now_ms) -> None:
        """`relays_max`: how many relays of a zap request are used; `clock` in milliseconds."""
        self._key = key
        self._relays_max = relays_max
        self._clock = clock

    def on_settled(self, connection: Connection, changed: InvoiceChanged) -> None:
        """Make the receipt, in the transaction that marks the event as handled. An invoice without a zap request has none."""
        invoice = changed.invoice
        if not invoice.zap_request:
            return
        try:
            request = parse_zap_request(invoice.zap_request)
            event = self._key.sign(
                receipt_template(
                    invoice.zap_request, invoice.payment_request, settle_time_seconds=invoice.settle_time.seconds
                )
            )
        except (ZapError, MalformedEventError) as error:  # the invoice service checked it: never again
            _log.error("no zap receipt can be made", invoice_id=invoice.invoice_id, error=str(error))
            return
        self._store(connection, changed, request, event)

    def _store(self, connection: Connection, changed: InvoiceChanged, request: ZapRequest, event: Event) -> None:
        invoice_id, relays = changed.invoice.invoice_id, request.relays[: self._relays_max]
        failpoint("make_receipt")
        receipt = Receipt(invoice_id=invoice_id, owner_pubkey=changed.owner_pubkey, event=event)
        if not insert_receipt(connection, receipt, relays, self._clock()):
            return
        told = ZapReceiptMade(
            invoice_id=invoice_id,
            owner_pubkey=changed.owner_pubkey,
            receipt=wire.event_message(event),
            relay_urls=relays,
        )
        payload = told.SerializeToString(deterministic=True)
        append_event(connection, kind=RECEIPT_MADE, subject=invoice_id, payload=payload)
        failpoint("make_receipt.done")
