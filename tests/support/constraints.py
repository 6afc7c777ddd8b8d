"""Edits of real bootstraps at the edge of one validation rule: each value just satisfies it or just breaks it.

The bootstraps are validation twins of rendered meshes, so that Envoy takes everything but the edit. A message that they
do not hold is put below one that they do; what lies on the way has its smallest valid value.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from generator.resources import ResourceType
from generator.resources.descriptors import TYPE_PREFIX, find_descriptor
from support.protojson import (
    INTEGERS,
    NANOSECONDS,
    WRAPPER,
    duration_text,
    is_deprecated,
    is_map,
    item_of,
    message,
    needs_member,
    rules_of,
)
from support.smallest import smallest, smallest_field, smallest_item, smallest_scalar

BOOTSTRAP = ResourceType.BOOTSTRAP.value
ABSENT = "(absent)"
"""Stands for a field that is left out; no value of any field is this."""
UNKNOWN_NUMBER = 4_711
"""A number that no enum has."""
HEADERS = [
    "",
    "a",
    ":a",
    "::a",
    ":",
    "A-b_c",
    "a b",
    "a:b",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x7fb",
    "a\x01b",
    "é",
    "(a)",
]
"""What rules about headers may tell apart."""
PATTERNED = [
    "",
    "a",
    "/",
    "/a",
    "/a/",
    "/a?b",
    "/a#b",
    "/a\n",
    "/a\nb",
    "%a%",
    "%",
    "%a",
    "a%",
    "http",
    "https",
    "HTTP",
]
"""What the patterns, beginnings, ends and sets of Envoy's rules may tell apart."""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a message stands in a bootstrap, or can be put."""

    bootstrap: str
    holder: Path
    """Of a message that is there."""
    holder_type: Descriptor
    steps: tuple[FieldDescriptor, ...]
    """Fields from the holder's message down to the site's; none when the holder is it."""
    descriptor: Descriptor
    is_typed: bool
    """Whether an `Any` lies between: then Envoy checks it when it makes what the `Any` describes, not at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One value for one field of the message at a site."""

    site: Site
    field: str
    """A field, or a oneof that needs a member."""
    rule: str
    """For example `uint32.lte`."""
    value: Any

    def __str__(self) -> str:
        return f"{self.site.descriptor.full_name}.{self.field} {self.rule} {ascii(self.value)[:60]}"

    @property
    def place(self) -> Path:
        """What two edits of one bootstrap may not share: a field, or the whole message when other fields give way."""
        first = self.site.steps[0] if self.site.steps else self.site.descriptor.fields_by_name.get(self.field)
        if first is None or first.containing_oneof is not None:
            return self.site.holder
        return (*self.site.holder, first.name)


