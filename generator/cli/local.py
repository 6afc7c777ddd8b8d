"""What the commands that talk to a running mesh share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from generator.cli.main import EXIT_FAILURE
from generator.outputs.local.client import ControlError, NotRunningError, call

EXIT_NOT_RUNNING = 3
"""As `systemctl status` says it."""
QUIET = frozenset({"published", "certificate", "applied", "not-applied"})
"""Nothing new to whoever gave the command: the last two are its result."""
PLAIN = frozenset({"finding", "plan"})
"""What speaks for itself."""


def print_event(event: dict[str, Any]) -> None:
    """Print one event of the supervisor."""
    if event["kind"] in QUIET:
        return
    if event["kind"] in PLAIN:
        click.echo(event["text"])
        return
    who = f"{event['workload']} {event['part']}".strip() or "mesh"
    click.echo(f"{who:<22} {event['kind']}: {event['text']}")
    for line in event["log"]:
        click.echo(f"    | {line}")


def run_operation(manifest: Path, request: dict[str, Any]) -> None:
    """Do something to the running mesh, print what happens, and end with 1 when it failed and 3 without a mesh."""
    try:
        click.echo(call(manifest, request, on_event=print_event))
    except NotRunningError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_NOT_RUNNING)
    except ControlError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
