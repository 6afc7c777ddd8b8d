"""`nipmesh status`: what runs and how it feels."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from generator.cli.local import EXIT_NOT_RUNNING
from generator.cli.main import EXIT_FAILURE, Invocation
from generator.outputs.local.client import ControlError, NotRunningError, call

STATUS_HELP = """Show what runs and how it feels.

Exit codes: 0 every replica and the gateway are ready, 1 something is not, 3 the mesh is not running."""


@click.command(help=STATUS_HELP)
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_obj
def command(invocation: Invocation, output: str) -> None:
    """Print the supervisor's status document."""
    try:
        document = call(invocation.manifest, {"command": "status"})
    except NotRunningError as error:
        _not_running(str(error), output)
    except ControlError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
    _print(document, output)
    sys.exit(0 if document["state"] == "ready" else EXIT_FAILURE)


def _not_running(reason: str, output: str) -> None:
    if output == "json":
        click.echo(json.dumps({"state": "not running", "services": {}, "gateway": None}, indent=2))
    else:
        click.echo(reason, err=True)
    sys.exit(EXIT_NOT_RUNNING)


def _print(document: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    from rich.console import Console

    from generator.outputs.local.table import status_table

    Console().print(status_table(document))
