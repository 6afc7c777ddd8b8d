"""The manifest's words, resolved against the protobufs: who serves, calls, exposes and protects which methods."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from generator.manifest.finding import Position
from generator.model.mesh import GATEWAY, Method


class Level(enum.IntEnum):
    """How closely a setting was written to what it is about; of two on one subject the closer one wins."""

    MESH = 0
    SERVICE = 1
    WILDCARD = 2
    METHOD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A setting that the user wrote, and where."""

    value: Any
    position: Position
    level: Level


Layer = Mapping[str, Written]
"""What was written about one subject: dotted path of keys, e.g. `retries.attempts`, to the setting.

A mapping such as `hedging` has an entry of its own beside those of its keys: its presence may mean something.
"""


def is_deliberate(layer: Layer, path: str) -> bool:
    """Whether `unsafe` covers a setting: it covers what was written as closely as itself, or closer."""
    return "unsafe" in layer and path in layer and layer[path].level >= layer["unsafe"].level


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Everything written about traffic, the mesh's part included; edges hold only what the edge itself says."""

    services: Mapping[str, Layer] = field(default_factory=dict)
    """By service or external host."""
    methods: Mapping[tuple[str, Method], Layer] = field(default_factory=dict)
    """By (service or external host, method): the service's layer and what is closer."""
    edges: Mapping[tuple[str, str], Layer] = field(default_factory=dict)
    """By (caller, callee)."""
    edge_methods: Mapping[tuple[str, str, Method], Layer] = field(default_factory=dict)
    """By (caller, callee, method): the edge's layer and what is closer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Every reference of a manifest, as methods; tuples are sorted by path."""

    served: Mapping[str, tuple[Method, ...]]
    """Service or external host to the methods that it serves; versions serve what their service serves."""
    calls: Mapping[str, Mapping[str, tuple[Method, ...]]]
    """Caller to callee (a service) to methods; versions call what their service calls."""
    external_calls: Mapping[str, Mapping[str, tuple[Method, ...]]]
    """Caller to external host to methods."""
    exposes: Mapping[str, tuple[Method, ...]]
    """Service to the methods that the gateway exposes."""
    public: tuple[Method, ...]
    roles: Mapping[str, tuple[Method, ...]]
    versions: Mapping[str, tuple[str, ...]]
    """Service to its other versions, sorted; a service without any is not in it."""
    layers: Layers
    field_methods: Mapping[str, frozenset[Method]]
    """Service to the methods whose request has the field that `hash_on` names."""

    def called(self, caller: str, callee: str) -> tuple[Method, ...]:
        """What a service or the gateway may call of a service or a host outside."""
        if caller == GATEWAY:
            return self.exposes.get(callee, ())
        inside = self.calls.get(caller, {}).get(callee, ())
        return inside or self.external_calls.get(caller, {}).get(callee, ())
