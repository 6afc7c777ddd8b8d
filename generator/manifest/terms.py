"""What others call each traffic policy, and what of Envoy it becomes: for readers who come from there, and for importers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The names of one policy elsewhere; empty: there is none."""

    istio: str = ""
    gateway_api: str = ""
    envoy: tuple[str, ...] = ()
    """Fields, filters and policies of Envoy's configuration that the policy's sample brings in or changes."""
    where: str = ""
    """In whose Envoy."""


CALLER = "in the sidecar of each caller and in the gateway"
CALLEE = "in the sidecar of each replica of the service"
BOTH = "in the Envoys of both sides"

TERMS: Final[Mapping[str, Terms]] = {
    "deadline": Terms(
        istio="VirtualService `http.timeout`",
        gateway_api="HTTPRoute `rules.timeouts.request`",
        envoy=("max_stream_duration", "grpc_timeout_header_max"),
        where=BOTH,
    ),
    "idle_timeout": Terms(envoy=("idle_timeout",), where=BOTH),
    "max_stream_duration": Terms(envoy=("max_stream_duration",), where=BOTH),
    "retries": Terms(
        istio="VirtualService `http.retries`",
        gateway_api="HTTPRoute `rules.retry` (experimental)",
        envoy=("retry_policy", "retry_on", "num_retries", "retriable_headers", "per_try_timeout", "retry_back_off"),
        where=CALLER,
    ),
    "faults": Terms(
        istio="VirtualService `http.fault`",
        envoy=("envoy.filters.http.fault", "fixed_delay", "grpc_status"),
        where=CALLER,
    ),
    "max_request_bytes": Terms(envoy=("envoy.filters.http.buffer", "max_request_bytes"), where=CALLEE),
    "hedging": Terms(envoy=("hedge_policy", "hedge_on_per_try_timeout", "per_try_timeout"), where=CALLER),
    "rate_limit": Terms(
        istio="EnvoyFilter with `envoy.filters.http.local_ratelimit`",
        envoy=("envoy.filters.http.local_ratelimit", "token_bucket", "rate_limited_as_resource_exhausted"),
        where=CALLEE,
    ),
    "headers": Terms(
        istio="VirtualService `http.headers`",
        gateway_api="GRPCRoute filters `RequestHeaderModifier`, `ResponseHeaderModifier`",
        envoy=("request_headers_to_add", "request_headers_to_remove", "response_headers_to_remove"),
        where=CALLER,
    ),
    "unsafe": Terms(envoy=("retry_on",), where=CALLER),
    "routing": Terms(
        istio="VirtualService `http.match`, `http.route.weight`, `http.mirror`; DestinationRule `subsets`",
        gateway_api="GRPCRoute `rules.matches.headers`, `rules.backendRefs.weight`, filter `RequestMirror`",
        envoy=("headers", "weighted_clusters", "request_mirror_policies"),
        where=CALLER,
    ),
    "load_balancing": Terms(
        istio="DestinationRule `trafficPolicy.loadBalancer`",
        envoy=("load_balancing_policy", "load_balancing_weight", "healthy_panic_threshold", "hash_policy"),
        where=CALLER,
    ),
    "circuit_breaker": Terms(
        istio="DestinationRule `trafficPolicy.connectionPool`",
        envoy=("circuit_breakers", "max_connections", "max_pending_requests", "max_requests"),
        where=CALLER,
    ),
    "retry_budget": Terms(
        istio="DestinationRule `trafficPolicy.retryBudget`",
        gateway_api="XBackendTrafficPolicy `retryConstraint.budget` (experimental)",
        envoy=("retry_budget", "budget_percent", "min_retry_concurrency"),
        where=CALLER,
    ),
    "outlier_detection": Terms(
        istio="DestinationRule `trafficPolicy.outlierDetection`",
        envoy=("outlier_detection", "consecutive_5xx", "success_rate_minimum_hosts", "failure_percentage_threshold"),
        where=CALLER,
    ),
    "adaptive_concurrency": Terms(envoy=("envoy.filters.http.adaptive_concurrency",), where=CALLEE),
    "admission_control": Terms(envoy=("envoy.filters.http.admission_control",), where=CALLEE),
    "session_persistence": Terms(
        istio="the service's label `istio.io/persistent-session`",
        gateway_api="GRPCRoute `rules.sessionPersistence` (experimental)",
        envoy=("envoy.filters.http.stateful_session",),
        where=CALLER,
    ),
}
"""By the key below `traffic`."""

ROOM_TERMS: Final[Mapping[str, Terms]] = {
    "zones": Terms(
        istio="the nodes' labels `topology.kubernetes.io/zone`, and locality load balancing",
        gateway_api="Service `trafficDistribution`",
        envoy=("locality", "zone", "priority"),
        where=CALLER,
    ),
    "external": Terms(
        istio="ServiceEntry, and DestinationRule `trafficPolicy.tls` with mode `SIMPLE` or `MUTUAL`",
        envoy=("LOGICAL_DNS", "STATIC", "sni", "match_typed_subject_alt_names", "envoy.filters.network.tcp_proxy"),
        where="in the sidecars of the services that say so",
    ),
    "services.SERVICE.version_of": Terms(
        istio="DestinationRule `subsets`",
        gateway_api="another Service among the `backendRefs`",
        envoy=("outbound_orders-blue", "weighted_clusters"),
        where=CALLER,
    ),
    "services.SERVICE.zones": Terms(
        istio="DestinationRule `trafficPolicy.loadBalancer.localityLbSetting`",
        gateway_api="Service `trafficDistribution`",
        envoy=("locality", "zone", "priority", "envoy.retry_priorities.previous_priorities"),
        where=CALLER,
    ),
    "services.SERVICE.calls.CALLEE.traffic": Terms(
        istio="VirtualService with `sourceLabels`; for `calls` itself AuthorizationPolicy and Sidecar `egress`",
        envoy=("max_stream_duration", "max_requests", "num_retries"),
        where="in the sidecar of this caller",
    ),
}
"""By the path of keys of what stands elsewhere than below `traffic`."""
