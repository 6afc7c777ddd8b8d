"""The manifest's words, resolved against the protobufs: who serves, calls, exposes and protects which methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from generator.model.mesh import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A number that the user wrote, and the line it stands on."""

    value: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoice:
    """What the user wrote about the traffic of one method; None: nothing."""

    deadline_ms: Chosen | None = None
    idle_timeout_ms: Chosen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Every reference of a manifest, as methods; tuples are sorted by path."""

    served: Mapping[str, tuple[Method, ...]]
    """Service to the methods that it serves."""
    calls: Mapping[str, Mapping[str, tuple[Method, ...]]]
    """Caller to callee to methods."""
    exposes: Mapping[str, tuple[Method, ...]]
    """Service to the methods that the gateway exposes."""
    public: tuple[Method, ...]
    roles: Mapping[str, tuple[Method, ...]]
    choices: Mapping[str, Mapping[Method, MethodChoice]]
    """Service to method to what the manifest says about its traffic."""
