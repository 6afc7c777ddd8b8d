"""What a command line changes in a manifest, without touching the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Options that win over the manifest."""

    replicas: Mapping[str, int] = field(default_factory=dict)
    """Service name to replica count, e.g. of `nipmesh scale`."""
    gateway_listen: str | None = None
    """`HOST:PORT` by number, of `nipmesh up --gateway-listen`."""
