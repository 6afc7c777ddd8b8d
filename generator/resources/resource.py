"""A resource, and the resources of a workload. Versions are hashes of content: never a counter, never a clock."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from generator.resources.decode import decode
from generator.resources.holes import Scalar
from generator.resources.kinds import ResourceType
from generator.resources.shapes import Shape, actual, name_of, whole
from generator.resources.texts import canonical_json, encoded, version_of, version_of_text

if TYPE_CHECKING:
    from generator.resources.families import Member

__all__ = [
    "Resource",
    "ResourceSet",
    "ResourceType",
    "WorkloadResources",
    "canonical_json",
    "fill",
    "make_resource",
    "version_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One checked resource. `make_resource` and `fill` are the only ways to one.

    It is kept as its shape and what stands in the shape's holes, which is little where many are alike.
    """

    name: str
    version: str
    """Hash of the canonical JSON."""
    shape: Shape = field(repr=False, compare=False)
    values: tuple[Scalar, ...] = field(repr=False, compare=False)
    uses: tuple[tuple[str, str], ...] = field(repr=False, compare=False)
    """The other resources that it names: (`cluster`, `route`, `endpoints` or `secret`, name), sorted."""

    @property
    def type(self) -> ResourceType:
        """The kind of resource."""
        return self.shape.kind

    @property
    def type_url(self) -> str:
        """The `@type`."""
        return self.type.url

    @property
    def text(self) -> str:
        """JSON without a space, keys in the template's order."""
        return self.shape.wire.fill(encoded(self.values))

    @property
    def body(self) -> dict[str, Any]:
        """JSON, field names as in the protobufs; a copy of its own each time."""
        return dict(json.loads(self.text))

    @property
    def message(self) -> Message:
        """The protobuf message, decoded anew each time."""
        return decode(self.type.value, self.body, _where(self.type, self.name))


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
    member: Member | None = field(default=None, init=False, repr=False, compare=False)
    """The family that it was made in, if any; a copy with changes is in none."""

    def made_by(self, member: Member) -> None:
        """Say, once and at once after making it, in which family it was made."""
        assert self.member is None, self.name
        object.__setattr__(self, "member", member)


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
    decode(kind.value, body, _where(kind, name))
    shape = whole(kind, body)
    uses = tuple((word, actual(used, ())) for word, used in shape.uses)
    return Resource(name=name, version=version_of(body), shape=shape, values=(), uses=uses)


def fill(shape: Shape, values: tuple[Scalar, ...]) -> Resource | None:
    """The resource of this shape with these values, as `make_resource` would make it; None when a value is wrong."""
    if not shape.takes(values):
        return None
    uses = tuple(sorted({(kind, actual(name, values)) for kind, name in shape.uses}))
    version = version_of_text(shape.canonical(values).fill(encoded(values)))
    return Resource(name=actual(shape.name, values), version=version, shape=shape, values=values, uses=uses)


def _where(kind: ResourceType, name: str) -> str:
    return f"{kind.short} {name}".rstrip()
