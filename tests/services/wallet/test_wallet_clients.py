"""Clients that others wrote make, pay and look up invoices: npm's @getalby/sdk and PyPI's nostr-sdk."""

from __future__ import annotations

import pytest

from support.wallet_clients import make_pay_and_look_up
from support.wallet_connect import ALICE, BOB, WalletMesh

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_alby_and_nostr_sdk_pay_each_other(mesh: WalletMesh) -> None:
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    one, other = await mesh.connect(ALICE, alices), await mesh.connect(BOB, bobs)
    await make_pay_and_look_up(other.uri, one.uri)
    assert (await mesh.balance(alices), await mesh.balance(bobs)) == (96_000, 4_000)
