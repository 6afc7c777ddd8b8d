"""LedgerService: what only an operator may do with the ledger."""

from __future__ import annotations

import apsw
import structlog

from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import LedgerServiceServicer
from services.chassis.caller import require_operator
from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import not_found
from services.payment.border import Context, write
from services.payment.domain.model import (
    NODE_ACCOUNT,
    Account,
    AccountState,
    Purpose,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.driver import now_ms
from services.payment.store.ledger import find_account, find_transfer, post, set_account_state
from services.payment.wire import account_message, transfer_message
from services.storage.database import Database
from services.storage.idempotency import RequestKey, run_once
from services.storage.ids import new_id

_log = structlog.stdlib.get_logger()


class LedgerServicer(LedgerServiceServicer):
    """Thin: checks the role, asks the store, renders, and writes who did it to the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def Deposit(self, request: pb.DepositRequest, context: Context) -> pb.DepositResponse:
        """Credit an account out of node:lightning."""
        operator = require_operator()
        key = RequestKey.of(request)
        transfer = _transfer(request, NODE_ACCOUNT, request.account_id, Purpose.DEPOSIT)

        def effect(connection: apsw.Connection) -> pb.DepositResponse:
            account = _moved(connection, request.account_id, transfer)
            return pb.DepositResponse(transfer=transfer_message(transfer), account=account_message(account))

        response, replayed = await write(
            self._database,
            lambda connection: run_once(connection, key, pb.DepositResponse, lambda: effect(connection)),
            request.account_id,
        )
        response.replayed = replayed
        _audit(
            "ledger.deposit", replayed, operator, request.account_id, response.transfer.transfer_id, request.amount_msat
        )
        return response

    async def Withdraw(self, request: pb.WithdrawRequest, context: Context) -> pb.WithdrawResponse:
        """Debit an account into node:lightning."""
        operator = require_operator()
        key = RequestKey.of(request)
        transfer = _transfer(request, request.account_id, NODE_ACCOUNT, Purpose.WITHDRAWAL)

        def effect(connection: apsw.Connection) -> pb.WithdrawResponse:
            account = _moved(connection, request.account_id, transfer)
            return pb.WithdrawResponse(transfer=transfer_message(transfer), account=account_message(account))

        response, replayed = await write(
            self._database,
            lambda connection: run_once(connection, key, pb.WithdrawResponse, lambda: effect(connection)),
            request.account_id,
        )
        response.replayed = replayed
        _audit(
            "ledger.withdrawal",
            replayed,
            operator,
            request.account_id,
            response.transfer.transfer_id,
            request.amount_msat,
        )
        return response

    async def FreezeAccount(self, request: pb.FreezeAccountRequest, context: Context) -> pb.FreezeAccountResponse:
        """Let nothing new leave an account."""
        operator = require_operator()
        key = RequestKey.of(request)

        def effect(connection: apsw.Connection) -> pb.FreezeAccountResponse:
            account = set_account_state(connection, request.account_id, AccountState.FROZEN)
            return pb.FreezeAccountResponse(account=account_message(account))

        response, replayed = await write(
            self._database,
            lambda connection: run_once(connection, key, pb.FreezeAccountResponse, lambda: effect(connection)),
            request.account_id,
        )
        response.replayed = replayed
        _audit("ledger.freeze", replayed, operator, request.account_id, request.reason, 0)
        return response

    async def UnfreezeAccount(self, request: pb.UnfreezeAccountRequest, context: Context) -> pb.UnfreezeAccountResponse:
        """Undo FreezeAccount."""
        operator = require_operator()
        key = RequestKey.of(request)

        def effect(connection: apsw.Connection) -> pb.UnfreezeAccountResponse:
            account = set_account_state(connection, request.account_id, AccountState.ACTIVE)
            return pb.UnfreezeAccountResponse(account=account_message(account))

        response, replayed = await write(
            self._database,
            lambda connection: run_once(connection, key, pb.UnfreezeAccountResponse, lambda: effect(connection)),
            request.account_id,
        )
        response.replayed = replayed
        _audit("ledger.unfreeze", replayed, operator, request.account_id, request.reason, 0)
        return response

    async def GetTransfer(self, request: pb.GetTransferRequest, context: Context) -> pb.GetTransferResponse:
        """One transfer between whatever accounts."""
        require_operator()
        transfer = await self._database.read(lambda connection: find_transfer(connection, request.transfer_id))
        if transfer is None:
            raise not_found(ErrorReason.TRANSFER_NOT_FOUND, "transfer")
        return pb.GetTransferResponse(transfer=transfer_message(transfer))


def _transfer(request: pb.DepositRequest | pb.WithdrawRequest, debit: str, credit: str, purpose: Purpose) -> Transfer:
    """A transfer between an account and the node; its id is new, the request_id guards against a second one."""
    return Transfer(
        transfer_id=new_id(),
        kind=TransferKind.POSTED,
        debit_account_id=debit,
        credit_account_id=credit,
        amount_msat=request.amount_msat,
        purpose=purpose,
        reference=request.reference,
        create_time_ms=now_ms(),
    )


def _moved(connection: apsw.Connection, account_id: str, transfer: Transfer) -> Account:
    """Apply the transfer; the account after it. Raises Refused."""
    if find_account(connection, account_id) is None:
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "no such account")
    post(connection, (transfer,))
    account = find_account(connection, account_id)
    assert account is not None
    return account


def _audit(event: str, replayed: bool, operator: str, account_id: str, detail: str, amount_msat: int) -> None:
    """Log what an operator did; asking again did nothing."""
    _log.info(
        f"{event}.replayed" if replayed else event,
        operator=operator,
        account_id=account_id,
        detail=detail,
        amount_msat=amount_msat,
    )
