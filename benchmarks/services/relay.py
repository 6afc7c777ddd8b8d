"""`python -m benchmarks.services.relay PORT`: nostr-sdk's LocalRelay without limits of rates, until it is killed or its parent ends."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from typing import Final

import nostr_sdk

PR_SET_PDEATHSIG: Final = 1
REQUESTS_MAX: Final = 1_000_000
NOTES_PER_MINUTE_MAX: Final = 100_000_000


async def serve(port: int) -> None:
    """Serve for ever; "ready" on standard output says that it does."""
    limit = nostr_sdk.RateLimit(max_reqs=REQUESTS_MAX, notes_per_minute=NOTES_PER_MINUTE_MAX)
    relay = nostr_sdk.LocalRelayBuilder().addr("127.0.0.1").port(port).rate_limit(limit).build()
    await relay.run()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    asyncio.run(serve(int(sys.argv[1])))
