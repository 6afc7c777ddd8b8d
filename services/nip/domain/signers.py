"""Opened private keys, kept ready in memory: a bounded set, the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from services.nip.domain.bip340 import Signer

SIGNERS_MAX: Final = 1_024
"""Keys open at once: about 1 MiB, and no more of them in a memory dump than are in use."""


SignerKey = tuple[str, str]
"""Owner and key id."""


class SignerCache:
    """Signers by owner and key id, so that a hit is always the owner's own.

    Used from one event loop; whoever takes a signer out signs before it yields to the loop.
    """

    __slots__ = ("_capacity", "_signers")

    def __init__(self, capacity: int = SIGNERS_MAX) -> None:
        """`capacity` is at least 1."""
        assert capacity >= 1, "a cache of nothing caches nothing"
        self._capacity = capacity
        self._signers: OrderedDict[SignerKey, Signer] = OrderedDict()

    def get(self, key: SignerKey) -> Signer | None:
        """Return the signer, which becomes the most recently used; None when it is not open."""
        signer = self._signers.get(key)
        if signer is not None:
            self._signers.move_to_end(key)
        return signer

    def put(self, key: SignerKey, signer: Signer) -> None:
        """Keep a signer; the one that falls out, or is replaced, is wiped."""
        replaced = self._signers.pop(key, None)
        self._signers[key] = signer
        if replaced is not None and replaced is not signer:
            replaced.wipe()
        while len(self._signers) > self._capacity:
            self._signers.popitem(last=False)[1].wipe()

    def clear(self) -> None:
        """Wipe every signer, at the end of the process."""
        while self._signers:
            self._signers.popitem()[1].wipe()

    def __len__(self) -> int:
        """How many keys are open."""
        return len(self._signers)
