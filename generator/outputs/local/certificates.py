"""Keeps every workload's certificate fresh while the mesh runs."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

from generator.outputs.local.events import Journal
from generator.outputs.local.paths import StatePaths
from generator.pki import Authority, Leaf, issue_leaf, publish_leaf
from generator.pki.authority import LEAF_LIFETIME_MAX

CHECK_INTERVAL_S = 1.0
"""How often the wall clock is asked: a laptop that slept finds its certificates renewed within a second or so."""
RETRY_S = 5.0
"""After a renewal that failed, e.g. on a full disk; half of the lifetime is left then."""


def utc_now() -> dt.datetime:
    """Tell the wall clock's time."""
    return dt.datetime.now(dt.UTC)


class CertificateKeeper:
    """Issues leaves and renews each at half of its life."""

    def __init__(self, paths: StatePaths, trust_domain: str, lifetime_ms: int, journal: Journal) -> None:
        self._paths = paths
        self._trust_domain = trust_domain
        self._lifetime = min(dt.timedelta(milliseconds=lifetime_ms), LEAF_LIFETIME_MAX)
        self._journal = journal
        self._identities: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._listeners: dict[str, Callable[[], None]] = {}
        self._leaves: dict[str, Leaf] = {}

    def issue(self, workload: str, identity: str, hosts: tuple[str, ...] = ()) -> None:
        """Give a workload its first or next certificate. Raises OSError and ValueError (a damaged authority).

        `hosts` are names of a server whose clients know no SPIFFE ids.
        """
        now = utc_now()
        authority = Authority.open(self._paths.authorities, self._trust_domain, now)
        leaf = issue_leaf(authority, identity=identity, lifetime=self._lifetime, now=now, hosts=hosts)
        publish_leaf(self._paths.certificates(workload), leaf)
        self._identities[workload] = (identity, hosts)
        self._leaves[workload] = leaf

    def on_renewal(self, workload: str, listener: Callable[[], None]) -> None:
        """Call `listener` after each renewal: of what does not see by itself that its files are others."""
        self._listeners[workload] = listener

    def forget(self, workload: str) -> None:
        """Stop renewing for a workload that is no more."""
        self._identities.pop(workload, None)
        self._leaves.pop(workload, None)

    def expires(self, workload: str) -> dt.datetime | None:
        """Tell when a workload's certificate ends; None before its first."""
        leaf = self._leaves.get(workload)
        return None if leaf is None else leaf.expires

    def due(self, now: dt.datetime) -> tuple[str, ...]:
        """Name the workloads whose certificate has lived half of its life."""
        return tuple(workload for workload, leaf in self._leaves.items() if leaf.renew <= now)

    async def renew_for_ever(self) -> None:
        """Renew what is due until cancelled; a failure is told and tried again, for the old certificate still works."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for workload in self.due(utc_now()):
                try:
                    self.issue(workload, *self._identities[workload])
                except (OSError, ValueError) as error:
                    self._journal.tell("certificate-failed", f"{error}; tried again", workload=workload)
                    await asyncio.sleep(RETRY_S)
                else:
                    self._listeners.get(workload, lambda: None)()
                    until = self._leaves[workload].expires.astimezone()
                    self._journal.tell("certificate", f"renewed, valid until {until:%H:%M:%S}", workload=workload)
