"""The key that signs receipts: made once by the NIP service when it is first needed, its id kept in the database."""

from __future__ import annotations

import asyncio
from typing import Final

from services.chassis.errors import Reason
from services.payment.clients import ReceiptClient, StepUnavailableError
from services.payment.domain.model import Payment
from services.payment.store.ledger import find_account
from services.storage.database import Database
from services.storage.sql import Connection

MEMORY_NAME = "receipt_key_id"
OWNERS_MAX: Final = 10_000
"""Owners that are remembered; then it starts over."""


class ReceiptKey:
    """Knows the key's id, or finds it out."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key_id = ""
        self._owners: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def sign(self, receipts: ReceiptClient, payment: Payment, moved_ms: int) -> str:
        """The signed receipt of a payment whose money moved at `moved_ms`, as JSON. Raises StepUnavailableError."""
        key_id = self._key_id or await self._find(receipts)
        payee = await self._payee(payment) if payment.internal else ""
        try:
            return await receipts.sign(key_id, payment, payee, moved_ms)
        except StepUnavailableError as error:
            if error.reason == Reason.KEY_NOT_FOUND:  # the NIP service lost its keys: the next attempt makes a new one
                await self._forget()
            raise

    async def _payee(self, payment: Payment) -> str:
        """The owner of the credited account, who never changes."""
        account_id = payment.payee_account_id
        owner = self._owners.get(account_id)
        if owner is None:
            account = await self._database.read(lambda connection: find_account(connection, account_id))
            owner = account.owner if account is not None else ""
            if len(self._owners) >= OWNERS_MAX:
                self._owners.clear()
            self._owners[account_id] = owner
        return owner

    async def _find(self, receipts: ReceiptClient) -> str:
        """From the database, else from the NIP service; one caller at a time."""
        async with self._lock:
            if not self._key_id:
                self._key_id = await self._database.read(_recall)
            if not self._key_id:
                created = await receipts.create_key()
                self._key_id = await self._database.write(lambda connection: _remember(connection, created))
            return self._key_id

    async def _forget(self) -> None:
        self._key_id = ""
        await self._database.write(_erase)


def _recall(connection: Connection) -> str:
    row = connection.execute("SELECT value FROM memory WHERE name = ?", (MEMORY_NAME,)).fetchone()
    return str(row[0]) if row else ""


def _remember(connection: Connection, key_id: str) -> str:
    """Keep the id; whoever was first wins, and all replicas use that one."""
    connection.execute("INSERT INTO memory (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING", (MEMORY_NAME, key_id))
    return _recall(connection)


def _erase(connection: Connection) -> None:
    connection.execute("DELETE FROM memory WHERE name = ?", (MEMORY_NAME,))
