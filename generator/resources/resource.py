"""A resource, and the resources of a workload. Versions are hashes of content: never a counter, never a clock."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from generator.resources.decode import decode
from generator.resources.descriptors import TYPE_PREFIX
from generator.resources.uses import references

VERSION_HEX_DIGITS = 16
"""64 bits: two different contents of one resource meet with a chance of 1 in 10^19."""


class ResourceType(enum.Enum):
    """The kinds of resources, by the full names of their messages."""

    BOOTSTRAP = "envoy.config.bootstrap.v3.Bootstrap"
    LISTENER = "envoy.config.listener.v3.Listener"
    CLUSTER = "envoy.config.cluster.v3.Cluster"
    ROUTE = "envoy.config.route.v3.RouteConfiguration"
    ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
    SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # the name of a message

    @property
    def url(self) -> str:
        """The `@type` of such a resource."""
        return TYPE_PREFIX + self.value

    @property
    def short(self) -> str:
        """For example `Cluster`."""
        return self.value.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One checked resource. `make_resource` is the only way to one."""

    name: str
    type: ResourceType
    version: str
    """Hash of the canonical JSON."""
    body: dict[str, Any]
    """JSON, field names as in the protobufs; treat it as frozen."""
    uses: tuple[tuple[str, str], ...] = field(repr=False, compare=False)
    """The other resources that it names: (`cluster`, `route`, `endpoints` or `secret`, name), sorted."""
    message: Message = field(repr=False, compare=False)

    @property
    def type_url(self) -> str:
        """The `@type`."""
        return self.type.url


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadResources:
    """Everything that one Envoy is told; each tuple is sorted by name."""

    name: str
    """Of the workload: `nip-0`, `gateway`."""
    bootstrap: Resource
    listeners: tuple[Resource, ...]
    clusters: tuple[Resource, ...]
    routes: tuple[Resource, ...]
    endpoints: tuple[Resource, ...]
    secrets: tuple[Resource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSet:
    """Every workload of a mesh, sorted by name."""

    workloads: tuple[WorkloadResources, ...]

    def workload(self, name: str) -> WorkloadResources:
        """The workload of this name; KeyError when there is none."""
        for workload in self.workloads:
            if workload.name == name:
                return workload
        raise KeyError(name)


def make_resource(kind: ResourceType, body: dict[str, Any]) -> Resource:
    """Check a resource against Envoy's protobufs and give it its version. Raises ResourceError."""
    name = name_of(kind, body)
    message = decode(kind.value, body, f"{kind.short} {name}".rstrip())
    uses = tuple(sorted(set(references(body))))
    return Resource(name=name, type=kind, version=version_of(body), body=body, uses=uses, message=message)


def name_of(kind: ResourceType, body: dict[str, Any]) -> str:
    """The name by which other resources refer to this one; a bootstrap goes by its node's id."""
    if kind is ResourceType.BOOTSTRAP:
        return str(body.get("node", {}).get("id", ""))
    return str(body.get("cluster_name" if kind is ResourceType.ENDPOINTS else "name", ""))


def version_of(value: object) -> str:
    """Hash a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:VERSION_HEX_DIGITS]


def canonical_json(value: object) -> bytes:
    """Write JSON in the one form that has: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
