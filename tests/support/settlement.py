"""An invoice service in small: real BOLT11, real SQLite, the settlement API; for tests of payments without the real one."""

from __future__ import annotations

import secrets
import time
import uuid
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import grpc

from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1.invoice_service_pb2_grpc import (
    InvoiceSettlementServiceServicer,
    add_InvoiceSettlementServiceServicer_to_server,
)
from services.chassis.errors import STATUS_DETAILS_KEY, Reason, ServiceError, status_of
from services.chassis.secret import SecretBytes
from services.lightning.bolt11 import decode, encode
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import PaymentRequest

OPEN, ACCEPTED, SETTLED, CANCELED = 1, 2, 3, 4


def payment_request(
    *, amount_msat: int | None, preimage: bytes | None = None, description: str = "", **rest: Any
) -> str:
    """A signed regtest invoice of a node that exists for this call only."""
    key = NodeKey(SecretBytes(secrets.token_bytes(32)))
    request = PaymentRequest(
        currency=rest.pop("currency", "bcrt"),
        payee_pubkey=key.public_key,
        payment_hash=sha256(preimage or secrets.token_bytes(32)).hexdigest(),
        payment_secret=secrets.token_hex(32),
        amount_msat=amount_msat,
        create_time_s=rest.pop("create_time_s", int(time.time())),
        description=description,
        **rest,
    )
    return encode(request, key)


