"""The manifest's JSON Schema, for editors, out of the same declarations that load it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from generator.manifest.types import MANIFEST

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What the YAML language server of editors reads best."""
DEFINED_LENGTH_MIN = 120
"""Shorter parts are written out: a reference would be as long."""
PLACELESS = frozenset({"properties", "items", "additionalProperties", "oneOf", "propertyNames", "allOf", "anyOf"})
"""Words of JSON Schema; all other keys are the manifest's, and name what is defined below them."""


def json_schema() -> dict[str, Any]:
    """Return the schema as a value; key order is that of the declarations. What is said twice is defined once."""
    return _Hoisting(MANIFEST.schema()).schema()


def json_schema_text() -> str:
    """Return the schema as the text of `mesh.schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


class _Hoisting:
    """Moves what is said more than once into `definitions`."""

    def __init__(self, whole: dict[str, Any]) -> None:
        self.whole = whole
        self.counts = Counter(text for text in _parts(whole) if len(text) >= DEFINED_LENGTH_MIN)
        self.names: dict[str, str] = {}

    def schema(self) -> dict[str, Any]:
        """See the module's function; visiting one definition may add others."""
        root = self._copied(self.whole, "manifest")
        definitions: dict[str, Any] = {}
        while len(definitions) < len(self.names):
            text, name = list(self.names.items())[len(definitions)]
            definitions[name] = self._copied(json.loads(text), name)
        return {"$schema": DIALECT, "title": "nipmesh manifest", **root, "definitions": definitions}

    def _referring(self, schema: Any, place: str) -> Any:
        """Copy a value with references in place of what is said more than once."""
        if isinstance(schema, list):
            return [self._referring(item, place) for item in schema]
        if not isinstance(schema, dict):
            return schema
        text = _text(schema)
        if self.counts[text] < 2:
            return self._copied(schema, place)
        reference = {"$ref": f"#/definitions/{self.names.setdefault(text, self._free(place))}"}
        # Draft 7 ignores what stands beside a reference, so a description needs `allOf`.
        return {"description": schema["description"], "allOf": [reference]} if "description" in schema else reference

    def _copied(self, schema: dict[str, Any], place: str) -> dict[str, Any]:
        return {key: self._referring(value, place if key in PLACELESS else key) for key, value in schema.items()}

    def _free(self, place: str) -> str:
        taken, number, name = set(self.names.values()), 2, place
        while name in taken:
            name, number = f"{place}_{number}", number + 1
        return name


def _parts(schema: Any) -> Iterator[str]:
    """Every schema inside a schema, as text."""
    if isinstance(schema, list):
        for value in schema:
            yield from _parts(value)
    elif isinstance(schema, dict):
        yield _text(schema)
        for value in schema.values():
            yield from _parts(value)


def _text(schema: dict[str, Any]) -> str:
    """A schema without its own description; empty for what is none."""
    if not schema.keys() & {"type", "oneOf"}:
        return ""
    return json.dumps({key: value for key, value in schema.items() if key != "description"}, ensure_ascii=False)
