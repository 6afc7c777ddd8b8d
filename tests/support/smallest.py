"""The smallest JSON values that break no rule of Envoy's protobufs."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from generator.resources.descriptors import TYPE_PREFIX
from support.protojson import (
    WRAPPER,
    bounds_of,
    duration_text,
    is_map,
    is_needed,
    item_of,
    needs_member,
    rules_of,
    shallow,
)


def smallest(descriptor: Descriptor) -> Any:
    """A value of a message with nothing in it that is not needed."""
    name = descriptor.full_name
    if name == "google.protobuf.Any":
        return {"@type": TYPE_PREFIX + "google.protobuf.Empty"}
    if name == "google.protobuf.Duration":
        return "1s"
    if name == "google.protobuf.Timestamp":
        return "2026-01-01T00:00:00Z"
    if WRAPPER.fullmatch(name):
        return smallest_scalar(descriptor.fields_by_name["value"], None)
    if name.startswith("google.protobuf."):
        return [] if name.endswith("ListValue") else {}
    made = {field.name: smallest_field(field) for field in descriptor.fields if is_needed(field)}
    for oneof in descriptor.oneofs:
        if needs_member(descriptor, oneof.name):
            field = shallow(oneof.fields)[0]
            made[field.name] = smallest_field(field)
    return made


def smallest_field(field: FieldDescriptor) -> Any:
    """The smallest value of a field, a whole list or map."""
    rules = rules_of(field)
    kind = None if rules is None else rules.WhichOneof("type")
    if is_map(field):
        return {"a": smallest_item(item_of(field), None)} if kind == "map" and rules.map.min_pairs else {}
    if not field.is_repeated:
        return smallest_item(field, rules)
    own = rules.repeated if kind == "repeated" else None
    item = smallest_item(field, own.items if own is not None and own.HasField("items") else None)
    return [item] * (own.min_items if own is not None else 0)


def smallest_item(field: FieldDescriptor, rules: Any) -> Any:
    """The smallest value of one item under these rules."""
    descriptor = field.message_type
    if descriptor is None:
        return smallest_scalar(field, rules)
    if descriptor.full_name == "google.protobuf.Duration":
        own = rules.duration if rules is not None and rules.WhichOneof("type") == "duration" else None
        low, high = (0, 10**9) if own is None else bounds_of(own, 0, 10**9, 1)
        return duration_text(max(low, high))
    if WRAPPER.fullmatch(descriptor.full_name):
        return smallest_scalar(descriptor.fields_by_name["value"], rules)
    return smallest(descriptor)


def smallest_scalar(field: FieldDescriptor, rules: Any) -> Any:
    """The smallest number, text, enum or boolean under these rules."""
    kind = None if rules is None else rules.WhichOneof("type")
    own = None if kind is None else getattr(rules, kind)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return bool(own is not None and own.const)
    if field.enum_type is not None:
        never = set(own.not_in) if own is not None else set()
        return next(
            value.name
            for value in field.enum_type.values
            if value.number not in never and not value.GetOptions().deprecated
        )
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(b"a" * (own.min_len if own is not None else 0)).decode()
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        low, high = (0, 1) if own is None else bounds_of(own, 0, 2**31, 1)
        return min(low, high)
    if own is None:
        return ""
    if getattr(own, "in"):
        return getattr(own, "in")[0]
    return "/a" if own.pattern else f"{own.prefix}a{own.suffix}" + "a" * max(own.min_len - 1, own.min_bytes - 1, 0)
