"""JSON values to Envoy's dynamic messages, strictly: every problem is found in one pass and named by its exact path.

Stricter than protobuf's own JSON parser: no camelCase, no numbers as strings or floats, no enum numbers, no deprecated
field or enum value, no member of a oneof twice, `Any` only with a known v3 `@type`. Unlike that parser it is
deterministic inside `Any`, too.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from generator.resources.descriptors import TYPE_PREFIX, find_descriptor, message_class
from generator.resources.errors import Problem, ResourceError
from generator.resources.rules import Check, is_required, item_checks, key_checks, required_oneofs, value_checks

Convert = Callable[[Any, str], Any]
"""Value and path to a protobuf value; raises _Wrong. Problems inside messages are collected instead."""

WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
FREE_FORM = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
TEXTUAL = frozenset({"google.protobuf.Duration", "google.protobuf.Timestamp"})
DEPRECATED_ALLOWED: frozenset[str] = frozenset()
"""Full names of deprecated fields that are used on purpose; there is none."""
RETIRED_VERSION = re.compile(r"^envoy\..*\.v[12](alpha[0-9]*)?\.")
"""Versions of Envoy's API before v3: still in the descriptor set, no longer in Envoy."""
INTEGER_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class _Wrong(Exception):  # noqa: N818  # never leaves this module
    """A value cannot be converted."""


def decode(type_name: str, value: Mapping[str, Any], where: str) -> Message:
    """Convert `value` to the message `type_name`, e.g. `envoy.config.cluster.v3.Cluster`.

    `where` begins every path, e.g. `Cluster outbound_nip`. Raises ResourceError with all problems.
    """
    descriptor = find_descriptor(type_name)
    assert descriptor is not None, type_name
    decoder = Decoder()
    message = decoder.message(descriptor, value, f"{where}: ")
    if decoder.problems:
        raise ResourceError(decoder.problems)
    return message


class Decoder:
    """One pass over one resource; `problems` grows."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def message(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        """Convert a JSON object to a message; what is wrong is added to `problems`."""
        special = self._special(descriptor)
        if special is not None:
            return special(descriptor, value, path)
        message = message_class(descriptor)()
        if not isinstance(value, Mapping):
            self._report(path, f"must be an object ({descriptor.name}), not {shown(value)}")
            return message
        fields = fields_of(descriptor)
        for name, item in value.items():
            field = fields.get(name)
            if field is None:
                self._report(join(path, name), f"{descriptor.name} has no field {name!r}")
            elif item is not None:
                self._field(message, field, item, join(path, name))
        self._check_members(descriptor, value, path)
        return message

    def _special(self, descriptor: Descriptor) -> Callable[[Descriptor, Any, str], Message] | None:
        name = descriptor.full_name
        if not name.startswith("google.protobuf."):
            return None
        if name == "google.protobuf.Any":
            return self._any
        if name in WRAPPERS:
            return self._wrapper
        if name in TEXTUAL or name in FREE_FORM:
            return self._well_known
        return None

    def _field(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
        """Convert and set one field."""
        if field.GetOptions().deprecated and field.full_name not in DEPRECATED_ALLOWED:
            self._report(path, "is deprecated")
        if is_map(field):
            self._map(message, field, value, path)
        elif field.is_repeated:
            self._repeated(message, field, value, path)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._checked_message(field, value, path))
        else:
            converted = self._scalar(field, value, path)
            if converted is not None:
                self._check(value_checks(field), converted, path)
                setattr(message, field.name, converted)

    def _checked_message(self, field: FieldDescriptor, value: Any, path: str) -> Message:
        assert field.message_type is not None, field.full_name
        problems_before = len(self.problems)
        converted = self.message(field.message_type, value, path)
        checks = value_checks(field)
        if checks and len(self.problems) == problems_before:
            self._check(checks, rule_subject(converted), path)
        return converted

    def _repeated(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
        if not isinstance(value, list):
            self._report(path, f"must be a list, not {shown(value)}")
            return
        items = getattr(message, field.name)
        for index, item in enumerate(value):
            converted = self._item(field, item, f"{path}[{index}]")
            if converted is not None:
                self._check(item_checks(field), rule_subject(converted), f"{path}[{index}]")
                items.append(converted)
        self._check(value_checks(field), value, path)

    def _map(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            self._report(path, f"must be an object, not {shown(value)}")
            return
        assert field.message_type is not None, field.full_name
        target = getattr(message, field.name)
        value_field = field.message_type.fields_by_name["value"]
        for key, item in value.items():
            self._check(key_checks(field), key, f"{path}[{key!r}]")
            converted = self._item(value_field, item, f"{path}[{key!r}]")
            if converted is None:
                continue
            self._check(item_checks(field), rule_subject(converted), f"{path}[{key!r}]")
            if isinstance(converted, Message):
                target[key].CopyFrom(converted)
            else:
                target[key] = converted
        self._check(value_checks(field), value, path)

    def _item(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type, value, path)
        return self._scalar(field, value, path)

    def _scalar(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        """Convert one scalar; None when it is wrong."""
        try:
            return scalar_converter(field)(value, path)
        except _Wrong as wrong:
            self._report(path, str(wrong))
            return None

    def _wrapper(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        message = message_class(descriptor)()
        converted = self._scalar(descriptor.fields_by_name["value"], value, path)
        if converted is not None:
            message.value = converted  # type: ignore[attr-defined]  # every wrapper has it
        return message

    def _well_known(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        message = message_class(descriptor)()
        if descriptor.full_name in TEXTUAL and not isinstance(value, str):
            self._report(path, f'must be text like "0.25s", not {shown(value)}')
            return message
        try:
            json_format.ParseDict(value, message)
        except json_format.ParseError:
            wanted = 'text like "0.25s"' if descriptor.full_name in TEXTUAL else descriptor.name
            self._report(path, f"must be {wanted}, not {shown(value)}")
        return message

    def _any(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        message = message_class(descriptor)()
        if not isinstance(value, Mapping) or not isinstance(value.get("@type"), str):
            self._report(path, "needs an object with @type")
            return message
        url = value["@type"]
        inner = find_descriptor(url.removeprefix(TYPE_PREFIX)) if url.startswith(TYPE_PREFIX) else None
        if inner is None or RETIRED_VERSION.search(inner.full_name):
            self._report(join(path, "@type"), f"Envoy's API has no {url!r}")
            return message
        rest = {name: item for name, item in value.items() if name != "@type"}
        if inner.full_name.startswith("google.protobuf.") and inner.full_name != "google.protobuf.Empty":
            rest = rest.get("value", {})
        packed = self.message(inner, rest, path)
        message.type_url = url  # type: ignore[attr-defined]  # `google.protobuf.Any`
        message.value = packed.SerializeToString(deterministic=True)  # type: ignore[attr-defined]  # the same
        return message

    def _check_members(self, descriptor: Descriptor, value: Mapping[str, Any], path: str) -> None:
        """Check what concerns several fields or absent ones: oneofs, required fields, rules that zero breaks."""
        present = {name for name, item in value.items() if item is not None}
        for name, members in oneofs_of(descriptor):
            both = [member for member in members if member in present]
            if len(both) > 1:
                self._report(path, f"only one of {', '.join(both)} may be set ({name})")
        for name, members in required_oneofs(descriptor):
            if not present.intersection(members):
                self._report(path, f"one of {', '.join(members)} must be set ({name})")
        for field, checks in absent_checks(descriptor):
            if field.name not in present:
                if is_required(field):
                    self._report(join(path, field.name), "must be set")
                self._check(checks, empty_value(field), join(path, field.name))

    def _check(self, checks: tuple[Check, ...], value: Any, path: str) -> None:
        for check in checks:
            text = check(value)
            if text is not None:
                self._report(path, text)

    def _report(self, path: str, text: str) -> None:
        self.problems.append(Problem(path=path.removesuffix(": "), text=text))


def rule_subject(value: Any) -> Any:
    """What a rule on a field looks at: of a wrapper its value, of everything else itself."""
    if isinstance(value, Message) and value.DESCRIPTOR.full_name in WRAPPERS:
        return value.value  # type: ignore[attr-defined]  # every wrapper has it
    return value


def empty_value(field: FieldDescriptor) -> Any:
    """What an absent field holds, for the rules that speak of it."""
    return [] if field.is_repeated else field.default_value


@cache
def fields_of(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """The fields of a message by their protobuf names."""
    return dict(descriptor.fields_by_name)


@cache
def oneofs_of(descriptor: Descriptor) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The oneofs of a message: (name, members)."""
    return tuple((oneof.name, tuple(field.name for field in oneof.fields)) for oneof in descriptor.oneofs)


