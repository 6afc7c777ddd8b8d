"""What sidecars and the gateway have in common: where their files are, and the resources made of templates."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.model import (
    Address,
    CircuitBreaker,
    Destination,
    Edge,
    Mesh,
    Placement,
    ReplicaPlacement,
    Service,
    SocketAddress,
    TrafficPolicy,
    UnixAddress,
)
from generator.model.mesh import SYSTEM_AUTHORITIES
from generator.render import names
from generator.render.making import resource as resource
from generator.render.views import BreakerView, EndpointView, FileView, LocalityView, SecretsView, address_view
from generator.resources import Resource, ResourceType

STREAMS_MAX = 1_024
"""Calls at once on one connection; callers open another one beyond."""
LOCAL_CONNECTIONS_MAX = 1_024
LOCAL_REQUESTS_MAX = 16_384
"""The callers' circuit breakers are far below; this only bounds the memory of a sidecar in trouble."""
SIDECAR_HEAP_BYTES_MAX = 512 * 1024 * 1024
GATEWAY_HEAP_BYTES_MAX = 1024 * 1024 * 1024
SIDECAR_CONNECTIONS_MAX = 4_096
GATEWAY_CONNECTIONS_MAX = 8_192
"""Below the open files that a Linux user may have by default once Envoy has raised its soft limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One workload of one mesh on one machine."""

    mesh: Mesh
    placement: Placement
    workload: str
    service: str
    """The service's name; `gateway` for the edge."""
    zone: str | None
    admin: UnixAddress
    scrape: SocketAddress
    certificates: Path

    def file(self, kind: str, name: str | None = None) -> str:
        """The absolute path of a file of this workload; `kind` as in `names.XDS_FOLDERS`."""
        return str(names.workload_file(self.placement.directory, self.workload, kind, name))

    def file_view(self, kind: str, name: str) -> FileView:
        """A resource that has a file of its own."""
        return FileView(name=name, file=self.file(kind, name))

    @property
    def has_collector(self) -> bool:
        """Whether spans are made and sent."""
        return self.mesh.telemetry.otlp_host is not None

    @property
    def secrets(self) -> SecretsView:
        """Where TLS contexts find their secrets."""
        return SecretsView(
            leaf=self.file_view("secrets", names.SECRET_LEAF),
            authority=self.file_view("secrets", names.SECRET_AUTHORITY),
        )


def bootstrap(scene: Scene, *, heap_bytes_max: int, connections_max: int) -> Resource:
    """Who an Envoy is and where its files are."""
    return resource(
        ResourceType.BOOTSTRAP,
        "bootstrap",
        workload=scene.workload,
        service=scene.service,
        zone=scene.zone,
        admin=address_view(scene.admin, listens=True),
        files={"listeners": scene.file("listeners"), "clusters": scene.file("clusters")},
        heap_bytes_max=heap_bytes_max,
        connections_max=connections_max,
    )


def service_clusters(scene: Scene, edges: Iterable[Edge]) -> tuple[Resource, ...]:
    """Every version of every other service as this workload calls it."""
    return tuple(_service_cluster(scene, edge, destination) for edge in edges for destination in edge.destinations)


def _service_cluster(scene: Scene, edge: Edge, destination: Destination) -> Resource:
    callee, traffic = scene.mesh.service(destination.service), destination.traffic
    return resource(
        ResourceType.CLUSTER,
        "cluster_service",
        name=names.cluster_name(callee.name),
        endpoints_file=scene.file("endpoints", names.cluster_name(callee.name)),
        authority=names.authority(callee.role, scene.mesh.trust_domain),
        health_check=traffic.health_check,
        keepalive=traffic.keepalive,
        connection_ms_max=traffic.connection_duration_ms_max,
        secrets=scene.secrets,
        peers=(callee.identity,),
        **_traffic(traffic, is_hedged=any(policy.hedging is not None for policy in edge.methods)),
    )


def _traffic(traffic: TrafficPolicy, *, is_hedged: bool = False) -> dict[str, Any]:
    """What clusters of services and of hosts outside have in common."""
    return {
        "is_hedged": is_hedged,
        "balancing": traffic.load_balancing,
        "outlier": traffic.outlier_detection,
        "circuit_breaker": traffic.circuit_breaker,
        "breakers": _breakers(traffic.circuit_breaker),
        "streams_max": STREAMS_MAX,
    }


def external_clusters(scene: Scene, service: Service) -> tuple[Resource, ...]:
    """The hosts outside that this workload may reach."""
    connections = [_external_cluster(scene, name, None) for name in service.external_connections]
    spoken = [_external_cluster(scene, edge.callee, edge.destinations[0].traffic) for edge in service.external_calls]
    return (*connections, *spoken)


