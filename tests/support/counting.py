"""What a process counts, read in few words."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry


def counting(registry: CollectorRegistry, prefix: str) -> Callable[..., float]:
    """Samples of metrics whose names begin so: `counts("events_total", result="delivered")`. One that is not there fails the test."""

    def count(name: str, **labels: str) -> float:
        value = registry.get_sample_value(prefix + name, labels)
        assert value is not None, name
        return value

    return count
