"""Opened secrets, kept ready in memory: bounded sets, the least recently used goes first and is wiped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from services.chassis.secret import SecretBytes
from services.nip.domain.ciphers import Cipher
from services.nostr.bip340 import Signer

SIGNERS_MAX: Final = 1_024
"""Keys open at once: about 1 MiB, and no more of them in a memory dump than are in use."""
CONVERSATIONS_MAX: Final = 4_096
"""Agreed keys at hand: about 1 MiB. One saves a multiplication on the curve, most of what a short text costs."""

OwnedKey = tuple[str, str]
"""Owner and key id."""
Conversation = tuple[str, str, Cipher, str]
"""Owner, key id, how, and the peer's public key."""


class Wipeable(Protocol):
    """A secret that can be overwritten."""

    def wipe(self) -> None:
        """Overwrite it; it is of no use afterwards."""


NameT = TypeVar("NameT", bound=tuple[object, ...])
SecretT = TypeVar("SecretT", bound=Wipeable)


class OpenedCache(Generic[NameT, SecretT]):
    """Secrets by a name that begins with owner and key id, so that a hit is always the owner's own.

    Used from one event loop; whoever takes a secret out uses it before it yields to the loop.
    """

    __slots__ = ("_capacity", "_secrets")

    def __init__(self, capacity: int) -> None:
        """`capacity` is at least 1."""
        assert capacity >= 1, "a cache of nothing caches nothing"
        self._capacity = capacity
        self._secrets: OrderedDict[NameT, SecretT] = OrderedDict()

    def get(self, name: NameT) -> SecretT | None:
        """Return the secret, which becomes the most recently used; None when it is not open."""
        secret = self._secrets.get(name)
        if secret is not None:
            self._secrets.move_to_end(name)
        return secret

    def put(self, name: NameT, secret: SecretT) -> None:
        """Keep a secret; the one that falls out, or is replaced, is wiped."""
        replaced = self._secrets.pop(name, None)
        self._secrets[name] = secret
        if replaced is not None and replaced is not secret:
            replaced.wipe()
        while len(self._secrets) > self._capacity:
            self._secrets.popitem(last=False)[1].wipe()

    def remove(self, unwanted: Callable[[NameT], bool]) -> None:
        """Wipe the secrets with such names."""
        for name in [name for name in self._secrets if unwanted(name)]:
            self._secrets.pop(name).wipe()

    def clear(self) -> None:
        """Wipe every secret, at the end of the process."""
        while self._secrets:
            self._secrets.popitem()[1].wipe()

    def names(self) -> tuple[NameT, ...]:
        """The names of what is open."""
        return tuple(self._secrets)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._secrets)


class SignerCache(OpenedCache[OwnedKey, Signer]):
    """Signers by owner and key id."""

    __slots__ = ()

    def __init__(self, capacity: int = SIGNERS_MAX) -> None:
        """`capacity` is at least 1."""
        super().__init__(capacity)


class AgreedKey:
    """A key that two sides agreed on, in memory that can be overwritten."""

    __slots__ = ("_value",)

    def __init__(self, key: SecretBytes) -> None:
        self._value = bytearray(key.reveal())

    def reveal(self) -> SecretBytes:
        """Return a copy for one use."""
        return SecretBytes(bytes(self._value))

    def wipe(self) -> None:
        """Overwrite it."""
        self._value[:] = bytes(len(self._value))

    def __repr__(self) -> str:
        """Says nothing of what it holds."""
        return "AgreedKey([redacted])"


class ConversationCache(OpenedCache[Conversation, AgreedKey]):
    """Agreed keys by owner, key id, cipher and peer."""

    __slots__ = ()

    def __init__(self, capacity: int = CONVERSATIONS_MAX) -> None:
        """`capacity` is at least 1."""
        super().__init__(capacity)
