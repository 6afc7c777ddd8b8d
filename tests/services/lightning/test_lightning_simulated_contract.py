"""The simulated network keeps the port's contract: with the friendly hub on both engines, and with a drawn network that needs time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.chassis.secret import SecretBytes
from services.lightning.node_key import NodeKey
from services.lightning.simulated import Outsider, SimulatedPayingNode, SimulatedReceivingNode, profile_of
from services.lightning.simulated.attempts import World
from services.lightning.simulated.network import make_network
from services.lightning.simulated.payee import HERMIT, automatic_invoice
from services.storage.places import Place, PostgresPlace
from support.node_contract import Network, PayingContract, ReceivingContract


@pytest.fixture(params=["", "seed=11,delay_ms=3", "postgresql"], ids=["hub", "drawn", "hub on PostgreSQL"])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    on_postgresql = request.param == "postgresql"
    profile = profile_of("" if on_postgresql else request.param)
    where: Place = tmp_path
    if on_postgresql:
        where = PostgresPlace(
            url=SecretBytes(request.getfixturevalue("postgresql_url").encode()), schema="simulated_lightning"
        )
    receiver = await SimulatedReceivingNode.open(where, NodeKey(SecretBytes(b"\x07" * 32)), profile)
    payer = await SimulatedPayingNode.open(where, profile)
    outsider = await Outsider.open(where, profile)
    world = World(network=make_network(profile), profile=profile)

    async def invoice(amount_msat: int | None) -> str:
        return outsider.invoice(amount_msat)

    async def hermit(amount_msat: int) -> str:
        return automatic_invoice(world, amount_msat, time.time_ns() // 1_000_000, payee=HERMIT)

    yield Network(receiver=receiver, payer=payer, automatic_invoice=invoice, unroutable_invoice=hermit)
    for node in (receiver, payer, outsider):
        await node.close()


class TestReceiving(ReceivingContract):
    pass


class TestPaying(PayingContract):
    pass
