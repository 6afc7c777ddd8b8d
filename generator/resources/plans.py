"""What decoding needs to know of each message and field, worked out once: kinds, rules, converters of scalars."""

from __future__ import annotations

import base64
import enum
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, EnumValueDescriptor, FieldDescriptor

from generator.resources.rules import Check, is_required, item_checks, key_checks, required_oneofs, value_checks

Convert = Callable[[Any], Any]
"""JSON value to a protobuf scalar; raises WrongValueError."""
Members = tuple[tuple[str, tuple[str, ...]], ...]
"""Oneofs: (name, members)."""

WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
FREE_FORM = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
TEXTUAL = frozenset({"google.protobuf.Duration", "google.protobuf.FieldMask", "google.protobuf.Timestamp"})
FLOAT_MAX = 3.4028234663852886e38
"""The largest number of 32 bits."""
DEPRECATED_ALLOWED: frozenset[str] = frozenset()
"""Full names of deprecated fields that are used on purpose; there is none."""
KEY = re.compile(r"true|false|-?(0|[1-9][0-9]{0,19})")
"""A key of a map whose keys are numbers or booleans."""
INTEGER_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class WrongValueError(Exception):
    """A value is none of the scalar that it should be; the decoder turns it into a Problem."""


class Form(enum.Enum):
    """How a message looks in JSON."""

    FIELDS = "an object of its fields"
    ANY = "an object with @type"
    WRAPPER = "the scalar alone"
    WELL_KNOWN = "as protobuf's own parser reads it"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """One field."""

    field: FieldDescriptor
    name: str
    is_deprecated: bool
    is_map: bool
    is_repeated: bool
    takes_null: bool
    """`Value` and `NullValue`: null is a value of theirs; for every other field it is the same as none."""
    message: Descriptor | None
    """Of a message field, and of a map whose values are messages."""
    convert: Convert
    """Of a scalar field, and of a map whose values are scalars."""
    is_text: bool
    """Whether that scalar is any text."""
    convert_key: Convert | None
    """Of a map: its keys, which are text in JSON, to what they are."""
    value_checks: tuple[Check, ...]
    item_checks: tuple[Check, ...]
    key_checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberRules:
    """What concerns several fields of a message, or absent ones."""

    oneofs: Members
    required_oneofs: Members
    absent: tuple[tuple[Plan, bool], ...]
    """Fields whose absence may break a rule, and whether they must be set."""


@cache
def form_of(descriptor: Descriptor) -> Form:
    """Tell how a message looks in JSON (https://protobuf.dev/programming-guides/json/)."""
    name = descriptor.full_name
    if name == "google.protobuf.Any":
        return Form.ANY
    if name in WRAPPERS:
        return Form.WRAPPER
    return Form.WELL_KNOWN if name in TEXTUAL or name in FREE_FORM else Form.FIELDS


@cache
def plans_of(descriptor: Descriptor) -> dict[str, Plan]:
    """The fields of a message by their protobuf names."""
    return {field.name: _plan(field) for field in descriptor.fields}


@cache
def member_rules(descriptor: Descriptor) -> MemberRules:
    """The rules of a message; a member of a oneof breaks none by its absence."""
    plans = [plan for plan in plans_of(descriptor).values() if plan.field.containing_oneof is None]
    absent = [(plan, is_required(plan.field)) for plan in plans]
    return MemberRules(
        oneofs=tuple((oneof.name, tuple(field.name for field in oneof.fields)) for oneof in descriptor.oneofs),
        required_oneofs=required_oneofs(descriptor),
        absent=tuple(
            (plan, needed) for plan, needed in absent if needed or (plan.value_checks and not plan.field.has_presence)
        ),
    )


