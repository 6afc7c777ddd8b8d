"""What a running mesh was made of: the manifest as it was when it was last applied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from generator.model import Mesh
from generator.outputs.local.definition import Definition, definition
from generator.outputs.local.environment import Surroundings


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One applied manifest, and what `nipmesh scale` made of it."""

    manifest_digest: str
    """Of the content that runs: scaling needs the same."""
    written: Mapping[str, int]
    """Replicas of each service, as the manifest says."""
    scaled: Mapping[str, int] = field(default_factory=dict)
    """Replicas of the services that were scaled since."""
    definitions: Mapping[str, Definition]
    """What the processes of each service were started with."""


def applied(digest: str, mesh: Mesh, around: Surroundings, scaled: Mapping[str, int] | None = None) -> Applied:
    """Note what runs from now on; `mesh` has the manifest's replicas."""
    return Applied(
        manifest_digest=digest,
        written={service.name: service.replicas for service in mesh.services},
        scaled=dict(scaled or {}),
        definitions={service.name: definition(around, service) for service in mesh.services},
    )


def still_scaled(applied: Applied, written: Mapping[str, int]) -> dict[str, int]:
    """Give the scaled services that stay so: the manifest wins when its number has changed since it was last applied."""
    return {
        name: replicas
        for name, replicas in applied.scaled.items()
        if name in written and written[name] == applied.written.get(name) and replicas != written[name]
    }


def manifest_digest(manifest: Path) -> str:
    """Identify the manifest's content; empty when it is gone."""
    try:
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
