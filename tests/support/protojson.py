"""JSON values for Envoy's messages out of their descriptors and rules: the smallest, drawn ones, and broken ones.

Reads the rules (`validate.rules`) for itself: what stands here is a second opinion about `generator.resources.rules`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from hypothesis import strategies as st

from generator.resources import ResourceType
from generator.resources.descriptors import TYPE_PREFIX, extension, find_descriptor, has_extension, parse_options

TEMPLATES = Path(__file__).resolve().parents[2] / "envoy" / "templates"
DEPTH_MAX = 5
"""Deeper messages get their required fields only."""
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
FLOATS = {FieldDescriptor.CPPTYPE_FLOAT: 32, FieldDescriptor.CPPTYPE_DOUBLE: 64}
DURATION_SECONDS_MAX = 1_000_000
NANOSECONDS = 10**9
WRAPPER = re.compile(r"google\.protobuf\.(Bool|Bytes|Double|Float|U?Int32|U?Int64|String)Value")
HEADER_NAME = r"[a-z0-9_\-]{1,20}"
HEADER_VALUE = r"[ -~]{1,20}"
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**50), 2**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@cache
def rules_of(field: FieldDescriptor) -> Any:
    """The field's `validate.FieldRules`, or None."""
    options = parse_options("google.protobuf.FieldOptions", field.GetOptions().SerializeToString())
    return extension(options, "validate.rules") if has_extension(options, "validate.rules") else None


@cache
def needs_member(descriptor: Descriptor, oneof: str) -> bool:
    """Whether one member of the oneof must be set."""
    options = descriptor.oneofs_by_name[oneof].GetOptions().SerializeToString()
    return bool(extension(parse_options("google.protobuf.OneofOptions", options), "validate.required"))


