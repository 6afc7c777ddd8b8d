"""Takes consignments: asks for the price, lodges the declaration, keeps the booking in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from common.protos import enum_number, extension, message, now
from common.serving import Call, serve

UNION = frozenset({"AT", "BE", "DE", "FR", "IT", "NL", "PL"})
CARRIER_EORI = "DE4711000000817"
SECONDS_PER_DAY = 86_400
AddressLabel = message("courier.booking.v1.AddressLabel")
Booking = message("courier.booking.v1.Booking")
ClassifyRequest = message("ClassifyRequest")
Declaration = message("Declaration")
Empty = message("google.protobuf.Empty")
GetRateRequest = message("courier.tariff.v1.GetRateRequest")
QuoteResponse = message("courier.booking.v1.QuoteResponse")
Scan = message("courier.tracking.Scan")
BOOKED, CANCELLED = (
    enum_number("courier.booking.v1.Booking.State", f"STATE_{name}") for name in ("BOOKED", "CANCELLED")
)
COLLECTED = enum_number("courier.tracking.Kind", "KIND_COLLECTED")
DECLARANT = extension("courier.customs.Operator.declarant")

bookings: dict[str, Any] = {}
"""By the sender's reference; both services of this program read it."""


class BookingService:
    """One booking per reference."""

    def __init__(self) -> None:
        self.locks: dict[str, asyncio.Lock] = {}
        self.clearances: dict[str, Any] = {}
        """By reference: a booking that failed after its declaration does not lodge another."""

    async def Quote(self, request: Any, call: Call) -> Any:
        rate = await rate_of(request.parcel, call)
        response = QuoteResponse(carriage=rate.carriage)
        response.transit.seconds = rate.transit_days * SECONDS_PER_DAY
        return response

    async def Book(self, request: Any, call: Call) -> Any:
        if not request.reference or not request.parcel.waybill:
            await call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "a booking needs a reference and a waybill")
        async with self.locks.setdefault(request.reference, asyncio.Lock()):
            if request.reference not in bookings:
                bookings[request.reference] = await self.book(request, call)
            return bookings[request.reference]

    async def book(self, request: Any, call: Call) -> Any:
        """Price and declaration first; only then is it booked and seen."""
        parcel = request.parcel
        booking = Booking(reference=request.reference, parcel=parcel, state=BOOKED)
        booking.carriage.CopyFrom((await rate_of(parcel, call)).carriage)
        if not {getattr(parcel, "from").country, parcel.to.country} <= UNION:
            if request.reference not in self.clearances:
                declared = await declaration(parcel, call)
                self.clearances[request.reference] = await call.ask("/CustomsDesk/Declare", declared)
            clearance = self.clearances[request.reference]
            booking.movement_reference = clearance.movement_reference
            booking.duty.CopyFrom(clearance.duty)
        scan = Scan(waybill=parcel.waybill, kind=COLLECTED, depot="sender")
        await call.ask("/courier.tracking.TrackingService/Record", scan)
        now(booking.booked_at)
        return booking

    async def Cancel(self, request: Any, call: Call) -> Any:
        booking = bookings.get(request.reference)
        if booking is None or booking.state == CANCELLED:
            await call.refuse(grpc.StatusCode.FAILED_PRECONDITION, "there is nothing to cancel")
        booking.state = CANCELLED
        return Empty()

    async def ListBookings(self, request: Any, call: Call) -> AsyncIterator[Any]:
        for booking in list(bookings.values()):
            if not request.HasField("state") or booking.state == request.state:
                yield booking


class LabelService:
    """Address labels."""

    async def Print(self, request: Any, call: Call) -> Any:
        booking = bookings.get(request.reference)
        if booking is None:
            await call.refuse(grpc.StatusCode.NOT_FOUND, "no such booking")
        to = booking.parcel.to
        lines = [to.name, *to.lines, f"{to.country}-{to.postcode}"]
        return AddressLabel(waybill=booking.parcel.waybill, lines=lines)


async def rate_of(parcel: Any, call: Call) -> Any:
    """What the tariff says. `from` is a keyword here, not in the protobuf."""
    countries = {"from_country": getattr(parcel, "from").country, "to_country": parcel.to.country}
    request = GetRateRequest(weight_g=parcel.weight_g, dimensions=parcel.dimensions, **countries)
    return await call.ask("/courier.tariff.v1.TariffService/GetRate", request)


async def declaration(parcel: Any, call: Call) -> Any:
    """The declaration of a parcel, its commodities classified where the sender named none."""
    countries = {"origin_country": getattr(parcel, "from").country, "destination_country": parcel.to.country}
    declared = Declaration(waybill=parcel.waybill, **countries)
    declared.Extensions[DECLARANT].eori = CARRIER_EORI
    for item in parcel.goods.items:
        code = item.commodity_code
        if not code:
            found = await call.ask("/CustomsDesk/Classify", ClassifyRequest(description=item.description))
            code = found.commodity_code
        declared.line.add(commodity_code=code, quantity=item.quantity, value=item.value)
    return declared


if __name__ == "__main__":
    serve(
        {"courier.booking.v1.BookingService": BookingService(), "courier.booking.v1.LabelService": LabelService()},
    )
