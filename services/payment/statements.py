"""GetStatement and ExportStatement: the same statement in pages that a caller asks for, or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.caller import Caller, current_caller
from services.payment.border import visible_account
from services.payment.store.statements import Line, Statement, find_statement, list_lines
from services.payment.wire import line_message, time_ms_of
from services.storage.database import Database
from services.storage.pages import Page, PageTokens
from services.storage.sql import Connection

EXPORT_LINES: Final = 500
"""Lines in one message of an export: some 200 KiB, far below the largest message."""
Request = pb.GetStatementRequest | pb.ExportStatementRequest
Found = tuple[Statement, tuple[Line, ...]]
"""A statement, and the lines of one page."""


class Statements:
    """Reads statements for callers that may see the account."""

    def __init__(self, database: Database, tokens: PageTokens) -> None:
        self._database = database
        self._tokens = tokens

    async def page(self, request: pb.GetStatementRequest) -> pb.GetStatementResponse:
        """One page. The first fixes the statement; its bounds and balances travel in the page token."""
        page, caller = self._tokens.page(request), current_caller()
        statement, lines = await self._database.read(lambda connection: _find(connection, request, page, caller))
        shown = lines[: page.size]
        response = pb.GetStatementResponse(
            opening_balance_msat=statement.opening_msat,
            closing_balance_msat=statement.closing_msat,
            ledger_number=statement.last,
            lines=[line_message(line) for line in shown],
        )
        if len(lines) > page.size:
            response.next_page_token = self._tokens.next(request, _cursor(statement, shown[-1]))
        return response

    async def export(self, request: pb.ExportStatementRequest) -> AsyncIterator[pb.ExportStatementResponse]:
        """All lines. Each message is read on its own, within the bounds of the first: no snapshot is kept open for a slow reader."""
        caller, page = current_caller(), Page(size=EXPORT_LINES, after=None)
        more = True
        while more:
            current = page
            statement, lines = await self._database.read(lambda connection: _find(connection, request, current, caller))  # noqa: B023
            shown = lines[:EXPORT_LINES]
            yield pb.ExportStatementResponse(
                opening_balance_msat=statement.opening_msat,
                closing_balance_msat=statement.closing_msat,
                ledger_number=statement.last,
                lines=[line_message(line) for line in shown],
            )
            more = len(lines) > EXPORT_LINES
            if more:
                page = Page(size=EXPORT_LINES, after=_cursor(statement, shown[-1]))


def _find(connection: Connection, request: Request, page: Page, caller: Caller) -> Found:
    """The statement, and its lines after the page before; one more than asked for when there are more."""
    account = visible_account(connection, request.account_id, caller)
    if page.after is None:
        times = (time_ms_of(request, "create_time_from"), time_ms_of(request, "create_time_until"))
        statement = find_statement(connection, account, *times)
        after, balance_msat = 0, statement.opening_msat
    else:
        first, last, opening_msat, closing_msat, after, balance_msat = (int(value) for value in page.after)
        statement = Statement(
            account_id=account.account_id, first=first, last=last, opening_msat=opening_msat, closing_msat=closing_msat
        )
    return statement, list_lines(connection, statement, after, balance_msat, page.size + 1)


def _cursor(statement: Statement, line: Line) -> tuple[int, ...]:
    bounds = (statement.first, statement.last, statement.opening_msat, statement.closing_msat)
    return (*bounds, line.transfer.number, line.balance_msat)
