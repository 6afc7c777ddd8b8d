"""`nipmesh restart SERVICE`: one replica after the other."""

from __future__ import annotations

import click

from generator.cli.local import run_operation
from generator.cli.main import Invocation
from generator.cli.names import service_names


@click.command(help="Restart SERVICE, one replica after the other; no call fails because of it.")
@click.argument("service", shell_complete=service_names)
@click.pass_obj
def command(invocation: Invocation, service: str) -> None:
    """Ask the supervisor and print what it does."""
    run_operation(invocation.manifest, {"command": "restart", "service": service})