def _external_cluster(scene: Scene, name: str, traffic: TrafficPolicy | None) -> Resource:
    external = scene.mesh.external(name)
    policies = _traffic(traffic) if traffic is not None else {}
    return resource(
        ResourceType.CLUSTER,
        "cluster_external",
        name=names.external_name(name),
        host=external.host,
        port=external.port,
        is_address=is_address(external.host),
        tls=external.tls,
        authorities=SYSTEM_AUTHORITIES if external.tls is None or external.tls.ca is None else str(external.tls.ca),
        is_server_address=external.tls is not None and is_address(external.tls.server_name),
        is_grpc=bool(external.methods),
        connections_max=LOCAL_CONNECTIONS_MAX,
        **policies,
    )


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _breakers(breaker: CircuitBreaker) -> tuple[BreakerView, ...]:
    """Unary calls (priority DEFAULT) keep all their room; streams (HIGH), which may stay for hours, have their own."""
    return (
        BreakerView(priority="DEFAULT", requests_max=breaker.requests_max),
        BreakerView(priority="HIGH", requests_max=breaker.streams_max),
    )


def endpoint_sets(scene: Scene, edges: Iterable[Edge]) -> tuple[Resource, ...]:
    """The replicas of every version that this workload may call."""
    called = sorted({destination.service for edge in edges for destination in edge.destinations})
    return tuple(_endpoint_set(scene, scene.mesh.service(name)) for name in called)


def _endpoint_set(scene: Scene, callee: Service) -> Resource:
    replicas = [replica for replica in scene.placement.of_service(callee.name) if replica.in_rotation]
    cluster = names.cluster_name(callee.name)
    localities = localities_of(callee, replicas, scene.zone)
    return resource(ResourceType.ENDPOINTS, "endpoints", cluster=cluster, localities=localities)


def localities_of(
    callee: Service, replicas: Iterable[ReplicaPlacement], own_zone: str | None
) -> tuple[LocalityView, ...]:
    """The replicas by zone, with the order in which a caller in `own_zone` falls over to them."""
    found: dict[str | None, list[EndpointView]] = {}
    for replica in replicas:
        found.setdefault(callee.zone(replica.index), []).append(_endpoint(callee, replica))
    order = [own_zone, *callee.traffic.load_balancing.failover] if own_zone is not None else []
    ranks = {zone: order.index(zone) if zone in order else len(order) for zone in found}
    priorities = {rank: priority for priority, rank in enumerate(sorted(set(ranks.values())))}
    views = [
        LocalityView(zone=zone, priority=priorities[ranks[zone]], replicas=tuple(endpoints))
        for zone, endpoints in found.items()
    ]
    return tuple(sorted(views, key=lambda view: (view.priority, view.zone or "")))


def _endpoint(callee: Service, replica: ReplicaPlacement) -> EndpointView:
    weights = callee.traffic.load_balancing.weights
    weight = weights[replica.index] if replica.index < len(weights) else 1
    return EndpointView(
        name=replica.name, host=replica.found_at or replica.inbound.host, port=replica.inbound.port, weight=weight
    )


def local_cluster(name: str, address: Address | None, *, is_http2: bool) -> Resource:
    """Something beside this Envoy, or (None) nothing."""
    return resource(
        ResourceType.CLUSTER,
        "cluster_local",
        name=name,
        address=None if address is None else address_view(address),
        is_http2=is_http2,
        streams_max=STREAMS_MAX,
        connections_max=LOCAL_CONNECTIONS_MAX,
        requests_max=LOCAL_REQUESTS_MAX,
    )


def telemetry_cluster(scene: Scene) -> Resource:
    """The collector's cluster; without a collector it is empty, since a tracer that exports nowhere is not to be had."""
    host, port = scene.mesh.telemetry.otlp_host, scene.mesh.telemetry.otlp_port
    collector = None if host is None or port is None else SocketAddress(host=host, port=port)
    return local_cluster(names.CLUSTER_TELEMETRY, collector, is_http2=True)


def identity_secrets(certificates: Path) -> tuple[Resource, ...]:
    """A workload's own certificate, and whom it trusts."""
    data, watched = certificates / "..data", str(certificates)
    leaf = resource(
        ResourceType.SECRET,
        "secret_leaf",
        name=names.SECRET_LEAF,
        certificate=str(data / "tls.crt"),
        private_key=str(data / "tls.key"),
        watched=watched,
    )
    authority = resource(
        ResourceType.SECRET,
        "secret_authority",
        name=names.SECRET_AUTHORITY,
        authorities=str(data / "ca.crt"),
        watched=watched,
    )
    return (leaf, authority)


def claim_header_names(mesh: Mesh) -> tuple[str, ...]:
    """Headers that only the gateway may write, because services believe them."""
    authentication = mesh.gateway.authentication if mesh.gateway is not None else None
    return () if authentication is None else tuple(sorted(header for _, header in authentication.claim_headers))
