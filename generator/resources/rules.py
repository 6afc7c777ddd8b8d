"""The rules in Envoy's protobufs (`validate.rules`, protoc-gen-validate), compiled to Python once per field.

Envoy checks the same rules when it loads a resource; we find a violation earlier and name its exact path.
Source: https://github.com/bufbuild/protoc-gen-validate/tree/v1.2.1#constraint-rules
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sized
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from generator.resources.descriptors import extension, has_extension, parse_options

Check = Callable[[Any], str | None]
"""Says what is wrong with a value, or None."""

HEADER_NAME = re.compile(r"^:?[0-9a-zA-Z!#$%&'*+-.^_|~`]+$")
HEADER_VALUE = re.compile(r"^[^\x00-\x08\x0A-\x1F\x7F]*$")
LOOSE_HEADER = re.compile(r"^[^\x00\x0A\x0D]*$")
HTTP_HEADER_NAME, HTTP_HEADER_VALUE = 1, 2
HOSTNAME = re.compile(r"^(?=.{1,253}$)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?$")
NUMBER_KINDS = frozenset(
    {
        "float",
        "double",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "sint32",
        "sint64",
        "fixed32",
        "fixed64",
        "sfixed32",
        "sfixed64",
    }
)
IMPLEMENTED_STRING = frozenset(
    {
        "const",
        "len",
        "min_len",
        "max_len",
        "len_bytes",
        "min_bytes",
        "max_bytes",
        "pattern",
        "prefix",
        "suffix",
        "contains",
        "not_contains",
        "in",
        "not_in",
        "hostname",
        "ip",
        "ipv4",
        "ipv6",
        "uri",
        "uri_ref",
        "address",
        "well_known_regex",
        "strict",
        "ignore_empty",
    }
)


@cache
def field_rules(field: FieldDescriptor) -> Any:
    """The field's `validate.FieldRules`; None when it has none."""
    options = parse_options("google.protobuf.FieldOptions", field.GetOptions().SerializeToString())
    return extension(options, "validate.rules") if has_extension(options, "validate.rules") else None


@cache
def required_oneofs(descriptor: Descriptor) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The oneofs of which one member must be set: (name, members)."""
    required = []
    for oneof in descriptor.oneofs:
        options = parse_options("google.protobuf.OneofOptions", oneof.GetOptions().SerializeToString())
        if extension(options, "validate.required"):
            required.append((oneof.name, tuple(field.name for field in oneof.fields)))
    return tuple(required)


@cache
def is_required(field: FieldDescriptor) -> bool:
    """Whether a message field must be set."""
    rules = field_rules(field)
    if rules is None:
        return False
    kind = rules.WhichOneof("type")
    timed = kind in {"any", "duration", "timestamp"} and getattr(rules, kind).required
    return bool(rules.message.required or timed)


@cache
def value_checks(field: FieldDescriptor) -> tuple[Check, ...]:
    """What is checked of the field's value; for repeated and map fields of the whole list or dict."""
    rules = field_rules(field)
    return () if rules is None else checks_of(rules)


@cache
def item_checks(field: FieldDescriptor) -> tuple[Check, ...]:
    """What is checked of each item of a repeated field and each value of a map."""
    rules = field_rules(field)
    kind = None if rules is None else rules.WhichOneof("type")
    if kind == "repeated" and rules.repeated.HasField("items"):
        return checks_of(rules.repeated.items)
    if kind == "map" and rules.map.HasField("values"):
        return checks_of(rules.map.values)
    return ()


@cache
def key_checks(field: FieldDescriptor) -> tuple[Check, ...]:
    """What is checked of each key of a map field."""
    rules = field_rules(field)
    has_keys = rules is not None and rules.WhichOneof("type") == "map" and rules.map.HasField("keys")
    return checks_of(rules.map.keys) if has_keys else ()


def checks_of(rules: Any) -> tuple[Check, ...]:
    """Compile one `validate.FieldRules`."""
    kind = rules.WhichOneof("type")
    if kind is None:
        return ()
    typed = getattr(rules, kind)
    checks = tuple(_typed_checks(kind, typed))
    if getattr(typed, "ignore_empty", False):
        return tuple(partial(_unless_empty, check) for check in checks)
    return checks


def _typed_checks(kind: str, typed: Any) -> Iterable[Check]:
    if kind == "string":
        return _string_checks(typed)
    if kind == "bool":
        return _const_checks(typed)
    if kind in NUMBER_KINDS:
        return _number_checks(typed)
    if kind == "enum":
        return _set_checks(typed)
    if kind == "duration":
        return _duration_checks(typed)
    if kind == "any":
        return _any_checks(typed)
    if kind in {"repeated", "map", "bytes"}:
        return _size_checks(kind, typed)
    return ()


def _unless_empty(check: Check, value: Any) -> str | None:
    return check(value) if value else None


def _claim(holds: Callable[[Any], bool], text: str) -> Check:
    return lambda value: None if holds(value) else text


def _const_checks(rules: Any) -> Iterable[Check]:
    if rules.HasField("const"):
        wanted = rules.const
        yield _claim(lambda value: bool(value == wanted), f"must be {wanted!r}")


def _set_checks(rules: Any) -> Iterable[Check]:
    yield from _const_checks(rules)
    among, never = tuple(getattr(rules, "in")), tuple(rules.not_in)
    if among:
        yield _claim(lambda value: value in among, f"must be one of {among}")
    if never:
        yield _claim(lambda value: value not in never, f"must be none of {never}")


