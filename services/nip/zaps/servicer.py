"""The gRPC methods of ZapService: from the wire to the domain and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import grpc

from nipmesh.nip.v1 import zap_service_pb2 as pb
from nipmesh.nip.v1 import zap_service_pb2_grpc
from services.chassis.caller import SERVICE, Access, current_caller
from services.chassis.errors import Reason, ServiceError, not_found
from services.nip.domain.zap_receipts import validate_receipt
from services.nip.errors import domain_errors
from services.nip.keys import Keys, Signing
from services.nip.wire import event_message, event_of
from services.nip.zaps import store, wire
from services.nostr.event_json import json_of_event
from services.nostr.zaps import (
    ZAP_REQUEST_BYTES_MAX,
    ZapError,
    ZapProblem,
    ZapRequest,
    parse_zap_request,
    read_zap_request,
    zap_request_template,
)
from services.storage.database import Database

CREATE_ZAP_REQUEST: Final = "/nipmesh.nip.v1.ZapService/CreateZapRequest"
_OWNERS: Final = Access.USER | SERVICE("payment")
ACCESS: Final[Mapping[str, Access]] = {
    CREATE_ZAP_REQUEST: _OWNERS,
    "/nipmesh.nip.v1.ZapService/ValidateZapRequest": Access.USER,
    "/nipmesh.nip.v1.ZapService/ValidateZapReceipt": Access.USER,
    "/nipmesh.nip.v1.ZapService/GetZapPubkey": Access.USER | SERVICE("invoice"),
    "/nipmesh.nip.v1.ZapService/GetZapReceipt": Access.USER,
}
"""Who may call what; of receipts users see those of their own invoices, operators all."""

Context = grpc.aio.ServicerContext


class ZapServicer(zap_service_pb2_grpc.ZapServiceServicer):
    """nipmesh.nip.v1.ZapService."""

    def __init__(self, database: Database, keys: Keys, pubkey: str) -> None:
        """`pubkey`: whose receipts are this mesh's."""
        self._database = database
        self._keys = keys
        self._pubkey = pubkey

    async def CreateZapRequest(
        self,
        request: pb.CreateZapRequestRequest,
        context: Context[pb.CreateZapRequestRequest, pb.CreateZapRequestResponse],
    ) -> pb.CreateZapRequestResponse:
        """Sign a zap request with a key of the caller."""
        with _zap_errors(), domain_errors():
            signing = Signing(
                owner=current_caller().scope,
                request_id=request.request_id,
                key_id=request.key_id,
                template=zap_request_template(wire.zap_of(request)),
                method=CREATE_ZAP_REQUEST,
            )
            event, replayed = await self._keys.sign(signing)
            text = json_of_event(event)
            if len(text.encode()) > ZAP_REQUEST_BYTES_MAX:
                raise ZapError(ZapProblem.NOT_AN_EVENT)
        return pb.CreateZapRequestResponse(event=event_message(event), zap_request=text, replayed=replayed)

    async def ValidateZapRequest(
        self,
        request: pb.ValidateZapRequestRequest,
        context: Context[pb.ValidateZapRequestRequest, pb.ValidateZapRequestResponse],
    ) -> pb.ValidateZapRequestResponse:
        """Check a zap request as the server of an LNURL must."""
        try:
            found = self._read(request)
        except ZapError as error:
            return pb.ValidateZapRequestResponse(verdict=wire.VERDICTS[error.problem])
        return pb.ValidateZapRequestResponse(verdict=pb.ZAP_VERDICT_VALID, zap_request=wire.request_message(found))

    def _read(self, request: pb.ValidateZapRequestRequest) -> ZapRequest:
        """Return a zap request whose receipt this mesh can make. Raises ZapError."""
        parsed = parse_zap_request(request.zap_request)
        if parsed.receipt_pubkey not in ("", self._pubkey):
            raise ZapError(ZapProblem.WRONG_SENDER)
        amount_msat = request.amount_msat or parsed.amount_msat  # 0: not compared
        return read_zap_request(request.zap_request, amount_msat=amount_msat, lnurl=request.lnurl)

    async def ValidateZapReceipt(
        self,
        request: pb.ValidateZapReceiptRequest,
        context: Context[pb.ValidateZapReceiptRequest, pb.ValidateZapReceiptResponse],
    ) -> pb.ValidateZapReceiptResponse:
        """Check a zap receipt as a client must."""
        author = request.nostr_pubkey or self._pubkey
        try:
            found = validate_receipt(event_of(request.event), nostr_pubkey=author, lnurl=request.lnurl)
        except ZapError as error:
            return pb.ValidateZapReceiptResponse(verdict=wire.VERDICTS[error.problem])
        return pb.ValidateZapReceiptResponse(
            verdict=pb.ZAP_VERDICT_VALID,
            zap_request=wire.request_message(found.request),
            amount_msat=found.invoice.amount_msat or 0,
            payment_hash=found.invoice.payment_hash,
        )

    async def GetZapPubkey(
        self, request: pb.GetZapPubkeyRequest, context: Context[pb.GetZapPubkeyRequest, pb.GetZapPubkeyResponse]
    ) -> pb.GetZapPubkeyResponse:
        """Say whose receipts are this mesh's."""
        return pb.GetZapPubkeyResponse(nostr_pubkey=self._pubkey)

    async def GetZapReceipt(
        self, request: pb.GetZapReceiptRequest, context: Context[pb.GetZapReceiptRequest, pb.GetZapReceiptResponse]
    ) -> pb.GetZapReceiptResponse:
        """Return a receipt and how far it is published."""
        found = await self._database.read(lambda connection: store.find_receipt(connection, request.invoice_id))
        caller = current_caller()
        if found is None or not (caller.operator or found[0].owner_pubkey == caller.subject):
            raise not_found(Reason.ZAP_RECEIPT_NOT_FOUND, "zap receipt")
        return wire.receipt_message(*found)


@contextmanager
def _zap_errors() -> Iterator[None]:
    """Turn the errors of zap requests into ServiceErrors."""
    try:
        yield
    except ZapError as error:
        raise ServiceError(Reason.ZAP_REQUEST_INVALID, str(error), metadata={"check": error.problem.name}) from error
