"""What is counted of relays. No label names a relay: strangers choose them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.relays.outcome import OutcomeKind

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From a relay on this host to the usual time limit."""
CONNECTS: Final = ("opened", "failed", "refused", "lost")


class EventResult(enum.StrEnum):
    """What became of an event that a relay sent: one of these."""

    DELIVERED = "delivered"
    INVALID = "invalid"
    """Its id or signature is wrong."""
    UNASKED = "unasked"
    """There is no such subscription, or it does not match."""
    REPEATED = "repeated"
    """It waits for its reader already, or did just before: it came when dropped ones were asked for again."""
    DROPPED = "dropped"
    """Its reader has too many that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayMetrics:
    """The metrics of a pool; two pools on one registry need two names."""

    connections: Gauge
    connects: Counter
    events: Counter
    publishes: Counter
    publish_seconds: Histogram

    @classmethod
    def register(cls, registry: CollectorRegistry, name: str = "relay") -> Self:
        """The metrics, registered; their names begin with nipmesh_<name>."""
        prefix = f"nipmesh_{name}"
        metrics = cls(
            connections=Gauge(f"{prefix}_connections", "Open connections to relays.", registry=registry),
            connects=Counter(
                f"{prefix}_connects",
                "Attempts to connect: opened, failed, refused (a private address); and connections lost.",
                ("result",),
                registry=registry,
            ),
            events=Counter(
                f"{prefix}_events",
                "Events from relays: delivered, invalid (id or signature), unasked (no such subscription, or no match), repeated, dropped.",
                ("result",),
                registry=registry,
            ),
            publishes=Counter(f"{prefix}_publishes", "Events sent, by outcome.", ("outcome",), registry=registry),
            publish_seconds=Histogram(
                f"{prefix}_publish_seconds", "Time to an outcome.", buckets=LATENCY_BUCKETS_S, registry=registry
            ),
        )
        for outcome in OutcomeKind:
            metrics.publishes.labels(outcome.value)
        for event_result in EventResult:
            metrics.events.labels(event_result.value)
        for connect_result in CONNECTS:
            metrics.connects.labels(connect_result)
        return metrics
