"""Clients of NIP-47 that others wrote: nostr-sdk's, in this process, and Alby's, in a process of Node.js."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest

from generator.outputs.local.processes import end_with_parent

PEER = Path(__file__).resolve().parents[1] / "peers" / "wallet"
ANSWER_S_MAX = 30


class Alby:
    """@getalby/sdk's NWCClient."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, method: str, **params: Any) -> Any:
        """One call; its result. Fails with what the client threw."""
        answer = await self.answer(method, **params)
        assert "error" not in answer, answer
        return answer["result"]

    async def answer(self, method: str, **params: Any) -> Any:
        """One call; its result or its error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"method": method, "params": params}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S_MAX):
            while line := await self._process.stdout.readline():
                if line.startswith((b'{"result"', b'{"error"')):  # the library logs to the same place
                    return json.loads(line)
        raise AssertionError("the client ended")


@asynccontextmanager
async def alby(uri: str) -> AsyncIterator[Alby]:
    """Running, and ended afterwards. Skips where Node.js or the client is missing."""
    node = shutil.which("node")
    if node is None or not (PEER / "node_modules").exists():
        pytest.skip("needs Node.js, and `npm ci --prefix tests/peers/wallet --ignore-scripts`")
    process = await asyncio.create_subprocess_exec(
        *(*end_with_parent(), node, "--experimental-websocket", "--no-warnings", str(PEER / "main.js")),
        env={**os.environ, "NWC_URL": uri},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Alby(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def sdk(uri: str) -> Any:
    """nostr-sdk's NostrWalletConnect."""
    return nostr_sdk.NostrWalletConnectBuilder(nostr_sdk.NostrWalletConnectUri.parse(uri)).build()


async def make_pay_and_look_up(payee_uri: str, payer_uri: str) -> None:
    """Each client makes an invoice that the other one pays; both look it up. `payer` is Alby's first, then nostr-sdk's."""
    other = sdk(payee_uri)
    async with alby(payer_uri) as one:
        info = await one.ask("getInfo")
        assert "pay_invoice" in info["methods"]
        service_info = await one.ask("getWalletServiceInfo")
        assert service_info["encryptions"] == ["nip44_v2", "nip04"]
        before = (await one.ask("getBalance"))["balance"]
        made = await other.make_invoice(
            nostr_sdk.MakeInvoiceRequest(amount=7_000, description="from nostr-sdk", description_hash=None, expiry=None)
        )
        paid = await one.ask("payInvoice", invoice=made.invoice)
        found = await other.lookup_invoice(nostr_sdk.LookupInvoiceRequest(payment_hash=made.payment_hash, invoice=None))
        assert (found.preimage, found.amount) == (paid["preimage"], 7_000)
        back = await one.ask("makeInvoice", amount=3_000, description="from Alby's")
        receipt = await other.pay_invoice(nostr_sdk.PayInvoiceRequest(id=None, invoice=back["invoice"], amount=None))
        looked = await one.ask("lookupInvoice", payment_hash=back["payment_hash"])
        assert (looked["state"], looked["preimage"], looked["amount"]) == ("settled", receipt.preimage, 3_000)
        assert (await one.ask("getBalance"))["balance"] == before - 4_000
        listed = (await one.ask("listTransactions", limit=10))["transactions"]
        assert [(each["type"], each["amount"]) for each in listed[:2]] == [("incoming", 3_000), ("outgoing", 7_000)]
        again = await one.answer("payInvoice", invoice=made.invoice)
        assert again["error"]["code"] == "PAYMENT_FAILED"
