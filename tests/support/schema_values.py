"""Values that the manifest's JSON Schema allows, drawn from a seeded generator, or with slips ones that it nearly allows."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from generator.manifest.schema import json_schema
from support.patterns import word

DEPTH_MAX = 6
MORE_MAX = 3
"""Optional keys, entries and items that are made at most."""
FITTING = 0.8
"""How often a text is one that stands in the manifest already: most patterns are of names that must exist."""
USEFUL = [
    "10ms", "100ms", "250ms", "1s", "2s", "5s", "30s", "1m", "5m", "1h", "24h", "127.0.0.1:9095", "[::1]:9096",
    "https://api.example.org", "x-team",
]  # fmt: skip
"""Words that fit many patterns and pass more checks than those made from patterns."""
PATHS = ["protos", ".", "empty.txt", "edge.crt", "edge.key", "edge.ca"]
"""What there is beside a mutant: folders and files."""
ANY_TEXT = "any/path you like"
"""What only a pattern for paths matches."""
BREADTH_DEPTH = 2
LENGTH_MAX = 10_000
CHOICES = ("oneOf", "anyOf", "allOf")

Schema = dict[str, Any]
Trail = tuple[Any, ...]


@cache
def schema() -> Schema:
    """The manifest's."""
    return json_schema()


@cache
def schema_keys() -> list[str]:
    """Every fixed key of the manifest."""
    whole = [schema(), *schema().get("definitions", {}).values()]
    return sorted({key for part in whole for node in within(part) for key in node.get("properties", {})})


def within(node: Schema) -> Iterator[Schema]:
    """A schema and all that is written in it."""
    yield node
    inner = [*node.get("properties", {}).values(), node.get("additionalProperties"), node.get("items")]
    for found in [*inner, *(option for name in CHOICES for option in node.get(name, []))]:
        if isinstance(found, dict):
            yield from within(found)


def breadth(node: Schema, depth: int = 0) -> int:
    """How many keys may stand below a value, down to a few levels: the more, the more there is to try."""
    if depth > BREADTH_DEPTH:
        return 1
    inner = [found for option in alternatives(node) for found in option.get("properties", {}).values()]
    more = [option.get(name) for option in alternatives(node) for name in ("additionalProperties", "items")]
    inner += [found for found in more if isinstance(found, dict)]
    return 1 + sum(breadth(found, depth + 1) for found in inner)


@cache
def schemas_at(path: Trail) -> list[Schema]:
    """The schemas that a value at a path may satisfy."""
    if not path:
        return alternatives(schema())
    key = "*" if isinstance(path[-1], int) else path[-1]
    return [option for holder in schemas_at(path[:-1]) for inner in step(holder, key) for option in alternatives(inner)]


def alternatives(node: Schema) -> list[Schema]:
    """What a schema refers to, or those that it gives the choice of; a schema that says its type is itself."""
    if "$ref" in node:
        return alternatives(schema()["definitions"][node["$ref"].rpartition("/")[2]])
    if "type" in node:
        return [node]
    options = [option for name in CHOICES for option in node.get(name, [])]
    return [found for option in options for found in alternatives(option)] or [node]


def step(node: Schema, key: str) -> list[Schema]:
    """What a schema says of one key; `*` is any item of a list."""
    if key == "*" and "items" in node:
        return [node["items"]]
    if key in node.get("properties", {}):
        return [node["properties"][key]]
    more = node.get("additionalProperties")
    return [more] if isinstance(more, dict) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Makes values."""

    vocabulary: list[str]
    """Words that stand in the manifest."""
    methods: Mapping[str, list[str]]
    """The methods that each service of the manifest serves, as a manifest names them."""
    service: str | None = None
    """The service that the value is about, if it is about one."""
    draw: random.Random
    odd: Callable[[], Any] | None = None
    """A value of any kind, for a slip."""
    slips: float = 0.0
    """How often, at each step, a value is one that the schema does not allow."""

    def value(self, node: Schema, depth: int = 0) -> Any:
        """A value that a schema allows, but for slips."""
        if self.odd is not None and self.draw.random() < self.slips:
            return self._slip(node)
        if "const" in node or "enum" in node:
            return self.draw.choice(node.get("enum", [node.get("const")]))
        chosen = self.draw.choice(alternatives(node))
        if chosen is not node:
            return self.value(chosen, depth)
        maker = getattr(self, f"_{node.get('type', 'string')}")
        return maker(node, depth)

    def about(self, key: str) -> Writer:
        """A writer for what stands below a key: when that names a service, its methods come first."""
        return replace(self, service=key) if key in self.methods else self

    def _slip(self, node: Schema) -> Any:
        assert self.odd is not None
        bounds = [node[name] + step for name, step in (("minimum", -1), ("maximum", 1)) if name in node]
        return self.draw.choice(bounds) if bounds and self.draw.random() < 0.5 else self.odd()

    def _object(self, node: Schema, depth: int) -> dict[str, Any]:
        known, required = node.get("properties", {}), node.get("required", [])
        optional = [name for name in known if name not in required]
        least = 1 if optional and not required else 0
        most = least if depth >= DEPTH_MAX else min(len(optional), MORE_MAX)
        names = [*required, *self.draw.sample(optional, self.draw.randint(least, most))]
        made = {name: self.value(known[name], depth + 1) for name in names}
        more = node.get("additionalProperties")
        if isinstance(more, dict):
            for _ in range(self.draw.randint(max(1, node.get("minProperties", 0)), MORE_MAX)):
                key = str(self.value(node.get("propertyNames", {}), depth))
                made[key] = self.about(key).value(more, depth + 1)
        return made

    def _array(self, node: Schema, depth: int) -> list[Any]:
        least = node.get("minItems", 0)
        count = self.draw.randint(least, max(least, min(node.get("maxItems", MORE_MAX), MORE_MAX)))
        return [self.value(node.get("items", {}), depth + 1) for _ in range(count)]

    def _string(self, node: Schema, depth: int) -> str:
        pattern = node.get("pattern")
        own = [text for text in self.methods.get(self.service or "", []) if pattern and re.search(pattern, text)]
        fitting = [text for text in [*self.vocabulary, *USEFUL] if pattern is None or re.search(pattern, text)]
        if pattern and re.search(pattern, ANY_TEXT) and self.draw.random() < FITTING:
            return self.draw.choice(PATHS)
        if fitting and self.draw.random() < FITTING:
            return self.draw.choice(own if own and "/" in own[0] and self.draw.random() < FITTING else fitting)
        if pattern is None:
            return self.draw.choice(self.vocabulary)
        return word(pattern, self.draw)[: node.get("maxLength", LENGTH_MAX)]

    def _integer(self, node: Schema, depth: int) -> int:
        """Mostly a small number; at times an end of the range."""
        low, high = node.get("minimum", -(2**31)), node.get("maximum", 2**31)
        small = self.draw.randint(low, min(high, low + 3))
        return self.draw.choice([small, small, small, small, low, high, self.draw.randint(low, high)])

    def _number(self, node: Schema, depth: int) -> float:
        low, high = node.get("minimum", 0), node.get("maximum", 1_000)
        return self.draw.choice([low, high, round(self.draw.uniform(low, high), self.draw.randint(0, 4))])

    def _boolean(self, node: Schema, depth: int) -> bool:
        return self.draw.random() < 0.5

    def _null(self, node: Schema, depth: int) -> None:
        return None
