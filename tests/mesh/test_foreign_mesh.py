"""Another team's mesh: a carrier's services, run by the real runner, called as its clients call them.

What is proved for our own services elsewhere holds for protos that we never saw: proto2 without a package, an edition, a
package without a version, a method that is called like a keyword, two services of one name, an application that has
only TCP, and one that is not in Python.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.conftest import alive, process_ids
from support.courier import (
    BOOKING,
    CUSTOMS,
    DEADLINE_S,
    DELIVERY,
    GATEWAY,
    SORTING,
    STREAMS,
    book,
    callers,
    come_back,
    history,
    parcel,
    waybill,
)
from support.foreign import CourierMesh, grpc_stubs, missing_toolchain, stubs, without_machine

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

BUF_SECONDS_MAX = 60


@pytest.fixture(scope="module")
def courier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CourierMesh]:
    """The whole carrier; without Node.js the one that sorts by hand."""
    mesh = CourierMesh(tmp_path_factory.mktemp("courier"), *((without_machine,) if missing_toolchain() else ()))
    mesh.up()
    pids = process_ids(mesh)
    yield mesh
    mesh.down()
    assert not [pid for pid in pids if alive(pid)]


@pytest.fixture
def machine(courier: CourierMesh) -> CourierMesh:
    """The carrier with its machine, or a skip that says what is missing."""
    if not courier.has_machine:
        pytest.skip(str(missing_toolchain()))
    return courier


@pytest.fixture
async def channel(courier: CourierMesh) -> AsyncIterator[grpc.aio.Channel]:
    """A client's channel to the gateway."""
    async with courier.channel() as opened:
        yield opened


@pytest.fixture
def call_id() -> str:
    return str(uuid.uuid4())


async def test_a_unary_call_goes_three_hops_deep_through_an_application_that_has_only_tcp(
    courier: CourierMesh, channel: grpc.aio.Channel, call_id: str
) -> None:
    booking = await book(channel, courier, call_id, reference=call_id, parcel=parcel(waybill()))
    assert re.fullmatch(r"26US0[01]\d{6}", booking.movement_reference)
    assert (booking.duty.minor_units, booking.carriage.minor_units) == (960, 2_160)
    assert booking.parcel.extras == {"signature": "adult"}
    assert callers(courier, call_id) == {
        "booking/Book": GATEWAY,
        "customs/Classify": BOOKING,
        "customs/Declare": BOOKING,
        "tariff/GetDuty": CUSTOMS,
        "tariff/GetRate": BOOKING,
        "tracking/Record": BOOKING,
    }


async def test_a_unary_call_goes_through_the_machine(
    machine: CourierMesh, channel: grpc.aio.Channel, call_id: str
) -> None:
    number = waybill()
    answer = await come_back(channel, machine, call_id, number)
    assert (answer.waybill, answer.chute, answer.sequence) == (number, 99, 1)
    assert callers(machine, call_id) == {
        "delivery/return": GATEWAY,
        "sorting/Divert": DELIVERY,
        "tracking/Record": SORTING,
    }
    (scan,) = await history(channel, number)
    assert (scan.note, scan.HasField("note"), scan.kind) == ("REASON_REFUSED", True, 5)


@pytest.mark.parametrize("kind", STREAMS)
async def test_every_kind_of_stream_goes_three_hops_deep(
    machine: CourierMesh, channel: grpc.aio.Channel, call_id: str, kind: str
) -> None:
    calling, (outer, middle, inner) = STREAMS[kind]
    await calling(channel, machine, call_id)
    found = {f"delivery/{outer}": GATEWAY, f"sorting/{middle}": DELIVERY, f"tracking/{inner}": SORTING}
    assert callers(machine, call_id) == found
    for where in found:
        assert (machine.seen(call_id, where), machine.done(call_id, where)) == (1, 1)


async def test_services_of_one_name_in_two_packages_are_two(
    machine: CourierMesh, channel: grpc.aio.Channel, call_id: str
) -> None:
    number = waybill()
    await book(channel, machine, call_id, reference=call_id, parcel=parcel(number))
    booking, sorting = "courier/booking/v1/booking", "courier/sorting/v1/sorting"
    addresses, routings = grpc_stubs(booking).LabelServiceStub(channel), grpc_stubs(sorting).LabelServiceStub(channel)
    address = await addresses.Print(stubs(booking).PrintRequest(reference=call_id), timeout=DEADLINE_S)
    routing = await routings.Print(stubs(sorting).PrintRequest(waybill=number), timeout=DEADLINE_S)
    assert (address.waybill, list(address.lines)) == (number, ["Ada", "US-"])
    assert routing.barcode == f"{number}|{routing.chute:02}"