def candidates(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    """Values of a field at the edges of its rules: (rule, value)."""
    rules = rules_of(field)
    if rules is None:
        return
    kind = rules.WhichOneof("type")
    own = None if kind is None else getattr(rules, kind)
    if rules.message.required or getattr(own, "required", False):
        yield "required", ABSENT
        yield "required", smallest_field(field)
    if kind == "repeated":
        yield from lists(field, own)
    elif kind == "map":
        yield from mappings(field, own)
    elif own is not None:
        yield from single_values(item_of(field), kind, own)


def lists(field: FieldDescriptor, own: Any) -> Iterator[tuple[str, Any]]:
    """Lists that are one too short or too long, repeat themselves, or hold an item at the edge of its own rules."""
    items = own.items if own.HasField("items") else None
    item, least, most = smallest_item(field, items), own.min_items, own.max_items
    if least:
        yield "repeated.min_items", [item] * (least - 1)
        yield "repeated.min_items", [item] * least
    if most:
        yield "repeated.max_items", [item] * (most + 1)
        yield "repeated.max_items", [item] * most
    if own.unique:
        yield "repeated.unique", [item] * 2
    if items is not None and items.WhichOneof("type") is not None:
        kind = items.WhichOneof("type")
        for rule, value in single_values(field, kind, getattr(items, kind)):
            yield f"repeated.items.{rule}", [value] * max(least, 1)


def mappings(field: FieldDescriptor, own: Any) -> Iterator[tuple[str, Any]]:
    """Maps that are too small, or have a key at the edge of its rules."""
    assert field.message_type is not None
    item = smallest_item(item_of(field), own.values if own.HasField("values") else None)
    if own.min_pairs:
        yield "map.min_pairs", {}
        yield "map.min_pairs", {"a": item}
    if own.HasField("keys"):
        kind = own.keys.WhichOneof("type")
        for rule, key in single_values(field.message_type.fields_by_name["key"], kind, getattr(own.keys, kind)):
            yield f"map.keys.{rule}", {key: item}


def single_values(field: FieldDescriptor, kind: str, own: Any) -> Iterator[tuple[str, Any]]:
    """Values at the edges of the rules of one scalar or duration."""
    if kind == "string":
        values = strings(own)
    elif kind == "bytes":
        sizes = {size for bound in (own.min_len, own.max_len) if bound for size in (bound - 1, bound, bound + 1)}
        values = ((f"{size} bytes", base64.b64encode(b"a" * size).decode()) for size in sorted(sizes))
    elif kind == "bool":
        values = (("const", value) for value in (True, False))
    elif kind == "enum":
        values = enums(field, own)
    elif kind == "any":
        return
    else:
        values = numbers(field, kind, own)
    for rule, value in values:
        yield f"{kind}.{rule}", value


def strings(own: Any) -> Iterator[tuple[str, Any]]:
    """Texts at the edges of lengths, patterns and forms."""
    for name in ("min_len", "min_bytes", "max_len", "max_bytes"):
        bound = getattr(own, name)
        if bound:
            yield from ((name, "a" * size) for size in (bound - 1, bound, bound + 1))
            yield name, "é" * (bound // 2)
            yield name, "é" * (bound // 2 + 1)
    if own.WhichOneof("well_known") == "well_known_regex":
        form = f"{'name' if own.well_known_regex == 1 else 'value'}, {'strict' if own.strict else 'loose'}"
        yield from ((f"well_known_regex ({form})", text) for text in HEADERS)
    if own.pattern or own.prefix or own.suffix or getattr(own, "in"):
        yield from (("pattern", text) for text in PATTERNED)


def enums(field: FieldDescriptor, own: Any) -> Iterator[tuple[str, Any]]:
    """A number that is none of the enum's, a name that is, and the forbidden ones."""
    assert field.enum_type is not None
    if own.defined_only:
        yield "defined_only", UNKNOWN_NUMBER
        yield "defined_only", smallest_scalar(field, None)
    for value in field.enum_type.values:
        if own.not_in and not value.GetOptions().deprecated:
            yield "not_in", value.name


def numbers(field: FieldDescriptor, kind: str, own: Any) -> Iterator[tuple[str, Any]]:
    """Numbers and durations on both sides of each bound, as far as their type has them."""
    low, high = INTEGERS.get(field.cpp_type, (-(2.0**62), 2.0**62))
    step = 0.001 if kind in {"double", "float"} else 1
    if WRAPPER.fullmatch(field.message_type.full_name if field.message_type is not None else ""):
        assert field.message_type is not None
        low, high = INTEGERS.get(field.message_type.fields_by_name["value"].cpp_type, (-(2.0**62), 2.0**62))
    if kind == "duration":
        low, high = -9_000_000_000 * NANOSECONDS, 9_000_000_001 * NANOSECONDS
    for name in ("gt", "gte", "lt", "lte"):
        if own.HasField(name):
            bound = getattr(own, name).ToNanoseconds() if kind == "duration" else getattr(own, name)
            for value in (bound - step, bound, bound + step):
                if low <= value <= high:
                    yield name, duration_text(value) if kind == "duration" else value


def objects_in(descriptor: Descriptor, value: Any, path: Path, typed: bool) -> Iterator[tuple[Path, Descriptor, bool]]:
    """Every message of fields in a JSON value: its path, its kind, and whether it is in an `Any`."""
    if not isinstance(value, dict):
        return
    if descriptor.full_name == "google.protobuf.Any":
        inner = find_descriptor(str(value.get("@type")).removeprefix(TYPE_PREFIX))
        if inner is not None:
            yield from objects_in(inner, value, path, True)
        return
    if descriptor.full_name.startswith("google.protobuf."):
        return
    yield path, descriptor, typed
    for field in descriptor.fields:
        inner = item_of(field).message_type
        if inner is not None and field.name in value:
            held = value[field.name]
            where = (*path, field.name)
            found = held.items() if is_map(field) else enumerate(held) if field.is_repeated else None
            for below, item in [((), held)] if found is None else [((key,), item) for key, item in found]:
                yield from objects_in(inner, item, (*where, *below), typed)


def sites(bootstraps: Mapping[str, dict[str, Any]]) -> dict[str, Site]:
    """One site for every message that can be reached: where it is, or the fewest fields below where it can be put."""
    found: dict[str, Site] = {}
    for name, body in bootstraps.items():
        for path, descriptor, typed in objects_in(message(BOOTSTRAP), body, (), False):
            site = Site(
                bootstrap=name, holder=path, holder_type=descriptor, steps=(), descriptor=descriptor, is_typed=typed
            )
            known = found.get(descriptor.full_name)
            if known is None or (known.is_typed and not typed):
                found[descriptor.full_name] = site
    waiting = sorted(found.values(), key=lambda site: site.is_typed)
    while waiting:
        site = waiting.pop(0)
        for field in site.descriptor.fields:
            inner = item_of(field).message_type
            if inner is None or is_deprecated(field) or inner.full_name.startswith("google.protobuf."):
                continue
            if inner.full_name not in found:
                found[inner.full_name] = below(site, field, inner)
                waiting.append(found[inner.full_name])
    return found


def below(site: Site, field: FieldDescriptor, inner: Descriptor) -> Site:
    return Site(
        bootstrap=site.bootstrap,
        holder=site.holder,
        holder_type=site.holder_type,
        steps=(*site.steps, field),
        descriptor=inner,
        is_typed=site.is_typed,
    )


def edits(found: Mapping[str, Site]) -> Iterator[Edit]:
    """Every edit at every rule of every site's message."""
    for site in found.values():
        for field in site.descriptor.fields:
            if not is_deprecated(field):
                for rule, value in candidates(field):
                    yield Edit(site=site, field=field.name, rule=rule, value=value)
        for oneof in site.descriptor.oneofs:
            if needs_member(site.descriptor, oneof.name):
                yield Edit(site=site, field=oneof.name, rule="oneof.required", value=ABSENT)


def holder_of(edit: Edit, bootstrap: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the message at or above the edit, inside the bootstrap."""
    holder: Any = bootstrap
    for key in edit.site.holder:
        holder = holder[key]
    assert isinstance(holder, dict)
    return holder


def change(edit: Edit, holder: dict[str, Any]) -> None:
    """Make an edit in the JSON of its holder."""
    target = holder
    for step in edit.site.steps:
        target = entered(target, step)
    put(target, edit)


def entered(target: dict[str, Any], step: FieldDescriptor) -> dict[str, Any]:
    """Put the smallest message into a field, and give it back."""
    leave_alone(target, step)
    inner = item_of(step).message_type
    assert inner is not None
    made: dict[str, Any] = copy.deepcopy(smallest(inner))
    target[step.name] = {"a": made} if is_map(step) else [made] if step.is_repeated else made
    return made


def put(target: dict[str, Any], edit: Edit) -> None:
    """Set or remove one field; the other members of its oneof go."""
    field = edit.site.descriptor.fields_by_name.get(edit.field)
    if field is None:
        for member in edit.site.descriptor.oneofs_by_name[edit.field].fields:
            target.pop(member.name, None)
        return
    leave_alone(target, field)
    target.pop(field.name, None)
    if edit.value != ABSENT:
        target[field.name] = edit.value


def leave_alone(target: dict[str, Any], field: FieldDescriptor) -> None:
    """Remove the other members of a field's oneof."""
    if field.containing_oneof is not None:
        for member in field.containing_oneof.fields:
            if member.name != field.name:
                target.pop(member.name, None)
