"""The edge: what it exposes, whom it believes, what it takes away, and what it answers to strangers."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import grpc.aio
import jwt
import pytest
import pytest_asyncio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from generator.model import UnixAddress
from generator.pki import TokenClaims, TokenKey
from support.envoys import GATEWAY, MANIFEST, Envoys, call, failure

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
ISSUER, SUBJECT = "spiffe://test.mesh/service/front", "ab" * 32
SAY, ONCE, WATCH = (f"/echo.v1.EchoService/{name}" for name in ("Say", "Once", "Watch"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    manifest = MANIFEST.replace("replicas: 2", "replicas: 1") + GATEWAY
    running = Envoys(tmp_path_factory.mktemp("gateway"), manifest)
    introspection = grpc.aio.server()
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, introspection)
    try:
        assert running.placement.gateway is not None
        assert isinstance(running.placement.gateway.introspection, UnixAddress)
        introspection.add_insecure_port(f"unix:{running.placement.gateway.introspection.path}")
        await introspection.start()
        await running.start()
        yield running
    finally:
        await introspection.stop(None)
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(envoys: Envoys) -> AsyncIterator[grpc.aio.Channel]:
    envoys.applications["echo-0"].seen.clear()
    envoys.applications["echo-0"].handlers.clear()
    async with envoys.channel("gateway") as channel:
        yield channel


def bearer(
    envoys: Envoys, *, key: TokenKey | None = None, age_s: int = 0, **changes: str
) -> tuple[tuple[str, str], ...]:
    claims = {"subject": SUBJECT, "issuer": ISSUER, "audience": "test", **changes}
    made = TokenClaims(lifetime=dt.timedelta(minutes=15), **claims)
    token = (key or envoys.token_key).mint(made, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age_s))
    return (("authorization", f"Bearer {token}"),)


def seen(envoys: Envoys) -> dict[str, str]:
    return envoys.applications["echo-0"].seen[-1][1]


async def test_a_token_becomes_claims_and_goes_no_further(envoys: Envoys, client: grpc.aio.Channel) -> None:
    await call(client, "EchoService/Once", metadata=bearer(envoys, role="operator"))
    metadata = seen(envoys)
    assert (metadata["x-nipmesh-subject"], metadata["x-nipmesh-role"]) == (SUBJECT, "operator")
    assert "authorization" not in metadata
    assert "URI=spiffe://test.mesh/gateway" in metadata["x-forwarded-client-cert"]


async def test_made_up_claims_and_identities_do_not_arrive(envoys: Envoys, client: grpc.aio.Channel) -> None:
    forged = (
        ("x-nipmesh-subject", "f" * 64),
        ("x-nipmesh-role", "operator"),
        ("x-nipmesh-anything", "x"),
        ("x-forwarded-client-cert", "URI=spiffe://test.mesh/service/front"),
        ("x-envoy-retry-on", "5xx"),
        ("authorization", "Basic secret-word"),
    )
    await call(client, "EchoService/Say", metadata=forged)
    metadata = seen(envoys)
    assert not [name for name in metadata if name.startswith(("x-nipmesh", "x-envoy")) or name == "authorization"]
    assert "front" not in metadata["x-forwarded-client-cert"]
    await call(client, "EchoService/Once", metadata=(*bearer(envoys), *forged[:2]))
    assert seen(envoys)["x-nipmesh-subject"] == SUBJECT
    assert "x-nipmesh-role" not in seen(envoys)
    assert "secret-word" not in envoys.log("gateway")


async def test_a_public_method_needs_no_token(client: grpc.aio.Channel) -> None:
    assert await call(client, "EchoService/Say") == b"\x0a\x02hi"


@pytest.mark.parametrize(
    "case", ["none", "garbage", "expired", "other key", "other issuer", "unsigned", "no expiry", "other audience"]
)
async def test_bad_tokens_are_refused(envoys: Envoys, client: grpc.aio.Channel, case: str, tmp_path) -> None:
    error = await failure(client, "EchoService/Once", metadata=bad(envoys, case, tmp_path))
    wanted = grpc.StatusCode.PERMISSION_DENIED if case == "other audience" else grpc.StatusCode.UNAUTHENTICATED
    assert error.code() is wanted, error.details()
    assert envoys.applications["echo-0"].seen == []


def bad(envoys: Envoys, case: str, folder) -> tuple[tuple[str, str], ...]:
    claims = {"iss": ISSUER, "sub": SUBJECT, "aud": "test"}
    tokens = {
        "none": (),
        "garbage": (("authorization", "Bearer a.b.c"),),
        "expired": bearer(envoys, age_s=3600),
        "other key": bearer(envoys, key=TokenKey.open(folder / "key" / "token.key")),
        "other issuer": bearer(envoys, issuer="https://elsewhere.example"),
        "other audience": bearer(envoys, audience="other"),
        "unsigned": (("authorization", f"Bearer {jwt.encode({**claims, 'exp': 2**31}, None, algorithm='none')}"),),
        "no expiry": (
            (
                "authorization",
                f"Bearer {jwt.encode(claims, envoys.token_key.private_key, 'ES256', {'kid': envoys.token_key.key_id})}",
            ),
        ),
    }
    return tokens[case]


async def test_a_role_opens_the_methods_that_need_it(envoys: Envoys, client: grpc.aio.Channel) -> None:
    watch = client.unary_stream(WATCH)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch(b"", metadata=bearer(envoys), timeout=5).read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    stream = watch(b"x", metadata=bearer(envoys, role="operator"), timeout=5)
    assert await stream.read() == b"x"
    stream.cancel()


async def test_a_list_of_roles_is_no_role(envoys: Envoys, client: grpc.aio.Channel) -> None:
    """Services understand one role as a text; the gateway must not believe what they would not."""
    expiry = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=15)
    claims = {"iss": ISSUER, "sub": SUBJECT, "aud": "test", "exp": expiry, "role": ["operator"]}
    token = jwt.encode(claims, envoys.token_key.private_key, "ES256", {"kid": envoys.token_key.key_id})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.unary_stream(WATCH)(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=5).read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_is_not_exposed_does_not_exist(envoys: Envoys, client: grpc.aio.Channel) -> None:
    for method in ("EchoService/Hidden", "DeepService/Say", "/a.B/C", "/echo.v1.EchoService/say"):
        error = await failure(client, method, metadata=bearer(envoys))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, method
        assert error.details() == "the gateway exposes no such method"


async def test_health_and_reflection_go_to_the_introspection_server(client: grpc.aio.Channel) -> None:
    answer = await health_pb2_grpc.HealthStub(client).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    error = await failure(client, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    assert error.details() == "Method not found!", "not the introspection server's own words"


async def test_a_browser_is_told_that_this_is_grpc(envoys: Envoys) -> None:
    assert envoys.placement.gateway is not None
    url = f"http://127.0.0.1:{envoys.placement.gateway.listen.port}/"
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)
    with caught.value as answer:
        assert answer.code == 415
        assert b"gRPC" in answer.read()


async def test_answers_carry_nothing_of_the_mesh(envoys: Envoys, client: grpc.aio.Channel) -> None:
    await envoys.applications["echo-0"].stop()
    try:
        error = await failure(client, "EchoService/Say")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        names = [name for name, _ in (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))]
        assert not [name for name in names if name.startswith(("x-nipmesh", "x-envoy"))]
    finally:
        await envoys.applications["echo-0"].start()
        await envoys.until(lambda: envoys.healthy("gateway"), "echo-0 is not back", 20)


async def test_oversized_headers_are_refused(client: grpc.aio.Channel) -> None:
    error = await failure(client, "EchoService/Say", metadata=(("x-big", "a" * 60_000),))
    assert error.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}


async def test_the_scrape_listener_shows_metrics_and_nothing_else(envoys: Envoys) -> None:
    assert envoys.placement.gateway is not None
    base = f"http://127.0.0.1:{envoys.placement.gateway.scrape.port}"
    text = await asyncio.to_thread(lambda: fetch(f"{base}/metrics/envoy"))
    assert "envoy_cluster_upstream_rq" in text
    for path, method in (("/", "GET"), ("/quitquitquit", "POST"), ("/metrics/envoy", "POST"), ("/config_dump", "GET")):
        request = urllib.request.Request(base + path, method=method)  # noqa: S310  # our own http address
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(urllib.request.urlopen, request, timeout=5)
        with caught.value as answer:
            assert answer.code == 404


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own http address
        return str(answer.read().decode())


async def test_access_logs_are_json(envoys: Envoys, client: grpc.aio.Channel) -> None:
    await call(client, "EchoService/Once", metadata=bearer(envoys))
    await envoys.until(lambda: ONCE in envoys.log("gateway"), "no access log")
    lines = [json.loads(line) for line in envoys.log("gateway").splitlines() if line.startswith("{")]
    line = next(line for line in reversed(lines) if line["path"] == ONCE)
    assert (line["grpc_status"], line["flags"], line["upstream_cluster"]) == ("OK", "-", "outbound_echo")


async def test_large_messages_pass_up_to_what_the_application_takes(envoys: Envoys, client: grpc.aio.Channel) -> None:
    size = 4 * 1024 * 1024
    assert len(await call(client, "EchoService/Say", b"a" * (size - 1024))) == size - 1024
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(client, "EchoService/Say", b"a" * (size + 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_gateway_has_nothing_to_complain_about(envoys: Envoys) -> None:
    assert envoys.stat("gateway", "update_rejected") == 0
    assert [line for line in envoys.log("gateway").splitlines() if line.startswith("[")] == []


async def test_a_new_key_set_is_taken_without_a_restart(envoys: Envoys, tmp_path) -> None:
    key = TokenKey.open(tmp_path / "key" / "token.key")
    before = envoys.placement
    envoys.placement = replace(before, jwks=key.key_set())
    envoys.publish()
    try:
        await accepted(envoys, key)
    finally:
        envoys.placement = before
        envoys.publish()
    await accepted(envoys, envoys.token_key)


async def accepted(envoys: Envoys, key: TokenKey) -> None:
    """Wait until new connections meet a gateway that believes this key."""
    codes = [await code_of(envoys, key)]
    while codes[-1] != "OK" and len(codes) < 100:
        await asyncio.sleep(0.05)
        codes.append(await code_of(envoys, key))
    assert set(codes[:-1]) <= {"UNAUTHENTICATED"}
    assert codes[-1] == "OK"


async def code_of(envoys: Envoys, key: TokenKey) -> str:
    async with envoys.channel("gateway") as channel:
        try:
            await call(channel, "EchoService/Once", metadata=bearer(envoys, key=key))
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"
