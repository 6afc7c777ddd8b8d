"""Making an invoice: its secret, what the Lightning node is asked for, and what comes of the payment request that it gives."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.chassis.errors import dependency_failed
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes
from services.invoice.domain.invoice import Invoice, Phase
from services.invoice.store import HashUsedError, hash_is_used
from services.invoice.worker import NODE_S
from services.lightning.bolt11 import decode
from services.lightning.node import InvoiceOrder, NodeRefusedError, NodeUnavailableError, ReceivingNode
from services.lightning.payment_request import PaymentRequest
from services.storage.database import Database
from services.storage.ids import new_id

PREIMAGE_BYTES: Final = 32
EXPIRY_S_DEFAULT: Final = 24 * 3_600
"""An invoice can be paid for a day unless its maker says otherwise."""
SETTLE_S_DEFAULT: Final = 24 * 3_600
"""The owner of a hold invoice has a day to decide unless they say otherwise."""
MS_PER_SECOND: Final = 1_000

_log = get_logger("invoice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an owner asks for. `amount_msat` None: the payer chooses. At most one of the descriptions is not empty.

    `zap_request`: the text whose SHA-256 is `description_hash`, or empty. `settle_duration_s` above 0: a hold invoice. `payment_hash`: of
    a preimage that the owner keeps; empty: one is made here.
    """

    owner_pubkey: str
    account_id: str
    amount_msat: int | None
    description: str
    description_hash: str
    expiry_s: int
    settle_duration_s: int = 0
    payment_hash: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    zap_request: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What an invoice is paid against; `preimage` None: only the owner knows it."""

    payment_hash: str
    preimage: SecretBytes | None


def secret_for(terms: Terms) -> Secret:
    """Return a fresh preimage and its hash, or the hash that the owner brought."""
    if terms.payment_hash:
        assert terms.settle_duration_s, "only the owner of a hold invoice can bring a hash"
        return Secret(payment_hash=terms.payment_hash, preimage=None)
    preimage = secrets.token_bytes(PREIMAGE_BYTES)
    return Secret(payment_hash=hashlib.sha256(preimage).hexdigest(), preimage=SecretBytes(preimage))


def order_for(terms: Terms, secret: Secret, now_ms: int) -> InvoiceOrder:
    """Return what the node is asked to add."""
    return InvoiceOrder(
        payment_hash=secret.payment_hash,
        amount_msat=terms.amount_msat,
        description=terms.description,
        description_hash=terms.description_hash,
        create_time_ms=now_ms,
        expiry_s=terms.expiry_s,
    )


def new_invoice(terms: Terms, secret: Secret, payment_request: str, now_ms: int, *, expire_time_ms: int) -> Invoice:
    """Return a new invoice, OPEN, not yet stored."""
    return Invoice(
        invoice_id=new_id(),
        owner_pubkey=terms.owner_pubkey,
        account_id=terms.account_id,
        phase=Phase.OPEN,
        payment_request=payment_request,
        payment_hash=secret.payment_hash,
        preimage=secret.preimage,
        amount_msat=terms.amount_msat,
        description=terms.description,
        description_hash=terms.description_hash,
        metadata=terms.metadata,
        zap_request=terms.zap_request,
        hold=terms.settle_duration_s > 0,
        settle_duration_s=terms.settle_duration_s,
        create_time_ms=now_ms,
        expire_time_ms=expire_time_ms,
        update_time_ms=now_ms,
    )


class Issuer:
    """Makes invoices that the node knows."""

    def __init__(self, database: Database, node: ReceivingNode) -> None:
        """The database says which hashes are used."""
        self._database = database
        self._node = node

    async def issue(self, terms: Terms, now_ms: int) -> Invoice:
        """Return a new invoice, OPEN, added at the node and not yet stored.

        Raises HashUsedError for an owner's hash that has an invoice already, Bolt11Error and BACKEND_UNAVAILABLE.
        """
        secret = secret_for(terms)
        if secret.preimage is None:
            await self._check_unused(secret.payment_hash)
        order = order_for(terms, secret, now_ms)
        failpoint("add_invoice")
        text = await self._add(order, brought=secret.preimage is None)
        failpoint("add_invoice.done")
        expire_time_s = now_ms // MS_PER_SECOND + terms.expiry_s
        if secret.preimage is None or not self._node.simulated:
            expire_time_s = _checked(order, text).expire_time_s
        return new_invoice(terms, secret, text, now_ms, expire_time_ms=expire_time_s * MS_PER_SECOND)

    async def withdraw(self, invoice: Invoice) -> None:
        """Take an invoice back that nobody was told of; if the node does not answer, it expires there."""
        try:
            async with asyncio.timeout(NODE_S):
                await self._node.cancel(invoice.payment_hash)
        except (NodeUnavailableError, NodeRefusedError, TimeoutError) as error:
            _log.info("invoice not withdrawn", payment_hash=invoice.payment_hash, error=str(error))

    async def _check_unused(self, payment_hash: str) -> None:
        """Raise HashUsedError when there is an invoice with this hash, whoever's."""
        if await self._database.read(lambda connection: hash_is_used(connection, payment_hash)):
            raise HashUsedError(payment_hash)

    async def _add(self, order: InvoiceOrder, *, brought: bool) -> str:
        """Return the node's payment request. A hash that the owner brought may be known at the node; a fresh one is not."""
        try:
            async with asyncio.timeout(NODE_S):
                return await self._node.add_invoice(order)
        except (NodeUnavailableError, TimeoutError) as error:
            raise dependency_failed("the Lightning node does not answer") from error
        except NodeRefusedError as error:
            if brought:
                raise HashUsedError(order.payment_hash) from error
            _log.error("the node adds no invoice", reason=error.reason, error=str(error))
            raise dependency_failed("the Lightning node adds no such invoice") from error


def _checked(order: InvoiceOrder, text: str) -> PaymentRequest:
    """Return what the node's payment request says. Raises HashUsedError when it is another's, found under an owner's hash."""
    request = decode(text)
    assert request.payment_hash == order.payment_hash, "the node answers with another invoice"
    said = (request.amount_msat, request.description or "", request.description_hash or "", request.expiry_s)
    if said != (order.amount_msat, order.description, order.description_hash, order.expiry_s):
        raise HashUsedError(order.payment_hash)
    return request
