"""What an app may do with a key: permissions by method and kind, and which of them decides.

| order | what applies |
|---|---|
| 1 | not expired, uses left, the method, the kind or no kind |
| 2 | one that names the kind comes before one that does not |
| 3 | deny before allow before ask |
| - | nothing applies: no |

A permission without a kind never covers kinds 22242 (NIP-42) and 27235 (NIP-98): such events are credentials, good for logging in as the
user.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

CREDENTIAL_KINDS: Final = frozenset({22_242, 27_235})
"""Kinds that need to be named: events of NIP-42 and NIP-98."""
PERMISSIONS_MAX: Final = 256
"""Permissions of one connection, with those that decisions for a time added."""


class Method(enum.StrEnum):
    """The methods that use the user's key."""

    SIGN_EVENT = "sign_event"
    NIP04_ENCRYPT = "nip04_encrypt"
    NIP04_DECRYPT = "nip04_decrypt"
    NIP44_ENCRYPT = "nip44_encrypt"
    NIP44_DECRYPT = "nip44_decrypt"


class Effect(enum.StrEnum):
    """What a permission says; in the order in which they come."""

    DENY = "deny"
    ALLOW = "allow"
    ASK = "ask"


_ORDER: Final = {Effect.DENY: 0, Effect.ALLOW: 1, Effect.ASK: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One line of the list. `kind` only for SIGN_EVENT; `uses_left` only for ALLOW; times in microseconds since 1970."""

    method: Method
    effect: Effect
    kind: int | None = None
    expire_time_us: int | None = None
    uses_left: int | None = None

    def __post_init__(self) -> None:
        """The request's rules say so, too."""
        assert self.kind is None or self.method is Method.SIGN_EVENT, "only sign_event has a kind"
        assert self.uses_left is None or self.effect is Effect.ALLOW, "only what is allowed is counted"

    def applies(self, method: Method, kind: int | None, now_us: int) -> bool:
        """Whether it has a say."""
        return self.method is method and self._covers(kind) and not self.over(now_us)

    def over(self, now_us: int) -> bool:
        """Whether it will never apply again."""
        return self.uses_left == 0 or (self.expire_time_us is not None and self.expire_time_us <= now_us)

    def _covers(self, kind: int | None) -> bool:
        return self.kind == kind if self.kind is not None else kind not in CREDENTIAL_KINDS

    @property
    def rank(self) -> tuple[bool, int]:
        """The least comes first."""
        return self.kind is None, _ORDER[self.effect]


def deciding(permissions: Sequence[Permission], method: Method, kind: int | None, now_us: int) -> Permission | None:
    """Return the permission that decides, None when none applies: then the answer is no."""
    applying = [one for one in permissions if one.applies(method, kind, now_us)]
    return min(applying, key=lambda one: one.rank, default=None)


def counted(permissions: Sequence[Permission], used: Permission) -> tuple[Permission, ...]:
    """Return the permissions after `used` was made use of: one less is left, where it counts."""
    if used.uses_left is None:
        return tuple(permissions)
    assert used.uses_left > 0, "it applied"
    at = permissions.index(used)
    return (*permissions[:at], replace(used, uses_left=used.uses_left - 1), *permissions[at + 1 :])


def granted(permissions: Sequence[Permission], grant: Permission, now_us: int) -> tuple[Permission, ...]:
    """Return the permissions with one more; what is over, and an earlier grant of the same, goes."""
    kept = [one for one in permissions if not (one.over(now_us) and one.expire_time_us is not None)]
    same = (grant.method, grant.kind, grant.effect)
    kept = [one for one in kept if (one.method, one.kind, one.effect) != same or one.expire_time_us is None]
    return (*kept[: PERMISSIONS_MAX - 1], grant)
