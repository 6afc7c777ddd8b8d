"""The gRPC methods of the invoice service: from the wire to the domain and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import grpc

from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import invoice_service_pb2_grpc
from services.chassis.caller import SERVICE, Access, current_caller
from services.invoice import store, wire
from services.invoice.accounts import Accounts
from services.invoice.domain.invoice import State
from services.invoice.domain.rules import LockOrder
from services.invoice.errors import domain_errors
from services.invoice.expiry import ExpirySweeper
from services.invoice.issuing import EXPIRY_S_DEFAULT, Terms, issue
from services.invoice.store import Filter, Key
from services.invoice.watching import Watched, Watcher
from services.lightning.bolt11 import decode
from services.lightning.node_key import NodeKey
from services.storage.database import Database
from services.storage.idempotency import Replay, RequestKey, find, run_once
from services.storage.pages import PageTokens

_PAYMENT: Final = SERVICE("payment")
ACCESS: Final[Mapping[str, Access]] = {
    **{
        f"/nipmesh.invoice.v1.InvoiceService/{method}": Access.USER
        for method in (
            "CreateInvoice",
            "GetInvoice",
            "ListInvoices",
            "CancelInvoice",
            "DecodePaymentRequest",
            "WatchInvoices",
        )
    },
    "/nipmesh.invoice.v1.InvoiceSettlementService/LockInvoice": _PAYMENT,
    "/nipmesh.invoice.v1.InvoiceSettlementService/CommitInvoice": _PAYMENT,
    "/nipmesh.invoice.v1.InvoiceSettlementService/ReleaseInvoice": _PAYMENT,
}
"""Who may call what: users, through the gateway; and the payment service, under its own SPIFFE id."""

Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the methods work with. `clock`: milliseconds since 1970."""

    database: Database
    accounts: Accounts
    node_key: NodeKey
    page_tokens: PageTokens
    sweeper: ExpirySweeper
    watcher: Watcher
    clock: Callable[[], int]


def _visible_owner() -> str | None:
    """Return whose invoices the caller may read: their own, an operator all (None)."""
    caller = current_caller()
    assert caller.subject, "the access table lets nobody else in"
    return None if caller.operator else caller.subject


def _key_of(request: pb.GetInvoiceRequest | pb.CancelInvoiceRequest) -> Key:
    """Return which invoice a request means."""
    column = request.WhichOneof("key")
    assert column is not None, "the request's rules demand a key"
    return Key(column=column, value=wire.lowered(str(getattr(request, column))))


