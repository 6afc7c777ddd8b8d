"""Real clients of NIP-46: nostr-tools' BunkerSigner (Node.js) and nostr-sdk's NostrConnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest

PEER = Path(__file__).resolve().parents[1] / "peers" / "signer"


class NostrTools:
    """The peer's process; each line that it prints is a message."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def message(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            line = await self._process.stdout.readline()
        assert line, "the peer failed"
        return dict(json.loads(line))


@contextlib.asynccontextmanager
async def nostr_tools(mode: str, where: str) -> AsyncIterator[NostrTools]:
    """An app with nostr-tools, ended afterwards."""
    if not (PEER / "node_modules").exists() or shutil.which("node") is None:
        pytest.skip("npm ci --prefix tests/peers/signer was not run")
    process = await asyncio.create_subprocess_exec(
        "node", "main.js", mode, where, cwd=PEER, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield NostrTools(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def nostr_connect(uri: str, keys: Any | None = None, timeout_s: float = 20.0) -> Any:
    """An app with nostr-sdk."""
    return nostr_sdk.NostrConnect(
        uri=nostr_sdk.NostrConnectUri.parse(uri),
        app_keys=keys or nostr_sdk.Keys.generate(),
        timeout=timedelta(seconds=timeout_s),
        opts=None,
    )
