"""The repository's mesh from its units, without the runner: what stands in them is started, and an administrator's work is done."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509

from generator.outputs.systemd import Layout, Programs
from nipmesh.nip.v1 import nip_service_pb2
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from support.by_units import DOCUMENT, HOSTS, eventually, free_name, hosts, logged_in, manifest, pay_each_other, script
from support.checkout import blocks
from support.mesh import REPOSITORY, free_port
from support.nostr import User
from support.units import Units, until
from support.wallet import Wallet

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

SEEN_S = 20


class ByUnits:
    """A machine whose `/` is a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gateway = f"127.0.0.1:{free_port()}"
        self.manifest = root / "srv/mesh.yaml"
        self.manifest.parent.mkdir()
        self.layout = Layout(project=root / "srv", programs=Programs.below(Path(sys.executable).parent), root=root)
        self.units = Units(root)
        self.name, self.inbound = free_name(self.manifest, self.gateway, self.layout)

    def write(self, change: Callable[[str], str] = lambda text: text) -> None:
        """Write the repository's manifest, changed."""
        self.manifest.write_text(change(manifest(self.name, self.gateway)))

    def nipmesh(self, *arguments: str) -> str:
        """One command, which must succeed."""
        command = [str(self.layout.programs.nipmesh), "-f", str(self.manifest), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def sh(self, text: str) -> str:
        """A script beside the manifest; what it printed."""
        environment = {"PATH": f"{self.layout.programs.nipmesh.parent}:/usr/bin:/bin", "ROOT": str(self.root)}
        done = subprocess.run(
            ["sh", "-c", text],
            cwd=self.manifest.parent, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def render(self, *more: str) -> str:
        """Bring the machine's files in line with the manifest."""
        return self.nipmesh("render", "--target", "systemd", "--root", str(self.root), "-o", "/", *more)

    def token(self, user: User) -> str:
        """An operator's."""
        return self.nipmesh("token", "--state", str(self.layout.state), "--subject", user.pubkey, "--role", "operator")

    def serial(self, workload: str) -> int:
        """The number of the certificate that a sidecar shows to a client of the mesh, by a handshake of its own."""
        address = self.inbound[workload]
        folder = self.layout.certificates / "gateway/..data"
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        with (
            socket.create_connection((address.host, address.port), timeout=10) as plain,
            context.wrap_socket(plain) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    def pids(self) -> dict[str, int]:
        """Every process that runs."""
        return {name: each.process.pid for name, each in self.units.running.items()}


@pytest.fixture(scope="module")
def machine() -> Iterator[ByUnits]:
    """A machine on which everything was started; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="nmu-", dir="/tmp") as folder:  # short: sockets lie below it
        machine = ByUnits(Path(folder))
        machine.sh(script("bare"))
        machine.units.make_folders()
        with contextlib.closing(machine.units):
            machine.units.start_all()
            yield machine


@pytest.fixture
async def channel(machine: ByUnits) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(machine.gateway) as opened:
        yield opened


async def test_users_pay_each_other(machine: ByUnits, channel: grpc.aio.Channel) -> None:
    alice, bob = [await logged_in(channel, machine.gateway, machine.units.dead) for _ in range(2)]
    await pay_each_other(alice, bob, channel, machine.token, machine.units.dead)
    assert not machine.units.dead()


async def test_a_renewed_certificate_is_seen_and_costs_no_call(machine: ByUnits, channel: grpc.aio.Channel) -> None:
    wallet = await logged_in(channel, machine.gateway, machine.units.dead)
    account = await eventually(wallet.open_account, machine.units.dead)
    before, pids = {name: machine.serial(name) for name in machine.inbound}, machine.pids()
    assert "nothing is due" in await asyncio.to_thread(machine.units.run_once, "nipmesh-certificates.service")
    async with calling(wallet, account) as answers:
        told = await asyncio.to_thread(machine.units.run_once, "nipmesh-certificates.service", "--all")
        machine.units.reload("nipmesh-events.service")
        for _ in until(SEEN_S):
            if all(machine.serial(name) != before[name] for name in before):
                break
            await asyncio.sleep(0)
    assert {line.partition(":")[0] for line in told.splitlines()} == {*before, "gateway", "events"}
    assert answers, "calls went on meanwhile"
    assert machine.pids() == pids
    assert not machine.units.dead()
    for _ in until(SEEN_S):
        if "Reloaded server configuration" in machine.units.log("nipmesh-events.service"):
            break


def test_an_administrator_looks_and_renews_as_the_documentation_says(machine: ByUnits) -> None:
    told = machine.sh(script("bare", 1))
    assert "nothing is due" in told
    assert told.count(" valid ") == len(machine.inbound) + 2


def test_several_machines_are_rendered_as_the_documentation_says(machine: ByUnits) -> None:
    (machine.manifest.parent / HOSTS).write_text(hosts())
    machine.sh(script("several"))
    out = machine.manifest.parent / "out"
    units = {name: {path.name for path in (out / name / "etc/systemd/system").iterdir()} for name in ("alpha", "beta")}
    both = {"nipmesh.target", "nipmesh-certificates.service", "nipmesh-certificates.timer"}
    assert units["alpha"] & units["beta"] == both
    assert "nipmesh-events.service" in units["beta"]
    assert "--signer" in (out / "beta/etc/systemd/system/nipmesh-certificates.service").read_text()
    assert "--signer" not in (out / "alpha/etc/systemd/system/nipmesh-certificates.service").read_text()


def test_every_command_of_the_documentation_is_run_somewhere() -> None:
    """Here, or by the tests under a real systemd."""
    text = (REPOSITORY / DOCUMENT).read_text()
    marks = set(re.findall(r"^```sh ?(.*)$", text, re.MULTILINE))
    on_systemd = (REPOSITORY / "tests/mesh/test_mesh_systemd.py").read_text()
    assert {mark for mark in marks if f'script("{mark}")' not in on_systemd} == {"bare", "several"}
    assert len(blocks(DOCUMENT, "sh", "bare")) == 2


async def test_a_changed_manifest_is_taken_by_running_envoys(machine: ByUnits, channel: grpc.aio.Channel) -> None:
    wallet, pids = await logged_in(channel, machine.gateway, machine.units.dead), machine.pids()
    stub = NipServiceStub(channel)
    request = nip_service_pb2.ListKeysRequest()

    async def code() -> grpc.StatusCode:
        try:
            await stub.ListKeys(request, metadata=wallet.user.metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    assert await code() is grpc.StatusCode.OK
    machine.write(lambda text: text.replace("nip: [AuthService/*, NipService/*,", "nip: [AuthService/*,"))
    changed = await asyncio.to_thread(machine.render)
    assert "/gateway/rds/" in changed
    assert "/payment-0/" not in changed, "what is not another is not written"
    await until_code(code, grpc.StatusCode.UNIMPLEMENTED)
    machine.write()
    await asyncio.to_thread(machine.render)
    await until_code(code, grpc.StatusCode.OK)
    assert machine.pids() == pids


async def test_a_replica_that_leaves_first_is_restarted_without_a_failed_call(
    machine: ByUnits, channel: grpc.aio.Channel
) -> None:
    wallet = await logged_in(channel, machine.gateway, machine.units.dead)
    account = await eventually(wallet.open_account, machine.units.dead)
    before = machine.pids()
    async with calling(wallet, account) as answers:
        await asyncio.to_thread(machine.render, "--leave", "nip-1")
        for name in ("nipmesh-nip-1.service", "nipmesh-nip-1-sidecar.service"):
            await asyncio.to_thread(machine.units.stop, name)
        for name in ("nipmesh-nip-1-sidecar.service", "nipmesh-nip-1.service"):
            machine.units.start(name)
        await asyncio.to_thread(machine.render)
    assert answers
    after = machine.pids()
    assert {name for name in before if before[name] != after[name]} == {
        "nipmesh-nip-1.service",
        "nipmesh-nip-1-sidecar.service",
    }


@contextlib.asynccontextmanager
async def calling(wallet: Wallet, account: str) -> AsyncIterator[list[object]]:
    """Read an account and list keys again and again meanwhile; every call must succeed."""
    answers: list[object] = []
    done = asyncio.Event()

    async def call() -> None:
        while not done.is_set():
            answers.append(await wallet.account(account))
            answers.append(await wallet.call(wallet.nip.ListKeys, nip_service_pb2.ListKeysRequest()))

    task = asyncio.create_task(call())
    try:
        yield answers
    finally:
        done.set()
        await task


async def until_code(code: Callable[[], Awaitable[grpc.StatusCode]], wanted: grpc.StatusCode) -> None:
    """Ask until the answer has this code."""
    deadline = asyncio.get_running_loop().time() + SEEN_S
    while (found := await code()) is not wanted:
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.05)
