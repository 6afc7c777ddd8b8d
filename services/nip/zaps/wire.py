"""Between the messages of ZapService and the domain; nothing is decided here."""

from __future__ import annotations

from typing import Final

from nipmesh.nip.v1 import zap_service_pb2 as pb
from services.nip.wire import event_message, timestamp_of_us
from services.nip.zaps.store import Publication, Receipt
from services.nostr.zaps import Zap, ZapProblem, ZapRequest

MICROSECONDS_PER_MS: Final = 1_000

VERDICTS: Final = {problem: pb.ZapVerdict.Value(f"ZAP_VERDICT_{problem.name}") for problem in ZapProblem}
"""How each problem is said to the caller."""


def request_message(request: ZapRequest) -> pb.ZapDetails:
    """Return what a zap request says."""
    return pb.ZapDetails(
        event_id=request.event.id,
        sender_pubkey=request.event.pubkey,
        recipient_pubkey=request.recipient_pubkey,
        relays=request.relays,
        amount_msat=request.amount_msat or 0,
        lnurl=request.lnurl,
        zapped_event_id=request.event_id,
        zapped_coordinate=request.coordinate,
        content=request.event.content,
    )


def zap_of(message: pb.CreateZapRequestRequest) -> Zap:
    """Return the zap request to make."""
    return Zap(
        recipient_pubkey=message.recipient_pubkey,
        relays=tuple(message.relays),
        amount_msat=message.amount_msat or None,
        lnurl=message.lnurl,
        event_id=message.zapped_event_id,
        coordinate=message.zapped_coordinate,
        kind=message.zapped_kind if message.HasField("zapped_kind") else None,
        content=message.content,
    )


def receipt_message(receipt: Receipt, publications: tuple[Publication, ...]) -> pb.GetZapReceiptResponse:
    """Return a receipt and how far it is published."""
    return pb.GetZapReceiptResponse(
        event=event_message(receipt.event), publications=[_publication(each) for each in publications]
    )


def _publication(publication: Publication) -> pb.GetZapReceiptResponse.Publication:
    message = pb.GetZapReceiptResponse.Publication(
        relay_url=publication.relay_url,
        state=pb.GetZapReceiptResponse.Publication.State.ValueType(publication.state),
        attempts=publication.attempts,
        problem=publication.problem,
    )
    if publication.next_run_ms is not None:
        message.next_attempt_time.CopyFrom(timestamp_of_us(publication.next_run_ms * MICROSECONDS_PER_MS))
    return message
