"""`nipmesh schema`: the JSON Schema of the manifest, for editors."""

from __future__ import annotations

import click

from generator.manifest.schema import json_schema_text


@click.command()
def command() -> None:
    """Print the JSON Schema of the manifest, for editors."""
    click.echo(json_schema_text(), nl=False)
