"""LedgerService: what only an operator may do with the ledger."""

from __future__ import annotations

import structlog

from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import LedgerServiceServicer
from services.chassis.caller import current_caller, require_operator
from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import not_found
from services.payment.border import Context, visible_account, write_once
from services.payment.domain.model import (
    NODE_ACCOUNT,
    AccountEvent,
    AccountState,
    Purpose,
    Transfer,
    TransferKind,
)
from services.payment.driver import now_ms
from services.payment.store.accounts import Order, set_account_state, set_quota
from services.payment.store.entries import find_head
from services.payment.store.ledger import find_transfer
from services.payment.store.lists import list_account_events
from services.payment.store.operations import EndOfHold, end_hold, move
from services.payment.wire import account_event_message, account_message, quota_of, timestamp, transfer_message
from services.storage.database import Database
from services.storage.ids import new_id
from services.storage.pages import PageTokens
from services.storage.sql import Connection

_log = structlog.stdlib.get_logger()


class LedgerServicer(LedgerServiceServicer):
    """Thin: checks the role, asks the store, renders, and writes who did it to the log."""

    def __init__(self, database: Database, tokens: PageTokens) -> None:
        self._database = database
        self._tokens = tokens

    async def Deposit(self, request: pb.DepositRequest, context: Context) -> pb.DepositResponse:
        """Credit an account out of node:lightning."""
        operator = require_operator()
        transfer = _transfer(request, (NODE_ACCOUNT, request.account_id), Purpose.DEPOSIT)

        def effect(connection: Connection) -> pb.DepositResponse:
            recorded, account = move(connection, transfer, request.account_id)
            return pb.DepositResponse(transfer=transfer_message(recorded), account=account_message(account))

        response = await write_once(self._database, request, pb.DepositResponse, effect, request.account_id)
        _audit("deposit", response.replayed, operator, request.account_id, response.transfer.transfer_id)
        return response

    async def Withdraw(self, request: pb.WithdrawRequest, context: Context) -> pb.WithdrawResponse:
        """Debit an account into node:lightning."""
        operator = require_operator()
        transfer = _transfer(request, (request.account_id, NODE_ACCOUNT), Purpose.WITHDRAWAL)

        def effect(connection: Connection) -> pb.WithdrawResponse:
            recorded, account = move(connection, transfer, request.account_id)
            return pb.WithdrawResponse(transfer=transfer_message(recorded), account=account_message(account))

        response = await write_once(self._database, request, pb.WithdrawResponse, effect, request.account_id)
        _audit("withdrawal", response.replayed, operator, request.account_id, response.transfer.transfer_id)
        return response

    async def CreateTransfer(self, request: pb.CreateTransferRequest, context: Context) -> pb.CreateTransferResponse:
        """Move, hold, post or void between whatever accounts."""
        operator = require_operator()
        transfer_id, subject = new_id(), _subject(request)

        def effect(connection: Connection) -> pb.CreateTransferResponse:
            if request.WhichOneof("step") in ("posted", "pending"):
                wanted = _new_transfer(request, transfer_id)
                recorded, _ = move(connection, wanted, wanted.credit_account_id)
            else:
                recorded = end_hold(connection, _end(request, transfer_id))
            return pb.CreateTransferResponse(transfer=transfer_message(recorded))

        response = await write_once(self._database, request, pb.CreateTransferResponse, effect, subject)
        _audit("transfer", response.replayed, operator, subject, response.transfer.transfer_id)
        return response

    async def FreezeAccount(self, request: pb.FreezeAccountRequest, context: Context) -> pb.FreezeAccountResponse:
        """Let nothing new leave an account."""
        operator = require_operator()
        order = Order(actor=operator, reason=request.reason, now_ms=now_ms())

        def effect(connection: Connection) -> pb.FreezeAccountResponse:
            account = set_account_state(connection, request.account_id, AccountState.FROZEN, order)
            return pb.FreezeAccountResponse(account=account_message(account))

        response = await write_once(self._database, request, pb.FreezeAccountResponse, effect, request.account_id)
        _audit("freeze", response.replayed, operator, request.account_id, request.reason)
        return response

    async def UnfreezeAccount(self, request: pb.UnfreezeAccountRequest, context: Context) -> pb.UnfreezeAccountResponse:
        """Undo FreezeAccount."""
        operator = require_operator()
        order = Order(actor=operator, reason=request.reason, now_ms=now_ms())

        def effect(connection: Connection) -> pb.UnfreezeAccountResponse:
            account = set_account_state(connection, request.account_id, AccountState.ACTIVE, order)
            return pb.UnfreezeAccountResponse(account=account_message(account))

        response = await write_once(self._database, request, pb.UnfreezeAccountResponse, effect, request.account_id)
        _audit("unfreeze", response.replayed, operator, request.account_id, request.reason)
        return response

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.SetQuotaResponse:
        """Replace what the owner of an account may spend."""
        operator = require_operator()
        order = Order(actor=operator, reason=request.reason, now_ms=now_ms())

        def effect(connection: Connection) -> pb.SetQuotaResponse:
            account = set_quota(connection, request.account_id, quota_of(request.quota), order)
            return pb.SetQuotaResponse(account=account_message(account))

        response = await write_once(self._database, request, pb.SetQuotaResponse, effect, request.account_id)
        _audit("quota", response.replayed, operator, request.account_id, request.reason)
        return response

    async def GetTransfer(self, request: pb.GetTransferRequest, context: Context) -> pb.GetTransferResponse:
        """One transfer between whatever accounts."""
        require_operator()
        transfer = await self._database.read(
            lambda connection: find_transfer(connection, request.transfer_id), min_sequence=request.min_sequence
        )
        if transfer is None:
            raise not_found(ErrorReason.TRANSFER_NOT_FOUND, "transfer")
        return pb.GetTransferResponse(transfer=transfer_message(transfer))

    async def ListAccountEvents(
        self, request: pb.ListAccountEventsRequest, context: Context
    ) -> pb.ListAccountEventsResponse:
        """The history of an account, apart from its transfers."""
        require_operator()
        page, caller = self._tokens.page(request), current_caller()
        after = int(page.after[0]) if page.after else 0

        def work(connection: Connection) -> tuple[AccountEvent, ...]:
            visible_account(connection, request.account_id, caller)
            return list_account_events(connection, request.account_id, after, page.size + 1)

        events = await self._database.read(work)
        shown = events[: page.size]
        response = pb.ListAccountEventsResponse(events=[account_event_message(event) for event in shown])
        if len(events) > page.size:
            response.next_page_token = self._tokens.next(request, (shown[-1].number,))
        return response

    async def GetLedgerHead(self, request: pb.GetLedgerHeadRequest, context: Context) -> pb.GetLedgerHeadResponse:
        """What to note elsewhere."""
        require_operator()
        head = await self._database.read(find_head)
        return pb.GetLedgerHeadResponse(
            number=head.number, sha256=head.sha256.hex(), create_time=timestamp(head.create_time_ms)
        )