@cache
def absent_checks(descriptor: Descriptor) -> tuple[tuple[FieldDescriptor, tuple[Check, ...]], ...]:
    """The fields whose absence may break a rule; an absent message or oneof member breaks only `required`."""
    found = []
    for field in descriptor.fields:
        if field.containing_oneof is not None:
            continue
        checks = () if field.has_presence else value_checks(field)
        if checks or is_required(field):
            found.append((field, checks))
    return tuple(found)


@cache
def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@cache
def scalar_converter(field: FieldDescriptor) -> Convert:
    """What converts a JSON value to this scalar or enum field."""
    kind = field.cpp_type
    if kind in INTEGER_RANGES:
        low, high = INTEGER_RANGES[kind]
        return lambda value, _path: integer(value, low, high)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        names = field.enum_type
        assert names is not None, field.full_name
        return lambda value, _path: enum_number(names, value)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return lambda value, _path: exactly(value, bool, "true or false")
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return lambda value, _path: base64_bytes(value)
        return lambda value, _path: exactly(value, str, "text")
    return lambda value, _path: float(number(value))


def exactly(value: Any, kind: type, name: str) -> Any:
    """Give the value when it is of this type."""
    if type(value) is not kind:
        raise _Wrong(f"must be {name}, not {shown(value)}")
    return value


def integer(value: Any, low: int, high: int) -> int:
    """Give the value when it is an integer of the range."""
    if type(value) is not int:
        raise _Wrong(f"must be an integer, not {shown(value)}")
    if not low <= value <= high:
        raise _Wrong(f"must lie between {low} and {high}, not {value}")
    return value


def number(value: Any) -> float:
    """Give the value when it is a number."""
    if type(value) not in {int, float}:
        raise _Wrong(f"must be a number, not {shown(value)}")
    return float(value)


def enum_number(names: EnumDescriptor, value: Any) -> int:
    """Look up an enum value by its name."""
    found = names.values_by_name.get(value) if isinstance(value, str) else None
    if found is None:
        raise _Wrong(f"{names.name} has no value {shown(value)}")
    if found.GetOptions().deprecated:
        raise _Wrong(f"{value} is deprecated")
    return int(found.number)


def base64_bytes(value: Any) -> bytes:
    """Decode protobuf's JSON form of bytes."""
    try:
        return base64.b64decode(exactly(value, str, "base64 text"), validate=True)
    except binascii.Error as error:
        raise _Wrong("must be base64 text") from error


def join(path: str, name: str) -> str:
    """Extend a path by a field."""
    return f"{path}{name}" if path.endswith(": ") else f"{path}.{name}"


def shown(value: Any) -> str:
    """Show a wrong value, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