def _plan(field: FieldDescriptor) -> Plan:
    message = field.message_type
    is_map = message is not None and message.GetOptions().map_entry
    item = message.fields_by_name["value"] if message is not None and is_map else field
    return Plan(
        field=field,
        name=field.name,
        is_deprecated=field.GetOptions().deprecated and field.full_name not in DEPRECATED_ALLOWED,
        is_map=is_map,
        is_repeated=field.is_repeated,
        takes_null=not field.is_repeated and takes_null(field),
        message=item.message_type,
        convert=scalar_converter(item),
        is_text=item.type == FieldDescriptor.TYPE_STRING,
        convert_key=key_converter(message.fields_by_name["key"]) if message is not None and is_map else None,
        value_checks=value_checks(field),
        item_checks=item_checks(field),
        key_checks=key_checks(field),
    )


def scalar_converter(field: FieldDescriptor) -> Convert:
    """What converts a JSON value to this scalar or enum field."""
    kind = field.cpp_type
    if kind in INTEGER_RANGES:
        low, high = INTEGER_RANGES[kind]
        return lambda value: integer(value, low, high)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        names = field.enum_type
        assert names is not None, field.full_name
        by_name: dict[str | None, EnumValueDescriptor] = dict(names.values_by_name.items())
        if takes_null(field):
            by_name[None] = names.values_by_number[0]
        return lambda value: enum_number(names, by_name, value)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return lambda value: exactly(value, bool, "true or false")
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return lambda value: base64_bytes(value)
        return text
    most = FLOAT_MAX if kind == FieldDescriptor.CPPTYPE_FLOAT else sys.float_info.max
    return lambda value: number(value, most)


def takes_null(field: FieldDescriptor) -> bool:
    """Whether null is a value of the field."""
    of_message = field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"
    return of_message or (field.enum_type is not None and field.enum_type.full_name == "google.protobuf.NullValue")


def key_converter(field: FieldDescriptor) -> Convert:
    """What converts a key of a JSON object to a key of a map; a key that is no text there is written as JSON."""
    convert = scalar_converter(field)
    return convert if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else lambda key: convert(unquoted(key))


def unquoted(key: Any) -> Any:
    """Read a key that stands for a number or a boolean; a key that does not is given back."""
    if isinstance(key, str) and KEY.fullmatch(key):
        return json.loads(key)
    return key


def exactly(value: Any, kind: type, name: str) -> Any:
    """Give the value when it is of this type."""
    if type(value) is not kind:
        raise WrongValueError(f"must be {name}, not {shown(value)}")
    return value


def text(value: Any) -> str:
    """Give the value when it is text that UTF-8 can write."""
    written: str = exactly(value, str, "text")
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise WrongValueError(f"must be text without lone surrogates, not {shown(value)}") from error
    return written


def integer(value: Any, low: int, high: int) -> int:
    """Give the value when it is an integer of the range."""
    if type(value) is not int:
        raise WrongValueError(f"must be an integer, not {shown(value)}")
    if not low <= value <= high:
        raise WrongValueError(f"must lie between {low} and {high}, not {shown(value)}")
    return value


def number(value: Any, most: float) -> float:
    """Give the value when it is a number whose size is at most `most`."""
    if type(value) not in {int, float}:
        raise WrongValueError(f"must be a number, not {shown(value)}")
    if not -most <= value <= most:
        raise WrongValueError(f"must be finite, not {shown(value)}")
    return float(value)


def enum_number(names: EnumDescriptor, by_name: dict[str | None, EnumValueDescriptor], value: Any) -> int:
    """Look up an enum value by its name."""
    found = by_name.get(value) if value is None or isinstance(value, str) else None
    if found is None:
        raise WrongValueError(f"{names.name} has no value {shown(value)}")
    if found.GetOptions().deprecated:
        raise WrongValueError(f"{value} is deprecated")
    return int(found.number)


def base64_bytes(value: Any) -> bytes:
    """Decode protobuf's JSON form of bytes."""
    try:
        return base64.b64decode(exactly(value, str, "base64 text"), validate=True)
    except ValueError as error:  # `binascii.Error` is one, and characters beyond ASCII raise a plain one
        raise WrongValueError("must be base64 text") from error


def shown(value: Any) -> str:
    """Show a wrong value, shortened."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of more digits than Python writes
        return "something too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
