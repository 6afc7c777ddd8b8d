"""Who may speak to a sidecar at all, and what a peer may call: TLS and RBAC, each on its own."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from generator.model import UnixAddress
from generator.outputs.files import publish
from generator.pki import Authority
from generator.render import render
from generator.resources import ResourceSet
from support.envoys import MANIFEST, Envoys, call, failure, tcp

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
ONE_REPLICA = MANIFEST.replace("replicas: 2", "replicas: 1")
CURIOUS = ONE_REPLICA.replace("EchoService/Watch]", "EchoService/Watch, EchoService/Hidden]")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("identity"), ONE_REPLICA)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


def speak(envoys: Envoys, context: ssl.SSLContext | None) -> bytes:
    """What the inbound listener says to an HTTP/2 preface; raises OSError when it hangs up."""
    address = envoys.inbound("echo-0")
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((address.host, address.port), timeout=5))
        if context is not None:
            connection = stack.enter_context(context.wrap_socket(connection))
        connection.sendall(PREFACE)
        return connection.recv(1024)


def client(folder: Path | None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = maximum
    context.set_alpn_protocols(["h2"])
    if folder is not None:
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


async def test_a_caller_with_its_certificate_is_heard(envoys: Envoys) -> None:
    answer = speak(envoys, client(envoys.folder / "certificates" / "front-0" / "..data"))
    assert answer[3] == 4, "the first frame is no SETTINGS"


async def test_plaintext_is_refused(envoys: Envoys) -> None:
    try:
        answer = speak(envoys, None)
    except ConnectionResetError:
        return
    assert answer == b"" or answer[:1] == b"\x15", "it answered with something else than a TLS alert"


@pytest.mark.parametrize("case", ["no certificate", "other authority", "other identity", "expired", "TLS 1.2"])
async def test_strangers_are_refused(envoys: Envoys, tmp_path: Path, case: str) -> None:
    maximum = ssl.TLSVersion.TLSv1_2 if case == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
    try:
        answer = speak(envoys, client(impostor(envoys, tmp_path, case), maximum))
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return
    assert answer == b"", "it answered"


def impostor(envoys: Envoys, folder: Path, case: str) -> Path | None:
    now = dt.datetime.now(dt.UTC)
    if case == "no certificate":
        return None
    if case == "other authority":
        return envoys.issue("stranger", "spiffe://test.mesh/service/front", Authority.open(folder, "test.mesh", now))
    if case == "other identity":
        return envoys.issue("stranger", "spiffe://test.mesh/service/other")
    if case == "expired":
        return envoys.issue("stranger", "spiffe://test.mesh/service/front", at=now - dt.timedelta(hours=2))
    return envoys.folder / "certificates" / "front-0" / "..data"


async def test_the_callee_refuses_on_its_own_what_a_curious_sidecar_lets_through(
    envoys: Envoys, tmp_path: Path
) -> None:
    """The caller's sidecar has other routes than the manifest's; the callee's RBAC still knows the manifest."""
    curious = Envoys(tmp_path, CURIOUS)
    try:
        sockets = curious.sockets / "front-0"
        front = replace(
            envoys.placement.replicas[-1],
            app=UnixAddress(path=sockets / "app.sock"),
            egress=UnixAddress(path=sockets / "egress.sock"),
            admin=UnixAddress(path=sockets / "admin.sock"),
            inbound=tcp(),
            scrape=tcp(),
        )
        assert front.service == "front"
        placement = replace(
            envoys.placement, directory=tmp_path / "envoy", replicas=(envoys.placement.replicas[0], front)
        )
        publish(ResourceSet(workloads=(render(curious.mesh, placement).workload("front-0"),)), tmp_path / "envoy")
        curious.placement = placement
        curious.start_envoy("front-0")
        await curious.until(lambda: curious.ready("front-0") and curious.healthy("front-0"), "not ready")
        async with curious.channel("front-0") as channel:
            assert await call(channel, "EchoService/Say")
            error = await failure(channel, "EchoService/Hidden")
        assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
    finally:
        await curious.stop()


async def test_a_callee_that_is_not_who_it_should_be_gets_no_calls(envoys: Envoys) -> None:
    envoys.issue("echo-0", "spiffe://test.mesh/service/front")
    await envoys.restart_envoy("echo-0")
    async with envoys.channel("front-0") as channel:
        await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_healthy") == 0, "still trusted")
        error = await failure(channel, "EchoService/Say")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert envoys.applications["echo-0"].count("/echo.v1.EchoService/Say") <= 1
        assert envoys.stat("front-0", "outbound_echo.ssl.fail_verify_san") > 0
    envoys.issue("echo-0")
    await envoys.restart_envoy("echo-0")
    await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_healthy") == 1, "not back", 20)


async def test_a_renewed_certificate_is_used_without_a_restart(envoys: Envoys) -> None:
    before = serial(envoys)
    envoys.issue("echo-0")
    await envoys.until(lambda: serial(envoys) != before, "the old certificate is still shown")
    async with envoys.channel("front-0") as channel:
        assert await call(channel, "EchoService/Say")


def serial(envoys: Envoys) -> bytes:
    address = envoys.inbound("echo-0")
    context = client(envoys.folder / "certificates" / "front-0" / "..data")
    with socket.create_connection((address.host, address.port), timeout=5) as plain, context.wrap_socket(plain) as tls:
        return tls.getpeercert(binary_form=True) or b""
