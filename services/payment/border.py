"""Where the rules' refusals become errors that callers see, and who may see what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import apsw
import grpc

from services.chassis.caller import Caller, current_caller
from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import ServiceError, not_found, precondition_failed
from services.payment.domain.model import Account, Payment, Reason, Refused
from services.payment.store.ledger import find_account
from services.storage.database import Database

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""What a servicer's method gets beside the request; ours use the running call of the chassis instead."""

PRECONDITIONS = frozenset(
    {
        Reason.INSUFFICIENT_BALANCE,
        Reason.BALANCE_LIMIT_EXCEEDED,
        Reason.ACCOUNT_FROZEN,
        Reason.PAYMENT_NOT_SUCCEEDED,
        Reason.REFUND_EXCEEDS_PAYMENT,
    }
)
"""Reasons that are the state of something: their errors name it."""


def service_error(refused: Refused, subject: str) -> ServiceError:
    """The error of a refusal; `subject` is the account or payment that the request names."""
    if refused.reason in PRECONDITIONS:
        return precondition_failed(refused.reason.value, refused.message, subject=subject)
    return ServiceError(refused.reason.value, refused.message)


async def write(database: Database, work: Callable[[apsw.Connection], T], subject: str) -> T:
    """`Database.write`, with refusals as errors."""
    try:
        return await database.write(work)
    except Refused as refused:
        raise service_error(refused, subject) from refused


def visible_account(connection: apsw.Connection, account_id: str, caller: Caller) -> Account:
    """The account, when the caller may see it: its owner, an operator, or the invoice service.

    Raises ACCOUNT_NOT_FOUND, whether it is someone else's or nobody's.
    """
    account = find_account(connection, account_id)
    sees_all = caller.operator or caller.service == "invoice"
    if account is None or not (sees_all or (caller.subject and account.owner == caller.subject)):
        raise not_found(ErrorReason.ACCOUNT_NOT_FOUND, "account")
    return account


def sees_payment(connection: apsw.Connection, payment: Payment, caller: Caller) -> bool:
    """Whether the caller owns the account that pays, or is an operator."""
    if caller.operator:
        return True
    account = find_account(connection, payment.account_id)
    return account is not None and bool(caller.subject) and account.owner == caller.subject


def owner_filter() -> str:
    """Whose rows the caller's lists hold: their own; an operator's hold everybody's ("")."""
    caller = current_caller()
    return "" if caller.operator else caller.subject
