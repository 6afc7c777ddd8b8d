"""What docs/nips/47.md tells people to do works, as it stands there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import textwrap
import uuid
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from services.chassis.testing import as_user
from services.nip.domain.nip47.words import Code, Method, Topic
from support.wallet_clients import PEER
from support.wallet_connect import ALICE, BOB, WalletMesh

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGE = (Path(__file__).resolve().parents[3] / "docs" / "nips" / "47.md").read_text()


def example(name: str) -> str:
    """The block that begins with this example's name."""
    found = re.search(rf"```\w+\n(?://|#) example: {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


async def run(source: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run lines that await; what they define afterwards."""
    body = textwrap.indent(source, "    ")
    exec(f"async def example():\n{body}\n    return locals()", names)  # noqa: S102  # our own documentation
    found: dict[str, Any] = await names["example"]()
    return found


async def test_the_page_connects_both_clients(mesh: WalletMesh) -> None:
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    names = {
        "WalletConnectServiceStub": lambda channel: channel,
        "CreateWalletConnectionRequest": pb.CreateWalletConnectionRequest,
        "WalletTerms": pb.WalletTerms,
        "channel": mesh.wallets,
        "uuid": uuid,
    }
    payer = (await run(example("connect"), names | {"account_id": alices, "token": as_user(ALICE)}))["uri"]
    payee = (await run(example("connect"), names | {"account_id": bobs, "token": as_user(BOB)}))["uri"]
    invoice = json.loads(await _node(example("alby"), payee))
    assert (invoice["amount"], invoice["description"]) == (21_000, "tea")
    sdk = {name: getattr(nostr_sdk, name) for name in dir(nostr_sdk)} | {"uri": payer, "invoice": invoice["invoice"]}
    paid = (await run(example("nostr-sdk"), sdk))["paid"]
    assert len(paid.preimage) == 64
    assert await mesh.balance(bobs) == 21_000


async def _node(source: str, uri: str) -> str:
    """What a script of Node.js prints last."""
    node = shutil.which("node")
    if node is None or not (PEER / "node_modules").exists():
        pytest.skip("needs Node.js, and `npm ci --prefix tests/peers/wallet --ignore-scripts`")
    process = await asyncio.create_subprocess_exec(
        *(node, "--experimental-websocket", "--no-warnings", "--input-type=module", "--eval", source),
        cwd=PEER,
        env={**os.environ, "NWC_URL": uri},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 30)
    return printed.decode().strip().splitlines()[-1]


async def test_the_page_names_every_method_notification_and_code() -> None:
    for word in (*Method, *Topic, *Code):
        assert f"`{word}`" in PAGE, word
