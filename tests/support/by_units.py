"""The repository's mesh on a machine whose units run it: a manifest whose ports are free here, and the main job."""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from generator.analysis import check_manifest
from generator.model import SocketAddress
from generator.outputs.local.ports import can_listen
from generator.outputs.systemd import Layout, PublicKeys, machine_of
from support.checkout import blocks
from support.mesh import REPOSITORY
from support.nostr import User, bearer
from support.wallet import Wallet

READY_S = 60
PRICE_MSAT = 21_000
START_MSAT = 1_000_000
TRIES_MAX = 50
T = TypeVar("T")


DOCUMENT = "docs/systemd.md"
HOSTS = "hosts.yaml"


def script(mark: str, index: int = 0) -> str:
    """A command block of the documentation, with this environment's programs; it runs in the manifest's folder."""
    return "set -e\n" + blocks(DOCUMENT, "sh", mark)[index].replace("/opt/nipmesh", sys.prefix)


def hosts() -> str:
    """The documentation's file of machines."""
    (text,) = blocks(DOCUMENT, "yaml")
    return text


def manifest(name: str, gateway: str) -> str:
    """The repository's, of this name, at this address, with two replicas of one service."""
    text = (REPOSITORY / "mesh.yaml").read_text()
    text = text.replace("mesh: nip\n", f"mesh: {name}\n").replace("127.0.0.1:8080", gateway)
    text = text.replace("protos: [protos]", f"protos: ['{REPOSITORY / 'protos'}']")
    for service in ("invoice", "payment"):
        text = re.sub(rf"(  {service}:\n(?:    .*\n)*?    replicas: )2", r"\g<1>1", text)
    return text


def free_name(file: Path, gateway: str, layout: Layout) -> tuple[str, dict[str, SocketAddress]]:
    """A name whose ports are free here, for others may run a mesh on this machine; and where each sidecar takes calls then."""
    for _ in range(TRIES_MAX):
        name = f"nip-{secrets.token_hex(4)}"
        file.write_text(manifest(name, gateway))
        mesh = check_manifest(file).mesh
        assert mesh is not None
        machine = machine_of(mesh, layout, None, None, PublicKeys())
        replicas = machine.placement.replicas
        assert machine.events is not None
        assert machine.placement.gateway is not None
        addresses = [address for each in replicas for address in (each.inbound, each.scrape)]
        if all(map(can_listen, (*addresses, machine.events, machine.placement.gateway.scrape))):
            return name, {replica.name: replica.inbound for replica in replicas}
    raise AssertionError("no free ports")


async def logged_in(channel: grpc.aio.Channel, gateway: str, problems: Callable[[], object]) -> Wallet:
    """A user with a token from Login."""
    user = User()

    async def login() -> None:
        await user.login(channel, f"http://{gateway}")

    await eventually(login, problems)
    return Wallet(channel, user)


async def eventually(work: Callable[[], Awaitable[T]], problems: Callable[[], object]) -> T:
    """What a first call says once its service is ready; nothing was done while the answer is UNAVAILABLE."""
    deadline = asyncio.get_running_loop().time() + READY_S
    while True:
        try:
            return await work()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"{error.details()}\n{problems()}") from error
            await asyncio.sleep(0.1)


async def pay_each_other(
    alice: Wallet, bob: Wallet, channel: grpc.aio.Channel, token: Callable[[User], str], problems: Callable[[], object]
) -> None:
    """The main job: accounts, an operator's deposit, an invoice, its payment, a key that the mesh keeps."""
    operator = Wallet(channel, User())
    operator.user.metadata = bearer((await asyncio.to_thread(token, operator.user)).strip())
    payer, payee = [await eventually(wallet.open_account, problems) for wallet in (alice, bob)]
    await operator.deposit(payer, START_MSAT)
    invoice = await eventually(lambda: bob.invoice(payee, PRICE_MSAT, "tea"), problems)
    paid = await alice.pay(payer, invoice.payment_request)
    assert paid.payment.amount_msat == PRICE_MSAT
    assert (await bob.account(payee)).available_msat == PRICE_MSAT
    assert (await alice.account(payer)).available_msat == START_MSAT - PRICE_MSAT
    assert await alice.create_key("mine")
