"""`nipmesh schema`: the JSON Schema of the manifest, for editors, or its reference, for people."""

from __future__ import annotations

import click

from generator.manifest.schema import json_schema_text
from generator.outputs.reference import reference


@click.command()
@click.option("--reference", "for_people", is_flag=True, help="Print the reference for people (Markdown) instead.")
def command(for_people: bool) -> None:
    """Print the JSON Schema of the manifest, for editors."""
    click.echo(reference() if for_people else json_schema_text(), nl=False)
