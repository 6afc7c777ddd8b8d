"""Hosts outside the mesh: reached by name over TLS, known by their certificate; whoever is not them gets no byte."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from click.testing import CliRunner

from generator.analysis import check_manifest
from generator.cli.main import main
from generator.model import ExternalTls, TlsFiles, UnixAddress
from generator.outputs.files import default_placement, validate_with_envoy
from generator.outputs.files.validation import loadable, throwaway_leaf, validate_bootstrap
from generator.outputs.local.binary import find_envoy
from generator.render import render
from generator.resources import twin
from support.envoys import Envoys, call, failure
from support.outside import Listener, Notary, Rates

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PROTO = """
syntax = "proto3";
package rates.v1;
message Text { string text = 1; }
service RateService {
  rpc Get(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Buy(Text) returns (Text);
  rpc Secret(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service PlainService { rpc Get(Text) returns (Text); }
service WrongNameService { rpc Get(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service WrongAuthorityService { rpc Get(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service ExpiredService { rpc Get(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service ClientService { rpc Get(Text) returns (Text); }
service NamedService { rpc Get(Text) returns (Text); }
service LostService { rpc Get(Text) returns (Text); }
service AskingService { rpc Get(Text) returns (Text); }
service ShopService { rpc Buy(Text) returns (Text); }
service OtherService { rpc Buy(Text) returns (Text); }
"""
RATES = "/rates.v1.RateService/"
REFUSED = ("wrong-name", "wrong-authority", "expired")
GOOD, TEXT = "rates.example.org", b"\x0a\x05hello"


def manifest(ports: dict[str, int]) -> str:
    """A service that calls every host there is, and one that calls none; the hosts are on this machine."""

    def entry(name: str, service: str, more: str, host: str = "127.0.0.1") -> str:
        return f'  {name}: {{address: "{host}:{ports[name]}", {service}{more}}}\n'

    trusted = "tls: {ca: notary.crt, server_name: rates.example.org}"
    return (
        "mesh: test\nprotos: [protos]\nexternal:\n"
        + entry("rates", "serves: [rates.v1.RateService], ", f"{trusted}, traffic: {{retries: {{attempts: 3}}}}")
        + entry("wrong-name", "serves: [WrongNameService], ", trusted)
        + entry("wrong-authority", "serves: [WrongAuthorityService], ", trusted)
        + entry("expired", "serves: [ExpiredService], ", trusted)
        + entry("asking", "serves: [AskingService], ", "tls: {ca: notary.crt, server_name: named.example.org}")
        + entry(
            "client",
            "serves: [ClientService], ",
            "tls: {ca: notary.crt, server_name: any.example.com, certificate: shop.crt, private_key: shop.key}",
        )
        + entry("named", "serves: [NamedService], ", "tls: {ca: notary.crt}", host="localhost")
        + entry("lost", "serves: [LostService], ", "tls: {ca: notary.crt}", host="nowhere.invalid")
        + entry("plain", "serves: [PlainService], ", "plaintext: it is on this very machine")
        + entry("echo", "", trusted)
        + entry("echo-impostor", "", trusted)
        + entry("echo-address", "", "tls: {ca: notary.crt}")
        + entry("echo-plain", "", "plaintext: it is on this very machine")
        + "services:\n"
        "  shop:\n    run: 'true'\n    serves: [ShopService]\n    replicas: 1\n"
        "    external: [echo, echo-impostor, echo-address, echo-plain]\n    calls:\n"
        "      rates: [RateService/Get, RateService/Buy]\n"
        "      wrong-name: [WrongNameService/*]\n      wrong-authority: [WrongAuthorityService/*]\n"
        "      expired: [ExpiredService/*]\n      asking: [AskingService/*]\n      client: [ClientService/*]\n"
        "      named: [NamedService/*]\n      plain: [PlainService/*]\n      lost: [LostService/*]\n"
        "  other:\n    run: 'true'\n    serves: [OtherService]\n    replicas: 1\n"
        "    calls: {shop: [ShopService/*]}\n"
    )


@dataclass
class World:
    """The mesh, and what is outside of it."""

    envoys: Envoys
    grpc: dict[str, Rates]
    raw: dict[str, Listener]

    async def ask(self, method: str, caller: str = "shop-0", **options: Any) -> bytes:
        async with self.envoys.channel(caller) as channel:
            return await call(channel, f"/rates.v1.{method}", TEXT, **options)

    async def fail(self, method: str, caller: str = "shop-0") -> grpc.aio.AioRpcError:
        async with self.envoys.channel(caller) as channel:
            return await failure(channel, f"/rates.v1.{method}")

    async def send(self, name: str, text: bytes) -> bytes:
        """What comes back from a host that speaks no gRPC, through the socket that the application is given."""
        reader, writer = await asyncio.open_unix_connection(self.socket(name))
        try:
            writer.write(text)
            await writer.drain()
            return await asyncio.wait_for(reader.read(len(text)), timeout=20)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    def socket(self, name: str) -> Path:
        replica = next(replica for replica in self.envoys.placement.replicas if replica.name == "shop-0")
        address = dict(replica.external)[name]
        assert isinstance(address, UnixAddress)
        return address.path


async def open_world(folder: Path) -> World:
    notary, stranger = Notary(folder), Notary(folder, "stranger")
    good = notary.issue("good", GOOD)
    shop = notary.issue("shop", "shop.example.org")
    assert shop.certificate == folder / "shop.crt"
    expired = notary.issue("expired", GOOD, age=dt.timedelta(hours=2))
    pairs = {
        "rates": good,
        "client": notary.issue("wildcard", "*.example.com"),
        "named": notary.issue("named", "localhost"),
        "plain": None,
    }
    servers = {name: Rates() for name in pairs}
    for name, pair in pairs.items():
        await servers[name].start("127.0.0.1:0", pair, notary.file if name == "client" else None)
    raw_pairs = {
        "wrong-name": notary.issue("other", "other.example.org", "127.0.0.1"),
        "wrong-authority": stranger.issue("forged", GOOD),
        "expired": expired,
        "asking": good,
        "echo": good,
        "echo-impostor": stranger.issue("forged-echo", GOOD),
        "echo-address": notary.issue("address", "127.0.0.1"),
        "echo-plain": None,
    }
    listeners = {name: Listener() for name in raw_pairs}
    for name, pair in raw_pairs.items():
        await listeners[name].start("127.0.0.1", pair)
    ports = {name: server.port for name, server in (servers | listeners).items()}
    return World(Envoys(folder, manifest(ports | {"lost": 443}), PROTO), servers, listeners)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    opened = await open_world(tmp_path_factory.mktemp("external"))
    try:
        await opened.envoys.start()
        resolved = r"^cluster\.external_named\.membership_healthy$"
        await opened.envoys.until(lambda: opened.envoys.stat("shop-0", resolved) > 0, "localhost has no address")
        yield opened
    finally:
        await opened.envoys.stop()
        for server in (*opened.grpc.values(), *opened.raw.values()):
            await server.stop()


async def test_a_host_with_the_right_name_and_authority_is_called(world: World) -> None:
    assert await world.ask("RateService/Get") == TEXT
    path, _ = world.grpc["rates"].seen[-1]
    assert path == f"{RATES}Get"


async def test_it_learns_nothing_of_the_inside(world: World) -> None:
    headers = (("x-nipmesh-subject", "alice"), ("x-envoy-foo", "1"), ("x-own", "kept"))
    await world.ask("RateService/Get", metadata=headers)
    _, seen = world.grpc["rates"].seen[-1]
    assert seen["x-own"] == "kept"
    assert not [name for name in seen if name.startswith(("x-nipmesh-", "x-envoy-", "x-forwarded-client"))]


@pytest.mark.parametrize("name", REFUSED)
async def test_whoever_does_not_prove_to_be_it_gets_no_byte(world: World, name: str) -> None:
    service = "".join(word.title() for word in name.split("-"))
    error = await world.fail(f"{service}Service/Get")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    failed = rf"^cluster\.external_{name}\.(ssl\.fail_verify_san|ssl\.fail_verify_error|ssl\.connection_error)$"
    assert world.envoys.stat("shop-0", failed) > 0
    assert world.raw[name].names, "it never got a greeting"
    assert (world.raw[name].connections, world.raw[name].received) == (0, b"")


async def test_it_is_asked_for_by_the_name_that_was_said(world: World) -> None:
    await world.fail("AskingService/Get")
    assert set(world.raw["asking"].names) == {"named.example.org"}


async def test_a_host_that_wants_a_certificate_gets_it_and_a_wildcard_fits_the_name(world: World) -> None:
    assert await world.ask("ClientService/Get") == TEXT
    assert world.grpc["client"].peers[-1] == "shop"


async def test_a_dns_name_is_looked_up_and_its_ipv4_is_found_when_nothing_listens_on_ipv6(world: World) -> None:
    answers = await asyncio.gather(*(world.ask("NamedService/Get") for _ in range(8)))
    assert answers == [TEXT] * 8


async def test_a_name_that_nobody_has_fails_its_own_calls_and_keeps_no_sidecar_from_starting(world: World) -> None:
    error = await world.fail("LostService/Get")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert world.envoys.stat("shop-0", r"^cluster\.external_lost\.upstream_cx_total$") == 0


async def test_plaintext_with_a_reason_works_and_says_so(world: World) -> None:
    assert await world.ask("PlainService/Get") == TEXT


async def test_what_is_not_listed_is_denied_and_never_leaves(world: World) -> None:
    before = len(world.grpc["rates"].seen)
    denied = [await world.fail("RateService/Secret"), await world.fail("RateService/Get", caller="other-0")]
    assert [error.code() for error in denied] == [grpc.StatusCode.PERMISSION_DENIED] * 2
    assert len(world.grpc["rates"].seen) == before


def flaky(failures: int, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
    left = [failures]

    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if left[0] > 0:
            left[0] -= 1
            context.set_trailing_metadata(metadata)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return request

    return answer


async def test_what_may_run_twice_is_repeated(world: World) -> None:
    rates = world.grpc["rates"]
    before = len(rates.seen)
    rates.answers[f"{RATES}Get"] = flaky(2)
    assert await world.ask("RateService/Get") == TEXT
    assert len(rates.seen) == before + 3


async def test_what_may_not_runs_once_whatever_the_host_claims(world: World) -> None:
    rates = world.grpc["rates"]
    before = len(rates.seen)
    rates.answers[f"{RATES}Buy"] = flaky(
        3, (("x-nipmesh-not-delivered", "true"), ("x-nipmesh-reset", "true"), ("x-nipmesh-status", "14"))
    )
    error = await world.fail("RateService/Buy")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "not now")
    assert len(rates.seen) == before + 1
    assert not [key for key, _ in error.trailing_metadata() or () if str(key).startswith("x-nipmesh-")]


async def test_bytes_go_to_a_host_that_speaks_something_else(world: World) -> None:
    assert await world.send("echo", b"PING\r\n") == b"PING\r\n"
    assert set(world.raw["echo"].names) == {GOOD}
    assert world.raw["echo"].received == b"PING\r\n"


async def test_an_impostor_gets_no_byte(world: World) -> None:
    assert await world.send("echo-impostor", b"password\r\n") == b""
    assert world.raw["echo-impostor"].names
    assert (world.raw["echo-impostor"].connections, world.raw["echo-impostor"].received) == (0, b"")


async def test_an_address_is_proved_by_a_certificate_for_it_and_asked_for_without_a_name(world: World) -> None:
    assert await world.send("echo-address", b"PING") == b"PING"
    assert set(world.raw["echo-address"].names) == {None}


async def test_plain_tcp_with_a_reason_works(world: World) -> None:
    assert await world.send("echo-plain", b"PING") == b"PING"


async def test_only_the_application_of_the_service_may_use_its_socket(world: World) -> None:
    assert oct(world.socket("echo").stat().st_mode)[-3:] == "600"
    other = next(replica for replica in world.envoys.placement.replicas if replica.name == "other-0")
    assert other.external == ()


SMALL = """
mesh: test
protos: [protos]
external:
  rates: {address: "rates.example.org:443", serves: [rates.v1.RateService]}
  files: {address: "[2001:db8::1]:443", tls: {ca: notary.crt, certificate: shop.crt, private_key: shop.key}}
services:
  shop: {run: shop, serves: [ShopService], replicas: 1, external: [files], calls: {rates: [RateService/*]}}
gateway: {expose: {shop: [ShopService/*]}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A manifest with the hosts that the system's authorities and own ones vouch for."""
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "rates.proto").write_text(PROTO)
    Notary(tmp_path).issue("shop", "shop.example.org")
    (tmp_path / "mesh.yaml").write_text(SMALL)
    return tmp_path / "mesh.yaml"


async def test_check_works_where_the_systems_authorities_are_missing(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.analysis.externals.SYSTEM_AUTHORITIES", "/nowhere/authorities.crt")
    monkeypatch.setattr("generator.render.workload.SYSTEM_AUTHORITIES", "/nowhere/authorities.crt")
    result = CliRunner().invoke(main, ["-f", str(small), "check"])
    assert result.exit_code == 0, result.output
    assert "mesh.yaml:5:10: warning[NM318] no authorities to trust" in result.output
    assert "/nowhere/authorities.crt is not there" in result.output
    assert "Envoy accepts the configuration of 2 workloads" in result.output


async def test_a_twin_stands_in_for_certificates_that_are_not_there_yet(small: Path) -> None:
    mesh = check_manifest(small).mesh
    assert mesh is not None
    client = TlsFiles(certificate=Path("/nowhere/client.crt"), private_key=Path("/nowhere/client.key"))
    tls = ExternalTls(server_name="2001:db8::1", ca=Path("/nowhere/authorities.crt"), client=client)
    missing = replace(mesh, externals=tuple(replace(external, tls=tls) for external in mesh.externals))
    resources = render(missing, default_placement(missing, small.parent))
    assert validate_with_envoy(resources) == ()
    (cluster,) = [found for found in resources.workload("shop-0").clusters if found.name == "external_files"]
    assert "/nowhere/authorities.crt" in str(cluster.body), "the twin's stand-ins are not what runs"


async def test_envoy_itself_would_refuse_the_missing_files(small: Path, tmp_path: Path) -> None:
    """What the stand-ins are for: without them this fails."""
    mesh = check_manifest(small).mesh
    assert mesh is not None
    workload = render(mesh, default_placement(mesh, small.parent)).workload("shop-0")
    small.with_name("notary.crt").unlink()
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(twin(workload, tuple(loadable(each, throwaway_leaf()) for each in workload.secrets))))
    assert "notary.crt" in (validate_bootstrap(find_envoy(), path) or "")
