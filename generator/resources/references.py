"""What resources of one workload say about each other: every name that is used exists, and nothing is left unused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from generator.resources.errors import Problem, ResourceError
from generator.resources.resource import Resource, WorkloadResources

Used = Iterator[tuple[str, str]]
"""(kind, name) pairs; the kinds are the keys of `defined`."""


def check_references(workload: WorkloadResources) -> None:
    """Raise ResourceError when a name is used that no resource has, twice given, or given and never used."""
    defined = {
        "cluster": workload.clusters,
        "route": workload.routes,
        "endpoints": workload.endpoints,
        "secret": workload.secrets,
    }
    problems = list(_duplicates(workload))
    used: dict[str, set[str]] = {kind: set() for kind in defined}
    for resource in every(workload):
        for kind, name in references(resource.body):
            used[kind].add(name)
            if name not in {candidate.name for candidate in defined[kind]}:
                problems.append(Problem(path=_where(workload, resource), text=f"there is no {kind} {name!r}"))
    for kind, resources in defined.items():
        unused = (resource for resource in resources if resource.name not in used[kind])
        problems += [Problem(path=_where(workload, resource), text="nothing refers to it") for resource in unused]
    if problems:
        raise ResourceError(problems)


def every(workload: WorkloadResources) -> tuple[Resource, ...]:
    """All resources of a workload."""
    dynamic = (workload.secrets, workload.endpoints, workload.clusters, workload.routes, workload.listeners)
    return (workload.bootstrap, *(resource for kind in dynamic for resource in kind))


def references(value: Any) -> Used:
    """Every name of another resource anywhere in a resource's JSON."""
    if isinstance(value, Mapping):
        yield from _own_references(value)
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def _own_references(value: Mapping[str, Any]) -> Used:
    if "rds" in value:
        yield "route", value["rds"]["route_config_name"]
    if "sds_config" in value:
        yield "secret", value["name"]
    if "eds_cluster_config" in value:
        yield "endpoints", value["eds_cluster_config"].get("service_name") or value["name"]
    if isinstance(route := value.get("route"), Mapping) and "cluster" in route:
        yield "cluster", route["cluster"]
    if isinstance(service := value.get("envoy_grpc"), Mapping):
        yield "cluster", service["cluster_name"]


def _duplicates(workload: WorkloadResources) -> Iterable[Problem]:
    seen: set[tuple[str, str]] = set()
    for resource in every(workload):
        key = (resource.type_url, resource.name)
        if key in seen:
            yield Problem(path=_where(workload, resource), text="there are two of this name")
        seen.add(key)


def _where(workload: WorkloadResources, resource: Resource) -> str:
    return f"{workload.name}, {resource.type.short} {resource.name}"
