"""AccountService: accounts for their owners."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceServicer
from services.chassis.caller import current_caller, require_subject
from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import ServiceError
from services.payment.border import Context, owner_filter, visible_account, write_once
from services.payment.domain.model import (
    CUSTOMER_PREFIX,
    Account,
    AccountState,
    Purpose,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.driver import now_ms
from services.payment.statements import Statements
from services.payment.store.accounts import Order, close_account, insert_account
from services.payment.store.lists import TransferFilter, list_accounts, list_transfers
from services.payment.store.operations import move_own
from services.payment.wire import account_message, time_ms_of, transfer_message
from services.storage.database import Database
from services.storage.ids import new_id
from services.storage.pages import PageTokens
from services.storage.sql import Connection


class AccountServicer(AccountServiceServicer):
    """Thin: reads the request, asks the store, renders."""

    def __init__(self, database: Database, tokens: PageTokens) -> None:
        self._database = database
        self._tokens = tokens
        self._statements = Statements(database, tokens)

    async def CreateAccount(self, request: pb.CreateAccountRequest, context: Context) -> pb.CreateAccountResponse:
        """Open an account for the caller; an operator for anybody."""
        subject = require_subject()
        owner = request.owner_pubkey or subject
        if owner != subject and not current_caller().operator:
            raise ServiceError(ErrorReason.OPERATOR_REQUIRED, "only an operator opens accounts for others")
        account = Account(
            account_id=CUSTOMER_PREFIX + new_id(), owner=owner, state=AccountState.ACTIVE, create_time_ms=now_ms()
        )
        order = Order(actor=current_caller().scope, now_ms=account.create_time_ms)

        def effect(connection: Connection) -> pb.CreateAccountResponse:
            insert_account(connection, account, order)
            return pb.CreateAccountResponse(account=account_message(account))

        return await write_once(self._database, request, pb.CreateAccountResponse, effect, owner)

    async def GetAccount(self, request: pb.GetAccountRequest, context: Context) -> pb.GetAccountResponse:
        """One account that the caller may see."""
        caller = current_caller()
        account = await self._database.read(
            lambda connection: visible_account(connection, request.account_id, caller),
            min_sequence=None if caller.service else request.min_sequence,  # a service decides by it: as it is now
        )
        return pb.GetAccountResponse(account=account_message(account))

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Context) -> pb.ListAccountsResponse:
        """The caller's accounts, newest first; an operator's list holds all, or one user's."""
        subject = require_subject()
        owner = request.owner_pubkey or owner_filter()
        if owner != subject and not current_caller().operator:
            raise ServiceError(ErrorReason.OPERATOR_REQUIRED, "only an operator lists the accounts of others")
        page = self._tokens.page(request)
        after = int(page.after[0]) if page.after else None
        rows = await self._database.read(
            lambda connection: list_accounts(connection, owner, after, page.size + 1), min_sequence=request.min_sequence
        )
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

        def work(connection: Connection) -> tuple[tuple[int, Transfer], ...]:
            visible_account(connection, request.account_id, caller)
            return list_transfers(connection, wanted, after, page.size + 1)

        rows = await self._database.read(work, min_sequence=request.min_sequence)
        shown = rows[: page.size]
        response = pb.ListTransfersResponse(transfers=[transfer_message(transfer) for _, transfer in shown])
        if len(rows) > page.size:
            response.next_page_token = self._tokens.next(request, (shown[-1][0],))
        return response

    async def Transfer(self, request: pb.TransferRequest, context: Context) -> pb.TransferResponse:
        """Money of the caller to another account."""
        owner = require_subject()
        transfer = Transfer(
            transfer_id=new_id(),
            kind=TransferKind.POSTED,
            debit_account_id=request.account_id,
            credit_account_id=request.credit_account_id,
            amount_msat=request.amount_msat,
            purpose=Purpose.TRANSFER,
            reference=request.reference,
            create_time_ms=now_ms(),
        )

        def effect(connection: Connection) -> pb.TransferResponse:
            recorded, account = move_own(connection, transfer, owner)
            return pb.TransferResponse(transfer=transfer_message(recorded), account=account_message(account))

        return await write_once(self._database, request, pb.TransferResponse, effect, request.account_id)

    async def CloseAccount(self, request: pb.CloseAccountRequest, context: Context) -> pb.CloseAccountResponse:
        """An owner, who cannot end a freeze this way, or an operator ends an account."""
        caller = current_caller()
        order = Order(actor=caller.scope, reason=request.reason, now_ms=now_ms())

        def effect(connection: Connection) -> pb.CloseAccountResponse:
            account = visible_account(connection, request.account_id, caller)
            if account.state is AccountState.FROZEN and not caller.operator:
                raise Refused(Reason.ACCOUNT_FROZEN, "the account is frozen: only an operator closes it")
            return pb.CloseAccountResponse(
                account=account_message(close_account(connection, account.account_id, order))
            )

        return await write_once(self._database, request, pb.CloseAccountResponse, effect, request.account_id)

    async def GetStatement(self, request: pb.GetStatementRequest, context: Context) -> pb.GetStatementResponse:
        """One page of a statement."""
        return await self._statements.page(request)

    async def ExportStatement(
        self, request: pb.ExportStatementRequest, context: Context
    ) -> AsyncIterator[pb.ExportStatementResponse]:
        """A statement as a stream."""
        async for response in self._statements.export(request):
            yield response
