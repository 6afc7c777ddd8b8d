"""The customs desk. It is old: it listens on a TCP port and nowhere else."""

from __future__ import annotations

import os
import re
from typing import Any

import grpc

from common.protos import extension, message
from common.serving import Call, serve

COMMODITIES = {"jumper": "611020", "shoe": "640399", "phone": "851713", "toy": "950300"}
REFERENCE = re.compile(r"[0-9]{2}[A-Z]{2}[0-9]{8}")
"""Year, country, desk and number. Any desk takes in goods that were declared at another."""
Clearance = message("Clearance")
ClassifyResponse = message("ClassifyResponse")
GetDutyRequest = message("courier.tariff.v1.GetDutyRequest")
DECLARANT = extension("courier.customs.Operator.declarant")


class CustomsDesk:
    """Each declaration gets a movement reference of its own, also the second of the same goods."""

    def __init__(self, desk: int) -> None:
        self.desk = desk
        self.lodged = 0
        self.arrived: set[str] = set()

    async def Declare(self, request: Any, call: Call) -> Any:
        duty = GetDutyRequest(to_country=request.destination_country)
        for line in request.line:
            wanted = duty.lines.add(commodity_code=line.commodity_code)
            wanted.value.currency, wanted.value.minor_units = "EUR", line.value.minor_units * line.quantity
        owed = await call.ask("/courier.tariff.v1.TariffService/GetDuty", duty)
        self.lodged += 1
        reference = f"26{request.destination_country}{self.desk:02}{self.lodged:06}"
        clearance = Clearance(movement_reference=reference, lodged_by=request.Extensions[DECLARANT].eori)
        clearance.duty.ParseFromString(owed.duty.SerializeToString())
        return clearance

    async def Classify(self, request: Any, call: Call) -> Any:
        for word, code in COMMODITIES.items():
            if word in request.description.lower():
                return ClassifyResponse(commodity_code=code)
        return ClassifyResponse()

    async def Arrive(self, request: Any, call: Call) -> Any:
        if not REFERENCE.fullmatch(request.movement_reference):
            await call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "that is no movement reference")
        self.arrived.add(request.movement_reference)
        return Clearance(movement_reference=request.movement_reference, cleared=True)


if __name__ == "__main__":
    desk = CustomsDesk(int(os.environ["NIPMESH_REPLICA"]))
    serve({"CustomsDesk": desk}, listen=f"127.0.0.1:{os.environ['PORT']}")
