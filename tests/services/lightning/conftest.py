"""A real Lightning network for the tests of the adapter, and the adapter's nodes on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from services.lightning.lnd import LndSettings, open_paying_node, open_receiving_node
from support.lnd import LightningNetwork, running_network
from support.lnd_adapters import PAYING, RECEIVING, settings_of
from support.lnd_programs import ProgramsMissingError, programs
from support.node_contract import Network, stranger_invoice


@pytest.fixture(scope="module")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightningNetwork]:
    """alice - bob - carol, on a chain of their own."""
    try:
        found = programs()
    except ProgramsMissingError as missing:
        pytest.skip(str(missing))
    with running_network(found, tmp_path_factory.mktemp("lightning")) as running:
        yield running


@pytest.fixture(scope="module")
def receiving_settings(lightning: LightningNetwork) -> LndSettings:
    return settings_of(lightning.carol, *RECEIVING)


@pytest.fixture(scope="module")
def paying_settings(lightning: LightningNetwork) -> LndSettings:
    return settings_of(lightning.alice, *PAYING)


@pytest.fixture
async def network(
    lightning: LightningNetwork, receiving_settings: LndSettings, paying_settings: LndSettings
) -> AsyncIterator[Network]:
    """carol is paid, alice pays, bob takes a fee."""

    async def automatic_invoice(amount_msat: int | None) -> str:
        return await asyncio.to_thread(lightning.carol.plain_invoice, amount_msat)

    async def unroutable_invoice(amount_msat: int) -> str:
        return stranger_invoice("sb", amount_msat)

    receiver = await open_receiving_node(receiving_settings)
    payer = await open_paying_node(paying_settings)
    yield Network(
        receiver=receiver, payer=payer, automatic_invoice=automatic_invoice, unroutable_invoice=unroutable_invoice
    )
    await receiver.close()
    await payer.close()
