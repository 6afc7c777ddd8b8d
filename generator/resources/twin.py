"""The validation twin: all resources of a workload inlined as static ones.

`envoy --mode validate` never opens the files of `dynamic_resources`: it says OK to garbage in them. So Envoy is shown
this twin, which differs from the real thing only in where each resource comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generator.resources.resource import Resource, WorkloadResources
from generator.resources.uses import route_named, secret_named


def twin(workload: WorkloadResources, secrets: tuple[Resource, ...] | None = None) -> dict[str, Any]:
    """Inline a workload's resources into its bootstrap: the JSON of another bootstrap.

    `secrets` stand in for the workload's own, e.g. when its certificates do not exist yet.
    """
    routes = {route.name: route.body for route in workload.routes}
    endpoints = {assignment.name: assignment.body for assignment in workload.endpoints}
    body = {key: value for key, value in workload.bootstrap.body.items() if key != "dynamic_resources"}
    return body | {
        "static_resources": {
            "listeners": [inlined(listener.body, routes) for listener in workload.listeners],
            "clusters": [inlined(with_endpoints(cluster.body, endpoints), routes) for cluster in workload.clusters],
            "secrets": [secret.body for secret in (workload.secrets if secrets is None else secrets)],
        }
    }


def inlined(value: Any, routes: Mapping[str, dict[str, Any]]) -> Any:
    """Copy JSON with route configurations in place of references, and secrets by their name alone."""
    if isinstance(value, dict):
        route, is_secret = route_named(value), secret_named(value) is not None
        left_out = {"rds"} if route is not None else {"sds_config"} if is_secret else ()
        copied = {key: inlined(item, routes) for key, item in value.items() if key not in left_out}
        if route is not None:
            copied["route_config"] = routes[route]
        return copied
    return [inlined(item, routes) for item in value] if isinstance(value, list) else value


def with_endpoints(cluster: dict[str, Any], endpoints: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Turn a cluster that asks for its endpoints into one that has them."""
    if "eds_cluster_config" not in cluster:
        return cluster
    name = cluster["eds_cluster_config"].get("service_name") or cluster["name"]
    rest = {key: value for key, value in cluster.items() if key != "eds_cluster_config"}
    return {**rest, "type": "STATIC", "load_assignment": endpoints[name]}
