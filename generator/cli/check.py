"""`nipmesh check`: everything that is wrong with the manifest, then Envoy's own opinion of what comes out of it."""

from __future__ import annotations

import sys

import click

from generator.analysis import Output, check_manifest
from generator.cli.analyse import print_findings, summary
from generator.cli.main import EXIT_FAILURE, Invocation
from generator.model import Mesh


@click.command()
@click.option("--no-envoy", is_flag=True, help="Leave out Envoy's validation of every workload.")
@click.option(
    "--target",
    type=click.Choice([output.value for output in Output]),
    help="Also report what `nipmesh up`, containers or units cannot do with it.",
)
@click.pass_obj
def command(invocation: Invocation, no_envoy: bool, target: str | None) -> None:
    """Report everything that is wrong with the manifest.

    All findings come at once. Without errors the configuration of every workload is rendered, checked, and shown to
    Envoy itself. Exit code 1 when there is an error.
    """
    analysis = check_manifest(invocation.manifest, output=None if target is None else Output(target))
    print_findings(analysis.findings)
    click.echo(f"{invocation.manifest}: {summary(analysis.findings)}")
    if analysis.mesh is None:
        sys.exit(EXIT_FAILURE)
    click.echo(described(analysis.mesh))
    if not no_envoy:
        _ask_envoy(invocation, analysis.mesh)


def described(mesh: Mesh) -> str:
    """Return the mesh in one line: services, replicas, methods, calls."""
    replicas = sum(service.replicas for service in mesh.services)
    methods = sum(len(service.methods) for service in mesh.services)
    calls = sum(len(edge.methods) for service in mesh.services for edge in service.calls)
    exposed = sum(len(edge.methods) for edge in mesh.gateway.exposes) if mesh.gateway else 0
    counts = (
        counted(len(mesh.services), "service"),
        counted(replicas, "replica"),
        counted(methods, "method"),
        f"{counted(calls, 'method')} called inside",
        f"{exposed} exposed",
    )
    return f"mesh {mesh.name}: " + ", ".join(counts)


def counted(count: int, word: str) -> str:
    """`1 service`, `2 services`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def _ask_envoy(invocation: Invocation, mesh: Mesh) -> None:
    from generator.cli.envoy import accepted_workloads

    accepted = accepted_workloads(mesh, invocation.manifest)
    if accepted is None:
        sys.exit(EXIT_FAILURE)
    click.echo(f"Envoy accepts the configuration of {counted(accepted, 'workload')}")
