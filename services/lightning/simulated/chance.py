"""Chance that can be repeated: every draw is a hash of the seed and of what it is drawn for."""

from __future__ import annotations

import hashlib
from typing import Final

DRAW_BYTES: Final = 8
DRAWS: Final = 1 << 8 * DRAW_BYTES
"""How many different draws there are."""


def draw(seed: int, *words: object) -> int:
    """A number from 0 to DRAWS - 1, the same for the same words."""
    text = "\0".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:DRAW_BYTES], "big")


def between(least: int, most: int, seed: int, *words: object) -> int:
    """A number from `least` to `most`, both included."""
    assert least <= most
    return least + draw(seed, *words) % (most - least + 1)


def happens(probability: float, seed: int, *words: object) -> bool:
    """Whether something of this probability (0 to 1) happens."""
    return draw(seed, *words) < probability * DRAWS


def secret(seed: int, *words: object) -> bytes:
    """32 bytes: the private key of a simulated node. Whoever knows the seed knows it: no money depends on it."""
    return hashlib.sha256("\0".join(map(str, ("secret", seed, *words))).encode()).digest()
