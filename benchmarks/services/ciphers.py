"""What NIP-44 costs against nostr-sdk, which is Rust: processor microseconds of one text, by turns in one run.

`encrypt` and `decrypt` agree on a key each time, as nostr-sdk's do; with `_known` the agreed key is at hand, as in the running service,
which keeps it for each conversation. Both sides open what the other has made before anything is measured.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Final

import nostr_sdk

from benchmarks.figures import Figures
from services.chassis.secret import SecretBytes
from services.nip.domain import nip44
from services.nostr.bip340 import Signer

CALLS: Final = 500
"""Of one round and text."""
TEXTS: Final[Mapping[str, str]] = {"short": "a short message of a conversation", "4k": "x" * 4_096}
NAMES: Final = ("encrypt", "decrypt")


def works(text: str) -> dict[str, Callable[[], object]]:
    """What is measured, on one pair of keys."""
    secret, peer = SecretBytes(secrets.token_bytes(32)), nostr_sdk.Keys.generate()
    peer_pubkey, ours = peer.public_key().to_hex(), nostr_sdk.PublicKey.parse(Signer(secret).public_key.hex())
    key, theirs, version = nip44.conversation_key(secret, peer_pubkey), peer.secret_key(), nostr_sdk.Nip44Version.V2
    payload = nostr_sdk.nip44_encrypt(theirs, ours, text, version)
    assert nip44.decrypt(payload, key) == text
    assert nostr_sdk.nip44_decrypt(theirs, ours, nip44.encrypt(text, key)) == text
    return {
        "encrypt": lambda: nip44.encrypt(text, nip44.conversation_key(secret, peer_pubkey)),
        "decrypt": lambda: nip44.decrypt(payload, nip44.conversation_key(secret, peer_pubkey)),
        "encrypt_known": lambda: nip44.encrypt(text, key),
        "decrypt_known": lambda: nip44.decrypt(payload, key),
        "encrypt_nostr_sdk": lambda: nostr_sdk.nip44_encrypt(theirs, ours, text, version),
        "decrypt_nostr_sdk": lambda: nostr_sdk.nip44_decrypt(theirs, ours, payload),
    }


def measure(*, rounds: int, calls: int = CALLS) -> Figures:
    """Medians of the rounds, and how much nostr-sdk costs compared with us: above 1 we are cheaper."""
    figures: Figures = {}
    for size, text in TEXTS.items():
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for name, work in works(text).items():
                cost_us = _cost_us(work, calls)
                if number:
                    found.setdefault(name, []).append(cost_us)
        figures |= {f"nip44_{name}_{size}_cpu_us": statistics.median(costs) for name, costs in found.items()}
        for name in NAMES:
            for ours in (name, f"{name}_known"):
                pairs = zip(found[f"{name}_nostr_sdk"], found[ours], strict=True)
                figures[f"nip44_{ours}_{size}_to_nostr_sdk"] = statistics.median(sdk / own for sdk, own in pairs)
    return figures


def _cost_us(work: Callable[[], object], calls: int) -> float:
    before = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - before) / calls * 1e6
