"""What resources of one workload say about each other: every name that is used exists, and nothing is left unused."""

from __future__ import annotations

from collections.abc import Iterable

from generator.resources.errors import Problem, ResourceError
from generator.resources.resource import Resource, WorkloadResources


def check_references(workload: WorkloadResources, *, spare_allowed: bool = False) -> None:
    """Raise ResourceError when a name is used that no resource has, twice given, or (unless allowed) never used."""
    defined = {
        "cluster": workload.clusters,
        "route": workload.routes,
        "endpoints": workload.endpoints,
        "secret": workload.secrets,
    }
    names = {kind: {resource.name for resource in resources} for kind, resources in defined.items()}
    problems = list(_duplicates(workload))
    used: set[tuple[str, str]] = set()
    for resource in every(workload):
        used.update(resource.uses)
        missing = ((kind, name) for kind, name in resource.uses if name not in names[kind])
        problems += [_problem(workload, resource, f"there is no {kind} {name!r}") for kind, name in missing]
    for kind, resources in () if spare_allowed else defined.items():
        unused = (resource for resource in resources if (kind, resource.name) not in used)
        problems += [_problem(workload, resource, "nothing refers to it") for resource in unused]
    if problems:
        raise ResourceError(problems)


def every(workload: WorkloadResources) -> tuple[Resource, ...]:
    """All resources of a workload, its bootstrap first."""
    dynamic = (workload.secrets, workload.endpoints, workload.clusters, workload.routes, workload.listeners)
    return (workload.bootstrap, *(resource for kind in dynamic for resource in kind))


def _duplicates(workload: WorkloadResources) -> Iterable[Problem]:
    seen: set[tuple[str, str]] = set()
    for resource in every(workload):
        key = (resource.type_url, resource.name)
        if key in seen:
            yield _problem(workload, resource, "there are two of this name")
        seen.add(key)


def _problem(workload: WorkloadResources, resource: Resource, text: str) -> Problem:
    return Problem(path=f"{workload.name}, {resource.type.short} {resource.name}", text=text)
