"""From an edited manifest to a plan, or to everything that speaks against it. Nothing is touched here.

The manifest is analysed anew, what a running mesh cannot change is refused, the configuration is rendered, and Envoy itself
is asked about one sidecar of each service whose resources change (its replicas differ in addresses only).
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from generator.analysis import Analysis, Output, check_manifest
from generator.manifest import Finding, Reporter, load_manifest
from generator.manifest.finding import START, Position
from generator.manifest.types import Manifest
from generator.model import Mesh, Placement, ReplicaPlacement
from generator.model.mesh import GATEWAY
from generator.model.overrides import Overrides
from generator.outputs.files import default_placement, validate_with_envoy
from generator.outputs.local.applied import Applied, applied, manifest_digest, still_scaled
from generator.outputs.local.bodies import exposure_files
from generator.outputs.local.definition import differences
from generator.outputs.local.difference import (
    Difference,
    bootstrap_changes,
    hearing_changes,
    of_services,
    replica_changes,
    resource_changes,
    service_of,
)
from generator.outputs.local.errors import OperationError
from generator.outputs.local.inotify import shortage_between
from generator.outputs.local.keys import key_set
from generator.outputs.local.paths import SOCKET_PATH_BYTES_MAX, longest_socket_path
from generator.outputs.local.supervisor import Supervisor
from generator.outputs.local.transition import Transition, transition
from generator.render import render
from generator.resources import ResourceError, ResourceSet

ANEW = "`nipmesh down` and `nipmesh up` start the mesh anew with it"
"""What helps against a change that a running mesh cannot take."""
UNCHANGED = "the running mesh is as it was"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done, all of it checked."""

    transition: Transition
    difference: Difference
    jwks: str | None
    applied: Applied
    """What is true afterwards."""
    findings: tuple[Finding, ...]
    """Warnings and notes."""
    places: dict[str, Position]
    """Where each service stands in the manifest, and the gateway."""
    reporter: Reporter

    def finding(self, name: str, message: str, cause: str) -> Finding:
        """Say that the running mesh refused what a service (or the gateway) says."""
        reporter = Reporter(path=self.reporter.path, lines=self.reporter.lines)
        place = self.places.get(name, START)
        reporter.report("NM802", place, message, cause=cause, fix=f"change it and apply again; {UNCHANGED}")
        return reporter.findings[0]


async def plan_change(supervisor: Supervisor) -> Plan:
    """Plan to make the running mesh what the manifest says. Raises OperationError with every reason against it."""
    manifest = supervisor.setup.manifest
    digest = manifest_digest(manifest)
    loaded = load_manifest(manifest)
    analysis, scaled, written = await asyncio.to_thread(_analyse, supervisor)
    if analysis.mesh is None or loaded.manifest is None:
        raise refusal(analysis.findings)
    new = analysis.mesh
    places = dict(_places(loaded.manifest))
    reporter = Reporter(path=str(manifest), lines=loaded.reporter.lines)
    _refuse_unchangeable(supervisor, new, loaded.manifest, places, reporter)
    if reporter.has_errors:
        raise refusal(reporter.sorted())
    missing = shortage_between(supervisor.mesh, new)
    if missing is not None:
        raise OperationError(missing)
    around = replace(supervisor.around, mesh=new)
    after = replace(applied(digest, new, around, scaled), written=written)
    way = transition(supervisor.mesh, new)
    jwks = key_set(new, supervisor.setup.paths, around.manifest_directory)
    trial = _Trial(supervisor=supervisor, way=way, jwks=jwks)
    present, coming = await supervisor.publisher.aside(lambda: _rendered(trial, reporter))
    difference = _difference(trial, after, present, coming, reporter)
    await asyncio.to_thread(_ask_envoy, trial, difference, coming, places, reporter)
    if reporter.has_errors:
        raise refusal(reporter.sorted())
    return Plan(
        transition=way,
        difference=difference,
        jwks=jwks,
        applied=after,
        findings=analysis.findings,
        places=places,
        reporter=reporter,
    )