def lodge(mesh: CourierMesh, target: str, path: str, **fields: Any) -> Any:
    """One unary call of raw bytes; the error if there is one."""
    with grpc.insecure_channel(target) as opened:
        call = opened.unary_unary(path)
        try:
            return call(b"", metadata=mesh.metadata(fields["call_id"]), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return error.code()


DENIED = [
    ("delivery", "/courier.tariff.v1.TariffService/GetRate"),
    ("booking", "/courier.tariff.v1.TariffService/GetDuty"),
    ("booking", "/CustomsDesk/Arrive"),
    ("booking", "/courier.sorting.v1.LabelService/Print"),
    ("customs", "/courier.tariff.v1.TariffService/GetRate"),
    ("customs", "/CustomsDesk/Declare"),
    ("tariff", "/courier.tracking.TrackingService/GetHistory"),
]


@pytest.mark.parametrize(("caller", "path"), DENIED)
def test_what_is_not_declared_is_denied(courier: CourierMesh, call_id: str, caller: str, path: str) -> None:
    assert lodge(courier, courier.egress(caller), path, call_id=call_id) is grpc.StatusCode.PERMISSION_DENIED
    assert courier.executions(call_id) == []


@pytest.mark.parametrize(
    ("caller", "path"),
    [("booking", "/courier.tariff.v1.TariffService/GetRate"), ("customs", "/courier.tariff.v1.TariffService/GetDuty")],
)
def test_what_is_declared_is_let_through(courier: CourierMesh, call_id: str, caller: str, path: str) -> None:
    assert isinstance(lodge(courier, courier.egress(caller), path, call_id=call_id), bytes)
    assert len(courier.executions(call_id)) == 2


@pytest.mark.parametrize(
    "path",
    [
        "/courier.tariff.v1.TariffService/GetRate",
        "/courier.tracking.TrackingService/Record",
        "/courier.sorting.v1.SortingService/Divert",
        "/tracking.TrackingService/GetHistory",
    ],
)
def test_what_is_not_exposed_does_not_exist(courier: CourierMesh, call_id: str, path: str) -> None:
    assert lodge(courier, courier.gateway, path, call_id=call_id) is grpc.StatusCode.UNIMPLEMENTED
    assert courier.executions(call_id) == []


def counts(mesh: CourierMesh, service: str, cluster: str) -> dict[tuple[str, str], int]:
    """Calls by (service, method) that succeeded, summed over the replicas' sidecars."""
    found: dict[tuple[str, str], int] = {}
    line = re.compile(r'envoy_cluster_grpc_success\{.*envoy_cluster_name="([^"]*)".*\} (\d+)')
    for replica in mesh.replicas(service):
        with urllib.request.urlopen(f"http://{replica['scrape']}/metrics/envoy", timeout=10) as answer:
            for text in answer.read().decode().splitlines():
                match, labels = line.fullmatch(text), dict(re.findall(r'grpc_(service|method)="([^"]*)"', text))
                own = re.search(r'[,{]grpc_service="([^"]*)",grpc_method="([^"]*)"', text)
                if match is not None and own is not None and labels and match.group(1) == cluster:
                    key = (own.group(1), own.group(2))
                    found[key] = found.get(key, 0) + int(match.group(2))
    return found


async def test_metrics_name_each_method_whatever_it_is_called(
    courier: CourierMesh, channel: grpc.aio.Channel, call_id: str
) -> None:
    returned, declared = ("courier.delivery.v1.ReturnsService", "return"), ("CustomsDesk", "Declare")
    before = (counts(courier, "delivery", "application"), counts(courier, "customs", "application"))
    await come_back(channel, courier, call_id, waybill())
    for number in range(3):
        await book(channel, courier, call_id, reference=f"{call_id}-{number}", parcel=parcel(waybill()))
    after = (counts(courier, "delivery", "application"), counts(courier, "customs", "application"))
    assert after[0][returned] - before[0].get(returned, 0) == 1
    assert after[1][declared] - before[1].get(declared, 0) == 3
    labels = counts(courier, "booking", "outbound_customs")
    assert {service for service, _ in labels} == {"CustomsDesk"}
    assert ("courier.booking.v1.BookingService", "Book") in counts(courier, "booking", "application")


class Curl:
    """`buf curl` with nothing but the gateway's reflection."""

    def __init__(self, mesh: CourierMesh) -> None:
        self.mesh = mesh
        self.command = [
            str(Path(sys.executable).parent / "buf"),
            "curl",
            "--http2-prior-knowledge",
            "--protocol",
            "grpc",
        ]

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, timeout=BUF_SECONDS_MAX, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def call(self, path: str, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
        """Every response to these requests."""
        text = self.run("-d", "\n".join(map(json.dumps, bodies)), f"http://{self.mesh.gateway}{path}").strip()
        decoder, found = json.JSONDecoder(), []
        while text:
            value, end = decoder.raw_decode(text)
            found.append(value)
            text = text[end:].strip()
        return found


@pytest.fixture
def curl(courier: CourierMesh) -> Curl:
    return Curl(courier)


def test_buf_curl_lists_what_is_exposed(curl: Curl) -> None:
    listed = set(curl.run("--list-services", f"http://{curl.mesh.gateway}").split())
    expected = {"CustomsDesk", "courier.tracking.TrackingService"}
    expected |= {f"courier.booking.v1.{name}Service" for name in ("Booking", "Label")}
    expected |= {f"courier.delivery.v1.{name}Service" for name in ("Delivery", "Returns")}
    expected |= {"courier.sorting.v1.LabelService"} if curl.mesh.has_machine else set()
    assert {name for name in listed if not name.startswith("grpc.")} == expected
    methods = curl.run("--list-methods", f"http://{curl.mesh.gateway}").split()
    assert "courier.tracking.TrackingService/GetHistory" in methods
    assert "courier.tracking.TrackingService/Record" not in methods


def test_buf_curl_calls_every_kind(curl: Curl) -> None:
    number = waybill()
    (returned,) = curl.call("/courier.delivery.v1.ReturnsService/return", {"waybill": number})
    assert returned["sequence"] == "1"
    path = "/courier.delivery.v1.DeliveryService"
    (receipt,) = curl.call(f"{path}/HandIn", {"waybill": number}, {"waybill": number, "position": {"latitude": 1.5}})
    assert receipt == {"scans": 2, "lastSequences": {number: "3"}}
    followed = curl.call(f"{path}/FollowParcel", {"waybill": number, "scansMax": 3})
    assert [scan["sequence"] for scan in followed] == ["1", "2", "3"]
    assert followed[2]["position"] == {"latitude": 1.5}
    loaded = curl.call(f"{path}/Load", {"waybill": number}, {"waybill": waybill()})
    assert [answer.get("surprising", False) for answer in loaded] == [False, True]


def test_buf_curl_sends_groups_and_extensions_of_proto2(curl: Curl) -> None:
    declaration = {"waybill": waybill(), "originCountry": "DE", "destinationCountry": "CH"}
    line = {"commodityCode": "640399", "value": {"minorUnits": "1000"}}
    declarant = {"[courier.customs.Operator.declarant]": {"eori": "FR1"}, "[courier.customs.vat_number]": "CHE-1"}
    (clearance,) = curl.call("/CustomsDesk/Declare", {**declaration, "line": [line, line], **declarant})
    assert clearance["lodgedBy"] == "FR1"
    assert clearance["duty"] == {"currency": "EUR", "minorUnits": "160"}
    (arrived,) = curl.call("/CustomsDesk/Arrive", {"movementReference": clearance["movementReference"]})
    assert arrived["cleared"] is True


FAULTS = {
    "python before": ("tariff/GetRate", "before", (1, 0)),
    "python headers": ("tariff/GetRate", "headers", (1, 0)),
    "python after": ("tariff/GetRate", "after", (1, 1)),
    "tcp before": ("customs/Declare", "before", (1, 0)),
    "tcp after": ("customs/Declare", "after", (1, 1)),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_an_application_misbehaves_where_and_when_it_is_told(
    courier: CourierMesh, channel: grpc.aio.Channel, call_id: str, case: str
) -> None:
    where, when, (seen, done) = FAULTS[case]
    client = grpc_stubs("courier/booking/v1/booking").BookingServiceStub(channel)
    request = stubs("courier/booking/v1/booking").BookRequest(reference=call_id, parcel=parcel(waybill()))
    fault = f"at={where}; when={when}; code=FAILED_PRECONDITION; details=no stamp; delay=20"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.Book(request, metadata=courier.metadata(call_id, fault), timeout=DEADLINE_S)
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no stamp")
    assert (courier.seen(call_id, where), courier.done(call_id, where)) == (seen, done)
    assert courier.done(call_id, "booking/Book") == 0


@pytest.mark.parametrize(("when", "received"), [("before", 0), ("headers", 0), ("after", 1)])
async def test_the_machine_misbehaves_in_the_same_way(
    machine: CourierMesh, channel: grpc.aio.Channel, call_id: str, when: str, received: int
) -> None:
    """Asked in the place of `delivery`, which does not pass on what stands in trailers."""
    number, tracking = waybill(), stubs("courier/tracking/tracking")
    await come_back(channel, machine, f"{call_id}-return", number)
    metadata = machine.metadata(call_id, f"at=sorting/Watch; when={when}; code=RESOURCE_EXHAUSTED; pushback=-1")
    async with grpc.aio.insecure_channel(machine.egress("delivery")) as inside:
        client = grpc_stubs("courier/sorting/v1/sorting").SortingServiceStub(inside)
        request = tracking.FollowRequest(waybill=number, scans_max=1)
        watching = client.Watch(request, metadata=metadata, timeout=DEADLINE_S)
        for _ in range(received):
            assert (await watching.read()).waybill == number
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watching.read()
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "as told")
    assert ("grpc-retry-pushback-ms", "-1") in tuple(error.value.trailing_metadata())
    assert (machine.seen(call_id, "sorting/Watch"), machine.done(call_id, "sorting/Watch")) == (1, 0)


ATTEMPTS = 24
"""Each is as likely to meet the one desk as the other: all miss it once in 16 million runs."""


@pytest.mark.parametrize(("reference", "seen"), [("26US00000001", 2), ("nonsense", 1)])
async def test_what_may_run_twice_is_repeated_at_an_application_with_tcp(
    courier: CourierMesh, channel: grpc.aio.Channel, call_id: str, reference: str, seen: int
) -> None:
    """UNAVAILABLE from one desk, so the other one is asked; another error is an answer."""
    desk, request = grpc_stubs("customs").CustomsDeskStub(channel), stubs("customs").ArrivalNotice
    fault = None if reference == "nonsense" else "at=customs/Arrive; code=UNAVAILABLE; times=1; replica=0"
    codes = []
    for attempt in range(ATTEMPTS):
        notice, name = request(movement_reference=reference), f"{call_id}-{attempt}"
        call = desk.Arrive(notice, metadata=courier.metadata(name, fault), timeout=DEADLINE_S)
        codes.append(await call.code())
    good = grpc.StatusCode.INVALID_ARGUMENT if fault is None else grpc.StatusCode.OK
    assert codes == [good] * ATTEMPTS
    assert max(courier.seen(f"{call_id}-{attempt}", "customs/Arrive") for attempt in range(ATTEMPTS)) == seen


async def test_what_may_run_twice_is_repeated_at_an_application_in_javascript(
    machine: CourierMesh, channel: grpc.aio.Channel, call_id: str
) -> None:
    request = stubs("courier/delivery/v1/returns").ReturnRequest(waybill=waybill())
    method: Any = channel.unary_unary("/courier.delivery.v1.ReturnsService/return")
    metadata = machine.metadata(call_id, "at=sorting/Divert; code=UNAVAILABLE; times=1")
    await method(request.SerializeToString(), metadata=metadata, timeout=DEADLINE_S)
    assert (machine.seen(call_id, "sorting/Divert"), machine.done(call_id, "sorting/Divert")) == (2, 1)
    assert machine.seen(call_id, "delivery/return") == 1


async def test_what_was_done_is_known_also_of_the_dead(
    courier: CourierMesh, channel: grpc.aio.Channel, call_id: str
) -> None:
    """A declaration is lodged once, though its desk dies before it can say so."""
    client = grpc_stubs("courier/booking/v1/booking").BookingServiceStub(channel)
    request = stubs("courier/booking/v1/booking").BookRequest(reference=call_id, parcel=parcel(waybill()))
    fault = "at=customs/Declare; when=after; exit=1"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.Book(request, metadata=courier.metadata(call_id, fault), timeout=DEADLINE_S)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (courier.seen(call_id, "customs/Declare"), courier.done(call_id, "customs/Declare")) == (1, 1)
    assert (courier.seen(call_id, "booking/Book"), courier.done(call_id, "booking/Book")) == (1, 0)
    await asyncio.to_thread(courier.wait_ready)
