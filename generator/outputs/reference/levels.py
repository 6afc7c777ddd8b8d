"""At which levels a traffic policy may be written: read off the records that have its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from generator.manifest.collections import Key, keys_of
from generator.manifest.traffic import (
    EdgeMethodTraffic,
    EdgeTraffic,
    ExternalTraffic,
    MeshTraffic,
    MethodTraffic,
    Traffic,
)
from generator.manifest.values import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One level and its path of keys."""

    name: str
    path: str
    record: type[Record]


PLACES: Final = (
    Place(name="mesh", path="traffic", record=MeshTraffic),
    Place(name="service", path="services.SERVICE.traffic", record=Traffic),
    Place(name="method", path="services.SERVICE.traffic.methods.METHOD", record=MethodTraffic),
    Place(name="edge", path="services.SERVICE.calls.CALLEE.traffic", record=EdgeTraffic),
    Place(
        name="method of an edge",
        path="services.SERVICE.calls.CALLEE.traffic.methods.METHOD",
        record=EdgeMethodTraffic,
    ),
    Place(name="external host", path="external.NAME.traffic", record=ExternalTraffic),
)
"""Edges of the gateway are written below `gateway.expose` in the same way."""


def policies() -> dict[str, Key]:
    """Every traffic policy by its key, as the level declares it that has the most of them."""
    declared = {**keys_of(EdgeMethodTraffic), **keys_of(MethodTraffic), **keys_of(Traffic)}
    return {name: spec for name, spec in declared.items() if name != "methods"}


def levels(policy: str) -> tuple[str, ...]:
    """The names of the levels at which a policy may be written."""
    return tuple(place.name for place in PLACES if policy in keys_of(place.record))
