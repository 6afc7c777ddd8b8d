"""NIP-98 for others: authorizations of HTTP requests, made with held keys and checked for whoever received one, each good once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.nip.authentication.proofs import UsedProofs
from services.nip.domain.nip98 import (
    WINDOW_SECONDS,
    Proof,
    Request,
    authorization_template,
    encode_authorization,
    verify_authorization,
)
from services.nip.keys import MICROSECONDS_PER_SECOND, Clock, Keys, Signing, wall_clock

CREATE_HTTP_AUTH: Final = "/nipmesh.nip.v1.AuthService/CreateHttpAuth"


class AuthorizationReplayedError(Exception):
    """The event was used before, for a request or a login, here or on another replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """A signed authorization: the header's value, and until when it is good."""

    value: str
    expire_time_seconds: int


class HttpAuths:
    """Makes and checks authorizations."""

    def __init__(self, keys: Keys, proofs: UsedProofs, *, clock: Clock = wall_clock) -> None:
        """Share the keys and the used proofs with every other replica."""
        self._keys = keys
        self._proofs = proofs
        self._clock = clock

    async def create(self, owner: str, key_id: str, request: Request) -> Authorization:
        """Sign an authorization with a key of `owner`. Raises what Keys.sign raises."""
        now_seconds = self._clock() // MICROSECONDS_PER_SECOND
        template = authorization_template(request, created_at=now_seconds)
        event, _ = await self._keys.sign(
            Signing(owner=owner, request_id="", key_id=key_id, template=template, method=CREATE_HTTP_AUTH)
        )
        return Authorization(value=encode_authorization(event), expire_time_seconds=now_seconds + WINDOW_SECONDS)

    async def verify(self, authorization: str, request: Request) -> Proof:
        """Check an authorization and use it up. Raises AuthorizationError, AuthorizationReplayedError."""
        now_seconds = self._clock() // MICROSECONDS_PER_SECOND
        proof = verify_authorization(authorization, request, now_seconds=now_seconds)
        first_use = await self._proofs.use_event(
            proof.event_id, good_until_seconds=proof.acceptable_until_seconds, now_seconds=now_seconds
        )
        if not first_use:
            raise AuthorizationReplayedError(proof.event_id)
        return proof
