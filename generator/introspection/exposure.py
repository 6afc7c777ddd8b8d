"""What the gateway exposes, as the file between the runner and the introspection server."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedService:
    """One protobuf service at the edge: its exposed methods and the gateway's cluster behind them."""

    name: str
    cluster: str
    methods: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Every exposed service, by name."""

    services: tuple[ExposedService, ...]

    def to_json(self) -> bytes:
        """Serialize; `from_json` reads it back."""
        services = {
            service.name: {"cluster": service.cluster, "methods": sorted(service.methods)} for service in self.services
        }
        return json.dumps({"services": services}, indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Exposure:
        """Parse what `to_json` wrote. Raises ValueError or KeyError on anything else."""
        document = json.loads(content)
        return cls(
            services=tuple(
                ExposedService(name=name, cluster=entry["cluster"], methods=frozenset(entry["methods"]))
                for name, entry in sorted(document["services"].items())
            )
        )
