"""Proofs that were used: each is good once, on any replica and after a restart, whatever it was used for.

One table for NIP-98 events (of logins and of others' HTTP requests) and for NIP-42 challenges. What became of a proof is told in the same
transaction. Old rows go with each new one, a few at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.events.v1.nip_events_pb2 import Authenticated, ChallengeCreated
from services.nip.domain.nip42 import Challenge
from services.storage.database import Database
from services.storage.events import append_event
from services.storage.sql import Connection

REMEMBER_SECONDS: Final = 600
"""How much longer than its window a used proof is remembered: a clock set back by less than that reopens no window."""

FORGET_ROWS_MAX: Final = 64
"""Old proofs that one use clears away: more than one, so that the table shrinks, and never a long transaction."""

AUTHENTICATED: Final = "nipmesh.nip.v1.authenticated"
"""CloudEvents type of an access token that was given."""

CHALLENGE_CREATED: Final = "nipmesh.nip.v1.challenge_created"
"""CloudEvents type of a challenge that was made."""

NIP98: Final = Authenticated.METHOD_NIP98
NIP42: Final = Authenticated.METHOD_NIP42


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A proof that an access token is given for; `proof_id` is what is good once, `good_until_seconds` its last second."""

    proof_id: str
    good_until_seconds: int
    pubkey: str
    event_id: str
    method: Authenticated.Method.ValueType
    relay_url: str = ""


class UsedProofs:
    """The table, in the database that all replicas share."""

    def __init__(self, database: Database) -> None:
        """Use the service's open database."""
        self._database = database

    async def use(self, proven: Proven, *, now_seconds: int) -> bool:
        """Use a proof up and tell of the token that is given for it; False when it was used before."""
        return await self._database.write(lambda connection: _use_and_tell(connection, proven, now_seconds))

    async def tell_created(self, challenge: Challenge) -> None:
        """Tell of a challenge that was made."""
        told = ChallengeCreated(
            relay_url=challenge.relay_url, expire_time=Timestamp(seconds=challenge.expire_time_seconds)
        )
        payload = told.SerializeToString(deterministic=True)
        await self._database.write(
            lambda connection: append_event(
                connection, kind=CHALLENGE_CREATED, subject=challenge.relay_url, payload=payload
            )
        )

    async def use_event(self, event_id: str, *, good_until_seconds: int, now_seconds: int) -> bool:
        """Use the event of a NIP-98 authorization up; False when it was used before."""
        forget_time_seconds = good_until_seconds + REMEMBER_SECONDS
        return await self._database.write(
            lambda connection: _use(connection, event_id, forget_time_seconds, now_seconds)
        )


def _use_and_tell(connection: Connection, proven: Proven, now_seconds: int) -> bool:
    if not _use(connection, proven.proof_id, proven.good_until_seconds + REMEMBER_SECONDS, now_seconds):
        return False
    told = Authenticated(
        pubkey=proven.pubkey, method=proven.method, event_id=proven.event_id, relay_url=proven.relay_url
    )
    append_event(
        connection, kind=AUTHENTICATED, subject=proven.pubkey, payload=told.SerializeToString(deterministic=True)
    )
    return True


def _use(connection: Connection, proof_id: str, forget_time_seconds: int, now_seconds: int) -> bool:
    forget = (
        "DELETE FROM used_login WHERE event_id IN"
        " (SELECT event_id FROM used_login WHERE forget_time_seconds < ? ORDER BY forget_time_seconds LIMIT ?)"
    )
    connection.execute(forget, (now_seconds, FORGET_ROWS_MAX))
    use = "INSERT INTO used_login (event_id, forget_time_seconds) VALUES (?, ?) ON CONFLICT DO NOTHING"
    connection.execute(use, (proof_id, forget_time_seconds))
    return connection.changes() == 1
