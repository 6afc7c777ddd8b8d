"""The manifest's JSON Schema, for editors, out of the same declarations that load it."""

from __future__ import annotations

import json
from typing import Any

from generator.manifest.types import MANIFEST

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What the YAML language server of editors reads best."""


def json_schema() -> dict[str, Any]:
    """Return the schema as a value; key order is that of the declarations."""
    return {"$schema": DIALECT, "title": "nipmesh manifest", **MANIFEST.schema()}


def json_schema_text() -> str:
    """Return the schema as the text of `mesh.schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
