"""The repository's mesh under a real systemd: its units, users, sandboxes and timer, as `nipmesh render` wrote them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from generator.outputs.systemd import Layout, Programs
from nipmesh.nip.v1 import nip_service_pb2
from support.by_units import READY_S, eventually, free_name, logged_in, manifest, pay_each_other, script
from support.mesh import free_port
from support.nostr import User
from support.systemd import CannotBootError, Machine, machine
from support.units import until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

PROJECT = Path("/srv/mesh")
NIPMESH = Path(sys.executable).parent / "nipmesh"
STATE = "/var/lib/nipmesh"
SEEN_S = 30
SERVICES = 11
"""That run all the time: four applications with their sidecars, the gateway, who answers for it, and the server of events."""


class OnSystemd:
    """The mesh and the machine that runs it."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.gateway = f"127.0.0.1:{free_port()}"
        layout = Layout(project=PROJECT, programs=Programs.below(NIPMESH.parent))
        self.name, _ = free_name(folder / "mesh.yaml", self.gateway, layout)

    def nipmesh(self, *arguments: str) -> str:
        """One command on the machine."""
        return self.machine.run(str(NIPMESH), "-f", str(PROJECT / "mesh.yaml"), *arguments)

    def install(self) -> None:
        """What an administrator does."""
        self.machine.write(PROJECT / "mesh.yaml", manifest(self.name, self.gateway))
        self.sh(script("systemd-install"))

    def sh(self, text: str) -> str:
        """A script beside the manifest; what it printed."""
        return self.machine.run("sh", "-c", f"PATH={NIPMESH.parent}:$PATH\ncd {PROJECT}\n{text}")

    def token(self, user: User) -> str:
        """An operator's."""
        return self.nipmesh("token", "--state", STATE, "--subject", user.pubkey, "--role", "operator")

    def problems(self) -> str:
        """What systemd and the units say."""
        return self.machine.run(
            "sh", "-c", "systemctl list-units 'nipmesh*' --all; journalctl -n 60 --no-hostname -o cat"
        )


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnSystemd]:
    try:
        with machine() as booted:
            running = OnSystemd(booted, tmp_path_factory.mktemp("systemd"))
            running.install()
            yield running
    except CannotBootError as error:
        pytest.skip(str(error))


async def all_running(mesh: OnSystemd) -> str:
    """What an administrator sees once every unit runs: one that waits for another is a moment behind."""
    async with asyncio.timeout(READY_S):
        while (
            len(re.findall(r"\.service +loaded +active +running", looked := mesh.sh(script("systemd-look")))) < SERVICES
        ):
            await asyncio.sleep(0.5)
    return looked


async def test_an_administrators_commands_do_what_the_documentation_says(mesh: OnSystemd) -> None:
    """A replica is restarted while somebody calls, a deadline changes, an Envoy drains; and every unit is well afterwards."""
    async with grpc.aio.insecure_channel(mesh.gateway) as channel:
        wallet = await logged_in(channel, mesh.gateway, mesh.problems)
        account = await eventually(wallet.open_account, mesh.problems)
        before = mesh.machine.shown("nipmesh-nip-1.service", "MainPID")
        restarting = asyncio.create_task(asyncio.to_thread(mesh.sh, script("systemd-restart")))
        answers = 0
        while not restarting.done():
            assert (await wallet.account(account)).account_id == account
            await wallet.call(wallet.nip.ListKeys, nip_service_pb2.ListKeysRequest())
            answers += 1
        await restarting
    assert answers
    assert mesh.machine.shown("nipmesh-nip-1.service", "MainPID") not in (before, "0")
    text = manifest(mesh.name, mesh.gateway)
    mesh.machine.write(PROJECT / "mesh.yaml", text.replace("deadline: 30s", "deadline: 31s"))
    told = mesh.sh(script("systemd-change"))
    assert "/etc/nipmesh/envoy/payment-0/rds/" in told
    assert ".service" not in told, "no process has to be started anew"
    mesh.sh(script("systemd-drain"))
    looked = await all_running(mesh)
    assert looked.count(" valid ") == 6


async def test_the_mesh_runs_and_is_healed_and_renewed(mesh: OnSystemd) -> None:
    """Paid; then killed and started again by systemd; then with other certificates, each its user's alone."""
    host = mesh.machine
    async with grpc.aio.insecure_channel(mesh.gateway) as channel:
        alice, bob = [await logged_in(channel, mesh.gateway, mesh.problems) for _ in range(2)]
        await pay_each_other(alice, bob, channel, mesh.token, mesh.problems)
        for unit in ("nipmesh-payment-0.service", "nipmesh-nip-1-sidecar.service"):
            killed(host, unit)
        account = await eventually(alice.open_account, mesh.problems)
        told = await asyncio.to_thread(mesh.sh, script("systemd-renew"))
        assert told.count("renewed, valid until") == 6
        assert (await eventually(lambda: alice.account(account), mesh.problems)).account_id == account
    owners = host.run("sh", "-c", f"stat -L -c '%U %a %n' {STATE}/certificates/*/..data/tls.key").splitlines()
    assert f"nipmesh-payment 600 {STATE}/certificates/payment-0/..data/tls.key" in owners
    assert f"nipmesh-gateway 600 {STATE}/certificates/gateway/..data/tls.key" in owners
    assert host.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "nipmesh*") == ""
    assert host.shown("nipmesh-certificates.timer", "ActiveState") == "active"
    assert host.shown("nipmesh-certificates.service", "Result") == "success"


def test_nobody_reads_what_is_anothers(mesh: OnSystemd) -> None:
    """By the users and modes alone, sandboxes aside."""
    secrets = ("certificates/payment-0/..data/tls.key", "data/payment", "secrets/nip/NIP_KEYSTORE_KEY_FILE", "pki")
    for path in secrets:
        refused = mesh.machine.run(
            "setpriv", "--reuid", "nipmesh-invoice", "--clear-groups", "ls", f"{STATE}/{path}", check=False
        )
        assert refused == ""
        assert mesh.machine.run("ls", "-d", f"{STATE}/{path}")


def test_it_stops_and_leaves_no_process(mesh: OnSystemd) -> None:
    mesh.machine.run("systemctl", "stop", "nipmesh.target")
    for _ in until(SEEN_S):
        left = mesh.machine.run(
            "systemctl", "list-units", "--plain", "--no-legend", "--state=active,deactivating", "nipmesh-*"
        )
        if not left:
            break
    assert "envoy" not in mesh.machine.run("ps", "-A", "-o", "comm=")


def killed(host: Machine, unit: str) -> None:
    """End a unit's process by force, and wait until systemd has started another."""
    before = host.shown(unit, "MainPID")
    host.run("kill", "-KILL", before)
    for _ in until(SEEN_S):
        if host.shown(unit, "MainPID") not in (before, "0") and host.shown(unit, "ActiveState") == "active":
            return