def _terms_of(request: pb.CreateInvoiceRequest, owner_pubkey: str) -> Terms:
    """Return what a request asks for."""
    has_expiry = request.HasField("expiry_duration")
    return Terms(
        owner_pubkey=owner_pubkey,
        account_id=request.account_id,
        amount_msat=None if request.WhichOneof("amount") == "any_amount" else request.amount_msat,
        description=request.description,
        description_hash=request.description_hash,
        expiry_s=request.expiry_duration.seconds if has_expiry else EXPIRY_S_DEFAULT,
    )


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
        earlier = await parts.database.read(lambda connection: find(connection, key))
        if isinstance(earlier, Replay):  # whoever asks again must not depend on the payment service
            response = pb.CreateInvoiceResponse.FromString(earlier.response)
            response.replayed = True
            return response
        await parts.accounts.check_can_receive(request.account_id, owner_pubkey)
        with domain_errors():
            invoice = issue(_terms_of(request, owner_pubkey), parts.node_key, parts.clock())
        response, replayed = await parts.database.write(
            lambda connection: run_once(
                connection,
                key,
                pb.CreateInvoiceResponse,
                lambda: pb.CreateInvoiceResponse(
                    invoice=wire.invoice_message(store.insert_invoice(connection, invoice))
                ),
            )
        )
        parts.sweeper.note(invoice.expire_time_ms)
        response.replayed = replayed
        return response

    async def GetInvoice(
        self, request: pb.GetInvoiceRequest, context: Context[pb.GetInvoiceRequest, pb.GetInvoiceResponse]
    ) -> pb.GetInvoiceResponse:
        """Return one invoice; the preimage to its owner alone."""
        key, owner_pubkey = _key_of(request), _visible_owner()
        with domain_errors():
            invoice = await self._parts.database.read(
                lambda connection: store.find_invoice(connection, key, owner_pubkey)
            )
        reveal = invoice.owner_pubkey == current_caller().subject
        return pb.GetInvoiceResponse(invoice=wire.invoice_message(invoice, reveal=reveal))

    async def ListInvoices(
        self, request: pb.ListInvoicesRequest, context: Context[pb.ListInvoicesRequest, pb.ListInvoicesResponse]
    ) -> pb.ListInvoicesResponse:
        """Return a page of invoices; preimages to their owner alone."""
        page = self._parts.page_tokens.page(request)
        wanted = _filter_of(request, page.after)
        invoices = await self._parts.database.read(
            lambda connection: store.list_invoices(connection, wanted, page.size + 1)
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

    async def CancelInvoice(
        self, request: pb.CancelInvoiceRequest, context: Context[pb.CancelInvoiceRequest, pb.CancelInvoiceResponse]
    ) -> pb.CancelInvoiceResponse:
        """Take an invoice of the caller back."""
        key, owner_pubkey, now_ms = _key_of(request), current_caller().subject, self._parts.clock()
        request_key = RequestKey.of(request)
        with domain_errors():
            response, replayed = await self._parts.database.write(
                lambda connection: run_once(
                    connection,
                    request_key,
                    pb.CancelInvoiceResponse,
                    lambda: pb.CancelInvoiceResponse(
                        invoice=wire.invoice_message(store.cancel_invoice(connection, key, owner_pubkey, now_ms))
                    ),
                )
            )
        response.replayed = replayed
        return response

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


class InvoiceSettlementServicer(invoice_service_pb2_grpc.InvoiceSettlementServiceServicer):
    """nipmesh.invoice.v1.InvoiceSettlementService: for the payment service alone."""

    def __init__(self, parts: Parts) -> None:
        """Share one database with every other replica."""
        self._parts = parts

    async def LockInvoice(
        self, request: pb.LockInvoiceRequest, context: Context[pb.LockInvoiceRequest, pb.LockInvoiceResponse]
    ) -> pb.LockInvoiceResponse:
        """Let a payment hold an invoice."""
        order = LockOrder(
            payment_id=request.payment_id, amount_msat=request.amount_msat, actor_pubkey=request.actor_pubkey
        )
        payment_request, now_ms = wire.lowered(request.payment_request), self._parts.clock()
        with domain_errors():
            payment_hash = decode(payment_request).payment_hash
            invoice, hold = await self._parts.database.write(
                lambda connection: store.lock_invoice(connection, payment_request, payment_hash, order, now_ms)
            )
        return pb.LockInvoiceResponse(
            invoice_id=invoice.invoice_id,
            account_id=invoice.account_id,
            payment_hash=invoice.payment_hash,
            amount_msat=hold.amount_msat,
        )

    async def CommitInvoice(
        self, request: pb.CommitInvoiceRequest, context: Context[pb.CommitInvoiceRequest, pb.CommitInvoiceResponse]
    ) -> pb.CommitInvoiceResponse:
        """Settle the invoice that a payment holds, and reveal the preimage to the payer's side."""
        now_ms = self._parts.clock()
        with domain_errors():
            invoice = await self._parts.database.write(
                lambda connection: store.commit_invoice(connection, request.payment_id, now_ms)
            )
        assert invoice.settle_time_ms is not None
        return pb.CommitInvoiceResponse(
            preimage=invoice.preimage.reveal().hex(),
            settle_time=wire.timestamp_of_ms(invoice.settle_time_ms),
            invoice=wire.invoice_message(invoice),
        )

    async def ReleaseInvoice(
        self, request: pb.ReleaseInvoiceRequest, context: Context[pb.ReleaseInvoiceRequest, pb.ReleaseInvoiceResponse]
    ) -> pb.ReleaseInvoiceResponse:
        """Free what a payment holds, and let it never lock again."""
        now_ms = self._parts.clock()
        with domain_errors():
            invoice = await self._parts.database.write(
                lambda connection: store.release_invoice(connection, request.payment_id, now_ms)
            )
        return pb.ReleaseInvoiceResponse(invoice=wire.invoice_message(invoice) if invoice else None)
