"""Which bytes go into which file of a workload."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from generator.render.names import workload_file
from generator.resources import Resource, WorkloadResources, twin
from generator.resources.resource import version_of

BOOTSTRAP = "bootstrap.json"
TWIN = "validate.json"
BASE = Path()


def contents(workload: WorkloadResources) -> Mapping[PurePath, bytes]:
    """Every file of a workload by its path below the common directory, in an order that is safe to write.

    What is referred to comes before what refers to it: secrets and endpoints, clusters, routes, listeners.
    """
    files: dict[PurePath, bytes] = {}
    for kind, resources in (("secrets", workload.secrets), ("endpoints", workload.endpoints)):
        files |= {_path(workload, kind, resource.name): discovery((resource,)) for resource in resources}
    files[_path(workload, "clusters")] = discovery(workload.clusters)
    files |= {_path(workload, "routes", route.name): discovery((route,)) for route in workload.routes}
    files[_path(workload, "listeners")] = discovery(workload.listeners)
    files[PurePath(workload.name, TWIN)] = members(twin(workload))
    files[PurePath(workload.name, BOOTSTRAP)] = members(workload.bootstrap.body)
    return files


def discovery(resources: Iterable[Resource]) -> bytes:
    """An xDS DiscoveryResponse as JSON; its version is the hash of what is in it."""
    return discovery_bytes([{"@type": resource.type_url, **resource.body} for resource in resources])


def discovery_bytes(listed: list[dict[str, Any]]) -> bytes:
    """The same of resources that are JSON already; each stands on a line of its own."""
    lines = ",\n".join(compact(resource) for resource in listed)
    return f'{{"version_info":"{version_of(listed)}","resources":[\n{lines}\n]}}\n'.encode()


def members(value: dict[str, Any]) -> bytes:
    """A JSON object, each member on a line of its own."""
    lines = ",\n".join(f"{compact(key)}:{compact(item)}" for key, item in value.items())
    return f"{{\n{lines}\n}}\n".encode()


def compact(value: object) -> str:
    """JSON without a space, keys in the template's order, which is fixed."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _path(workload: WorkloadResources, kind: str, name: str | None = None) -> PurePath:
    return workload_file(BASE, workload.name, kind, name)
