"""Kinds that hold other kinds: lists, mappings with the user's keys, and records with fixed keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generator.manifest.finding import Position, Reporter, closest, did_you_mean, quoted
from generator.manifest.kinds import BROKEN, Broken, Kind, Text, wrong_type
from generator.manifest.nodes import MappingNode, Node, ScalarKind, ScalarNode, SequenceNode
from generator.manifest.values import Entry, Located, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf(Kind):
    """A list of one kind; broken as a whole when any item is."""

    item: Kind
    count_max: int
    word: str
    count_min: int = 1
    placeholder: Any = ()

    def load(self, node: Node, reporter: Reporter, where: str) -> tuple[Any, ...] | Broken:
        """See Kind."""
        if not isinstance(node, SequenceNode):
            fix = None
            if isinstance(node, ScalarNode) and node.kind is ScalarKind.STRING:
                fix = f"write brackets around it: [{node.text[:60]}]"
            return wrong_type(node, reporter, where, self.word, fix=fix)
        if not check_count(len(node.items), self.count_min, self.count_max, node.position, reporter, where):
            return BROKEN
        loaded = [self.item.load(item, reporter, f"{where}[{index}]") for index, item in enumerate(node.items)]
        return BROKEN if BROKEN in loaded else tuple(loaded)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {
            "type": "array",
            "items": self.item.schema(),
            "minItems": self.count_min,
            "maxItems": self.count_max,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOf(Kind):
    """A mapping whose keys the user chooses; broken as a whole when any entry is."""

    key: Text
    item: Kind
    count_max: int
    word: str
    count_min: int = 1
    placeholder: Any = ()

    def load(self, node: Node, reporter: Reporter, where: str) -> tuple[Entry[Any], ...] | Broken:
        """See Kind."""
        if not isinstance(node, MappingNode):
            return wrong_type(node, reporter, where, self.word)
        if not check_count(len(node.entries), self.count_min, self.count_max, node.position, reporter, where):
            return BROKEN
        loaded = [self._entry(key, value, reporter, where) for key, value in node.entries]
        entries = tuple(entry for entry in loaded if isinstance(entry, Entry))
        return entries if len(entries) == len(loaded) else BROKEN

    def _entry(self, key: ScalarNode, value: Node, reporter: Reporter, where: str) -> Entry[Any] | Broken:
        name = self.key.load(key, reporter, f"{where} key")
        item = self.item.load(value, reporter, f"{where}.{quoted(key.text)[1:-1]}")
        if isinstance(name, Broken) or isinstance(item, Broken):
            return BROKEN
        return Entry(key=name, value=item)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {
            "type": "object",
            "propertyNames": self.key.schema(),
            "additionalProperties": self.item.schema(),
            "minProperties": self.count_min,
            "maxProperties": self.count_max,
        }


def check_count(count: int, low: int, high: int, position: Position, reporter: Reporter, where: str) -> bool:
    """Report NM108 when a collection is too small or too large."""
    if low <= count <= high:
        return True
    cause = f"it has {count} entries, between {low} and {high} are allowed"
    fix = "write at least one, or remove the key" if count < low else "remove some"
    message = f"{where} is empty" if count == 0 else f"{where} has {'too few' if count < low else 'too many'} entries"
    reporter.report("NM108", position, message, cause=cause, fix=fix)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a field of a record says about its key in the file."""

    kind: Kind
    doc: str
    required: bool
    default: str
    """What holds when the key is missing, in words; empty for required keys."""
    example: str
    samples: tuple[str, ...]
    """YAML, shown in the reference and tried by a test: of a policy what one writes below `traffic`, else a piece of a whole
    manifest."""
    unless: str
    """Another key in whose presence a required one may be missing."""


def key(
    kind: Kind,
    doc: str,
    *,
    required: bool = False,
    default: str = "",
    example: str = "",
    sample: str | tuple[str, ...] = (),
    unless: str = "",
) -> Any:
    """Declare a dataclass field as a key of the manifest: one declaration loads, describes and documents it."""
    samples = (sample,) if isinstance(sample, str) else sample
    meta = Key(kind=kind, doc=doc, required=required, default=default, example=example, samples=samples, unless=unless)
    return dataclasses.field(default=kind.placeholder, metadata={"key": meta})


