"""The server with real clients, beside a real Envoy that watches a real gRPC server."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from generator.introspection.admin import AdminError, gauges, get_json, is_ready, post
from generator.introspection.exposure import ExposedService, Exposure
from generator.introspection.health import is_healthy
from generator.introspection.server import Settings, build, poll_for_ever
from generator.pki import write_private

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
EXPOSURE = Exposure(
    services=(ExposedService(name="shop.v1.Shop", cluster="shop", methods=frozenset({"Buy", "Watch"})),)
)
V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
ENVOY = Path(sys.executable).parent / "envoy"


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait at most 10 s for something that happens by itself."""
    for _ in range(500):
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never happened")


def bootstrap(folder: Path) -> dict[str, object]:
    """One cluster over a pipe, with active gRPC health checks; admin on a pipe."""
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    check = {
        "timeout": "1s",
        "interval": "0.1s",
        "no_traffic_interval": "0.1s",
        "unhealthy_interval": "0.1s",
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
        "grpc_health_check": {},
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": f"{folder}/app.sock"}}}}
    cluster = {
        "name": "shop",
        "type": "STATIC",
        "typed_extension_protocol_options": http2,
        "health_checks": [check],
        "load_assignment": {"cluster_name": "shop", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {
        "admin": {"address": {"pipe": {"path": f"{folder}/admin.sock", "mode": 0o600}}},
        "static_resources": {"clusters": [cluster]},
    }


@pytest.fixture
async def envoy(tmp_path: Path) -> AsyncIterator[Path]:
    """The admin socket of a running Envoy."""
    (tmp_path / "bootstrap.json").write_text(json.dumps(bootstrap(tmp_path)))
    words = [str(ENVOY), "-c", str(tmp_path / "bootstrap.json"), "--disable-hot-restart", "--concurrency", "1"]
    process = await asyncio.create_subprocess_exec(*words, "-l", "error")
    socket = tmp_path / "admin.sock"
    await until(socket.exists)
    yield socket
    process.kill()
    await process.wait()


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[health.aio.HealthServicer]:
    """A gRPC server whose health the test decides."""
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{tmp_path}/app.sock")
    await server.start()
    await servicer.set("", SERVING)
    yield servicer
    await server.stop(None)


@pytest.fixture
async def channel(tmp_path: Path, shop: descriptor_pb2.FileDescriptorSet) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the introspection server; its gateway is wherever `envoy` put it."""
    (tmp_path / "set.binpb").write_bytes(shop.SerializeToString())
    (tmp_path / "methods.json").write_bytes(EXPOSURE.to_json())
    listen = f"unix:{tmp_path}/introspection.sock"
    server, gateway_health, source = await build(
        Settings(
            listen=listen,
            descriptor_set=tmp_path / "set.binpb",
            exposure=tmp_path / "methods.json",
            admin=tmp_path / "admin.sock",
            reflection=True,
        )
    )
    await server.start()
    polling = asyncio.create_task(poll_for_ever(gateway_health, source))
    async with grpc.aio.insecure_channel(listen) as channel:
        yield channel
    polling.cancel()
    await server.stop(None)


async def reflect(channel: grpc.aio.Channel, service: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**request)]))
    async for response in call:
        return response
    raise AssertionError("no answer")


@pytest.mark.parametrize("version", [V1, V1ALPHA])
async def test_both_versions_list_and_describe_what_is_exposed(channel: grpc.aio.Channel, version: str) -> None:
    listed = await reflect(channel, version, list_services="*")
    services = [service.name for service in listed.list_services_response.service]
    assert services == ["grpc.health.v1.Health", V1, V1ALPHA, "shop.v1.Shop"]
    described = await reflect(channel, version, file_containing_symbol="shop.v1.Shop")
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(content)
        for content in described.file_descriptor_response.file_descriptor_proto
    ]
    assert {file.name for file in files} == {"shop/v1/shop.proto", "google/protobuf/timestamp.proto"}
    itself = await reflect(channel, version, file_containing_symbol=version)
    assert itself.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("symbol", ["shop.v1.Internal", "shop.v1.Secret", "shop.v1.Shop.Burn", "shop.v1.BurnRequest"])
async def test_the_inside_is_not_told(channel: grpc.aio.Channel, symbol: str) -> None:
    answer = await reflect(channel, V1, file_containing_symbol=symbol)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_health_follows_the_gateways_view(
    app: health.aio.HealthServicer, envoy: Path, channel: grpc.aio.Channel
) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    seen: list[int] = []

    async def watch() -> None:
        async for update in stub.Watch(health_pb2.HealthCheckRequest(service="shop.v1.Shop")):
            seen.append(update.status)

    watching = asyncio.create_task(watch())
    await eventually(stub, "shop.v1.Shop", SERVING)
    await eventually(stub, "", SERVING)
    await app.set("", NOT_SERVING)
    await eventually(stub, "shop.v1.Shop", NOT_SERVING)
    await eventually(stub, "", NOT_SERVING)
    await app.set("", SERVING)
    await eventually(stub, "shop.v1.Shop", SERVING)
    await until(lambda: len(seen) >= 3)
    watching.cancel()
    assert seen[-3:] == [SERVING, NOT_SERVING, SERVING]


async def eventually(stub: health_pb2_grpc.HealthStub, service: str, wanted: int) -> None:
    async def is_wanted() -> bool:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        status = (await watch.read()).status
        watch.cancel()
        return bool(status == wanted)

    await until(is_wanted)


async def test_what_is_exposed_may_change_while_it_runs(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    other = ExposedService(name="shop.v1.Internal", cluster="shop", methods=frozenset({"Lock"}))
    broken = replace(other, methods=frozenset({"NoSuchMethod"}))
    write_private(tmp_path / "methods.json", Exposure(services=(broken,)).to_json())
    listed = await reflect(channel, V1, list_services="*")
    assert "shop.v1.Shop" in str(listed), "what does not fit changes nothing"
    write_private(tmp_path / "methods.json", Exposure(services=(other,)).to_json())
    listed = await reflect(channel, V1, list_services="*")
    assert "shop.v1.Internal" in str(listed)
    assert "shop.v1.Shop" not in str(listed)
    await eventually(stub, "shop.v1.Internal", NOT_SERVING)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="shop.v1.Shop"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_health_of_an_unknown_service(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="shop.v1.Internal"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="shop.v1.Internal"))
    assert (await watch.read()).status == SERVICE_UNKNOWN
    watch.cancel()


async def test_without_a_gateway_nothing_serves(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=""))).status == NOT_SERVING


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="needs grpcurl on PATH")
async def test_grpcurl_lists_and_describes(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    async def grpcurl(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "grpcurl", "-plaintext", "-unix", f"{tmp_path}/introspection.sock", *words, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    assert "shop.v1.Shop\n" in await grpcurl("list")
    described = await grpcurl("describe", "shop.v1.Shop")
    assert "rpc Buy" in described
    assert "Burn" not in described
    assert "message BuyRequest" in await grpcurl("describe", "shop.v1.BuyRequest")


async def test_the_admin_client(app: health.aio.HealthServicer, envoy: Path, tmp_path: Path) -> None:
    await until(lambda: is_ready(envoy))
    assert (await get_json(envoy, "/server_info"))["state"] == "LIVE"
    assert (await gauges(envoy, "server.live"))["server.live"] == 1
    await post(envoy, "/healthcheck/fail")
    assert not await is_ready(envoy)
    with pytest.raises(AdminError, match="404"):
        await get_json(envoy, "/nothing")
    assert not await is_ready(tmp_path / "nobody.sock")


def test_a_host_is_healthy_only_without_any_failure() -> None:
    assert is_healthy({"eds_health_status": "HEALTHY"})
    assert is_healthy({})
    assert not is_healthy({"eds_health_status": "DRAINING"})
    assert not is_healthy({"eds_health_status": "HEALTHY", "failed_outlier_check": True})
    assert not is_healthy({"eds_health_status": "HEALTHY", "failed_active_health_check": True})
    assert not is_healthy({"eds_health_status": "HEALTHY", "pending_active_hc": True})


def test_the_exposure_survives_its_file() -> None:
    assert Exposure.from_json(EXPOSURE.to_json()) == EXPOSURE