def _transfer(request: pb.DepositRequest | pb.WithdrawRequest, accounts: tuple[str, str], purpose: Purpose) -> Transfer:
    """A transfer between an account and the node; its id is new, the request_id guards against a second one."""
    debit, credit = accounts
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


def _new_transfer(request: pb.CreateTransferRequest, transfer_id: str) -> Transfer:
    pending = request.WhichOneof("step") == "pending"
    wanted = request.pending if pending else request.posted
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.PENDING if pending else TransferKind.POSTED,
        debit_account_id=wanted.debit_account_id,
        credit_account_id=wanted.credit_account_id,
        amount_msat=wanted.amount_msat,
        purpose=Purpose.ADJUSTMENT,
        reference=request.reference,
        create_time_ms=now_ms(),
    )


def _end(request: pb.CreateTransferRequest, transfer_id: str) -> EndOfHold:
    post = request.post_pending if request.WhichOneof("step") == "post_pending" else None
    return EndOfHold(
        transfer_id=transfer_id,
        pending_transfer_id=_subject(request),
        kind=TransferKind.VOID_PENDING if post is None else TransferKind.POST_PENDING,
        amount_msat=post.amount_msat if post is not None and post.HasField("amount_msat") else None,
        reference=request.reference,
        now_ms=now_ms(),
    )


def _subject(request: pb.CreateTransferRequest) -> str:
    """What a refusal is about: the account that gives, or the hold."""
    match request.WhichOneof("step"):
        case "posted":
            return request.posted.debit_account_id
        case "pending":
            return request.pending.debit_account_id
        case "post_pending":
            return request.post_pending.pending_transfer_id.lower()
        case _:
            return request.void_pending_transfer_id.lower()


def _audit(event: str, replayed: bool, operator: str, subject: str, detail: str) -> None:
    """Log what an operator did; asking again did nothing."""
    name = f"ledger.{event}"
    _log.info(f"{name}.replayed" if replayed else name, operator=operator, subject=subject, detail=detail)
