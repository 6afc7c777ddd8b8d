"""The last mile. With DEPOT=machine a sorting machine stands between the vans and tracking; with DEPOT=floor it does not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from common.protos import enum_number, message
from common.serving import Call, serve

SHELVES = 4
TRACKING = "/courier.tracking.TrackingService"
SORTING = "/courier.sorting.v1.SortingService"
DivertRequest = message("courier.sorting.v1.DivertRequest")
FollowRequest = message("courier.tracking.FollowRequest")
HandInReceipt = message("courier.delivery.v1.HandInReceipt")
LoadResponse = message("courier.delivery.v1.LoadResponse")
ProofOfDelivery = message("courier.delivery.v1.ProofOfDelivery")
ReconcileRequest = message("courier.tracking.ReconcileRequest")
ReturnResponse = message("courier.delivery.v1.ReturnResponse")
Scan = message("courier.tracking.Scan")
SortRequest = message("courier.sorting.v1.SortRequest")
DELIVERED, RETURNED = (enum_number("courier.tracking.Kind", f"KIND_{name}") for name in ("DELIVERED", "RETURNED"))
NEVER_SEEN = enum_number("courier.tracking.Discrepancy", "DISCREPANCY_NEVER_SEEN")
REASONS = message("courier.delivery.v1.ReturnRequest").DESCRIPTOR.enum_types_by_name["Reason"].values_by_number


class DeliveryService:
    """Drivers and their handhelds."""

    def __init__(self, *, has_machine: bool) -> None:
        self.has_machine = has_machine
        self.proofs: dict[str, str] = {}

    async def Deliver(self, request: Any, call: Call) -> Any:
        proof = request.neighbour.SerializeToString() if request.HasField("neighbour") else request.signature
        if not proof:
            await call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "nothing proves the delivery")
        digest = hashlib.sha256(proof).hexdigest()
        known = self.proofs.get(request.waybill)
        if known not in {None, digest}:
            await call.refuse(grpc.StatusCode.FAILED_PRECONDITION, "delivered already, to somebody else")
        if known is None:
            await call.ask(f"{TRACKING}/Record", Scan(waybill=request.waybill, kind=DELIVERED, depot="door"))
            self.proofs[request.waybill] = digest
        return ProofOfDelivery(waybill=request.waybill, digest=digest)

    async def HandIn(self, requests: AsyncIterator[Any], call: Call) -> Any:
        path = f"{SORTING}/Induct" if self.has_machine else f"{TRACKING}/Report"
        summary = await call.ask(path, requests)
        return HandInReceipt(scans=summary.scans, last_sequences=summary.last_sequences)

    async def FollowParcel(self, request: Any, call: Call) -> AsyncIterator[Any]:
        path = f"{SORTING}/Watch" if self.has_machine else f"{TRACKING}/Follow"
        async for scan in call.ask(path, FollowRequest(waybill=request.waybill, scans_max=request.scans_max)):
            yield scan

    async def Load(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        answers = self.sorted(requests, call) if self.has_machine else self.reconciled(requests, call)
        count = 0
        async for waybill, surprising in answers:
            yield LoadResponse(waybill=waybill, shelf=1 + count % SHELVES, surprising=surprising)
            count += 1

    async def sorted(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[tuple[str, bool]]:
        """What the machine says of each parcel."""
        asked = (SortRequest(waybill=r.waybill, depot=r.depot, postcode=r.postcode) async for r in requests)
        async for answer in call.ask(f"{SORTING}/Sort", asked):
            yield answer.waybill, answer.surprising

    async def reconciled(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[tuple[str, bool]]:
        """What tracking says of each parcel."""
        asked = (ReconcileRequest(waybill=r.waybill, depot=r.depot) async for r in requests)
        async for answer in call.ask(f"{TRACKING}/Reconcile", asked):
            yield answer.waybill, answer.discrepancy == NEVER_SEEN


class ReturnsService:
    """What comes back."""

    def __init__(self, *, has_machine: bool) -> None:
        self.has_machine = has_machine

    async def return_(self, request: Any, call: Call) -> Any:
        if not self.has_machine:
            receipt = await call.ask(f"{TRACKING}/Record", Scan(waybill=request.waybill, kind=RETURNED, depot="floor"))
            return ReturnResponse(waybill=request.waybill, sequence=receipt.sequence)
        divert = DivertRequest(waybill=request.waybill, reason=REASONS[request.reason].name)
        diverted = await call.ask(f"{SORTING}/Divert", divert)
        return ReturnResponse(waybill=request.waybill, chute=diverted.chute, sequence=diverted.sequence)


if __name__ == "__main__":
    machine = os.environ["DEPOT"] == "machine"
    serve(
        {
            "courier.delivery.v1.DeliveryService": DeliveryService(has_machine=machine),
            "courier.delivery.v1.ReturnsService": ReturnsService(has_machine=machine),
        }
    )
