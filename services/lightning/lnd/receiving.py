"""Being paid through lnd: hold invoices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Final

import grpc

from services.lightning.lnd.connection import (
    CALL_S,
    LndConnection,
    LndRefusal,
    answer,
    currency_of,
    messages,
    unavailable,
)
from services.lightning.lnd.settings import LndSettings
from services.lightning.lnd.subscription import invoice_changes, probe_subscription
from services.lightning.lnd.translation import received
from services.lightning.lnd.wire.invoices_pb2 import (
    AddHoldInvoiceRequest,
    CancelInvoiceMsg,
    LookupInvoiceMsg,
    SettleInvoiceMsg,
    SubscribeSingleInvoiceRequest,
)
from services.lightning.lnd.wire.lightning_pb2 import Invoice, ListInvoiceRequest
from services.lightning.node import InvoiceOrder, NodeRefusedError, Received, ReceivedState

PATIENCE_S: Final = 30.0
"""How long a node that is still starting is waited for."""


async def open_receiving_node(settings: LndSettings, *, patience_s: float = PATIENCE_S) -> LndReceivingNode:
    """Connect, learn the network and try the macaroon. Raises StartError and NodeUnavailableError."""
    connection = LndConnection(settings)
    try:
        currency = currency_of(await connection.info(patience_s))
        await _check_macaroon(connection)
    except BaseException:
        await connection.close()
        raise
    return LndReceivingNode(connection, currency)


async def _check_macaroon(connection: LndConnection) -> None:
    """Ask for each method once, with a request that lnd cannot fulfil or that changes nothing."""
    invoices, lightning = connection.invoices, connection.lightning
    nothing = SubscribeSingleInvoiceRequest()
    await connection.check_macaroon(
        invoicesrpc__Invoices__AddHoldInvoice=invoices.AddHoldInvoice(AddHoldInvoiceRequest(), timeout=CALL_S),
        invoicesrpc__Invoices__SettleInvoice=invoices.SettleInvoice(SettleInvoiceMsg(), timeout=CALL_S),
        invoicesrpc__Invoices__CancelInvoice=invoices.CancelInvoice(CancelInvoiceMsg(), timeout=CALL_S),
        invoicesrpc__Invoices__LookupInvoiceV2=invoices.LookupInvoiceV2(LookupInvoiceMsg(), timeout=CALL_S),
        invoicesrpc__Invoices__SubscribeSingleInvoice=anext(
            messages(invoices.SubscribeSingleInvoice(nothing, timeout=CALL_S)), None
        ),
        lnrpc__Lightning__ListInvoices=lightning.ListInvoices(ListInvoiceRequest(num_max_invoices=1), timeout=CALL_S),
        lnrpc__Lightning__SubscribeInvoices=probe_subscription(connection),
    )


class LndReceivingNode:
    """A ReceivingNode over lnd."""

    def __init__(self, connection: LndConnection, currency: str) -> None:
        self._connection = connection
        self._currency = currency

    @property
    def currency(self) -> str:
        """The BOLT11 currency of the node's network."""
        return self._currency

    @property
    def simulated(self) -> bool:
        """False: it is a node, whatever its network."""
        return False

    async def add_invoice(self, order: InvoiceOrder) -> str:
        """Add a hold invoice; lnd refuses a hash that it knows, and then that invoice is the answer."""
        request = AddHoldInvoiceRequest(
            memo=order.description,
            hash=bytes.fromhex(order.payment_hash),
            description_hash=bytes.fromhex(order.description_hash),
            expiry=order.expiry_s,
            private=order.private,
            value_msat=order.amount_msat or 0,
        )
        try:
            added = await answer(self._connection.invoices.AddHoldInvoice(request, timeout=CALL_S))
        except LndRefusal as refusal:
            known = await self._find(order.payment_hash)
            if known is None:
                raise NodeRefusedError("refused", str(refusal)) from None
            return known.payment_request
        return added.payment_request

    async def settle(self, preimage: bytes) -> None:
        """Take what is held; lnd itself succeeds for what is settled already."""
        try:
            await answer(self._connection.invoices.SettleInvoice(SettleInvoiceMsg(preimage=preimage), timeout=CALL_S))
        except LndRefusal as refusal:
            now = await self.lookup(sha256(preimage).hexdigest())
            if now is not None and now.state is ReceivedState.ACCEPTED:
                raise unavailable(refusal) from None
            if now is None or now.state is not ReceivedState.SETTLED:
                raise NodeRefusedError(now.state.value if now else "unknown", str(refusal)) from None

    async def cancel(self, payment_hash: str) -> None:
        """Give back; lnd itself succeeds for what is canceled already."""
        request = CancelInvoiceMsg(payment_hash=bytes.fromhex(payment_hash))
        try:
            await answer(self._connection.invoices.CancelInvoice(request, timeout=CALL_S))
        except LndRefusal as refusal:
            now = await self.lookup(payment_hash)
            if now is not None and now.state is ReceivedState.SETTLED:
                raise NodeRefusedError("settled", str(refusal)) from None
            if now is not None and now.state is not ReceivedState.CANCELED:
                raise unavailable(refusal) from None

    async def lookup(self, payment_hash: str) -> Received | None:
        """The state now."""
        found = await self._find(payment_hash)
        return None if found is None else received(found)

    async def _find(self, payment_hash: str) -> Invoice | None:
        """Lnd's invoice of this hash."""
        request = LookupInvoiceMsg(payment_hash=bytes.fromhex(payment_hash))
        try:
            return await answer(self._connection.invoices.LookupInvoiceV2(request, timeout=CALL_S))
        except LndRefusal as refusal:
            if refusal.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise unavailable(refusal) from None

    def subscribe(self) -> AsyncIterator[Received]:
        """Every change from now on, and what is held now; see `subscription`. Raises NodeUnavailableError when it breaks."""
        return invoice_changes(self._connection)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()
