"""Finds the names of other resources in a resource's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Used = Iterator[tuple[str, str]]
"""(kind, name) pairs; the kinds are `cluster`, `route`, `endpoints` and `secret`."""


def references(value: Any) -> Used:
    """Every name of another resource anywhere in a resource's JSON."""
    if isinstance(value, dict):
        yield from _own_references(value)
        for item in value.values():
            if isinstance(item, dict | list):
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def _own_references(value: dict[str, Any]) -> Used:
    if "rds" in value:
        yield "route", value["rds"]["route_config_name"]
    if "sds_config" in value:
        yield "secret", value["name"]
    if "eds_cluster_config" in value:
        yield "endpoints", value["eds_cluster_config"].get("service_name") or value["name"]
    route = value.get("route")
    if isinstance(route, dict) and "cluster" in route:
        yield "cluster", route["cluster"]
    service = value.get("envoy_grpc")
    if isinstance(service, dict):
        yield "cluster", service["cluster_name"]
