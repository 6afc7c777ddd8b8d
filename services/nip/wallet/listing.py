"""What came into an account and left it, in one list: invoices and payments, merged by time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as payments
from services.nip.domain.nip47.connection import WalletConnection
from services.nip.domain.nip47.requests import ListTransactions
from services.nip.wallet.backend import Backend
from services.nip.wallet.store import metadata_of
from services.nip.wallet.transactions import transaction_of_invoice, transaction_of_payment
from services.storage.database import Database

PAGE_SIZE: Final = 200
"""Rows of one call: with the longest metadata they stay well below gRPC's 4 MiB."""
PAID_STATES: Final = (payment_pb2.Payment.STATE_SUCCEEDED, payment_pb2.Payment.STATE_REFUNDED)

Moment = tuple[int, int, str]
"""Seconds, nanoseconds, payment hash: the order of the list."""


async def list_transactions(
    backend: Backend, database: Database, wallet: WalletConnection, command: ListTransactions
) -> list[dict[str, Any]]:
    """Return the page, newest first. Raises what the backend raises."""
    if command.until_s is not None and command.until_s < command.from_s:
        return []
    end = command.offset + command.limit
    found: list[tuple[Moment, invoice_pb2.Invoice | payment_pb2.Payment]] = []
    if command.incoming:
        found += [(_moment(item), item) for item in await _first(_invoices(backend, wallet, command, end), end)]
    if command.outgoing:
        found += [(_moment(item), item) for item in await _first(_payments(backend, wallet, command, end), end)]
    found.sort(key=lambda pair: pair[0], reverse=True)
    shown = [item for _, item in found[command.offset : end]]
    hashes = [item.payment_hash for item in shown if isinstance(item, payment_pb2.Payment)]
    kept = await database.read(lambda connection: metadata_of(connection, wallet.owner_pubkey, hashes))
    return [
        transaction_of_payment(item, kept.get(item.payment_hash, ""))
        if isinstance(item, payment_pb2.Payment)
        else transaction_of_invoice(item)
        for item in shown
    ]


async def _first(items: AsyncIterator[Any], count: int) -> list[Any]:
    """At most `count` of them; both kinds are read in this way."""
    found: list[Any] = []
    async for item in items:
        found.append(item)
        if len(found) == count:
            break
    return found


async def _invoices(
    backend: Backend, wallet: WalletConnection, command: ListTransactions, count: int
) -> AsyncIterator[invoice_pb2.Invoice]:
    request = invoices.ListInvoicesRequest(page_size=min(count, PAGE_SIZE), account_id=wallet.account_id)
    if not command.unpaid:
        request.states.append(invoice_pb2.Invoice.STATE_SETTLED)
    _bound(request, command)
    while True:
        page = await backend.list_invoices(wallet.owner_pubkey, request)
        for invoice in page.invoices:
            yield invoice
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def _payments(
    backend: Backend, wallet: WalletConnection, command: ListTransactions, count: int
) -> AsyncIterator[payment_pb2.Payment]:
    request = payments.ListPaymentsRequest(page_size=min(count, PAGE_SIZE), account_id=wallet.account_id)
    if not command.unpaid:
        request.states.extend(PAID_STATES)
    _bound(request, command)
    while True:
        page = await backend.list_payments(wallet.owner_pubkey, request)
        for payment in page.payments:
            yield payment
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _bound(request: invoices.ListInvoicesRequest | payments.ListPaymentsRequest, command: ListTransactions) -> None:
    """Both ends are inclusive in NIP-47, the later one is not in the lists."""
    if command.from_s:
        request.create_time_from.FromSeconds(command.from_s)
    if command.until_s is not None:
        request.create_time_until.FromSeconds(command.until_s + 1)


def _moment(item: invoice_pb2.Invoice | payment_pb2.Payment) -> Moment:
    return item.create_time.seconds, item.create_time.nanos, item.payment_hash
