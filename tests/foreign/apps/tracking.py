"""Where every parcel was seen, in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc

from common.protos import enum_number, message, now
from common.serving import Call, serve

History = message("courier.tracking.History")
Receipt = message("courier.tracking.Receipt")
ReconcileResponse = message("courier.tracking.ReconcileResponse")
ReportSummary = message("courier.tracking.ReportSummary")
Scan = message("courier.tracking.Scan")
NONE, NEVER_SEEN, ELSEWHERE = (
    enum_number("courier.tracking.Discrepancy", f"DISCREPANCY_{name}") for name in ("NONE", "NEVER_SEEN", "ELSEWHERE")
)


class TrackingService:
    """Scans by waybill; followers wake when one is added."""

    def __init__(self) -> None:
        self.scans: dict[str, list[Any]] = defaultdict(list)
        self.added = asyncio.Condition()

    async def add(self, scan: Any) -> Any:
        """Keep a copy with its number and time."""
        kept = Scan.FromString(scan.SerializeToString())
        kept.sequence = len(self.scans[scan.waybill]) + 1
        if not kept.HasField("at"):
            now(kept.at)
        self.scans[scan.waybill].append(kept)
        async with self.added:
            self.added.notify_all()
        return kept

    async def until(self, waybill: str, count: int) -> None:
        """Wait for so many scans of a parcel."""
        async with self.added:
            await self.added.wait_for(lambda: len(self.scans.get(waybill, ())) >= count)

    async def Record(self, request: Any, call: Call) -> Any:
        if not request.waybill:
            await call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "a scan needs a waybill")
        kept = await self.add(request)
        return Receipt(waybill=kept.waybill, sequence=kept.sequence)

    async def GetHistory(self, request: Any, call: Call) -> Any:
        return History(scans=self.scans.get(request.waybill, ()))

    async def Follow(self, request: Any, call: Call) -> AsyncIterator[Any]:
        sent = 0
        while not request.scans_max or sent < request.scans_max:
            await self.until(request.waybill, sent + 1)
            yield self.scans[request.waybill][sent]
            sent += 1

    async def Report(self, requests: AsyncIterator[Any], call: Call) -> Any:
        summary = ReportSummary()
        async for scan in requests:
            kept = await self.add(scan)
            summary.scans += 1
            summary.last_sequences[kept.waybill] = kept.sequence
        return summary

    async def Reconcile(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        async for request in requests:
            known = self.scans.get(request.waybill)
            if not known:
                yield ReconcileResponse(waybill=request.waybill, discrepancy=NEVER_SEEN)
                continue
            elsewhere = known[-1].depot != request.depot
            yield ReconcileResponse(
                waybill=request.waybill, discrepancy=ELSEWHERE if elsewhere else NONE, last=known[-1]
            )


if __name__ == "__main__":
    serve({"courier.tracking.TrackingService": TrackingService()})
