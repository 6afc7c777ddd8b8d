"""The resources of one replica's sidecar."""

from __future__ import annotations

from typing import Any

from generator.model import Address, Mesh, Placement, ReplicaPlacement, Service
from generator.render import names
from generator.render.calls import (
    arriving_calls,
    counted,
    external_calls,
    filters_of,
    outgoing_calls,
    peers_of,
    rate_replies,
)
from generator.render.views import CallView, PageView, address_view
from generator.render.workload import (
    SIDECAR_CONNECTIONS_MAX,
    SIDECAR_HEAP_BYTES_MAX,
    STREAMS_MAX,
    Scene,
    bootstrap,
    claim_header_names,
    endpoint_sets,
    external_clusters,
    identity_secrets,
    local_cluster,
    resource,
    service_clusters,
    telemetry_cluster,
)
from generator.resources import Resource, ResourceType, WorkloadResources

METRICS_TARGET = "/metrics"
STATS_TARGET = "/stats/prometheus"
NOTHING_HERE = "metrics are at /metrics/app and /metrics/envoy, with GET\n"
STATUS_FORMAT = ";".join(
    f"%RESP({header})%"
    for header in ("grpc-status", names.DEPENDENCY_FAILED_HEADER, names.PUSH_BACK_HEADER, names.WAIT_HEADER)
)
"""What the callers' sidecars match; see `retries`."""
TIMED_OUT_STATUS = "4"
"""DEADLINE_EXCEEDED."""
OVERLOAD_EXPRESSION = "response.code_details == 'overload'"
"""Envoy's word for a call that it refused itself for want of memory; no flag says so."""
UNSEEN_EXPRESSION = f"{OVERLOAD_EXPRESSION} || response.code_details.contains('{{remote_refused')"
STREAM_RESET_EXPRESSION = "response.code_details.contains('{remote_reset')"
"""Envoy's words for a stream that the application reset. Its flag UR would not do: a refused stream has it, too."""
STREAM_RESET_STATUS = "3"
"""INVALID_ARGUMENT: callers' sidecars see HTTP's 400 in it; any 5xx would count against the replica."""
UNANSWERED = "the application does not answer"
"""Instead of Envoy's own words, which name sockets and transports."""
EXHAUSTED_STATUS = "8"
"""RESOURCE_EXHAUSTED."""
REFUSED_EXPRESSION = "response.code_details in ['reached_concurrency_limit', 'denied_by_admission_control']"
"""Envoy's words for what adaptive concurrency and admission control refuse."""
REFUSED_MESSAGE = "the service has no room for this call"
SIZE_FILTER = "request_size"
TOO_LARGE_EXPRESSION = (
    f"response.code_details.contains('request_payload_too_large') || response.code_details.contains('[{SIZE_FILTER}]')"
)
"""Envoy's words for a body beyond the buffer filter's limit, and for one whose last piece was too long."""
TOO_LARGE_MESSAGE = "the request is longer than the manifest allows"
STREAM_RESET_MESSAGE = "the application refused the bytes of this call"


READY_PAGE = PageView(path="/ready", cluster=names.CLUSTER_ADMIN, target="/ready")
"""Whether this Envoy has what it needs; 503 before. For whoever starts containers and has nothing that speaks to sockets."""


def sidecar(mesh: Mesh, placement: Placement, replica: ReplicaPlacement, zone: str | None) -> WorkloadResources:
    """Everything that the sidecar of one replica is told.

    `zone` is the replica's; of its index only its name may depend otherwise, so that replicas have much in common.
    """
    service = mesh.service(replica.service)
    scene = Scene(
        mesh=mesh,
        placement=placement,
        workload=replica.name,
        service=service.name,
        zone=zone,
        admin=replica.admin,
        scrape=replica.scrape,
        certificates=replica.certificates,
    )
    return WorkloadResources(
        name=replica.name,
        bootstrap=bootstrap(scene, heap_bytes_max=SIDECAR_HEAP_BYTES_MAX, connections_max=SIDECAR_CONNECTIONS_MAX),
        listeners=_listeners(scene, service, replica),
        clusters=_clusters(scene, service, replica),
        routes=routes(scene, service),
        endpoints=endpoint_sets(scene, service.calls),
        secrets=tuple(sorted(identity_secrets(replica.certificates), key=lambda secret: secret.name)),
    )


def _listeners(scene: Scene, service: Service, replica: ReplicaPlacement) -> tuple[Resource, ...]:
    pages = (
        PageView(path="/metrics/app", cluster=names.CLUSTER_APPLICATION_METRICS, target=METRICS_TARGET),
        PageView(path="/metrics/envoy", cluster=names.CLUSTER_ADMIN, target=STATS_TARGET),
        READY_PAGE,
    )
    listeners = [egress_listener(scene, service, replica), inbound_listener(scene, service, replica)]
    listeners += [_external_listener(name, address) for name, address in replica.external]
    return tuple(sorted([*listeners, scrape(scene, pages)], key=lambda listener: listener.name))


def _external_listener(name: str, address: Address) -> Resource:
    """Where the application finds a host outside that speaks no gRPC."""
    return resource(
        ResourceType.LISTENER,
        "listener_external",
        name=names.external_name(name),
        address=address_view(address, listens=True),
    )


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
        "timed_out_status": TIMED_OUT_STATUS,
    }


