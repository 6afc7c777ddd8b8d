"""What an edited manifest changes in the running mesh, in numbers and in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from generator.manifest.kinds import format_duration
from generator.model import Mesh
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.files.versions import Key
from generator.resources import Resource, ResourceSet, WorkloadResources

KINDS = ("listeners", "clusters", "routes", "endpoints", "secrets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Between two meshes; services by name."""

    added: Mapping[str, int]
    """With the number of replicas."""
    removed: tuple[str, ...]
    scaled: Mapping[str, tuple[int, int]]
    restarted: Mapping[str, tuple[str, ...]]
    """With the reasons."""
    configured: Mapping[str, tuple[str, ...]]
    """Whose sidecars get other resources: the kinds. The gateway is in it under its own name."""
    sidecars: Mapping[str, int]
    """How many each has."""
    hearing: Mapping[str, tuple[str, ...]]
    """Who hears what else of whom, in words; how long events are kept is under the server's name."""
    is_exposure_new: bool
    """Reflection and health at the gateway have other services to speak of."""
    kept: Mapping[str, tuple[int, int]]
    """Services that keep the replicas of `nipmesh scale`: running, and in the manifest."""

    @property
    def is_empty(self) -> bool:
        """Nothing at all would be done."""
        parts = (self.added, self.removed, self.scaled, self.restarted, self.configured, self.hearing)
        return not any(parts) and not self.is_exposure_new

    def lines(self) -> tuple[str, ...]:
        """Say it, a line for each."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"+ {name}: service, {_counted(count, 'replica')}" for name, count in self.added.items())
        yield from (f"- {name}: service" for name in self.removed)
        yield from (f"~ {name}: replicas {old} -> {new}" for name, (old, new) in self.scaled.items())
        yield from (f"~ {name}: restarts ({', '.join(reasons)})" for name, reasons in self.restarted.items())
        for name, kinds in self.configured.items():
            who = "" if name == GATEWAY else f"{_counted(self.sidecars[name], 'sidecar')} get{_s(self.sidecars[name])} "
            yield f"~ {name}: {who}new {', '.join(kinds)}"
        for name, words in self.hearing.items():
            yield f"~ {name}: {', '.join(words)}"
        if self.is_exposure_new:
            yield f"~ {GATEWAY}: reflection and health follow what is exposed"
        for name, (running, written) in self.kept.items():
            yield f"  {name}: keeps the {running} replicas of `nipmesh scale`; the manifest says {written}"


def replica_changes(old: Mesh, new: Mesh) -> dict[str, tuple[int, int]]:
    """Give the services in both whose number of replicas differs: before and after."""
    before = {service.name: service.replicas for service in old.services}
    return {
        service.name: (before[service.name], service.replicas)
        for service in new.services
        if before.get(service.name, service.replicas) != service.replicas
    }


def hearing_changes(old: Mesh, new: Mesh) -> dict[str, tuple[str, ...]]:
    """Give the services that hear something else, new ones included, and the server when it is to keep something else."""
    found: dict[str, tuple[str, ...]] = {}
    before, after = (_heard(mesh) for mesh in (old, new))
    for name in sorted(before.keys() | after.keys()):
        gone, come = (
            (before.get(name, set()) - after.get(name, set())),
            (after.get(name, set()) - before.get(name, set())),
        )
        words = (*(f"hears {one}" for one in sorted(come)), *(f"hears {one} no more" for one in sorted(gone)))
        if words:
            found[name] = words
    if old.events is not None and new.events is not None:
        limits = ((one.retention_ms, one.bytes_max) for one in (old.events, new.events))
        if len(set(limits)) > 1:
            found[EVENTS] = (f"kept for {format_duration(new.events.retention_ms)}, {new.events.bytes_max} bytes",)
    return found


def _heard(mesh: Mesh) -> dict[str, set[str]]:
    return {
        service.name: {f"{one} of {hearing.publisher}" for hearing in service.consumes for one in hearing.types}
        for service in mesh.services
        if service.version_of is None
    }


def resource_changes(old: ResourceSet, new: ResourceSet) -> dict[str, tuple[str, ...]]:
    """Give each workload in both whose resources differ, with the kinds."""
    before = {workload.name: workload for workload in old.workloads}
    found = {}
    for workload in new.workloads:
        if workload.name in before:
            kinds = tuple(_kinds(before[workload.name], workload))
            if kinds:
                found[workload.name] = kinds
    return found


def bootstrap_changes(old: ResourceSet, new: ResourceSet) -> frozenset[str]:
    """Name the workloads in both whose Envoy would have to be started anew."""
    before = {workload.name: workload.bootstrap.version for workload in old.workloads}
    return frozenset(
        workload.name
        for workload in new.workloads
        if before.get(workload.name, workload.bootstrap.version) != workload.bootstrap.version
    )


def of_services(changes: Mapping[str, tuple[str, ...]], mesh: Mesh) -> dict[str, tuple[str, ...]]:
    """Sum workloads up by service, in the order of the kinds; only services of `mesh`, and the gateway."""
    known = {service.name for service in mesh.services} | {GATEWAY}
    found: dict[str, set[str]] = {}
    for workload, kinds in changes.items():
        name = service_of(workload)
        if name in known:
            found.setdefault(name, set()).update(kinds)
    return {name: tuple(kind for kind in KINDS if kind in found[name]) for name in sorted(found)}


def service_of(workload: str) -> str:
    """`nip-0` is of `nip`; the gateway is of itself."""
    return GATEWAY if workload == GATEWAY else workload.rpartition("-")[0]


def blamed(key: Key, workload: str, words: str, services: Iterable[str]) -> str:
    """Say whose lines of the manifest led to a resource that Envoy refuses: the callee's of a cluster, else its owner's."""
    for name in sorted(services, key=len, reverse=True):
        if f"outbound_{name}" in (key[1], *words.replace("'", " ").split()):
            return name
    return service_of(workload)


def _kinds(old: WorkloadResources, new: WorkloadResources) -> Iterator[str]:
    for kind in KINDS:
        if _versions(getattr(old, kind)) != _versions(getattr(new, kind)):
            yield kind


def _versions(resources: tuple[Resource, ...]) -> dict[str, str]:
    return {resource.name: resource.version for resource in resources}


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _s(count: int) -> str:
    return "s" if count == 1 else ""
