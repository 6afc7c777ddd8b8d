"""Where the rules' refusals become errors that callers see, and who may see what."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from services.chassis.caller import Caller, current_caller
from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import ServiceError, not_found, precondition_failed
from services.events.audit import append_audit
from services.payment.domain.model import Account, Payment, Reason, Refused
from services.payment.store.ledger import find_account
from services.storage.database import Database
from services.storage.idempotency import RequestKey, run_once
from services.storage.sql import Connection

T = TypeVar("T")
ResponseT = TypeVar("ResponseT", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""What a servicer's method gets beside the request; ours use the running call of the chassis instead."""

PRECONDITIONS = frozenset(
    {
        Reason.INSUFFICIENT_BALANCE,
        Reason.BALANCE_LIMIT_EXCEEDED,
        Reason.ACCOUNT_FROZEN,
        Reason.ACCOUNT_CLOSED,
        Reason.ACCOUNT_NOT_EMPTY,
        Reason.TRANSFER_NOT_PENDING,
        Reason.TRANSFER_RESOLVED,
        Reason.TRANSFER_EXCEEDS_PENDING,
        Reason.PAYMENT_NOT_SUCCEEDED,
        Reason.REFUND_EXCEEDS_PAYMENT,
        Reason.PAYMENT_NOT_STUCK,
        Reason.CREDIT_NOT_HELD,
        Reason.CREDIT_POSTED,
        Reason.CREDIT_VOIDED,
    }
)
"""Reasons that are the state of something: their errors name it."""


def service_error(refused: Refused, subject: str) -> ServiceError:
    """The error of a refusal; `subject` is the account or payment that the request names."""
    if refused.reason in PRECONDITIONS:
        return precondition_failed(refused.reason.value, refused.message, subject=subject)
    delay_ms = refused.retry_delay_ms
    if refused.retry_at_ms is not None:
        delay_ms = max(1, refused.retry_at_ms - time.time_ns() // 1_000_000)
    # No library and no sidecar shall wait for tomorrow by itself: RetryInfo is for whoever decides to try again.
    return ServiceError(refused.reason.value, refused.message, retry_delay_ms=delay_ms, from_dependency=bool(delay_ms))


async def write_once(
    database: Database,
    request: Message,
    response_type: type[ResponseT],
    effect: Callable[[Connection], ResponseT],
    subject: str,
) -> ResponseT:
    """Do what a request with a request_id and a response with `replayed` asks for, unless it was done before. Raises ServiceError.

    The effect is told to the audit stream.
    """
    key = RequestKey.of(request)

    def audited(connection: Connection) -> ResponseT:
        done = effect(connection)
        append_audit(connection, object_id=subject, request_id=key.request_id)
        return done

    response, replayed = await write(
        database, lambda connection: run_once(connection, key, response_type, lambda: audited(connection)), subject
    )
    setattr(response, "replayed", replayed)  # noqa: B010  # Message has no such attribute for the type checker
    return response


async def write(database: Database, work: Callable[[Connection], T], subject: str) -> T:
    """`Database.write`, with refusals as errors."""
    try:
        return await database.write(work)
    except Refused as refused:
        raise service_error(refused, subject) from refused


def visible_account(connection: Connection, account_id: str, caller: Caller) -> Account:
    """The account, when the caller may see it: its owner, an operator, or the invoice service.

    Raises ACCOUNT_NOT_FOUND, whether it is someone else's or nobody's.
    """
    account = find_account(connection, account_id)
    sees_all = caller.operator or caller.service == "invoice"
    if account is None or not (sees_all or (caller.subject and account.owner == caller.subject)):
        raise not_found(ErrorReason.ACCOUNT_NOT_FOUND, "account")
    return account


def sees_payment(connection: Connection, payment: Payment, caller: Caller) -> bool:
    """Whether the caller owns the account that pays, or is an operator."""
    if caller.operator:
        return True
    account = find_account(connection, payment.account_id)
    return account is not None and bool(caller.subject) and account.owner == caller.subject


def owner_filter() -> str:
    """Whose rows the caller's lists hold: their own; an operator's hold everybody's ("")."""
    caller = current_caller()
    return "" if caller.operator else caller.subject