def inbound_listener(scene: Scene, service: Service, replica: ReplicaPlacement) -> Resource:
    """Where calls to the application arrive."""
    calls = arriving_calls(scene.mesh, service.callers)
    return resource(
        ResourceType.LISTENER,
        "listener_inbound",
        name=names.LISTENER_INBOUND,
        address=address_view(replica.inbound),
        secrets=scene.secrets,
        # An empty list would let every identity in; without callers only the service itself passes, to be denied.
        peers=peers_of(scene.mesh, service.callers) or (service.identity,),
        counted_services=counted(service.methods),
        connection_ms_max=service.traffic.connection_duration_ms_max,
        health_path=names.HEALTH_PATH,
        not_delivered_header=names.NOT_DELIVERED_HEADER,
        reset_header=names.RESET_HEADER,
        not_delivered=names.NOT_DELIVERED,
        reset_connection=names.RESET_CONNECTION,
        reset_stream=names.RESET_STREAM,
        unseen_expression=UNSEEN_EXPRESSION,
        unanswered=UNANSWERED,
        stream_reset_expression=STREAM_RESET_EXPRESSION,
        stream_reset_status=STREAM_RESET_STATUS,
        stream_reset_message=STREAM_RESET_MESSAGE,
        strip_own_headers=False,
        route=scene.file_view("routes", names.LISTENER_INBOUND),
        adaptive_concurrency=service.traffic.adaptive_concurrency,
        admission_control=service.traffic.admission_control,
        duration_ms_max=max(call.limits.duration_ms or 0 for call in calls),
        rate_replies=rate_replies(calls),
        has_rates=any(call.rates for call in calls),
        has_sizes=any(call.body_bytes_max is not None for call in calls),
        size_filter=SIZE_FILTER,
        refused_expression=REFUSED_EXPRESSION,
        refused_status=EXHAUSTED_STATUS,
        refused_message=REFUSED_MESSAGE,
        too_large_expression=TOO_LARGE_EXPRESSION,
        too_large_message=TOO_LARGE_MESSAGE,
        **common(scene, names.LISTENER_INBOUND),
    )


def egress_listener(scene: Scene, service: Service, replica: ReplicaPlacement) -> Resource:
    """Where the application hands its calls over."""
    return resource(
        ResourceType.LISTENER,
        "listener_egress",
        address=address_view(replica.egress, listens=True),
        counted_services=counted(
            policy.method for edge in (*service.calls, *service.external_calls) for policy in edge.methods
        ),
        filters=filters_of(scene.mesh, _outgoing(scene, service)),
        route=scene.file_view("routes", names.LISTENER_EGRESS),
        strip_own_headers=True,
        name=names.LISTENER_EGRESS,
        **common(scene, names.LISTENER_EGRESS),
    )


def _outgoing(scene: Scene, service: Service) -> tuple[CallView, ...]:
    calls = outgoing_calls(scene.mesh, scene.placement, service.calls)
    outside = external_calls(scene.mesh, service.external_calls)
    return tuple(sorted((*calls, *outside), key=lambda call: call.path))


def routes(scene: Scene, service: Service) -> tuple[Resource, ...]:
    """What the application may call, and who may call it what."""
    return (_egress_route(scene, service), _inbound_route(scene, service))


def _egress_route(scene: Scene, service: Service) -> Resource:
    edges = (*service.calls, *service.external_calls)
    sizes = [destination.traffic.request_bytes_max for edge in edges for destination in edge.destinations]
    return resource(
        ResourceType.ROUTE,
        "route_egress",
        name=names.LISTENER_EGRESS,
        calls=_outgoing(scene, service),
        own_response_headers=(*names.OWN_RESPONSE_HEADERS, names.DEPENDENCY_FAILED_HEADER),
        request_bytes_max=max(sizes, default=0),
        refusal=f"the manifest does not allow {service.name} to call this method",
    )


def _inbound_route(scene: Scene, service: Service) -> Resource:
    return resource(
        ResourceType.ROUTE,
        "route_inbound",
        name=names.LISTENER_INBOUND,
        calls=arriving_calls(scene.mesh, service.callers),
        adaptive_concurrency=service.traffic.adaptive_concurrency,
        admission_control=service.traffic.admission_control,
        size_filter=SIZE_FILTER,
        own_request_headers=(names.HASH_HEADER,),
        cluster=names.CLUSTER_APPLICATION,
        own_response_headers=names.OWN_RESPONSE_HEADERS,
        status_header=names.STATUS_HEADER,
        status_format=STATUS_FORMAT,
    )


def _clusters(scene: Scene, service: Service, replica: ReplicaPlacement) -> tuple[Resource, ...]:
    clusters = [*service_clusters(scene, service.calls), *external_clusters(scene, service)]
    clusters += [
        local_cluster(names.CLUSTER_APPLICATION, replica.app, is_http2=True),
        local_cluster(names.CLUSTER_APPLICATION_METRICS, replica.app_metrics, is_http2=False),
        local_cluster(names.CLUSTER_ADMIN, replica.admin, is_http2=False),
        telemetry_cluster(scene),
    ]
    return tuple(sorted(clusters, key=lambda cluster: cluster.name))
