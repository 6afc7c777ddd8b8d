"""What BOLT11 costs, and whether its signature belongs into a thread: many tasks of one event loop encode payment requests."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.figures import Load, per_second
from services.chassis.secret import SecretBytes
from services.lightning.bolt11 import decode, encode
from services.lightning.node_key import SECRET_BYTES, NodeKey
from services.lightning.payment_request import REGTEST, PaymentRequest

REQUESTS: Final = 2_000
"""Of one round."""
CREATE_TIME_S: Final = 1_700_000_000
Work = Callable[[], Awaitable[object]]


def payment_request(key: NodeKey) -> PaymentRequest:
    """One as the invoice service makes it."""
    return PaymentRequest(
        currency=REGTEST,
        payee_pubkey=key.public_key,
        payment_hash=secrets.token_hex(32),
        payment_secret=secrets.token_hex(32),
        amount_msat=1_000,
        create_time_s=CREATE_TIME_S,
        description="",
        expiry_s=86_400,
        min_final_cltv_expiry_delta=80,
    )


async def measure(*, callers: int, rounds: int) -> dict[str, list[float]]:
    """Each round's processor microseconds of one `encode` inline and in a thread, and of one `decode`; and encodes per second."""
    key = NodeKey(SecretBytes(secrets.token_bytes(SECRET_BYTES)))
    request = payment_request(key)
    text, loop = encode(request, key), asyncio.get_running_loop()
    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(1) as executor:

        async def inline() -> None:
            encode(request, key)
            await asyncio.sleep(0)  # the others have their turn, as between calls

        async def in_thread() -> None:
            await loop.run_in_executor(executor, encode, request, key)

        async def read() -> None:
            decode(text)
            await asyncio.sleep(0)

        works: dict[str, Work] = {"encode_inline": inline, "encode_in_thread": in_thread, "decode_inline": read}
        for _ in range(rounds):
            for name, work in works.items():
                before = time.process_time()
                rate = await per_second(Load(call=work, calls=REQUESTS), callers=callers)
                found.setdefault(f"{name}_per_s", []).append(rate)
                found.setdefault(f"{name}_cpu_us", []).append((time.process_time() - before) / REQUESTS * 1e6)
    return found
