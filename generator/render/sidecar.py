"""The resources of one replica's sidecar."""

from __future__ import annotations

from typing import Any

from generator.model import Mesh, Placement, ReplicaPlacement, Service
from generator.render import names
from generator.render.calls import arriving_calls, callers_of, counted, outgoing_calls
from generator.render.views import PageView, address_view
from generator.render.workload import (
    SIDECAR_CONNECTIONS_MAX,
    SIDECAR_HEAP_BYTES_MAX,
    STREAMS_MAX,
    Scene,
    bootstrap,
    claim_header_names,
    identity_secrets,
    local_cluster,
    resource,
    service_cluster,
    service_endpoints,
    telemetry_cluster,
)
from generator.resources import Resource, ResourceType, WorkloadResources

METRICS_TARGET = "/metrics"
STATS_TARGET = "/stats/prometheus"
NOTHING_HERE = "metrics are at /metrics/app and /metrics/envoy, with GET\n"
DEPENDENCY_OR_STATUS = f"%RESP({names.DEPENDENCY_FAILED_HEADER}?GRPC-STATUS)%"
"""The first header, else the second, else nothing at all."""
STREAM_RESET_EXPRESSION = "response.code_details.contains('{remote_reset')"
"""Envoy's words for a stream that the application reset. Its flag UR would not do: a refused stream has it, too."""
STREAM_RESET_STATUS = "3"
"""INVALID_ARGUMENT: callers' sidecars see HTTP's 400 in it; any 5xx would count against the replica."""
UNANSWERED = "the application does not answer"
"""Instead of Envoy's own words, which name sockets and transports."""
STREAM_RESET_MESSAGE = "the application refused the bytes of this call"


def sidecar(mesh: Mesh, placement: Placement, replica: ReplicaPlacement) -> WorkloadResources:
    """Everything that the sidecar of one replica is told."""
    service = mesh.service(replica.service)
    scene = Scene(
        mesh=mesh,
        placement=placement,
        workload=replica.name,
        service=service.name,
        admin=replica.admin,
        scrape=replica.scrape,
        certificates=replica.certificates,
    )
    callees = sorted({edge.callee for edge in service.calls})
    return WorkloadResources(
        name=replica.name,
        bootstrap=bootstrap(scene, heap_bytes_max=SIDECAR_HEAP_BYTES_MAX, connections_max=SIDECAR_CONNECTIONS_MAX),
        listeners=_listeners(scene, service, replica),
        clusters=_clusters(scene, replica, callees),
        routes=_routes(scene, service),
        endpoints=tuple(service_endpoints(callee, placement.of_service(callee)) for callee in callees),
        secrets=tuple(sorted(identity_secrets(replica.certificates), key=lambda secret: secret.name)),
    )


def _listeners(scene: Scene, service: Service, replica: ReplicaPlacement) -> tuple[Resource, ...]:
    pages = (
        PageView(path="/metrics/app", cluster=names.CLUSTER_APPLICATION_METRICS, target=METRICS_TARGET),
        PageView(path="/metrics/envoy", cluster=names.CLUSTER_ADMIN, target=STATS_TARGET),
    )
    return (_egress_listener(scene, service, replica), _inbound_listener(scene, service, replica), scrape(scene, pages))


def scrape(scene: Scene, pages: tuple[PageView, ...]) -> Resource:
    """The listener for Prometheus."""
    return resource(
        ResourceType.LISTENER,
        "listener_scrape",
        name=names.LISTENER_SCRAPE,
        address=address_view(scene.scrape),
        pages=pages,
        nothing=NOTHING_HERE,
    )


def common(scene: Scene, direction: str) -> dict[str, Any]:
    """What every listener for calls says about logs and traces."""
    return {
        "workload": scene.workload,
        "service": scene.service,
        "direction": direction,
        "has_collector": scene.has_collector,
        "telemetry": names.CLUSTER_TELEMETRY,
        "streams_max": STREAMS_MAX,
        "claim_headers": claim_header_names(scene.mesh),
    }


def _inbound_listener(scene: Scene, service: Service, replica: ReplicaPlacement) -> Resource:
    callers = callers_of(scene.mesh, service.callers)
    return resource(
        ResourceType.LISTENER,
        "listener_inbound",
        name=names.LISTENER_INBOUND,
        address=address_view(replica.inbound),
        secrets=scene.secrets,
        # An empty list would let every identity in; without callers only the service itself passes, to be denied.
        peers=tuple(caller.identity for caller in callers) or (service.identity,),
        callers=callers,
        counted_services=counted(service.methods),
        connection_ms_max=service.traffic.connection_duration_ms_max,
        health_path=names.HEALTH_PATH,
        not_delivered_header=names.NOT_DELIVERED_HEADER,
        reset_header=names.RESET_HEADER,
        unanswered=UNANSWERED,
        stream_reset_expression=STREAM_RESET_EXPRESSION,
        stream_reset_status=STREAM_RESET_STATUS,
        stream_reset_message=STREAM_RESET_MESSAGE,
        strip_own_headers=False,
        calls=arriving_calls(service.callers),
        cluster=names.CLUSTER_APPLICATION,
        own_response_headers=names.OWN_RESPONSE_HEADERS,
        status_header=names.STATUS_HEADER,
        status_format=DEPENDENCY_OR_STATUS,
        **common(scene, names.LISTENER_INBOUND),
    )


def _egress_listener(scene: Scene, service: Service, replica: ReplicaPlacement) -> Resource:
    return resource(
        ResourceType.LISTENER,
        "listener_egress",
        address=address_view(replica.egress, listens=True),
        counted_services=counted(policy.method for edge in service.calls for policy in edge.methods),
        route=scene.file_view("routes", names.LISTENER_EGRESS),
        strip_own_headers=True,
        **_egress_route(scene, service),
        **common(scene, names.LISTENER_EGRESS),
    )


def _egress_route(scene: Scene, service: Service) -> dict[str, Any]:
    callees = {edge.callee for edge in service.calls}
    sizes = [scene.mesh.service(callee).traffic.request_bytes_max for callee in callees]
    return {
        "name": names.LISTENER_EGRESS,
        "calls": outgoing_calls(scene.mesh, service.calls),
        "own_response_headers": (*names.OWN_RESPONSE_HEADERS, names.DEPENDENCY_FAILED_HEADER),
        "request_bytes_max": max(sizes, default=0),
        "refusal": f"the manifest does not allow {service.name} to call this method",
    }


def _routes(scene: Scene, service: Service) -> tuple[Resource, ...]:
    """The egress routes; a service that calls nobody has its one refusal in the listener itself."""
    if not service.calls:
        return ()
    return (resource(ResourceType.ROUTE, "route_egress", **_egress_route(scene, service)),)


def _clusters(scene: Scene, replica: ReplicaPlacement, callees: list[str]) -> tuple[Resource, ...]:
    clusters = [service_cluster(scene, scene.mesh.service(callee)) for callee in callees]
    clusters += [
        local_cluster(names.CLUSTER_APPLICATION, replica.app, is_http2=True),
        local_cluster(names.CLUSTER_APPLICATION_METRICS, replica.app_metrics, is_http2=False),
        local_cluster(names.CLUSTER_ADMIN, replica.admin, is_http2=False),
        telemetry_cluster(scene),
    ]
    return tuple(sorted(clusters, key=lambda cluster: cluster.name))
