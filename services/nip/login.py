"""Login: an access token for whoever proves with NIP-98 that a Nostr key is theirs, once per proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.nip.domain.nip98 import Request, verify_authorization
from services.nip.domain.token import AccessToken, TokenIssuer
from services.nip.keys import MICROSECONDS_PER_SECOND, Clock, wall_clock
from services.nip.store import NipStore

LOGIN_PATH: Final = "/nipmesh.nip.v1.AuthService/Login"
LOGIN_METHOD: Final = "POST"

REMEMBER_SECONDS: Final = 600
"""How much longer than the window a used event is remembered: a clock set back by less than that reopens no window."""


class LoginReplayedError(Exception):
    """The event was used for an earlier login, here or on another replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A granted login."""

    pubkey: str
    access_token: AccessToken


class Logins:
    """Grants logins at one gateway address."""

    def __init__(self, store: NipStore, issuer: TokenIssuer, gateway_url: str, *, clock: Clock = wall_clock) -> None:
        """`gateway_url` without a slash at its end, as clients write it."""
        self._store = store
        self._issuer = issuer
        # The body holds the authorization itself, so no tag `payload` could be its hash: it is not bound.
        self._request = Request(url=gateway_url + LOGIN_PATH, method=LOGIN_METHOD)
        self._clock = clock

    async def login(self, authorization: str) -> Session:
        """Check the authorization, use it up, and give a token. Raises AuthorizationError, LoginReplayedError."""
        now_seconds = self._clock() // MICROSECONDS_PER_SECOND
        proof = verify_authorization(authorization, self._request, now_seconds=now_seconds)
        forget_time_seconds = proof.acceptable_until_seconds + REMEMBER_SECONDS
        first_use = await self._store.use_login(
            proof.event_id, forget_time_seconds=forget_time_seconds, now_seconds=now_seconds
        )
        if not first_use:
            raise LoginReplayedError(proof.event_id)
        return Session(pubkey=proof.pubkey, access_token=self._issuer.issue(proof.pubkey, now_seconds=now_seconds))
