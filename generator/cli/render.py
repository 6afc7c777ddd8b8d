"""`nipmesh render`: the Envoy configuration of every workload as files, with units of systemd, or a Compose file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from generator.analysis import Output
from generator.cli.analyse import analysed, print_findings
from generator.cli.main import Invocation
from generator.model import Mesh
from generator.model.events import EVENTS

RENDER_DIRECTORY = Path(".nipmesh") / "render"
"""Below the manifest's folder; the running mesh keeps its own files elsewhere."""
COMPOSE_FILE = "compose.yaml"
NOT_EXPRESSED = "NM609"
"""What the output leaves out; the rest is for `check`."""


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to write; files: .nipmesh/render beside the manifest, systemd: .nipmesh/systemd beside it, in which the "
    "folders of a machine begin; compose: standard output.",
)
@click.option(
    "--target",
    type=click.Choice(["files", "systemd", "compose"]),
    default="files",
    show_default=True,
    help="What to write.",
)
@click.option(
    "--hosts",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="systemd: which machine runs what; without it one machine runs everything.",
)
@click.option("--host", metavar="NAME", help="systemd: the machine of --hosts whose files are to be written.")
@click.option(
    "--programs",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="systemd: where python, nipmesh, envoy and nats-server are on that machine; by default where they are here.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    metavar="DIR",
    help="systemd: what stands for / in every path, for a trial without root's rights.",
)
@click.option(
    "--signer",
    metavar="COMMAND",
    help="systemd: how that machine's certificates are signed elsewhere; see `nipmesh certificates renew --help`.",
)
@click.option(
    "--leave",
    multiple=True,
    metavar="REPLICA",
    help="systemd: a replica, e.g. orders-1, to which nobody is to send calls until this is rendered without it.",
)
@click.pass_obj
def command(
    invocation: Invocation,
    output: Path | None,
    target: str,
    hosts: Path | None,
    host: str | None,
    programs: Path | None,
    root: Path,
    signer: str | None,
    leave: tuple[str, ...],
) -> None:
    """Write the Envoy configuration of every workload.

    Only files that changed are written, each at once; their names are printed.
    """
    if target == "compose":
        mesh, analysis = analysed(invocation.manifest, output=Output.COMPOSE)
        print_findings(analysis.findings, err=True)
        write_compose(mesh, invocation.manifest, output)
        return
    if target == "systemd":
        from generator.cli.render_systemd import Asked, write_systemd

        mesh, analysis = analysed(invocation.manifest, output=Output.SYSTEMD)
        print_findings((one for one in analysis.findings if one.code == NOT_EXPRESSED), err=True)
        asked = Asked(hosts=hosts, host=host, programs=programs, root=root.absolute(), signer=signer, leave=leave)
        write_systemd(mesh, invocation.manifest, output, asked)
        return
    mesh, _ = analysed(invocation.manifest)
    directory = output or invocation.manifest.absolute().parent / RENDER_DIRECTORY
    write_files(mesh, invocation.manifest, directory.absolute())


def write_files(mesh: Mesh, manifest: Path, directory: Path) -> None:
    """Render with the default placement, publish, and print what changed."""
    from generator.cli.envoy import rendered
    from generator.outputs.files import publish

    changed = [*publish(rendered(mesh, manifest, directory), directory), *write_events(mesh, directory)]
    for path in changed:
        click.echo(path)
    click.echo(f"{len(changed)} files written to {directory}", err=True)


def write_events(mesh: Mesh, directory: Path) -> list[Path]:
    """Write who may publish and hear what, as accounts of NATS, for a cluster that others run; keys are theirs to fill in."""
    from generator.outputs.files import write_changed
    from generator.render.nats import accounts_of_cluster

    if mesh.events is None or (mesh.events.cluster is not None and not mesh.events.cluster.is_nats):
        return []
    return write_changed(directory / EVENTS / "accounts.json", accounts_of_cluster(mesh))


def write_compose(mesh: Mesh, manifest: Path, output: Path | None) -> None:
    """Print the Compose file, which belongs beside the manifest, or write it into a folder."""
    from generator.outputs.compose import render_compose

    beside = manifest.absolute().parent
    folder = "." if output is None else os.path.relpath(beside, output.absolute())
    text = render_compose(mesh, folder=folder, manifest=manifest.name)
    if output is None:
        click.echo(text, nl=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / COMPOSE_FILE).write_text(text, encoding="utf-8")
    click.echo(output / COMPOSE_FILE)
