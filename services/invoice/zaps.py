"""Zap requests (NIP-57) that invoices are made for: checked here, because the invoice commits to them."""

from __future__ import annotations

from typing import Final

import grpc

from nipmesh.nip.v1 import zap_service_pb2
from nipmesh.nip.v1.zap_service_pb2_grpc import ZapServiceStub
from services.chassis.errors import dependency_failed, reason_of
from services.chassis.logs import get_logger
from services.nostr.zaps import ZapError, ZapProblem, ZapRequest, read_zap_request

CALL_S: Final = 2.0
"""Deadline of the call: a healthy one takes milliseconds, and the caller is still there to be told."""

_log = get_logger("invoice")


class Zaps:
    """Checks zap requests. Whose receipts this mesh makes is asked once, and only when a request wants to know."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """`channel` leads to the own sidecar."""
        self._stub = ZapServiceStub(channel)
        self._receipt_pubkey = ""

    async def check(self, text: str, amount_msat: int | None) -> ZapRequest:
        """Return what a zap request says; `amount_msat` is the invoice's, None when the payer chooses.

        Raises ZapError, and BACKEND_UNAVAILABLE when the key of the receipts is wanted and not known.
        """
        request = read_zap_request(text, amount_msat=amount_msat)
        # "There MUST be 0 or 1 `P` tags. If there is one, it MUST be equal to the `zap receipt`'s `pubkey`."
        if request.receipt_pubkey and request.receipt_pubkey != await self._own_pubkey():
            raise ZapError(ZapProblem.WRONG_SENDER)
        return request

    async def _own_pubkey(self) -> str:
        """The author of this mesh's receipts: it never changes, so that it is asked for once."""
        if not self._receipt_pubkey:
            try:
                response = await self._stub.GetZapPubkey(zap_service_pb2.GetZapPubkeyRequest(), timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                _log.warning("the key of zap receipts is not known", code=error.code().name, reason=reason_of(error))
                raise dependency_failed("the key service does not answer") from error
            self._receipt_pubkey = response.nostr_pubkey
        return self._receipt_pubkey
