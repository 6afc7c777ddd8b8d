"""`nipmesh scale SERVICE N`: change how many replicas run."""

from __future__ import annotations

import click

from generator.cli.local import run_operation
from generator.cli.main import Invocation
from generator.cli.names import service_names


@click.command(help="Run N replicas of SERVICE; no call fails because of it.")
@click.argument("service", shell_complete=service_names)
@click.argument("replicas", type=click.IntRange(min=1, max=100), metavar="N")
@click.pass_obj
def command(invocation: Invocation, service: str, replicas: int) -> None:
    """Ask the supervisor and print what it does."""
    run_operation(invocation.manifest, {"command": "scale", "service": service, "replicas": replicas})