def refusal(findings: tuple[Finding, ...]) -> OperationError:
    """Make an error of findings, all of them: a warning may explain an error."""
    return OperationError("\n".join((*map(str, findings), f"nothing was changed: {UNCHANGED}")))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Rendering ahead: real addresses of what runs, made-up ones of what is to come."""

    supervisor: Supervisor
    way: Transition
    jwks: str | None

    def rendered(self, mesh: Mesh, jwks: str | None, *, is_whole: bool = True) -> ResourceSet:
        """Render one of the meshes of the way."""
        names = {service.name for service in mesh.services}
        everybody = self.placement(mesh, jwks, is_whole=is_whole)
        mine = tuple(replica for replica in everybody.replicas if replica.service in names)
        return render(mesh, replace(everybody, replicas=mine), is_whole=is_whole)

    def placement(self, mesh: Mesh, jwks: str | None, *, is_whole: bool) -> Placement:
        """Place every replica of both meshes: those that run where they are, unless they are to move in `mesh`."""
        present = self.supervisor.board.placement()
        staying = tuple(replica for replica in present.replicas if _stays(mesh, replica, is_whole=is_whole))
        known = {replica.service for replica in staying}
        made_up = default_placement(self.way.new, present.directory, jwks=jwks or "{}")
        coming = (replica for replica in made_up.replicas if replica.service not in known)
        return replace(present, replicas=(*staying, *coming), jwks=jwks)


def _stays(mesh: Mesh, replica: ReplicaPlacement, *, is_whole: bool) -> bool:
    """Tell whether a replica has the ways out that its service has in this mesh, or (between two meshes) some of them."""
    outside = {name for name, _ in replica.external}
    known = (set(service.external_connections) for service in mesh.services if service.name == replica.service)
    return all(outside == ways if is_whole else outside <= ways for ways in known)


def _analyse(supervisor: Supervisor) -> tuple[Analysis, dict[str, int], dict[str, int]]:
    """Analyse the manifest with its own replicas, then with those of `nipmesh scale` that stay in force."""
    manifest, listen = supervisor.setup.manifest, supervisor.setup.overrides.gateway_listen
    analysis = check_manifest(manifest, overrides=Overrides(gateway_listen=listen), output=Output.UP)
    if analysis.mesh is None:
        return analysis, {}, {}
    written = {service.name: service.replicas for service in analysis.mesh.services}
    scaled = still_scaled(supervisor.applied, written)
    if scaled:
        analysis = check_manifest(
            manifest, overrides=Overrides(replicas=scaled, gateway_listen=listen), output=Output.UP
        )
    return analysis, scaled, written


def _places(manifest: Manifest) -> Iterator[tuple[str, Position]]:
    yield from ((entry.key.value, entry.key.position) for entry in manifest.services)
    if manifest.gateway is not None:
        yield GATEWAY, manifest.gateway.position


def _refuse_unchangeable(
    supervisor: Supervisor, new: Mesh, manifest: Manifest, places: dict[str, Position], reporter: Reporter
) -> None:
    """Report what identities, certificates and connections are built on: it cannot change under them."""
    old = supervisor.mesh

    def refuse(position: Position, what: str, cause: str) -> None:
        reporter.report("NM801", position, f"a running mesh cannot change {what}", cause=cause, fix=ANEW)

    if new.name != old.name:
        refuse(_at(manifest.mesh), "its name", f"it runs as {old.name}")
    if new.trust_domain != old.trust_domain:
        position = _at(manifest.trust_domain or manifest.mesh)
        refuse(position, "its trust domain", f"every certificate is of {old.trust_domain}")
    if new.certificate_lifetime_ms != old.certificate_lifetime_ms:
        lifetime = manifest.certificates.lifetime if manifest.certificates is not None else None
        cause = f"certificates were issued for {old.certificate_lifetime_ms // 1000} s"
        refuse(_at(lifetime or manifest.mesh), "the lifetime of its certificates", cause)
    if (new.gateway is None) != (old.gateway is None):
        refuse(places.get(GATEWAY, START), "whether it has a gateway", "clients and logins depend on it")
    if new.gateway is not None and old.gateway is not None:
        was, is_now = ((one.listen_host, one.listen_port) for one in (old.gateway, new.gateway))
        if was != is_now:
            listen = manifest.gateway.listen if manifest.gateway is not None else None
            position = listen.position if listen is not None else places.get(GATEWAY, START)
            refuse(position, "where its gateway listens", f"clients are connected at {was[0]}:{was[1]}")
    if _place_of_events(new) != _place_of_events(old):
        position = _at(manifest.events or manifest.mesh)
        refuse(
            position, "where its events are kept", "what is published is there, and consumers have their places there"
        )
    _refuse_long_names(supervisor, new, refuse, places)
    _refuse_chosen_ports(supervisor, new, refuse, places)


def _refuse_long_names(
    supervisor: Supervisor, new: Mesh, refuse: Callable[[Position, str, str], None], places: dict[str, Position]
) -> None:
    for service in new.services:
        length = longest_socket_path(supervisor.setup.sockets, f"{service.name}-99", service.external_connections)
        if length > SOCKET_PATH_BYTES_MAX:
            cause = f"socket paths would have {length} bytes, Linux allows {SOCKET_PATH_BYTES_MAX}"
            refuse(places[service.name], f"to a service with the long name {service.name}", cause)


def _refuse_chosen_ports(
    supervisor: Supervisor, new: Mesh, refuse: Callable[[Position, str, str], None], places: dict[str, Position]
) -> None:
    """A port that the manifest did not name when the mesh started may have gone to a sidecar."""
    for service in new.services:
        if service.listen_port is not None and supervisor.has_chosen(service.listen_port):
            cause = "one of its own sidecars was given this port when it started"
            refuse(places[service.name], f"to a service on port {service.listen_port}", cause)


def _place_of_events(mesh: Mesh) -> str | None:
    """None: the mesh has no events; empty: with the runner's own server."""
    if mesh.events is None:
        return None
    return "" if mesh.events.cluster is None else mesh.events.cluster.url


