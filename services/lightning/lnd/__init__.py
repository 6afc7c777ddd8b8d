r"""A node of lnd (0.19 or newer) behind the port of `services.lightning.node`.

Connecting lnd
--------------
Each of the two services needs three things: the address of lnd's gRPC (`rpclisten`, 10009 by default), lnd's certificate (`tls.cert` in its
folder) and a macaroon of its own. Not admin.macaroon, which may also send coins away; these are enough and no more::

    lncli bakemacaroon --save_to invoice.macaroon \
        uri:/lnrpc.Lightning/GetInfo uri:/lnrpc.Lightning/ListInvoices uri:/lnrpc.Lightning/SubscribeInvoices \
        uri:/invoicesrpc.Invoices/AddHoldInvoice uri:/invoicesrpc.Invoices/SettleInvoice \
        uri:/invoicesrpc.Invoices/CancelInvoice uri:/invoicesrpc.Invoices/LookupInvoiceV2 \
        uri:/invoicesrpc.Invoices/SubscribeSingleInvoice

    lncli bakemacaroon --save_to payment.macaroon \
        uri:/lnrpc.Lightning/GetInfo uri:/routerrpc.Router/SendPaymentV2 uri:/routerrpc.Router/TrackPaymentV2 \
        uri:/routerrpc.Router/EstimateRouteFee

    chmod 600 invoice.macaroon payment.macaroon

The service says at its start which of these a macaroon lacks. On another machine than lnd's, lnd's certificate must name the host
(`tlsextradomain`, `tlsextraip`); when lnd makes its certificate anew, the services are given the new one and restarted.

What lnd must be told, and must not:

- lnd has to be built with the tag `invoicesrpc`, as the published programs are.
- `invoices.holdexpirydelta` stays at its 12 blocks or below: the settle deadline of a held invoice reckons with it.
- Never delete payments (`lncli deletepayments`): lnd would not know any more what it paid, and pay again what is asked of it again.
- A node that is killed between writing a payment down and sending it says for ever that it is in flight (lightningnetwork/lnd#9340,
  open), and so do we: only lnd can say for certain that it was not paid, and it does not. Before such a payment is ended by hand, ask the
  payee; that `lncli listchannels` and `lncli pendingchannels` show no HTLC with its hash proves nothing about an earlier one.
- One service uses the node for paying, and nobody else pays its payment requests; lnd keeps one payment per hash, whoever asks.

    node = await open_receiving_node(LndSettings(address="127.0.0.1:10009", tls_cert=..., macaroon=...))
"""

from __future__ import annotations

from services.lightning.lnd.paying import LndPayingNode, open_paying_node
from services.lightning.lnd.receiving import LndReceivingNode, open_receiving_node
from services.lightning.lnd.settings import LndSettings

__all__ = ["LndPayingNode", "LndReceivingNode", "LndSettings", "open_paying_node", "open_receiving_node"]