def _number_checks(rules: Any) -> Iterable[Check]:
    yield from _set_checks(rules)
    bounds = {name: getattr(rules, name) for name in ("lt", "lte", "gt", "gte") if rules.HasField(name)}
    yield from _bound_checks(bounds)


def _duration_checks(rules: Any) -> Iterable[Check]:
    names = [name for name in ("lt", "lte", "gt", "gte") if rules.HasField(name)]
    bounds = {name: getattr(rules, name).ToNanoseconds() for name in names}
    for check in _bound_checks(bounds, unit=" ns"):
        yield partial(_on_nanoseconds, check)


def _on_nanoseconds(check: Check, value: Any) -> str | None:
    return check(value.ToNanoseconds())


def _bound_checks(bounds: dict[str, Any], unit: str = "") -> Iterable[Check]:
    """A range whose ends are turned round (`lt` below `gt`) allows what lies outside of it."""
    tests: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "lt": (lambda value, bound: value < bound, "less than"),
        "lte": (lambda value, bound: value <= bound, "at most"),
        "gt": (lambda value, bound: value > bound, "greater than"),
        "gte": (lambda value, bound: value >= bound, "at least"),
    }
    claims = [
        (partial(_flipped, tests[name][0], bound), f"{tests[name][1]} {bound}{unit}") for name, bound in bounds.items()
    ]
    if _is_turned_round(bounds):
        words = " or ".join(text for _, text in claims)
        yield _claim(lambda value: any(holds(value) for holds, _ in claims), f"must be {words}")
        return
    for holds, text in claims:
        yield _claim(holds, f"must be {text}")


def _is_turned_round(bounds: dict[str, Any]) -> bool:
    low = bounds.get("gt", bounds.get("gte"))
    high = bounds.get("lt", bounds.get("lte"))
    return low is not None and high is not None and bool(high <= low)


def _flipped(holds: Callable[[Any, Any], bool], bound: Any, value: Any) -> bool:
    return holds(value, bound)


def _any_checks(rules: Any) -> Iterable[Check]:
    among, never = tuple(getattr(rules, "in")), tuple(rules.not_in)
    if among:
        yield _claim(lambda value: value.type_url in among, f"its type must be one of {among}")
    if never:
        yield _claim(lambda value: value.type_url not in never, f"its type must be none of {never}")


def _size_checks(kind: str, rules: Any) -> Iterable[Check]:
    low, high = {"repeated": ("min_items", "max_items"), "map": ("min_pairs", "max_pairs")}.get(
        kind, ("min_len", "max_len")
    )
    yield from _length_checks(rules, low, high, lambda value: value, "items" if kind != "bytes" else "bytes")
    if kind == "repeated" and rules.unique:
        yield _claim(lambda value: len(value) == len(set(value)), "must not repeat an item")


def _length_checks(rules: Any, low: str, high: str, measured: Callable[[Any], Sized], unit: str) -> Iterable[Check]:
    if rules.HasField(low):
        least = getattr(rules, low)
        yield _claim(lambda value: len(measured(value)) >= least, f"needs at least {least} {unit}")
    if rules.HasField(high):
        most = getattr(rules, high)
        yield _claim(lambda value: len(measured(value)) <= most, f"may have at most {most} {unit}")


def _string_checks(rules: Any) -> Iterable[Check]:
    unknown = {field.name for field, _ in rules.ListFields()} - IMPLEMENTED_STRING
    assert not unknown, f"a rule of Envoy's protobufs that is not implemented: {unknown}"
    yield from _set_checks(rules)
    yield from _length_checks(rules, "min_len", "max_len", lambda value: value, "characters")
    yield from _length_checks(rules, "min_bytes", "max_bytes", str.encode, "bytes")
    if rules.HasField("pattern"):
        pattern = re.compile(rules.pattern)
        yield _claim(lambda value: pattern.search(value) is not None, f"must match {rules.pattern}")
    for name, holds in (("prefix", str.startswith), ("suffix", str.endswith), ("contains", str.__contains__)):
        if rules.HasField(name):
            yield _claim(partial(_flipped, holds, getattr(rules, name)), f"{name} must be {getattr(rules, name)!r}")
    yield from _format_checks(rules)


def _format_checks(rules: Any) -> Iterable[Check]:
    formats: dict[str, Callable[[str], bool]] = {
        "hostname": _is_hostname,
        "ip": _is_address,
        "ipv4": partial(_is_address, version=4),
        "ipv6": partial(_is_address, version=6),
        "uri": lambda value: bool(urlsplit(value).scheme),
        "address": lambda value: _is_address(value) or _is_hostname(value),
    }
    kind = rules.WhichOneof("well_known")
    if kind in formats and getattr(rules, kind):
        yield _claim(formats[kind], f"must be a valid {kind}")
    if kind == "well_known_regex":
        yield _header_check(rules)


def _header_check(rules: Any) -> Check:
    is_strict = rules.strict if rules.HasField("strict") else True
    is_name = rules.well_known_regex == HTTP_HEADER_NAME
    pattern = (HEADER_NAME if is_name else HEADER_VALUE) if is_strict else LOOSE_HEADER
    return _claim(lambda value: pattern.search(value) is not None, f"must match {pattern.pattern}")


def _is_hostname(value: str) -> bool:
    return HOSTNAME.match(value) is not None


def _is_address(value: str, version: int | None = None) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return version is None or address.version == version
