"""One connection to NATS with the key that keeps the stream."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import Error as JetStreamError

from generator.model import Events
from generator.pki import UserKey

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 5.0
"""The stream's own answers come within milliseconds, unless its disk is busy."""
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name."""
FAILURES = (OSError, TimeoutError, nats.errors.Error, JetStreamError, ssl.SSLError, ValueError)
"""What a connection or a request may end with that is no mistake of ours."""


logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())
"""nats-py's reader says at the end of each TLS connection what asyncio then complains of; nothing follows from it."""


class EventsError(Exception):
    """The server of events refused, or did not answer; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConnection:
    """How to reach the server as the one that keeps the stream."""

    url: str
    """One or more, with commas."""
    key: Path | None
    """The file with the seed; None: the server asks for none."""
    authorities: Path | None
    """PEM; None: those that the system trusts."""
    takes_expired: bool = False
    """Whether a certificate whose time is over will do: to tell its server that there is a new one."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[JetStreamContext]:
        """Connect for a while. Raises EventsError for whatever goes wrong between the two ends of the block."""
        async with self.client() as client:
            yield client.jetstream(timeout=REQUEST_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """The same without JetStream."""
        user = self._user()
        client = Client()
        try:
            await self._connect(client, user)
            yield client
        except FAILURES as error:
            raise EventsError(f"{error or type(error).__name__}") from error
        finally:
            await _close(client)

    def _user(self) -> UserKey | None:
        """Read first: a client that never tried to connect cannot be closed."""
        try:
            return None if self.key is None else UserKey.load(self.key)
        except FAILURES as error:
            raise EventsError(str(error)) from error

    async def _connect(self, client: Client, user: UserKey | None) -> None:
        signature = None
        if user is not None:
            client._public_nkey = user.public  # noqa: SLF001  # nats-py sends it, and has no argument for it but a file's

            def signature(nonce: str) -> bytes:
                return base64.b64encode(user.sign(nonce.encode()))

        is_encrypted = self.url.startswith("tls://")
        await client.connect(
            servers=[
                f"{'tls' if is_encrypted else 'nats'}://{host}" for host in self.url.partition("://")[2].split(",")
            ],
            tls=self._context() if is_encrypted else None,
            signature_cb=signature,
            connect_timeout=CONNECT_TIMEOUT_S,
            allow_reconnect=False,
            # nats-py waits that long after a first refusal too, though it does not come back.
            reconnect_time_wait=0,
            error_cb=_quiet,
        )

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authorities)
        if self.takes_expired:
            context.verify_flags |= NO_CHECK_TIME
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepers:
    """Who keeps which stream: in a cluster of others one and the same."""

    mesh: AdminConnection
    services: Mapping[str, AdminConnection] = field(default_factory=dict)
    """Of services that have accounts of their own, by name."""

    @property
    def has_accounts(self) -> bool:
        """Whether services have accounts of their own, into which the mesh's events have to be led."""
        return bool(self.services)

    def of(self, service: str) -> AdminConnection:
        """Who keeps the stream of a service."""
        return self.services.get(service, self.mesh)


async def _quiet(_error: Exception) -> None:
    """Whoever asked gets the error too; nats-py would write it to the log as well."""


async def _close(client: Client) -> None:
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await client.close()


def cluster_keepers(events: Events) -> Keepers | None:
    """How to reach a cluster as the one that keeps the stream; None when nobody here may do that."""
    cluster = events.cluster
    if cluster is None or cluster.admin is None or not cluster.is_nats:
        return None
    return Keepers(mesh=AdminConnection(url=cluster.url, key=cluster.admin, authorities=cluster.ca))
