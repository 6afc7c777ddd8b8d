"""AccountService: accounts for their owners."""

from __future__ import annotations

import apsw

from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceServicer
from services.chassis.caller import current_caller, require_subject
from services.chassis.errors import Reason, ServiceError
from services.payment.border import Context, owner_filter, visible_account, write
from services.payment.domain.model import CUSTOMER_PREFIX, Account, AccountState, Transfer
from services.payment.driver import now_ms
from services.payment.store.ledger import insert_account
from services.payment.store.lists import TransferFilter, list_accounts, list_transfers
from services.payment.wire import account_message, time_ms_of, transfer_message
from services.storage.database import Database
from services.storage.idempotency import RequestKey, run_once
from services.storage.ids import new_id
from services.storage.pages import PageTokens


class AccountServicer(AccountServiceServicer):
    """Thin: reads the request, asks the store, renders."""

    def __init__(self, database: Database, tokens: PageTokens) -> None:
        self._database = database
        self._tokens = tokens

    async def CreateAccount(self, request: pb.CreateAccountRequest, context: Context) -> pb.CreateAccountResponse:
        """Open an account for the caller; an operator for anybody."""
        subject = require_subject()
        owner = request.owner_pubkey or subject
        if owner != subject and not current_caller().operator:
            raise ServiceError(Reason.OPERATOR_REQUIRED, "only an operator opens accounts for others")
        account = Account(
            account_id=CUSTOMER_PREFIX + new_id(), owner=owner, state=AccountState.ACTIVE, create_time_ms=now_ms()
        )
        key = RequestKey.of(request)

        def work(connection: apsw.Connection) -> tuple[pb.CreateAccountResponse, bool]:
            return run_once(connection, key, pb.CreateAccountResponse, lambda: effect(connection))

        def effect(connection: apsw.Connection) -> pb.CreateAccountResponse:
            insert_account(connection, account)
            return pb.CreateAccountResponse(account=account_message(account))

        response, replayed = await write(self._database, work, owner)
        response.replayed = replayed
        return response

    async def GetAccount(self, request: pb.GetAccountRequest, context: Context) -> pb.GetAccountResponse:
        """One account that the caller may see."""
        caller = current_caller()
        account = await self._database.read(lambda connection: visible_account(connection, request.account_id, caller))
        return pb.GetAccountResponse(account=account_message(account))

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Context) -> pb.ListAccountsResponse:
        """The caller's accounts, newest first; an operator's list holds all, or one user's."""
        subject = require_subject()
        owner = request.owner_pubkey or owner_filter()
        if owner != subject and not current_caller().operator:
            raise ServiceError(Reason.OPERATOR_REQUIRED, "only an operator lists the accounts of others")
        page = self._tokens.page(request)
        after = int(page.after[0]) if page.after else None
        rows = await self._database.read(lambda connection: list_accounts(connection, owner, after, page.size + 1))
        shown = rows[: page.size]
        response = pb.ListAccountsResponse(accounts=[account_message(account) for _, account in shown])
        if len(rows) > page.size:
            response.next_page_token = self._tokens.next(request, (shown[-1][0],))
        return response

    async def ListTransfers(self, request: pb.ListTransfersRequest, context: Context) -> pb.ListTransfersResponse:
        """The transfers of an account that the caller may see."""
        caller = current_caller()
        page = self._tokens.page(request)
        after = int(page.after[0]) if page.after else None
        wanted = TransferFilter(
            account_id=request.account_id,
            payment_id=request.payment_id,
            create_time_from_ms=time_ms_of(request, "create_time_from"),
            create_time_until_ms=time_ms_of(request, "create_time_until"),
            oldest_first=request.oldest_first,
        )

        def work(connection: apsw.Connection) -> tuple[tuple[int, Transfer], ...]:
            visible_account(connection, request.account_id, caller)
            return list_transfers(connection, wanted, after, page.size + 1)

        rows = await self._database.read(work)
        shown = rows[: page.size]
        response = pb.ListTransfersResponse(transfers=[transfer_message(transfer) for _, transfer in shown])
        if len(rows) > page.size:
            response.next_page_token = self._tokens.next(request, (shown[-1][0],))
        return response
