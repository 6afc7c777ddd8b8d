"""`nipmesh render`: the Envoy configuration of every workload as files, or a Compose file."""

from __future__ import annotations

from pathlib import Path

import click

from generator.cli.analyse import analysed
from generator.cli.main import Invocation
from generator.model import Mesh

RENDER_DIRECTORY = Path(".nipmesh") / "render"
"""Below the manifest's folder; the running mesh keeps its own files elsewhere."""
COMPOSE_FILE = "compose.yaml"


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to write; files: .nipmesh/render beside the manifest, compose: standard output.",
)
@click.option(
    "--target",
    type=click.Choice(["files", "compose"]),
    default="files",
    show_default=True,
    help="What to write.",
)
@click.pass_obj
def command(invocation: Invocation, output: Path | None, target: str) -> None:
    """Write the Envoy configuration of every workload.

    Only files that changed are written, each at once; their names are printed.
    """
    mesh, _ = analysed(invocation.manifest)
    if target == "compose":
        write_compose(mesh, output)
        return
    directory = output or invocation.manifest.absolute().parent / RENDER_DIRECTORY
    write_files(mesh, invocation.manifest, directory.absolute())


def write_files(mesh: Mesh, manifest: Path, directory: Path) -> None:
    """Render with the default placement, publish, and print what changed."""
    from generator.cli.envoy import rendered
    from generator.outputs.files import publish

    changed = publish(rendered(mesh, manifest, directory), directory)
    for path in changed:
        click.echo(path)
    click.echo(f"{len(changed)} files written to {directory}", err=True)


def write_compose(mesh: Mesh, output: Path | None) -> None:
    """Print the Compose file, or write it into a folder."""
    from generator.outputs.compose import render_compose

    text = render_compose(mesh)
    if output is None:
        click.echo(text, nl=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / COMPOSE_FILE).write_text(text, encoding="utf-8")
    click.echo(output / COMPOSE_FILE)
