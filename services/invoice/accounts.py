"""Whose an account is: asked of the payment service, through the sidecar, under this service's own identity."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import grpc

from nipmesh.payment.v1 import payment_pb2, payment_service_pb2
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub
from services.chassis.errors import Reason, ServiceError, dependency_failed, not_found, precondition_failed, reason_of
from services.chassis.logs import get_logger

CALL_S: Final = 2.0
"""Deadline of the call: a healthy one takes milliseconds, and the caller is still there to be told."""

REMEMBERED_S: Final = 1.0
"""How long an account that may receive is not asked for again. Its owner never changes; what may change is that it is frozen or closed, and
an invoice made within this time is as one made just before: the ledger refuses the credit of a closed account when it is paid."""
REMEMBERED_MAX: Final = 10_000
"""Accounts that are remembered: a few megabytes."""

_log = get_logger("invoice")


class Accounts:
    """The accounts of the payment service, as far as invoices care."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """`channel` leads to the own sidecar."""
        self._stub = AccountServiceStub(channel)
        self._receivers: OrderedDict[tuple[str, str], float] = OrderedDict()

    def is_remembered(self, account_id: str, owner_pubkey: str) -> bool:
        """Whether `check_can_receive` answers without asking: the account could receive a moment ago."""
        until_s = self._receivers.get((account_id, owner_pubkey))
        return until_s is not None and time.monotonic() < until_s

    async def check_can_receive(self, account_id: str, owner_pubkey: str) -> None:
        """Raise unless the account is `owner_pubkey`'s and can get invoices.

        ACCOUNT_NOT_FOUND also for another's account, ACCOUNT_FROZEN, BACKEND_UNAVAILABLE.
        """
        if self.is_remembered(account_id, owner_pubkey):
            return
        account = await self.check_owner(account_id, owner_pubkey)
        if account.state == payment_pb2.Account.STATE_FROZEN:
            raise precondition_failed(Reason.ACCOUNT_FROZEN, "the account is frozen", subject=account_id)
        if account.state != payment_pb2.Account.STATE_ACTIVE:
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account")
        self.remember(account_id, owner_pubkey)

    def remember(self, account_id: str, owner_pubkey: str) -> None:
        """Remember that the account can receive; the one that was asked for longest ago makes room."""
        self._receivers[account_id, owner_pubkey] = time.monotonic() + REMEMBERED_S
        self._receivers.move_to_end((account_id, owner_pubkey))
        if len(self._receivers) > REMEMBERED_MAX:
            self._receivers.popitem(last=False)

    async def check_owner(self, account_id: str, owner_pubkey: str | None) -> payment_pb2.Account:
        """Return the account, when it is `owner_pubkey`'s (None: anybody's). Raises ACCOUNT_NOT_FOUND, BACKEND_UNAVAILABLE."""
        account = await self._get(account_id)
        theirs = owner_pubkey is None or account.owner_pubkey == owner_pubkey
        if account.account_id != account_id or not theirs:
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account")
        return account

    async def _get(self, account_id: str) -> payment_pb2.Account:
        """Ask. A code alone proves nothing, a sidecar answers NOT_FOUND as well: only the reason counts."""
        request = payment_service_pb2.GetAccountRequest(account_id=account_id)
        try:
            response = await self._stub.GetAccount(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            if reason == Reason.ACCOUNT_NOT_FOUND:
                raise not_found(Reason.ACCOUNT_NOT_FOUND, "account") from error
            _log.warning("account not checked", code=error.code().name, reason=reason)
            raise _no_answer() from error
        account: payment_pb2.Account = response.account
        return account


def _no_answer() -> ServiceError:
    """Return BACKEND_UNAVAILABLE: whether the account is the caller's is not known."""
    return dependency_failed("the payment service does not answer")
