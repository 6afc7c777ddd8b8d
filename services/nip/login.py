"""Login: an access token for whoever proves with NIP-98 that a Nostr key is theirs, once per proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.nip.authentication.proofs import NIP98, Proven, UsedProofs
from services.nip.domain.nip98 import Request, verify_authorization
from services.nip.domain.token import AccessToken, TokenIssuer
from services.nip.keys import MICROSECONDS_PER_SECOND, Clock, wall_clock

LOGIN_PATH: Final = "/nipmesh.nip.v1.AuthService/Login"
LOGIN_METHOD: Final = "POST"


class LoginReplayedError(Exception):
    """The event was used before, for a login or a request, here or on another replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A granted login."""

    pubkey: str
    access_token: AccessToken


class Logins:
    """Grants logins at one gateway address."""

    def __init__(self, proofs: UsedProofs, issuer: TokenIssuer, gateway_url: str, *, clock: Clock = wall_clock) -> None:
        """`gateway_url` without a slash at its end, as clients write it."""
        self._proofs = proofs
        self._issuer = issuer
        # The body holds the authorization itself, so no tag `payload` could be its hash: it is not bound.
        self._request = Request(url=gateway_url + LOGIN_PATH, method=LOGIN_METHOD)
        self._clock = clock

    async def login(self, authorization: str) -> Session:
        """Check the authorization, use it up, and give a token. Raises AuthorizationError, LoginReplayedError."""
        now_seconds = self._clock() // MICROSECONDS_PER_SECOND
        proof = verify_authorization(authorization, self._request, now_seconds=now_seconds)
        proven = Proven(
            proof_id=proof.event_id,
            good_until_seconds=proof.acceptable_until_seconds,
            pubkey=proof.pubkey,
            event_id=proof.event_id,
            method=NIP98,
        )
        if not await self._proofs.use(proven, now_seconds=now_seconds):
            raise LoginReplayedError(proof.event_id)
        return Session(pubkey=proof.pubkey, access_token=self._issuer.issue(proof.pubkey, now_seconds=now_seconds))
