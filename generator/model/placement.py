"""Where each replica of a mesh runs on one machine: an explicit input, chosen by the runner or computed by `render`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """A Unix domain socket; Linux allows 107 bytes of path."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketAddress:
    """A TCP address by number; names are for DNS and have no place in an endpoint."""

    host: str
    port: int


Address = UnixAddress | SocketAddress


def external_socket(external: str) -> str:
    """The file name of the socket for a host outside; no name of a host makes it one of the sidecar's own sockets."""
    return f"to-{external}.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlacement:
    """One replica: the application and its sidecar."""

    service: str
    index: int
    app: Address
    """Where the application serves gRPC, for its sidecar only."""
    app_metrics: UnixAddress
    """Where the application serves Prometheus text over HTTP/1.1 at `/metrics`, for its sidecar only."""
    egress: Address
    """Where the sidecar takes the application's outgoing calls (plain gRPC, any authority)."""
    admin: UnixAddress
    """Envoy's admin interface."""
    inbound: SocketAddress
    """Where the sidecar takes calls from other sidecars (mTLS)."""
    scrape: SocketAddress
    """GET-only: `/metrics/app` and `/metrics/envoy`."""
    certificates: Path
    """Folder with `..data/{tls.crt,tls.key,ca.crt}`; `..data` is a symbolic link that is swapped at renewal."""
    in_rotation: bool
    """Whether callers send it traffic: false before it is ready and while it drains."""
    found_at: str | None = None
    """The address at which callers find `inbound`, by number, where a sidecar listens on all of its own."""
    external: tuple[tuple[str, Address], ...] = ()
    """Where the sidecar takes connections to hosts outside that speak no gRPC, by name; sorted."""

    @property
    def name(self) -> str:
        """For example `nip-0`."""
        return f"{self.service}-{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlacement:
    """The edge Envoy and the small server beside it that answers reflection and health."""

    listen: SocketAddress
    introspection: UnixAddress
    admin: UnixAddress
    scrape: SocketAddress
    certificates: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One machine's worth of addresses for a mesh."""

    directory: Path
    """Where the xDS files of each workload live, absolute: `<directory>/<workload>/{bootstrap.json,lds/lds.json,...}`."""
    replicas: tuple[ReplicaPlacement, ...]
    gateway: GatewayPlacement | None
    jwks: str | None
    """JSON Web Key Set of the issuer, public keys only; None without authentication."""
    _grouped: dict[str, tuple[ReplicaPlacement, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Replicas by service; filled when it is first asked for."""

    def of_service(self, name: str) -> tuple[ReplicaPlacement, ...]:
        """The replicas of one service, by index."""
        if not self._grouped:
            grouped: dict[str, list[ReplicaPlacement]] = {}
            for replica in self.replicas:
                grouped.setdefault(replica.service, []).append(replica)
            self._grouped.update({service: tuple(replicas) for service, replicas in grouped.items()})
        return self._grouped.get(name, ())
