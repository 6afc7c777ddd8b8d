"""What an app's request comes to: decrypted, authorized, done by payment and invoice, answered.

Everything here may be done again, by whichever replica: ids of requests to payment and invoice are made from the event's id, budgets are
reserved once, and the answer is stored by whoever works on the request.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as payments
from services.chassis.errors import Reason
from services.chassis.failpoints import failpoint
from services.lightning.bolt11 import decode
from services.lightning.payment_request import Bolt11Error, PaymentRequest
from services.nip.domain.nip47 import requests, results
from services.nip.domain.nip47.budget import Spend, SpendState
from services.nip.domain.nip47.connection import WalletConnection, permit
from services.nip.domain.nip47.words import Code, Failure, Method
from services.nip.wallet import store
from services.nip.wallet.backend import Backend, CallRefusedError, NoAnswerError
from services.nip.wallet.listing import list_transactions
from services.nip.wallet.store import SpendRow
from services.nip.wallet.transactions import split_metadata, transaction_of_invoice, transaction_of_payment
from services.storage.database import Database

NETWORKS: Final = {"bc": "mainnet", "tb": "testnet", "tbs": "signet", "bcrt": "regtest", "sb": "simnet"}
"""What NIP-47 calls the currencies of BOLT11."""

REFUSALS: Final = {
    Reason.INSUFFICIENT_BALANCE: Code.INSUFFICIENT_BALANCE,
    Reason.QUOTA_EXCEEDED: Code.QUOTA_EXCEEDED,
    Reason.ACCOUNT_FROZEN: Code.RESTRICTED,
    Reason.ACCOUNT_CLOSED: Code.RESTRICTED,
    Reason.ACCOUNT_NOT_FOUND: Code.RESTRICTED,
    Reason.INVOICE_EXPIRED: Code.PAYMENT_FAILED,
    Reason.PAYMENT_ALREADY_PAID: Code.PAYMENT_FAILED,
    Reason.PAYMENT_IN_FLIGHT: Code.PAYMENT_FAILED,
    Reason.INVOICE_NOT_FOUND: Code.NOT_FOUND,
    Reason.PAYMENT_NOT_FOUND: Code.NOT_FOUND,
}
"""What the services' reasons are called in NIP-47; all others are OTHER."""