@cache
def extension_types() -> tuple[str, ...]:
    """Every message that our templates name in an `@type`."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.iterdir()) if path.is_file())
    found = {name for text in texts for name in re.findall(r"type\.googleapis\.com/([\w.]+)", text)}
    return tuple(sorted(found))


@cache
def reachable() -> Mapping[str, Descriptor]:
    """Every message that our resources can hold without an `Any` in between, by full name; no map entries."""
    found: dict[str, Descriptor] = {}
    waiting = [message(name) for name in (*(kind.value for kind in ResourceType), *extension_types())]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name not in found:
            found[descriptor.full_name] = descriptor
            waiting += [item.message_type for item in map(item_of, descriptor.fields) if item.message_type is not None]
    return dict(sorted(found.items()))


def message(full_name: str) -> Descriptor:
    """The descriptor of this name, which exists."""
    descriptor = find_descriptor(full_name)
    assert descriptor is not None, full_name
    return descriptor


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def item_of(field: FieldDescriptor) -> FieldDescriptor:
    """The field itself, or what the values of a map are."""
    assert not is_map(field) or field.message_type is not None
    return field.message_type.fields_by_name["value"] if is_map(field) else field  # type: ignore[union-attr]


def is_deprecated(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().deprecated)


def is_retired(descriptor: Descriptor | None) -> bool:
    """Whether a message has no value without a deprecated field."""
    return descriptor is not None and any(is_deprecated(field) and is_needed(field) for field in descriptor.fields)


def is_needed(field: FieldDescriptor) -> bool:
    """Whether the field may not be left out: required, or its empty value breaks a rule."""
    rules = rules_of(field)
    kind = None if rules is None else rules.WhichOneof("type")
    if rules is None or field.containing_oneof is not None:
        return False
    if rules.message.required or (kind in {"any", "duration", "timestamp"} and getattr(rules, kind).required):
        return True
    return kind is not None and not field.has_presence and not allows_empty(kind, getattr(rules, kind))


def allows_empty(kind: str, rules: Any) -> bool:
    """Whether zero, the empty text, list or map satisfies the rules of a field without presence."""
    if getattr(rules, "ignore_empty", False):
        return True
    if kind == "string":
        return not (
            rules.min_len or rules.min_bytes or rules.pattern or rules.prefix or rules.suffix or getattr(rules, "in")
        )
    if kind in {"repeated", "map", "bytes"}:
        return not any(getattr(rules, name, 0) for name in ("min_items", "min_pairs", "min_len"))
    if kind == "enum":
        return 0 not in rules.not_in
    if kind == "bool":
        return not (rules.HasField("const") and rules.const)
    low, high = bounds_of(rules, -(2**80), 2**80, 1)
    return low <= 0 <= high


def bounds_of(rules: Any, low: Any, high: Any, step: Any) -> tuple[Any, Any]:
    """The range that the rules of a number or of nanoseconds leave; `step` is what makes an open bound a closed one.

    When the bounds are turned round, what lies outside is allowed, and the upper part of it is given.
    """
    least, most = low, high
    for name in (name for name in ("gt", "gte", "lt", "lte") if rules.HasField(name)):
        bound = getattr(rules, name)
        bound = bound.ToNanoseconds() if hasattr(bound, "ToNanoseconds") else bound
        if name.startswith("g"):
            least = max(low, bound + step if name == "gt" else bound)
        else:
            most = min(high, bound - step if name == "lt" else bound)
    return (least, high) if least > most else (least, most)


def values(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Any]:
    """JSON values of a message that break no rule."""
    name = descriptor.full_name
    if name == "google.protobuf.Any":
        return anys(depth)
    if WRAPPER.fullmatch(name):
        return scalars(descriptor.fields_by_name["value"], None)
    if name == "google.protobuf.Duration":
        return durations(None)
    if name == "google.protobuf.Timestamp":
        return st.integers(0, 4 * 10**9).map(lambda seconds: f"{1970 + seconds % 8000:04d}-01-02T03:04:05.5Z")
    if name == "google.protobuf.Value":
        return JSON_VALUES
    if name == "google.protobuf.Struct":
        return st.dictionaries(st.text(), JSON_VALUES, max_size=3)
    return st.lists(JSON_VALUES, max_size=3) if name == "google.protobuf.ListValue" else objects(descriptor, depth)


@st.composite
def objects(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> dict[str, Any]:
    """Needed fields, one member of each needed oneof, and a few others."""
    usable = [
        field for field in descriptor.fields if not is_deprecated(field) and not is_retired(item_of(field).message_type)
    ]
    chosen = {field.name: field for field in usable if is_needed(field)}
    if usable and depth < DEPTH_MAX:
        more = draw(
            st.lists(st.sampled_from(usable), max_size=3 if depth < 2 else 1, unique_by=lambda field: field.name)
        )
        taken: set[str] = set()
        for field in more:
            oneof = field.containing_oneof.name if field.containing_oneof is not None else None
            if oneof is None or oneof not in taken:
                chosen[field.name] = field
            taken |= {oneof} if oneof is not None else set()
    for oneof in descriptor.oneofs:
        if needs_member(descriptor, oneof.name) and not any(field.name in chosen for field in oneof.fields):
            field = draw(st.sampled_from(shallow(oneof.fields) if depth >= DEPTH_MAX else live(oneof.fields)))
            chosen[field.name] = field
    return {name: draw(field_values(field, depth + 1)) for name, field in sorted(chosen.items())}


def live(fields: Iterable[FieldDescriptor]) -> list[FieldDescriptor]:
    """Fields that are not deprecated."""
    found = [field for field in fields if not is_deprecated(field)]
    assert found, [field.full_name for field in fields]
    return found


def shallow(fields: Iterable[FieldDescriptor]) -> list[FieldDescriptor]:
    """The members that end a recursion soonest."""
    ranked = [(height(field), field) for field in live(fields)]
    least = min(rank for rank, _ in ranked)
    return [field for rank, field in ranked if rank == least]


def height(field: FieldDescriptor, seen: frozenset[str] = frozenset()) -> int:
    """How many messages must nest below this field at least."""
    descriptor = item_of(field).message_type
    if descriptor is None or descriptor.full_name.startswith("google.protobuf."):
        return 0
    if descriptor.full_name in seen:
        return 1_000
    below = seen | {descriptor.full_name}
    needed = [height(inner, below) for inner in descriptor.fields if is_needed(inner)]
    for oneof in descriptor.oneofs:
        if needs_member(descriptor, oneof.name):
            needed.append(min(height(inner, below) for inner in live(oneof.fields)))
    return 1 + max(needed, default=0)


def field_values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of one field, whole lists and maps included."""
    rules = rules_of(field)
    if is_map(field):
        return maps(field, rules, depth)
    if field.is_repeated:
        own = rules.repeated if rules is not None and rules.WhichOneof("type") == "repeated" else None
        item = single(field, own.items if own is not None and own.HasField("items") else None, depth)
        least = own.min_items if own is not None else 0
        most = min(least + 2, own.max_items) if own is not None and own.max_items else least + 2
        most = least if depth >= DEPTH_MAX else most
        return st.lists(item, min_size=least, max_size=most, unique=bool(own is not None and own.unique))
    return single(field, rules, depth)


def maps(field: FieldDescriptor, rules: Any, depth: int) -> st.SearchStrategy[Any]:
    """Values of a map; its keys are text in JSON, of whatever kind."""
    assert field.message_type is not None
    own = rules.map if rules is not None and rules.WhichOneof("type") == "map" else None
    keys = scalars(
        field.message_type.fields_by_name["key"], own.keys if own is not None and own.HasField("keys") else None
    )
    items = single(item_of(field), own.values if own is not None and own.HasField("values") else None, depth)
    least = own.min_pairs if own is not None else 0
    texts = keys.map(lambda key: key if isinstance(key, str) else str(key).lower())
    return st.dictionaries(texts, items, min_size=least, max_size=least + (0 if depth >= DEPTH_MAX else 2))


def single(field: FieldDescriptor, rules: Any, depth: int) -> st.SearchStrategy[Any]:
    """One value of a field under these rules."""
    descriptor = field.message_type
    if descriptor is None:
        return scalars(field, rules)
    if descriptor.full_name == "google.protobuf.Duration":
        return durations(rules.duration if rules is not None and rules.WhichOneof("type") == "duration" else None)
    if WRAPPER.fullmatch(descriptor.full_name):
        return scalars(descriptor.fields_by_name["value"], rules)
    return values(descriptor, depth)


