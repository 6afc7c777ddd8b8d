"""Finds the names of other resources in a resource's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
TELLING = frozenset({"rds", "sds_config", "eds_cluster_config", "route", "envoy_grpc"})
"""Members of an object that has names of other resources."""
Used = Iterator[tuple[str, str]]
"""(kind, name) pairs; the kinds are `cluster`, `route`, `endpoints` and `secret`."""


def references(value: Any) -> Used:
    """Every name of another resource anywhere in a resource's JSON, in no particular order."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if has_own_references(found):
                yield from own_references(found)
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def has_own_references(value: dict[str, Any]) -> bool:
    """Whether an object may itself name other resources, its members apart."""
    return not TELLING.isdisjoint(value) or value.get("@type") == TCP_PROXY


def own_references(value: dict[str, Any]) -> Used:
    """The names of other resources that an object itself has, its members apart."""
    if (routes := route_named(value)) is not None:
        yield "route", routes
    if (secret := secret_named(value)) is not None:
        yield "secret", secret
    endpoints = value.get("eds_cluster_config")
    if isinstance(endpoints, dict) and "eds_config" in endpoints:
        yield "endpoints", endpoints.get("service_name") or value["name"]
    route = value.get("route")
    if isinstance(route, dict):
        yield from _clusters_of(route)
    if value.get("@type") == TCP_PROXY:
        yield "cluster", value["cluster"]
    service = value.get("envoy_grpc")
    if isinstance(service, dict) and "cluster_name" in service:
        yield "cluster", service["cluster_name"]


def _clusters_of(route: dict[str, Any]) -> Used:
    if "cluster" in route:
        yield "cluster", route["cluster"]
    for weighted in route.get("weighted_clusters", {}).get("clusters", ()):
        yield "cluster", weighted["name"]
    for mirror in route.get("request_mirror_policies", ()):
        yield "cluster", mirror["cluster"]


def route_named(value: dict[str, Any]) -> Any:
    """The route configuration that a connection manager takes from elsewhere; None when this is not one.

    An object may also be a map whose keys the user chose: a caller may be called `rds`.
    """
    found = value.get("rds")
    return found["route_config_name"] if isinstance(found, dict) and "route_config_name" in found else None


def secret_named(value: dict[str, Any]) -> Any:
    """The secret that comes from elsewhere; None when this is not one."""
    found = value.get("sds_config")
    return value["name"] if isinstance(found, dict) and "resource_api_version" in found else None