_NAMESPACE: Final = uuid.UUID("6f6e5b0e-7c4b-5d0a-9c7e-47a1f5d1e0b7")
"""Of the ids that are made from the ids of events."""
_Payment = payment_pb2.Payment
_SPENT: Final = frozenset({_Payment.STATE_SUCCEEDED, _Payment.STATE_REFUNDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the app is told; `text` is JSON. `spent`: the request pays, and this is what came of it."""

    text: str
    spent: Spent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a payment came to: amount and fees; None: nothing, for certain."""

    msat: int | None


class UndecidedError(Exception):
    """The payment is not final, or nobody says so: ask again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that was decrypted: which event asks which wallet for what."""

    event_id: str
    wallet: WalletConnection
    text: str
    reserved: bool = False
    """Its budget is reserved: it was allowed, and goes on whatever became of the connection since."""


class Handler:
    """Does what requests ask for."""

    def __init__(self, database: Database, backend: Backend, alias: str, clock: Callable[[], int]) -> None:
        """`alias`: what the wallet calls itself; `clock`: milliseconds since 1970."""
        self._database = database
        self._backend = backend
        self._alias = alias
        self._clock = clock

    async def handle(self, asked: Asked) -> tuple[str, Answer]:
        """Return method and answer. Raises UndecidedError for a payment that may still go either way, NoAnswerError for all else."""
        name = ""
        try:
            name, params = requests.split(asked.text)
            method = requests.method_of(name)
            if not asked.reserved:
                permit(asked.wallet, method)
            return name, await self._run(asked, method, requests.command_of(method, params))
        except Failure as failure:
            return name, Answer(text=results.failure_text(name, failure))
        except CallRefusedError as refused:
            return name, Answer(text=results.failure_text(name, _failure_of(refused)))

    async def _run(self, asked: Asked, method: Method, command: requests.Command) -> Answer:
        match command:
            case requests.PayInvoice():
                return await self._pay(asked, command)
            case requests.ListTransactions():
                found = await list_transactions(self._backend, self._database, asked.wallet, command)
                return Answer(text=results.list_text(method, found))
            case requests.MakeInvoice():
                result = await self._make(asked, command)
            case requests.LookupInvoice():
                result = await self._lookup(asked.wallet, command)
            case requests.GetBalance():
                account = await self._backend.account(asked.wallet.owner_pubkey, asked.wallet.account_id)
                result = {"balance": account.available_msat}
            case requests.GetInfo():
                result = await self._info(asked.wallet)
            case requests.SettleHoldInvoice() | requests.CancelHoldInvoice():
                result = await self._decide(asked, command)
        return Answer(text=results.result_text(method, result))

    async def _pay(self, asked: Asked, command: requests.PayInvoice) -> Answer:
        """Reserve the budget, pay, and say what came of it. Once the budget is reserved, only a definite answer ends the request."""
        request = await self._reserved(asked, command)
        failpoint("wallet_reserve.done")
        try:
            payment = await self._backend.pay(asked.wallet.owner_pubkey, request)
        except CallRefusedError as refused:
            text = results.failure_text(Method.PAY_INVOICE, _failure_of(refused))
            return Answer(text=text, spent=Spent(msat=None))
        except NoAnswerError as error:
            raise UndecidedError(str(error)) from error
        failpoint("wallet_pay.done")
        return answer_of_payment(payment)

    async def _reserved(self, asked: Asked, command: requests.PayInvoice) -> payments.PayInvoiceRequest:
        """Reserve what the payment may cost, once; the request to pay is the same every time. Raises Failure."""
        wallet, invoice = asked.wallet, _decoded(command.invoice)
        amount_msat = _amount_msat(invoice, command.amount_msat)
        new = SpendRow(
            event_id=asked.event_id,
            connection_id=wallet.connection_id,
            owner_pubkey=wallet.owner_pubkey,
            request_id=derived_id(asked.event_id, Method.PAY_INVOICE),
            payment_hash=invoice.payment_hash,
            metadata=command.metadata,
            spend=Spend(amount_msat=amount_msat, fee_limit_msat=0, reserve_time_ms=self._clock()),
        )
        row = await self._database.read(lambda connection: store.find_spend(connection, asked.event_id))
        if row is None:
            now_ms = self._clock()
            row = await self._database.write(
                lambda connection: store.reserve_spend(connection, wallet.connection_id, new, amount_msat, now_ms)
            )
        assert row is not None
        request = payments.PayInvoiceRequest(
            request_id=row.request_id,
            account_id=wallet.account_id,
            payment_request=command.invoice,
            fee_limit_msat=row.spend.fee_limit_msat,
        )
        if invoice.amount_msat is None:
            request.amount_msat = amount_msat
        return request

    async def _make(self, asked: Asked, command: requests.MakeInvoice) -> dict[str, Any]:
        hold = bool(command.payment_hash)
        method = Method.MAKE_HOLD_INVOICE if hold else Method.MAKE_INVOICE
        request = invoices.CreateInvoiceRequest(
            request_id=derived_id(asked.event_id, method),
            account_id=asked.wallet.account_id,
            description=command.description,
            description_hash=command.description_hash,
            metadata=split_metadata(command.metadata),
        )
        if command.amount_msat is None:
            request.any_amount = True
        else:
            request.amount_msat = command.amount_msat
        if command.expiry_s is not None:
            request.expiry_duration.FromSeconds(command.expiry_s)
        if hold:
            request.hold.payment_hash = command.payment_hash
        return transaction_of_invoice(await self._backend.create_invoice(asked.wallet.owner_pubkey, request))

    async def _lookup(self, wallet: WalletConnection, command: requests.LookupInvoice) -> dict[str, Any]:
        """An invoice of the account, else a payment out of it. Raises Failure NOT_FOUND."""
        payment_hash = command.payment_hash or _decoded(command.invoice).payment_hash
        invoice = await self._invoice(wallet, payment_hash)
        if invoice is not None:
            return transaction_of_invoice(invoice)
        try:
            request = payments.GetPaymentRequest(payment_hash=payment_hash)
            payment = await self._backend.payment(wallet.owner_pubkey, request)
        except CallRefusedError as refused:
            raise _failure_of(refused) from refused
        if payment.account_id != wallet.account_id:
            raise _not_found()
        kept = await self._database.read(lambda found: store.metadata_of(found, wallet.owner_pubkey, [payment_hash]))
        return transaction_of_payment(payment, kept.get(payment_hash, ""))

    async def _decide(
        self, asked: Asked, command: requests.SettleHoldInvoice | requests.CancelHoldInvoice
    ) -> dict[str, Any]:
        """Settle or cancel a hold invoice of the account. Raises Failure."""
        owner = asked.wallet.owner_pubkey
        settles = isinstance(command, requests.SettleHoldInvoice)
        payment_hash = sha256(bytes.fromhex(command.preimage)).hexdigest() if settles else command.payment_hash  # type: ignore[union-attr]
        invoice = await self._invoice(asked.wallet, payment_hash)
        if invoice is None or not invoice.hold:
            raise _not_found()
        if isinstance(command, requests.SettleHoldInvoice):
            request_id = derived_id(asked.event_id, Method.SETTLE_HOLD_INVOICE)
            settle = invoices.SettleInvoiceRequest(
                request_id=request_id, payment_hash=payment_hash, preimage=command.preimage
            )
            await self._backend.settle_invoice(owner, settle)
        else:
            request_id = derived_id(asked.event_id, Method.CANCEL_HOLD_INVOICE)
            cancel = invoices.CancelInvoiceRequest(request_id=request_id, payment_hash=payment_hash)
            await self._backend.cancel_invoice(owner, cancel)
        return {}

    async def _invoice(self, wallet: WalletConnection, payment_hash: str) -> invoice_pb2.Invoice | None:
        """An invoice of the connection's account; others of the same user are not the app's."""
        try:
            request = invoices.GetInvoiceRequest(payment_hash=payment_hash)
            invoice = await self._backend.invoice(wallet.owner_pubkey, request)
        except CallRefusedError as refused:
            if refused.reason == Reason.INVOICE_NOT_FOUND:
                return None
            raise
        return invoice if invoice.account_id == wallet.account_id else None

    async def _info(self, wallet: WalletConnection) -> dict[str, Any]:
        return {
            "alias": self._alias,
            "network": NETWORKS[await self._backend.currency()],
            "methods": list(wallet.terms.methods),
            "notifications": list(wallet.terms.topics),
        }


def answer_of_payment(payment: _Payment) -> Answer:
    """Return the answer to a payment. Raises UndecidedError when it is not final."""
    if payment.state in _SPENT:
        result = {"preimage": payment.preimage, "fees_paid": payment.fee_msat}
        text = results.result_text(Method.PAY_INVOICE, result)
        return Answer(text=text, spent=Spent(msat=payment.amount_msat + payment.fee_msat))
    if payment.state == _Payment.STATE_FAILED:
        reason = _Payment.FailureReason.Name(payment.failure_reason).removeprefix("FAILURE_REASON_")
        failure = Failure(Code.PAYMENT_FAILED, f"the payment failed: {reason.lower().replace('_', ' ')}")
        return Answer(text=results.failure_text(Method.PAY_INVOICE, failure), spent=Spent(msat=None))
    raise UndecidedError("the payment is under way")


def derived_id(event_id: str, purpose: str) -> str:
    """Return the request_id of what an event asks for: the same on every replica, for ever (UUID version 5)."""
    return str(uuid.uuid5(_NAMESPACE, f"{purpose}:{event_id}"))


def is_pending(row: SpendRow | None) -> bool:
    """Whether money may still leave for a request."""
    return row is not None and row.spend.state is SpendState.PENDING


def _failure_of(refused: CallRefusedError) -> Failure:
    for reason, code in REFUSALS.items():
        if refused.reason == reason:
            return Failure(code, refused.message)
    return Failure(Code.OTHER, refused.message)


def _not_found() -> Failure:
    return Failure(Code.NOT_FOUND, "no such invoice")


def _decoded(text: str) -> PaymentRequest:
    try:
        return decode(text)
    except Bolt11Error as error:
        raise Failure(Code.OTHER, f"not a payment request: {error}") from error


def _amount_msat(invoice: PaymentRequest, wished_msat: int | None) -> int:
    """What is to be paid. A wish that says the same as the invoice is none."""
    if invoice.amount_msat is None:
        if wished_msat is None:
            raise Failure(Code.OTHER, "the invoice leaves the amount open, and the request names none")
        return wished_msat
    if wished_msat not in (None, invoice.amount_msat):
        raise Failure(Code.OTHER, "the invoice asks for another amount")
    return invoice.amount_msat