class Settlement(InvoiceSettlementServiceServicer):
    """Locks, commits and releases as the API says; every call is written down, so that tests can count."""

    def __init__(self, path: Path) -> None:
        self.db = apsw.Connection(str(path))
        self.db.execute("PRAGMA journal_mode = wal; PRAGMA synchronous = normal")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS invoice (hash TEXT PRIMARY KEY, account TEXT, preimage TEXT, state INT, locked_by TEXT,"
            " hold INT);"
            "CREATE TABLE IF NOT EXISTS released (payment_id TEXT PRIMARY KEY);"
            "CREATE TABLE IF NOT EXISTS audit (call TEXT, payment_id TEXT)"
        )
        self.faults: dict[str, list[grpc.StatusCode]] = {}

    def create(self, account_id: str, amount_msat: int | None, *, hold: bool = False, **rest: Any) -> str:
        """An open invoice; its payment request."""
        preimage = secrets.token_bytes(32)
        text = payment_request(amount_msat=amount_msat, preimage=preimage, **rest)
        values = (sha256(preimage).hexdigest(), account_id, preimage.hex(), OPEN, "", hold)
        self.db.execute("INSERT INTO invoice VALUES (?, ?, ?, ?, ?, ?)", values)
        return text

    def decide(self, text: str, state: int) -> str:
        """The owner of an accepted hold invoice settles or cancels it; the payment that holds it."""
        payment_hash = decode(text).payment_hash
        sql = "UPDATE invoice SET state = ? WHERE hash = ? AND state = ? AND hold = 1 RETURNING locked_by"
        return str(self.db.execute(sql, (state, payment_hash, ACCEPTED)).get)

    def state(self, text: str) -> int:
        """The state of an invoice."""
        return int(self.db.execute("SELECT state FROM invoice WHERE hash = ?", (decode(text).payment_hash,)).get)

    def settled(self) -> int:
        """How many invoices are settled."""
        return int(self.db.execute("SELECT count(*) FROM invoice WHERE state = 3").get)

    async def LockInvoice(self, request: pb.LockInvoiceRequest, context: Any) -> pb.LockInvoiceResponse:
        await self._enter("lock", request.payment_id, context)
        payment_hash = decode(request.payment_request).payment_hash
        row = self.db.execute(
            "SELECT account, state, locked_by, hold FROM invoice WHERE hash = ?", (payment_hash,)
        ).fetchone()
        if row is None:
            await refuse(context, Reason.INVOICE_NOT_FOUND)
        account, state, locked_by, hold = row
        if self.db.execute("SELECT 1 FROM released WHERE payment_id = ?", (request.payment_id,)).fetchone():
            await refuse(context, Reason.INVOICE_NOT_LOCKED)
        if state != OPEN and locked_by != request.payment_id:
            await refuse(context, Reason.INVOICE_LOCKED if state == ACCEPTED else Reason.INVOICE_ALREADY_SETTLED)
        if state == OPEN:
            values = (ACCEPTED, request.payment_id, payment_hash)
            self.db.execute("UPDATE invoice SET state = ?, locked_by = ? WHERE hash = ?", values)
        return pb.LockInvoiceResponse(
            invoice_id=str(uuid.uuid4()),
            account_id=account,
            payment_hash=payment_hash,
            amount_msat=request.amount_msat,
            hold=bool(hold),
        )

    async def CommitInvoice(self, request: pb.CommitInvoiceRequest, context: Any) -> pb.CommitInvoiceResponse:
        await self._enter("commit", request.payment_id, context)
        sql = "SELECT hash, preimage, state, hold FROM invoice WHERE locked_by = ?"
        row = self.db.execute(sql, (request.payment_id,)).fetchone()
        if row is None or row[2] == CANCELED:
            await refuse(context, Reason.INVOICE_NOT_LOCKED)
        payment_hash, preimage, state, hold = row
        if hold:
            return pb.CommitInvoiceResponse(preimage=preimage if state == SETTLED else "")
        self.db.execute("UPDATE invoice SET state = ? WHERE hash = ?", (SETTLED, payment_hash))
        return pb.CommitInvoiceResponse(preimage=preimage)

    async def GetHold(self, request: pb.GetHoldRequest, context: Any) -> pb.GetHoldResponse:
        await self._enter("look", request.payment_id, context)
        row = self.db.execute(
            "SELECT preimage, state FROM invoice WHERE locked_by = ?", (request.payment_id,)
        ).fetchone()
        if row is None:
            await refuse(context, Reason.INVOICE_NOT_LOCKED)
        states = pb.GetHoldResponse.State
        found = {ACCEPTED: states.STATE_HELD, SETTLED: states.STATE_SETTLED, CANCELED: states.STATE_RELEASED}[row[1]]
        return pb.GetHoldResponse(state=found, preimage=row[0] if row[1] == SETTLED else "")

    async def FindInvoice(self, request: pb.FindInvoiceRequest, context: Any) -> pb.FindInvoiceResponse:
        payment_hash = decode(request.payment_request).payment_hash
        if self.db.execute("SELECT 1 FROM invoice WHERE hash = ?", (payment_hash,)).fetchone() is None:
            await refuse(context, Reason.INVOICE_NOT_FOUND)
        return pb.FindInvoiceResponse(invoice_id=str(uuid.uuid4()))

    async def ReleaseInvoice(self, request: pb.ReleaseInvoiceRequest, context: Any) -> pb.ReleaseInvoiceResponse:
        await self._enter("release", request.payment_id, context)
        self.db.execute("INSERT INTO released VALUES (?) ON CONFLICT DO NOTHING", (request.payment_id,))
        sql = "UPDATE invoice SET state = ?, locked_by = '' WHERE locked_by = ? AND state = ?"
        self.db.execute(sql, (OPEN, request.payment_id, ACCEPTED))
        return pb.ReleaseInvoiceResponse()

    async def _enter(self, call: str, payment_id: str, context: Any) -> None:
        self.db.execute("INSERT INTO audit VALUES (?, ?)", (call, payment_id))
        if self.faults.get(call):
            await context.abort(self.faults[call].pop(0), "a fault on demand")

    def register(self, server: grpc.aio.Server) -> None:
        """Serve it."""
        add_InvoiceSettlementServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]


async def refuse(context: Any, reason: Reason) -> None:
    """End the call as the chassis does."""
    status = status_of(ServiceError(reason, "refused"))
    error = ServiceError(reason, "refused")
    await context.abort(error.code, error.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))
