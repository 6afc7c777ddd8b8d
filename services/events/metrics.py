"""What a service's events cost and where they hang: metrics of the relay and of the consumers."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

_SECOND_MS: Final = 1_000


class RelayMetrics:
    """The relay of this process. A replica that does not lead shows nothing behind."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """None: counted, and shown nowhere."""
        own = registry if registry is not None else CollectorRegistry()
        self.published = Counter("nipmesh_events_published", "Events that the bus has on disk.", registry=own)
        self.duplicates = Counter("nipmesh_events_duplicates", "Published events that it had already.", registry=own)
        self.rejected = Counter("nipmesh_events_rejected", "Events that the bus will never take.", registry=own)
        self.failures = Counter(
            "nipmesh_events_publish_failures", "Attempts that failed, each made again.", registry=own
        )
        self.leading = Gauge("nipmesh_events_relay_leading", "1: this replica publishes.", registry=own)
        self.behind = Gauge("nipmesh_events_behind", "Events in the outbox that are not published.", registry=own)
        age = Gauge("nipmesh_events_behind_seconds", "Age of the oldest of them.", registry=own)
        age.set_function(self._age_s)
        self._behind_since_ms: int | None = None

    def now_behind(self, events: int, since_ms: int | None) -> None:
        """So many events wait, the oldest since then."""
        self.behind.set(events)
        self._behind_since_ms = since_ms

    def _age_s(self) -> float:
        since_ms = self._behind_since_ms
        return 0.0 if since_ms is None else max(0.0, time.time() - since_ms / _SECOND_MS)


class ConsumerMetrics:
    """All consumers of a process, by name."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """None: counted, and shown nowhere."""
        own = registry if registry is not None else CollectorRegistry()
        names = ("consumer",)
        self.handled = Counter("nipmesh_events_handled", "Events that had their effect.", names, registry=own)
        self.repeated = Counter("nipmesh_events_repeated", "Deliveries of events received before.", names, registry=own)
        self.failed = Counter("nipmesh_events_failed", "Attempts that failed.", names, registry=own)
        self.dead = Counter("nipmesh_events_dead", "Events that became dead letters.", names, registry=own)

    def begin(self, consumer: str) -> None:
        """Show zeros: an increase is seen only from something."""
        for counter in (self.handled, self.repeated, self.failed, self.dead):
            counter.labels(consumer)