def scalars(field: FieldDescriptor, rules: Any) -> st.SearchStrategy[Any]:
    """A number, text, enum or boolean under these rules."""
    kind = None if rules is None else rules.WhichOneof("type")
    own = None if kind is None else getattr(rules, kind)
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        low, high = (low, high) if own is None else bounds_of(own, low, high, 1)
        return st.integers(low, high)
    if field.cpp_type in FLOATS:
        return floats(own, FLOATS[field.cpp_type])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.just(own.const) if own is not None and own.HasField("const") else st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return st.sampled_from(names_of(field.enum_type, own))
    return byte_texts(own) if field.type == FieldDescriptor.TYPE_BYTES else texts(own)


def floats(own: Any, width: int) -> st.SearchStrategy[Any]:
    """Fractions and whole numbers; an open bound is kept away from."""
    low, high = (None, None) if own is None else bounds_of(own, float("-inf"), float("inf"), 0.001)
    low = None if low in (None, float("-inf")) else float(low)
    high = None if high in (None, float("inf")) else float(high)
    fractions = st.floats(low, high, allow_nan=False, allow_infinity=False, width=64 if low or high else width)  # type: ignore[arg-type]
    least, most = int(low or 0) + 1 if low else 0, int(high) if high is not None else 2**20
    return fractions | st.integers(least, most) if least <= most else fractions


def names_of(enum: EnumDescriptor, own: Any) -> list[str]:
    """Values of an enum that are neither deprecated nor forbidden."""
    never = set(own.not_in) if own is not None else set()
    return [value.name for value in enum.values if not value.GetOptions().deprecated and value.number not in never]


def texts(own: Any) -> st.SearchStrategy[str]:
    """Text under the rules of a string."""
    plain = st.text(st.characters(codec="utf-8"), max_size=8)
    if own is None:
        return plain
    if getattr(own, "in"):
        return st.sampled_from(sorted(getattr(own, "in")))
    least = max(own.min_len, own.min_bytes)
    if own.pattern:
        return st.from_regex(own.pattern).filter(lambda text: len(text) >= least and not text.endswith("\n"))
    if own.prefix or own.suffix or own.contains:
        return st.from_regex(r"[a-z]{1,8}").map(lambda text: own.prefix + own.contains + text.strip() + own.suffix)
    known = own.WhichOneof("well_known")
    if known == "well_known_regex":
        return st.from_regex(HEADER_NAME if own.well_known_regex == 1 else HEADER_VALUE, fullmatch=True)
    assert known is None or not getattr(own, known), f"make values for {known}"
    most = own.max_bytes or own.max_len or least + 8
    alphabet = st.characters(codec="ascii" if most < 4 * (least + 8) else "utf-8")
    return st.text(alphabet, min_size=least, max_size=min(least + 8, most))


def byte_texts(own: Any) -> st.SearchStrategy[str]:
    """Bytes, as JSON writes them."""
    least = own.min_len if own is not None else 0
    return st.binary(min_size=least, max_size=least + 6).map(lambda raw: base64.b64encode(raw).decode())


def durations(own: Any) -> st.SearchStrategy[str]:
    """A duration under its rules."""
    low, high = 0, DURATION_SECONDS_MAX * NANOSECONDS
    if own is not None:
        low, high = bounds_of(own, low, high, 1)
    return st.integers(low, high).map(duration_text)


def duration_text(nanoseconds: int) -> str:
    """`1.5s`, as JSON writes it."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    return f"{sign}{rest // NANOSECONDS}.{rest % NANOSECONDS:09d}s"


@st.composite
def anys(draw: st.DrawFn, depth: int) -> dict[str, Any]:
    """A typed message of those that our templates use, or a well-known one."""
    if depth >= DEPTH_MAX or draw(st.booleans()):
        name = draw(st.sampled_from(["Duration", "UInt32Value", "Struct", "Value", "StringValue", "Empty"]))
        full = f"google.protobuf.{name}"
        return {"@type": TYPE_PREFIX + full} | ({} if name == "Empty" else {"value": draw(values(message(full)))})
    name = draw(st.sampled_from(extension_types()))
    return {"@type": TYPE_PREFIX + name, **draw(values(message(name), depth + 1))}


def places(descriptor: Descriptor, value: Any) -> Iterator[tuple[dict[str, Any], Descriptor]]:
    """Every JSON object in a value that stands for a message of fields, with its descriptor."""
    if not isinstance(value, dict):
        return
    if descriptor.full_name == "google.protobuf.Any":
        inner = find_descriptor(str(value.get("@type")).removeprefix(TYPE_PREFIX))
        if inner is not None and not inner.full_name.startswith("google.protobuf."):
            yield from places(inner, value)
        return
    if descriptor.full_name.startswith("google.protobuf."):
        return
    yield value, descriptor
    for field in descriptor.fields:
        inner = item_of(field).message_type
        if field.name in value and inner is not None:
            found = value[field.name]
            listed = found.values() if is_map(field) else found if field.is_repeated else [found]
            for item in listed:
                yield from places(inner, item)
