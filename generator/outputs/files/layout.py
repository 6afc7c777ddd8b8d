"""Which bytes go into which file of a workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from generator.render.names import workload_file
from generator.resources import Resource, WorkloadResources, twin
from generator.resources.texts import compact, version_of

BOOTSTRAP = "bootstrap.json"
TWIN = "validate.json"
BASE = Path()
Write = Callable[[WorkloadResources], str]


def contents(workload: WorkloadResources) -> Mapping[PurePath, bytes]:
    """Every file of a workload by its path below the common directory, in an order that is safe to write.

    What is referred to comes before what refers to it: secrets and endpoints, clusters, routes, listeners.
    """
    files: dict[PurePath, bytes] = {}
    for kind, index, resources in _groups(workload):
        name = None if index is None else resources[0].name
        lines = _text(workload, f"{kind} {index}", partial(_lines, kind, index))
        files[workload_file(BASE, workload.name, kind, name)] = discovery(resources, lines)
    files[PurePath(workload.name, TWIN)] = _text(workload, TWIN, lambda other: members(twin(other))).encode()
    bootstrap = _text(workload, BOOTSTRAP, lambda other: members(other.bootstrap.body))
    files[PurePath(workload.name, BOOTSTRAP)] = bootstrap.encode()
    return files


def _groups(workload: WorkloadResources) -> Iterator[tuple[str, int | None, tuple[Resource, ...]]]:
    """What shares a file: the kind, which of the kind where each has its own, the resources."""
    yield from (("secrets", index, (secret,)) for index, secret in enumerate(workload.secrets))
    yield from (("endpoints", index, (endpoints,)) for index, endpoints in enumerate(workload.endpoints))
    yield "clusters", None, workload.clusters
    yield from (("routes", index, (route,)) for index, route in enumerate(workload.routes))
    yield "listeners", None, workload.listeners


def _text(workload: WorkloadResources, key: str, write: Write) -> str:
    """What `write` writes of a workload, the shorter way where its family knows one."""
    member = workload.member
    found = None if member is None else member.family.text(key, member, write)
    return write(workload) if found is None else found


def _lines(kind: str, index: int | None, workload: WorkloadResources) -> str:
    resources: tuple[Resource, ...] = getattr(workload, kind)
    return ",\n".join(_line(resource) for resource in (resources if index is None else (resources[index],)))


def _line(resource: Resource) -> str:
    return f'{{"@type":"{resource.type_url}",{resource.text[1:]}'


def discovery(resources: Iterable[Resource], lines: str) -> bytes:
    """An xDS DiscoveryResponse as JSON, each resource on a line of its own; its version is the hash of theirs."""
    version = version_of([[resource.type_url, resource.name, resource.version] for resource in resources])
    return f'{{"version_info":"{version}","resources":[\n{lines}\n]}}\n'.encode()


def discovery_bytes(listed: list[dict[str, Any]]) -> bytes:
    """The same of resources that are JSON; its version is the hash of what is in it."""
    lines = ",\n".join(compact(resource) for resource in listed)
    return f'{{"version_info":"{version_of(listed)}","resources":[\n{lines}\n]}}\n'.encode()


def members(value: dict[str, Any]) -> str:
    """A JSON object, each member on a line of its own."""
    lines = ",\n".join(f"{compact(key)}:{compact(item)}" for key, item in value.items())
    return f"{{\n{lines}\n}}\n"
