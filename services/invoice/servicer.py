"""The gRPC methods for users: from the wire to the domain and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Final

import grpc

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2_grpc
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.caller import Access, current_caller
from services.chassis.secret import SecretBytes
from services.invoice import holds, store, wire
from services.invoice.domain.invoice import State
from services.invoice.errors import domain_errors
from services.invoice.issuing import EXPIRY_S_DEFAULT, SETTLE_S_DEFAULT, Terms
from services.invoice.parts import Parts
from services.invoice.store import Filter, InvoiceNotFoundError, Key
from services.invoice.watching import Watched
from services.lightning.bolt11 import decode
from services.nostr.zaps import ZapRequest
from services.storage.cache import Entry, EntryKind
from services.storage.idempotency import Replay, RequestKey, find, run_once
from services.storage.sql import Connection

ACCESS: Final[Mapping[str, Access]] = {
    f"/nipmesh.invoice.v1.InvoiceService/{method}": Access.USER
    for method in (
        "CreateInvoice",
        "GetInvoice",
        "ListInvoices",
        "SettleInvoice",
        "CancelInvoice",
        "DecodePaymentRequest",
        "WatchInvoices",
    )
}
"""Who may call what: users, through the gateway."""

INVOICE: Final = EntryKind(name="invoice", message_type=invoice_pb2.Invoice)
"""What may be cached."""
Context = grpc.aio.ServicerContext
KeyedRequest = pb.GetInvoiceRequest | pb.CancelInvoiceRequest | pb.SettleInvoiceRequest


def _visible_owner() -> str | None:
    """Return whose invoices the caller may read: their own, an operator all (None)."""
    caller = current_caller()
    assert caller.subject, "the access table lets nobody else in"
    return None if caller.operator else caller.subject


def _key_of(request: KeyedRequest) -> Key:
    """Return which invoice a request means."""
    column = request.WhichOneof("key")
    assert column is not None, "the request's rules demand a key"
    return Key(column=column, value=wire.lowered(str(getattr(request, column))))


def _terms_of(request: pb.CreateInvoiceRequest, owner_pubkey: str, zap: ZapRequest | None) -> Terms:
    """Return what a request asks for; `zap` is its zap request, checked."""
    has_expiry, has_settle = request.HasField("expiry_duration"), request.hold.HasField("settle_duration")
    settle_s = request.hold.settle_duration.seconds if has_settle else SETTLE_S_DEFAULT
    return Terms(
        owner_pubkey=owner_pubkey,
        account_id=request.account_id,
        amount_msat=_amount_of(request),
        description=request.description,
        description_hash=zap.description_hash if zap else request.description_hash,
        zap_request=request.zap_request,
        expiry_s=request.expiry_duration.seconds if has_expiry else EXPIRY_S_DEFAULT,
        settle_duration_s=settle_s if request.HasField("hold") else 0,
        payment_hash=request.hold.payment_hash,
        metadata=dict(request.metadata),
    )


def _amount_of(request: pb.CreateInvoiceRequest) -> int | None:
    """Return the amount in millisatoshi; None: the payer chooses."""
    return None if request.WhichOneof("amount") == "any_amount" else request.amount_msat


def _filter_of(request: pb.ListInvoicesRequest, after: tuple[str | int, ...] | None) -> Filter:
    """Return which invoices a request wants listed."""
    has_from, has_until = request.HasField("create_time_from"), request.HasField("create_time_until")
    return Filter(
        owner_pubkey=_visible_owner(),
        account_id=request.account_id,
        states=tuple(State(state) for state in request.states),
        create_time_from_ms=wire.ms_of_timestamp(request.create_time_from) if has_from else None,
        create_time_until_ms=wire.ms_of_timestamp(request.create_time_until) if has_until else None,
        oldest_first=request.oldest_first,
        after=(int(after[0]), str(after[1])) if after else None,
    )


class InvoiceServicer(invoice_service_pb2_grpc.InvoiceServiceServicer):
    """nipmesh.invoice.v1.InvoiceService."""

    def __init__(self, parts: Parts) -> None:
        """Share one database with every other replica."""
        self._parts = parts

    async def CreateInvoice(
        self, request: pb.CreateInvoiceRequest, context: Context[pb.CreateInvoiceRequest, pb.CreateInvoiceResponse]
    ) -> pb.CreateInvoiceResponse:
        """Make an invoice for an account of the caller."""
        parts, owner_pubkey = self._parts, current_caller().subject
        key = RequestKey.of(request)
        if request.hold.payment_hash or not parts.accounts.is_remembered(request.account_id, owner_pubkey):
            earlier = await parts.database.read(lambda connection: find(connection, key))
            if isinstance(
                earlier, Replay
            ):  # whoever asks again must not depend on the payment service, nor use up the hash
                response = pb.CreateInvoiceResponse.FromString(earlier.response)
                response.replayed = True
                return response
        with domain_errors():
            zap = await parts.zaps.check(request.zap_request, _amount_of(request)) if request.zap_request else None
            await parts.accounts.check_can_receive(request.account_id, owner_pubkey)
            invoice = await parts.issuer.issue(_terms_of(request, owner_pubkey, zap), parts.clock())
            response, replayed = await parts.database.write(
                lambda connection: run_once(
                    connection,
                    key,
                    pb.CreateInvoiceResponse,
                    lambda: pb.CreateInvoiceResponse(
                        invoice=wire.invoice_message(store.insert_invoice(connection, invoice), reveal=True)
                    ),
                )
            )
        if replayed and response.invoice.payment_hash != invoice.payment_hash:
            await parts.issuer.withdraw(invoice)
        parts.sweeper.note(invoice.expire_time_ms)
        response.replayed = replayed
        return response

    async def GetInvoice(
        self, request: pb.GetInvoiceRequest, context: Context[pb.GetInvoiceRequest, pb.GetInvoiceResponse]
    ) -> pb.GetInvoiceResponse:
        """Return one invoice; the preimage and the metadata to its owner alone."""
        key, owner_pubkey = _key_of(request), _visible_owner()
        with domain_errors():
            entry = await self._entry(key, request.min_sequence)
            if owner_pubkey is not None and entry.owner != owner_pubkey:
                raise InvoiceNotFoundError(key.value)
        if entry.owner != current_caller().subject:
            wire.conceal(entry.message)
        return pb.GetInvoiceResponse(invoice=entry.message)

    async def _entry(self, key: Key, min_sequence: int) -> Entry[invoice_pb2.Invoice]:
        """The invoice with all that its owner may see: through the cache by its id, which its events name. Raises InvoiceNotFoundError."""

        def load(connection: Connection) -> Entry[invoice_pb2.Invoice]:
            invoice = store.find_invoice(connection, key)
            return Entry(owner=invoice.owner_pubkey, message=wire.invoice_message(invoice, reveal=True))

        if key.column == "invoice_id":
            return await self._parts.reads.read(INVOICE, key.value, load, min_sequence=min_sequence)
        return await self._parts.database.read(load, min_sequence=min_sequence)

    async def ListInvoices(
        self, request: pb.ListInvoicesRequest, context: Context[pb.ListInvoicesRequest, pb.ListInvoicesResponse]
    ) -> pb.ListInvoicesResponse:
        """Return a page of invoices; preimages and metadata to their owner alone."""
        page = self._parts.page_tokens.page(request)
        wanted = _filter_of(request, page.after)
        invoices = await self._parts.database.read(
            lambda connection: store.list_invoices(connection, wanted, page.size + 1), min_sequence=request.min_sequence
        )
        shown = invoices[: page.size]
        response = pb.ListInvoicesResponse()
        for invoice in shown:
            reveal = invoice.owner_pubkey == current_caller().subject
            response.invoices.append(wire.invoice_message(invoice, reveal=reveal))
        if len(invoices) > page.size:
            after = (shown[-1].create_time_ms, shown[-1].invoice_id)
            response.next_page_token = self._parts.page_tokens.next(request, after)
        return response

    async def SettleInvoice(
        self, request: pb.SettleInvoiceRequest, context: Context[pb.SettleInvoiceRequest, pb.SettleInvoiceResponse]
    ) -> pb.SettleInvoiceResponse:
        """Take what is held for a hold invoice of the caller."""
        key, owner_pubkey = _key_of(request), current_caller().subject
        preimage = SecretBytes(bytes.fromhex(request.preimage)) if request.preimage else None
        with domain_errors():
            return await self._parts.deciding.run(
                RequestKey.of(request),
                pb.SettleInvoiceResponse,
                lambda connection, now_ms: holds.settle_invoice(connection, key, owner_pubkey, preimage, now_ms),
            )

    async def CancelInvoice(
        self, request: pb.CancelInvoiceRequest, context: Context[pb.CancelInvoiceRequest, pb.CancelInvoiceResponse]
    ) -> pb.CancelInvoiceResponse:
        """Take an invoice of the caller back."""
        key, owner_pubkey = _key_of(request), current_caller().subject
        with domain_errors():
            return await self._parts.deciding.run(
                RequestKey.of(request),
                pb.CancelInvoiceResponse,
                lambda connection, now_ms: holds.cancel_invoice(connection, key, owner_pubkey, now_ms),
            )

    async def DecodePaymentRequest(
        self,
        request: pb.DecodePaymentRequestRequest,
        context: Context[pb.DecodePaymentRequestRequest, pb.DecodePaymentRequestResponse],
    ) -> pb.DecodePaymentRequestResponse:
        """Read a payment request of whatever node."""
        with domain_errors():
            return wire.decoded_message(decode(request.payment_request))

    async def WatchInvoices(
        self, request: pb.WatchInvoicesRequest, context: Context[pb.WatchInvoicesRequest, pb.WatchInvoicesResponse]
    ) -> AsyncIterator[pb.WatchInvoicesResponse]:
        """Stream changes until the client or the replica goes away."""
        owner_pubkey = _visible_owner()
        if request.account_id:
            await self._parts.accounts.check_owner(request.account_id, owner_pubkey)
        watched = Watched(
            owner_pubkey=owner_pubkey,
            account_id=request.account_id,
            payment_hash=request.payment_hash,
            resume_after_sequence=request.resume_after_sequence if request.HasField("resume_after_sequence") else None,
        )
        with domain_errors():
            async with aclosing(self._parts.watcher.stream(watched)) as stream:  # type: ignore[type-var]
                async for response in stream:
                    yield response
