"""`nipmesh schema`: the JSON Schema of the manifest, for editors, or its reference, for people."""

from __future__ import annotations

import click

from generator.manifest.reference import reference
from generator.manifest.schema import json_schema_text


@click.command()
@click.option("--markdown", is_flag=True, help="Print a table of all keys for people instead.")
def command(markdown: bool) -> None:
    """Print the JSON Schema of the manifest, for editors."""
    click.echo(reference() if markdown else json_schema_text(), nl=False)
