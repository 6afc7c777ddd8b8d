"""NIP-42: challenges of the relays that this mesh trusts, and access tokens for whoever answers one, once per challenge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.nip.authentication.proofs import NIP42, Proven, UsedProofs
from services.nip.domain import nip42
from services.nip.domain.nip42 import Challenge, Seal
from services.nip.domain.token import TokenIssuer
from services.nip.keys import MICROSECONDS_PER_SECOND, Clock, wall_clock
from services.nip.login import Session
from services.nostr.event import Event
from services.nostr.relay_url import RelayUrlError, normal_relay_url

_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss"}


class RelayNotTrustedError(Exception):
    """No access token is given for this relay's challenges: whoever runs it could ask its clients to log in here."""


class ChallengeUsedError(Exception):
    """The challenge was answered before, here or on another replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRelays:
    """The relays whose challenges give access tokens, in normal form.

    Clients answer challenges of the relays they use without asking anybody. A token for the answer to any relay's challenge would let every
    relay log in here as its clients: so the mesh itself and what its operator names are all.
    """

    urls: frozenset[str]

    @classmethod
    def of(cls, gateway_url: str, others: Iterable[str]) -> TrustedRelays:
        """The gateway's address, as a relay would have it, and `others`. Raises RelayUrlError."""
        scheme, separator, rest = gateway_url.partition("://")
        own = _WEBSOCKET_SCHEMES.get(scheme, scheme) + separator + rest
        return cls(urls=frozenset(normal_relay_url(url) for url in (own, *others)))

    def check(self, url: str) -> str:
        """Return the URL in its normal form. Raises RelayNotTrustedError."""
        try:
            found = normal_relay_url(url)
        except RelayUrlError as error:
            raise RelayNotTrustedError("not the URL of a relay") from error
        if found not in self.urls:
            raise RelayNotTrustedError("this mesh gives no access tokens for the challenges of this relay")
        return found


class Challenges:
    """Makes challenges and takes their answers."""

    def __init__(
        self,
        proofs: UsedProofs,
        issuer: TokenIssuer,
        relays: TrustedRelays,
        seal: Callable[[], Seal],
        *,
        told: bool = False,
        clock: Clock = wall_clock,
    ) -> None:
        """`seal` gives the keyed hash that all replicas share; `told`: whether each challenge becomes an event."""
        self._told = told
        self._proofs = proofs
        self._issuer = issuer
        self._relays = relays
        self._seal = seal
        self._clock = clock

    async def create(self, relay_url: str, ttl_seconds: int) -> Challenge:
        """Return a fresh challenge; nothing is stored, unless an operator wants to be told. Raises RelayNotTrustedError."""
        url = self._relays.check(relay_url)
        expire_time_seconds = self._clock() // MICROSECONDS_PER_SECOND + ttl_seconds
        challenge = nip42.make_challenge(url, expire_time_seconds=expire_time_seconds, seal=self._seal())
        if self._told:
            await self._proofs.tell_created(challenge)
        return challenge

    async def verify(self, event: Event, relay_url: str) -> Session:
        """Check the answer, use its challenge up, and give a token. Raises ChallengeError, ChallengeUsedError, RelayNotTrustedError."""
        url = self._relays.check(relay_url)
        now_seconds = self._clock() // MICROSECONDS_PER_SECOND
        answer = nip42.verify_answer(event, url, now_seconds=now_seconds, seal=self._seal())
        proven = Proven(
            proof_id=f"challenge:{answer.challenge.nonce}",
            good_until_seconds=answer.challenge.expire_time_seconds,
            pubkey=answer.pubkey,
            event_id=answer.event_id,
            method=NIP42,
            relay_url=url,
        )
        if not await self._proofs.use(proven, now_seconds=now_seconds):
            raise ChallengeUsedError(answer.challenge.nonce)
        return Session(pubkey=answer.pubkey, access_token=self._issuer.issue(answer.pubkey, now_seconds=now_seconds))
