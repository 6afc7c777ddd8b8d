"""The resources of the gateway."""

from __future__ import annotations

from generator.model import Authentication, Gateway, GatewayPlacement, Mesh, Placement
from generator.model.mesh import GATEWAY
from generator.render import names
from generator.render.calls import counted, filters_of, outgoing_calls
from generator.render.sidecar import OVERLOAD_EXPRESSION, READY_PAGE, STATS_TARGET, common, scrape
from generator.render.views import (
    AuthenticationView,
    ClaimView,
    IntrospectionView,
    Limits,
    PageView,
    address_view,
)
from generator.render.workload import (
    GATEWAY_CONNECTIONS_MAX,
    GATEWAY_HEAP_BYTES_MAX,
    Scene,
    bootstrap,
    endpoint_sets,
    identity_secrets,
    local_cluster,
    resource,
    service_clusters,
    telemetry_cluster,
)
from generator.resources import Resource, ResourceType, WorkloadResources

INTROSPECTION_LIMITS = Limits(duration_ms=3_600_000, idle_ms=300_000, follows_caller=True)
"""Watching health is a stream."""
UNKNOWN_METHOD = "the gateway exposes no such method"
UNANSWERED = "the service does not answer; try again"
NOT_GRPC = "this is a gRPC gateway: call it over HTTP/2 with POST and content-type application/grpc\n"


def gateway_workload(mesh: Mesh, placement: Placement, gateway: Gateway, edge: GatewayPlacement) -> WorkloadResources:
    """Everything that the edge Envoy is told."""
    scene = Scene(
        mesh=mesh,
        placement=placement,
        workload=GATEWAY,
        service=GATEWAY,
        zone=gateway.zone,
        admin=edge.admin,
        scrape=edge.scrape,
        certificates=edge.certificates,
    )
    return WorkloadResources(
        name=GATEWAY,
        bootstrap=bootstrap(scene, heap_bytes_max=GATEWAY_HEAP_BYTES_MAX, connections_max=GATEWAY_CONNECTIONS_MAX),
        listeners=_listeners(scene, gateway, edge),
        clusters=_clusters(scene, gateway, edge),
        routes=(_route(scene, gateway),),
        endpoints=endpoint_sets(scene, gateway.exposes),
        secrets=_secrets(gateway, edge),
    )


def _listeners(scene: Scene, gateway: Gateway, edge: GatewayPlacement) -> tuple[Resource, ...]:
    pages = (PageView(path="/metrics/envoy", cluster=names.CLUSTER_ADMIN, target=STATS_TARGET), READY_PAGE)
    listener = resource(
        ResourceType.LISTENER,
        "listener_gateway",
        name=names.LISTENER_GATEWAY,
        address=address_view(edge.listen),
        edge_secret=None if gateway.tls is None else scene.file_view("secrets", names.SECRET_EDGE),
        counted_services=counted(policy.method for exposed in gateway.exposes for policy in exposed.methods),
        authentication=_authentication(gateway.authentication, scene.placement.jwks),
        filters=filters_of(scene.mesh, outgoing_calls(scene.mesh, scene.placement, gateway.exposes)),
        route=scene.file_view("routes", names.LISTENER_GATEWAY),
        strip_own_headers=True,
        unanswered=UNANSWERED,
        overload_expression=OVERLOAD_EXPRESSION,
        load_header=names.LOAD_HEADER,
        **common(scene, names.LISTENER_GATEWAY),
    )
    return (listener, scrape(scene, pages))


def _clusters(scene: Scene, gateway: Gateway, edge: GatewayPlacement) -> tuple[Resource, ...]:
    clusters = list(service_clusters(scene, gateway.exposes))
    clusters += [
        local_cluster(names.CLUSTER_INTROSPECTION, edge.introspection, is_http2=True),
        local_cluster(names.CLUSTER_ADMIN, edge.admin, is_http2=False),
        telemetry_cluster(scene),
    ]
    return tuple(sorted(clusters, key=lambda cluster: cluster.name))


def _route(scene: Scene, gateway: Gateway) -> Resource:
    authentication = gateway.authentication
    public = authentication.public if authentication is not None else ()
    roles = authentication.roles if authentication is not None else ()
    destinations = [destination for exposed in gateway.exposes for destination in exposed.destinations]
    sizes = [destination.traffic.request_bytes_max for destination in destinations]
    reflection = names.INTROSPECTION_REFLECTION if gateway.reflection else ()
    return resource(
        ResourceType.ROUTE,
        "route_gateway",
        name=names.LISTENER_GATEWAY,
        calls=outgoing_calls(scene.mesh, scene.placement, gateway.exposes, public, roles),
        authentication=authentication is not None,
        own_response_headers=(*names.OWN_RESPONSE_HEADERS, names.DEPENDENCY_FAILED_HEADER),
        request_bytes_max=max(sizes, default=0),
        introspection=IntrospectionView(
            cluster=names.CLUSTER_INTROSPECTION,
            prefixes=(names.INTROSPECTION_HEALTH, *reflection),
            limits=INTROSPECTION_LIMITS,
        ),
        unknown=UNKNOWN_METHOD,
        not_grpc=NOT_GRPC,
    )


def _authentication(authentication: Authentication | None, jwks: str | None) -> AuthenticationView | None:
    if authentication is None:
        return None
    assert jwks is not None, "render checks it"
    return AuthenticationView(
        issuer=authentication.issuer,
        audience=authentication.audience,
        jwks=jwks,
        claim_headers=tuple(ClaimView(claim=claim, header=header) for claim, header in authentication.claim_headers),
    )


def _secrets(gateway: Gateway, edge: GatewayPlacement) -> tuple[Resource, ...]:
    secrets = list(identity_secrets(edge.certificates))
    if gateway.tls is not None:
        secrets.append(
            resource(
                ResourceType.SECRET,
                "secret_leaf",
                name=names.SECRET_EDGE,
                certificate=str(gateway.tls.certificate),
                private_key=str(gateway.tls.private_key),
                watched=str(gateway.tls.certificate.parent),
            )
        )
    return tuple(sorted(secrets, key=lambda secret: secret.name))
