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
    files[PurePath(workload.name, TWIN)] = pretty(twin(workload).body)
    files[PurePath(workload.name, BOOTSTRAP)] = pretty(workload.bootstrap.body)
    return files


def discovery(resources: Iterable[Resource]) -> bytes:
    """An xDS DiscoveryResponse as JSON; its version is the hash of what is in it."""
    return discovery_bytes([{"@type": resource.type_url, **resource.body} for resource in resources])


def discovery_bytes(listed: list[dict[str, Any]]) -> bytes:
    """The same of resources that are JSON already."""
    return pretty({"version_info": version_of(listed), "resources": listed})


def pretty(value: object) -> bytes:
    """JSON for Envoy that people can still read: keys in the template's order, which is fixed."""
    return (json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _path(workload: WorkloadResources, kind: str, name: str | None = None) -> PurePath:
    return workload_file(BASE, workload.name, kind, name)
