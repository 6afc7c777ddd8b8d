"""The whole way from a manifest's path to the mesh, or to everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from generator.analysis.consistency import check_consistency
from generator.analysis.edges import check_edges
from generator.analysis.events import check_events
from generator.analysis.externals import check_externals
from generator.analysis.files import check_services_files
from generator.analysis.gateway import check_gateway, check_internal
from generator.analysis.linking import link
from generator.analysis.outputs import Output, check_output
from generator.analysis.policies import check_policies
from generator.analysis.services import (
    check_circles,
    check_commands,
    check_deadlines,
    check_lifetime,
    check_listens,
    check_names,
    check_overrides,
    check_reachable,
    check_versions,
    replicas_of,
)
from generator.analysis.traffic import check_traffic
from generator.analysis.volumes import check_volumes
from generator.catalog import compile_catalog
from generator.manifest import Finding, Manifest, Reporter, load_manifest
from generator.model import Mesh
from generator.model.links import Links
from generator.model.overrides import Overrides
from generator.model.recording import Decision
from generator.model.resolve import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What came out of one manifest."""

    mesh: Mesh | None
    """None when any finding is an error."""
    findings: tuple[Finding, ...]
    """In the order of the file."""
    decisions: tuple[Decision, ...] = ()
    """Every setting of the mesh with its reason; empty without a mesh."""


def check_manifest(
    path: Path,
    *,
    overrides: Overrides = Overrides(),  # noqa: B008  (frozen)
    output: Output | None = None,
) -> Analysis:
    """Load, compile, link, check and resolve. Never raises for what the manifest or the protobufs hold.

    `output`: also say what this one cannot do with it.
    """
    loaded = load_manifest(path)
    if loaded.manifest is None:
        return Analysis(mesh=None, findings=loaded.reporter.sorted())
    if output is not None:
        check_output(loaded.manifest, output, path.absolute().parent, loaded.reporter)
    return analyse(loaded.manifest, path.absolute().parent, loaded.reporter, overrides)


def analyse(manifest: Manifest, base: Path, reporter: Reporter, overrides: Overrides) -> Analysis:
    """Do the same for a typed manifest; `base` is the absolute folder that its paths are relative to."""
    catalog = compile_catalog(manifest.protos, base, reporter) if manifest.protos else None
    check_names(manifest, reporter)
    check_commands(manifest, reporter)
    check_overrides(manifest, overrides, reporter)
    check_listens(manifest, overrides, reporter)
    check_lifetime(manifest, reporter)
    check_services_files(manifest, base, reporter)
    check_volumes(manifest, base, reporter)
    check_versions(manifest, reporter)
    check_externals(manifest, base, reporter)
    check_events(manifest, base, reporter)
    links = None if catalog is None else link(manifest, catalog, reporter)
    check_gateway(manifest, links, base, overrides, reporter)
    if links is not None:
        check_policies(links, reporter)
        check_traffic(manifest, links, reporter)
        check_consistency(manifest, links, replicas_of(manifest, overrides), reporter)
        _check_graph(manifest, links, reporter)
    if reporter.has_errors or catalog is None or links is None:
        return Analysis(mesh=None, findings=reporter.sorted())
    resolution = resolve(manifest, links, catalog.descriptor_set, base, overrides)
    check_edges(resolution, links, reporter)
    if reporter.has_errors:
        return Analysis(mesh=None, findings=reporter.sorted())
    return Analysis(mesh=resolution.mesh, findings=reporter.sorted(), decisions=resolution.decisions)


def _check_graph(manifest: Manifest, links: Links, reporter: Reporter) -> None:
    """Check the call graph, which is whole only when nothing before was wrong."""
    if reporter.has_errors:
        return
    check_reachable(manifest, links, reporter)
    check_internal(manifest, links, reporter)
    check_circles(manifest, links, reporter)
    check_deadlines(manifest, links, reporter)
