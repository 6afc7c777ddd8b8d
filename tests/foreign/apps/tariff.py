"""Every price: carriage by zone, weight and volume, duty by commodity code."""

from __future__ import annotations

from typing import Any

from common.protos import message
from common.serving import Call, serve

UNION = frozenset({"AT", "BE", "DE", "FR", "IT", "NL", "PL"})
DUTY_PERCENT = {"61": 12, "64": 8, "85": 0, "95": 5}
"""By chapter of the Harmonized System; other chapters 3 %."""
DUTY_PERCENT_OTHER = 3
VOLUME_DIVISOR = 5_000
"""Cubic millimetres to grams: five litres weigh one kilogram."""

GetRateResponse = message("courier.tariff.v1.GetRateResponse")
GetDutyResponse = message("courier.tariff.v1.GetDutyResponse")


class TariffService:
    """Pure functions; any replica answers the same."""

    async def GetRate(self, request: Any, call: Call) -> Any:
        size = request.dimensions
        volume_g = size.length_mm * size.width_mm * size.height_mm // VOLUME_DIVISOR
        kilograms = -(-max(request.weight_g, volume_g, 1) // 1000)
        zone = zone_of(request.from_country, request.to_country)
        response = GetRateResponse(transit_days=2 * zone)
        response.carriage.currency, response.carriage.minor_units = "EUR", 390 * zone + 110 * zone * kilograms
        return response

    async def GetDuty(self, request: Any, call: Call) -> Any:
        response = GetDutyResponse()
        for line in request.lines:
            percent = DUTY_PERCENT.get(line.commodity_code[:2], DUTY_PERCENT_OTHER)
            response.by_commodity[line.commodity_code] += line.value.minor_units * percent // 100
        total = sum(response.by_commodity.values())
        response.duty.currency, response.duty.minor_units = "EUR", total
        return response


def zone_of(origin: str, destination: str) -> int:
    """1 at home, 2 within the customs union, 3 beyond."""
    if origin == destination:
        return 1
    return 2 if {origin, destination} <= UNION else 3


if __name__ == "__main__":
    serve({"courier.tariff.v1.TariffService": TariffService()})
