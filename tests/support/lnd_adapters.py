"""How the adapter reaches a node of the test network: with macaroons that permit no more than the documentation says."""

from __future__ import annotations

from services.lightning.lnd import LndSettings
from support.lnd import Lnd

RECEIVING = (
    "/lnrpc.Lightning/GetInfo",
    "/lnrpc.Lightning/ListInvoices",
    "/lnrpc.Lightning/SubscribeInvoices",
    "/invoicesrpc.Invoices/AddHoldInvoice",
    "/invoicesrpc.Invoices/SettleInvoice",
    "/invoicesrpc.Invoices/CancelInvoice",
    "/invoicesrpc.Invoices/LookupInvoiceV2",
    "/invoicesrpc.Invoices/SubscribeSingleInvoice",
)
"""What the documentation says that the invoice service's macaroon must permit."""
PAYING = (
    "/lnrpc.Lightning/GetInfo",
    "/routerrpc.Router/SendPaymentV2",
    "/routerrpc.Router/TrackPaymentV2",
    "/routerrpc.Router/EstimateRouteFee",
)
"""The same for the payment service's."""


def settings_of(node: Lnd, *methods: str) -> LndSettings:
    """How to reach a node with a macaroon for these methods alone."""
    return LndSettings(address=node.address, tls_cert=node.certificate, macaroon=node.bake(*methods))
