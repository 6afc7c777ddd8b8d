"""Clients of the carrier's mesh, with generated stubs: one call of each kind, and what applications say of who called."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import grpc.aio

from support.foreign import CourierMesh, grpc_stubs, stubs

DEADLINE_S = 20
GATEWAY, BOOKING, CUSTOMS, DELIVERY, SORTING = (
    f"spiffe://parcels.example/{name}"
    for name in ("gateway", "service/booking", "service/customs", "service/delivery", "service/sorting")
)


def waybill() -> str:
    return f"CP{uuid.uuid4().hex[:12].upper()}"


def parcel(number: str, country: str = "US") -> Any:
    """Two woollen jumpers on their way from Germany."""
    module = stubs("courier/parcel/v1/parcel")
    found = module.Parcel(waybill=number, weight_g=2_400, to=module.Address(country=country, name="Ada"))
    getattr(found, "from").country = "DE"
    value = module.Money(currency="EUR", minor_units=4_000)
    found.goods.items.add(description="a wool jumper", quantity=2, value=value)
    found.extras["signature"] = "adult"
    return found


def scans(number: str, count: int) -> list[Any]:
    tracking = stubs("courier/tracking/tracking")
    position = tracking.Scan.Position(latitude=50.9, longitude=6.9)
    return [
        tracking.Scan(waybill=number, kind="KIND_OUT_FOR_DELIVERY", depot="KOELN", position=position, weights_g=[1, 2])
        for _ in range(count)
    ]


def callers(mesh: CourierMesh, call_id: str) -> dict[str, str]:
    """Who called each SERVICE/METHOD, as its application was told by its sidecar."""
    notes = [note for note in mesh.executions(call_id) if note["event"] == "seen"]
    return {f"{note['service']}/{note['method'].rpartition('/')[2]}": note["caller"] for note in notes}


async def come_back(channel: grpc.aio.Channel, mesh: CourierMesh, call_id: str, number: str) -> Any:
    """`ReturnsService/return`, for which Python's generator makes no client that Python can read."""
    module = stubs("courier/delivery/v1/returns")
    method: Any = channel.unary_unary(
        "/courier.delivery.v1.ReturnsService/return",
        request_serializer=module.ReturnRequest.SerializeToString,
        response_deserializer=module.ReturnResponse.FromString,
    )
    request = module.ReturnRequest(waybill=number, reason="REASON_REFUSED")
    return await method(request, metadata=mesh.metadata(call_id), timeout=DEADLINE_S)


async def book(channel: grpc.aio.Channel, mesh: CourierMesh, call_id: str, **fields: Any) -> Any:
    client = grpc_stubs("courier/booking/v1/booking").BookingServiceStub(channel)
    request = stubs("courier/booking/v1/booking").BookRequest(**fields)
    return await client.Book(request, metadata=mesh.metadata(call_id), timeout=DEADLINE_S)


def delivery(channel: grpc.aio.Channel) -> Any:
    return grpc_stubs("courier/delivery/v1/delivery").DeliveryServiceStub(channel)


async def history(channel: grpc.aio.Channel, number: str) -> list[Any]:
    client = grpc_stubs("courier/tracking/tracking").TrackingServiceStub(channel)
    request = stubs("courier/tracking/tracking").GetHistoryRequest(waybill=number)
    return list((await client.GetHistory(request, timeout=DEADLINE_S)).scans)


async def a_client_stream(channel: grpc.aio.Channel, mesh: CourierMesh, call_id: str) -> None:
    number = waybill()
    metadata = mesh.metadata(call_id)
    receipt = await delivery(channel).HandIn(iter(scans(number, 50)), metadata=metadata, timeout=DEADLINE_S)
    assert (receipt.scans, dict(receipt.last_sequences)) == (50, {number: 50})
    kept = await history(channel, number)
    assert [scan.sequence for scan in kept] == list(range(1, 51))
    assert (kept[-1].position.latitude, list(kept[-1].weights_g), kept[-1].HasField("note")) == (50.9, [1, 2], False)


async def a_server_stream(channel: grpc.aio.Channel, mesh: CourierMesh, call_id: str) -> None:
    """It is answered with what is known, and goes on with what happens then."""
    number, seen = waybill(), asyncio.Event()
    await come_back(channel, mesh, f"{call_id}-return", number)
    request = stubs("courier/delivery/v1/delivery").FollowParcelRequest(waybill=number, scans_max=3)
    following = delivery(channel).FollowParcel(request, metadata=mesh.metadata(call_id), timeout=DEADLINE_S)

    async def follow() -> list[int]:
        found = []
        async for scan in following:
            found.append(scan.sequence)
            seen.set()
        return found

    followed = asyncio.create_task(follow())
    await asyncio.wait_for(seen.wait(), DEADLINE_S)
    for _ in range(2):
        await come_back(channel, mesh, f"{call_id}-return", number)
    assert await followed == [1, 2, 3]


async def a_stream_in_both_directions(channel: grpc.aio.Channel, mesh: CourierMesh, call_id: str) -> None:
    """Each answer is there before the next question is asked."""
    module = stubs("courier/delivery/v1/delivery")
    known, unknown = waybill(), waybill()
    await come_back(channel, mesh, f"{call_id}-return", known)
    loading = delivery(channel).Load(metadata=mesh.metadata(call_id), timeout=DEADLINE_S)
    for shelf, (number, surprising) in enumerate([(known, False), (unknown, True), (known, False)], start=1):
        await loading.write(module.LoadRequest(waybill=number, depot="machine", postcode="50667"))
        answer = await loading.read()
        assert (answer.waybill, answer.shelf, answer.surprising) == (number, shelf, surprising)
    await loading.done_writing()
    assert await loading.read() is grpc.aio.EOF
    assert await loading.code() is grpc.StatusCode.OK


STREAMS = {
    "client": (a_client_stream, ("HandIn", "Induct", "Report")),
    "server": (a_server_stream, ("FollowParcel", "Watch", "Follow")),
    "both": (a_stream_in_both_directions, ("Load", "Sort", "Reconcile")),
}
"""Kind to the client that calls so, and the methods of the three hops."""
