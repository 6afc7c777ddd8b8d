"""`nipmesh doctor`: check this machine."""

from __future__ import annotations

import sys

import click

from generator.cli.main import EXIT_FAILURE, Invocation


@click.command(help="Check this machine and the mesh's files; each line says what to do. Exit code 1 on a failure.")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Print one line per check."""
    from generator.analysis import check_manifest
    from generator.outputs.local.doctor import Level, examine

    colors = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
    levels = []
    for check in examine(invocation.manifest, check_manifest(invocation.manifest).mesh):
        levels.append(check.level)
        head = click.style(f"{check.level.value:<5}", fg=colors[check.level])
        click.echo(f"{head} {check.subject:<18} {check.found}")
        if check.fix:
            click.echo(f"{'':<5} {'':<18} fix: {check.fix}")
    sys.exit(EXIT_FAILURE if Level.FAIL in levels else 0)