def keys_of(record: type[Record]) -> Mapping[str, Key]:
    """Return the keys of a record in the order of their declaration."""
    fields = dataclasses.fields(record)
    return {field.name: field.metadata["key"] for field in fields if "key" in field.metadata}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOf(Kind):
    """A mapping with fixed keys, loaded into a dataclass. Never BROKEN for a mapping: wrong keys are in `broken`."""

    record: type[Record]
    word: str
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Any:
        """See Kind."""
        if isinstance(node, ScalarNode) and node.kind is ScalarKind.NULL:
            node = MappingNode(entries=(), position=node.position, size=1)
        if not isinstance(node, MappingNode):
            return wrong_type(node, reporter, where, self.word)
        keys, values, broken = keys_of(self.record), {}, set()
        for name, value in node.entries:
            if name.text not in keys:
                self._unknown(name, node, reporter, where)
                continue
            loaded = keys[name.text].kind.load(value, reporter, join(where, name.text))
            if isinstance(loaded, Broken):
                broken.add(name.text)
            else:
                values[name.text] = loaded
        broken |= self._missing(node, reporter, where)
        return self.record(position=node.position, broken=frozenset(broken), **values)

    def _unknown(self, name: ScalarNode, node: MappingNode, reporter: Reporter, where: str) -> None:
        present = {entry.text for entry, _ in node.entries}
        free = [candidate for candidate in keys_of(self.record) if candidate not in present]
        place = f"in {where}" if where else "at the top"
        cause = f"{place} there is no key of this name"
        fix = did_you_mean(name.text, free or keys_of(self.record), what="key")
        if name.text == "<<":
            cause, fix = "merge keys are not part of YAML 1.2", "write the keys out, or use an alias as a whole value"
        elif closest(name.text, free) is None and name.text.startswith("x-"):
            fix = "write it as a comment"
        reporter.report("NM101", name.position, f"unknown key {quoted(name.text)}", cause=cause, fix=fix)

    def _missing(self, node: MappingNode, reporter: Reporter, where: str) -> set[str]:
        present = {entry.text for entry, _ in node.entries}
        keys = keys_of(self.record).items()
        missing = {name for name, spec in keys if spec.required and not present & {name, spec.unless}}
        for name in sorted(missing):
            spec = keys_of(self.record)[name]
            cause = f"{join(where, name)} has no default: {spec.doc}"
            fix = f"add `{name}: {spec.example}`"
            reporter.report("NM102", node.position, f"missing key `{name}`", cause=cause, fix=fix)
        return missing

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        properties = {}
        for name, spec in keys_of(self.record).items():
            text = spec.doc + (f" Default: {spec.default}." if spec.default else "")
            properties[name] = {"description": text, **spec.kind.schema()}
        specs = {name: spec for name, spec in keys_of(self.record).items() if spec.required}
        found: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        required = [name for name, spec in specs.items() if not spec.unless]
        either = [[{"required": [name]}, {"required": [spec.unless]}] for name, spec in specs.items() if spec.unless]
        if required:
            found["required"] = required
        if either:
            found["allOf"] = [{"anyOf": choices} for choices in either]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Either(Kind):
    """A scalar of one kind or a mapping of another; the node's shape decides."""

    scalar: Kind
    mapping: Kind
    word: str
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Any:
        """See Kind."""
        if isinstance(node, SequenceNode):
            return wrong_type(node, reporter, where, self.word)
        kind = self.mapping if isinstance(node, MappingNode) else self.scalar
        return kind.load(node, reporter, where)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"oneOf": [self.scalar.schema(), self.mapping.schema()]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shorthand(Kind):
    """A record, or for short the list that is one of its keys."""

    record: RecordOf
    listed: str
    """The key whose list may stand for the whole."""
    placeholder: Any = None

    @property
    def word(self) -> str:  # type: ignore[override]  # follows from the record
        """What it is, for messages."""
        return self.record.word

    def load(self, node: Node, reporter: Reporter, where: str) -> Any:
        """See Kind."""
        if isinstance(node, MappingNode):
            return self.record.load(node, reporter, where)
        loaded = keys_of(self.record.record)[self.listed].kind.load(node, reporter, where)
        if isinstance(loaded, Broken):
            return loaded
        return self.record.record(position=node.position, **{self.listed: loaded})

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"oneOf": [keys_of(self.record.record)[self.listed].kind.schema(), self.record.schema()]}


def join(where: str, name: str) -> str:
    """Return the path of a key."""
    return f"{where}.{name}" if where else name


__all__ = ["Either", "Key", "ListOf", "Located", "MapOf", "RecordOf", "Shorthand", "key", "keys_of"]
