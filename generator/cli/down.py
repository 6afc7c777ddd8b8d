"""`nipmesh down`: stop the running mesh."""

from __future__ import annotations

import sys

import click

from generator.cli.main import EXIT_FAILURE, Invocation
from generator.outputs.local.client import ControlError, NotRunningError, stop


@click.command(help="Stop the running mesh: the gateway drains, calls finish, nothing is left behind.")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Ask the supervisor to stop and wait until it has. That nothing runs is fine."""
    try:
        click.echo(stop(invocation.manifest))
    except NotRunningError as error:
        click.echo(str(error))
    except ControlError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
