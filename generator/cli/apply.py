"""`nipmesh apply`: make the running mesh what the edited manifest and protos say."""

from __future__ import annotations

import click

from generator.cli.local import run_operation
from generator.cli.main import Invocation

APPLY_HELP = """Make the running mesh what the edited manifest and protos say; no call fails because of it.

Everything is checked first. When a sidecar or a new program refuses, the last good configuration is back at once.

Exit codes: 0 applied, or nothing to do; 1 refused, and the mesh is as before; 3 the mesh is not running."""


@click.command(help=APPLY_HELP)
@click.option("--dry-run", is_flag=True, help="Check, show what would change, and change nothing.")
@click.pass_obj
def command(invocation: Invocation, dry_run: bool) -> None:
    """Ask the supervisor and print what it does."""
    run_operation(invocation.manifest, {"command": "apply", "dry_run": dry_run})