def _at(value: object) -> Position:
    position = getattr(value, "position", START)
    assert isinstance(position, Position)
    return position


def _rendered(trial: _Trial, reporter: Reporter) -> tuple[ResourceSet, ResourceSet]:
    """Render the old and the new mesh, and for a trial all in between; what cannot be rendered is reported."""
    way = trial.way
    try:
        old = trial.rendered(way.old, trial.supervisor.board.jwks)
        new = trial.rendered(way.new, trial.jwks)
        for mesh in (way.accepting, way.opening, way.switching, way.closing):
            trial.rendered(mesh, trial.jwks, is_whole=False)
    except ResourceError as error:
        for problem in error.problems:
            fix = "report this with the manifest: what nipmesh writes must be right for every manifest without an error"
            reporter.report("NM702", START, "cannot render", cause=str(problem), fix=fix)
        old = new = ResourceSet(workloads=())
    return old, new


def _difference(trial: _Trial, after: Applied, old: ResourceSet, new: ResourceSet, reporter: Reporter) -> Difference:
    """Compare what was applied, and the resources, with what they are to be."""
    way, before = trial.way, trial.supervisor.applied
    restarted = {
        name: differences(before.definitions[name], fresh)
        for name, fresh in after.definitions.items()
        if name in before.definitions
    }
    for workload in bootstrap_changes(old, new):
        name = service_of(workload)
        restarted[name] = (*(word for word in restarted.get(name, ()) if word != "bootstrap"), "bootstrap")
    if GATEWAY in restarted:
        message = "a running mesh cannot change what its gateway is started with"
        reporter.report("NM801", START, message, cause="clients are connected to it", fix=ANEW)
    counts = {service.name: service.replicas for service in way.old.services}
    return Difference(
        added={name: way.new.service(name).replicas for name in way.added},
        removed=way.removed,
        scaled=replica_changes(way.old, way.new),
        restarted={name: reasons for name, reasons in sorted(restarted.items()) if reasons},
        configured=of_services(resource_changes(old, new), way.old),
        sidecars=counts,
        hearing=hearing_changes(way.old, way.new),
        is_exposure_new=exposure_files(way.old) != exposure_files(way.new),
        kept={name: (replicas, after.written[name]) for name, replicas in sorted(after.scaled.items())},
    )


def _ask_envoy(
    trial: _Trial, difference: Difference, rendered: ResourceSet, places: dict[str, Position], reporter: Reporter
) -> None:
    """Let Envoy validate one sidecar of each service whose resources change or that is new, and the gateway."""
    names = {*difference.configured, *difference.added}
    if not names or reporter.has_errors:
        return
    chosen: dict[str, str] = {}
    for workload in rendered.workloads:
        chosen.setdefault(service_of(workload.name), workload.name)
    some = tuple(rendered.workload(chosen[name]) for name in sorted(names & chosen.keys()))
    try:
        refusals = validate_with_envoy(ResourceSet(workloads=some), envoy=trial.supervisor.setup.envoy)
    except (OSError, subprocess.TimeoutExpired) as error:
        reporter.report(
            "NM703", START, "Envoy cannot be asked", cause=str(error), fix="`nipmesh doctor` looks at Envoy"
        )
        return
    for refused in refusals:
        message = f"Envoy refuses {refused.resource or 'the bootstrap'} of {refused.workload}"
        place = places.get(service_of(refused.workload), START)
        reporter.report("NM701", place, message, cause=refused.message, fix="change what this comes from")
