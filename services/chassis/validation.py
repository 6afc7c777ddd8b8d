"""Request validation: the field rules in the .proto files (protovalidate), as google.rpc.BadRequest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from buf.validate import validate_pb2
from services.chassis.errors import VIOLATIONS_MAX, FieldViolation, InvalidRequest

VIOLATIONS_CHARACTERS_MAX: Final = 4_000
"""What all violations of a request say together: they travel as a header (see `errors`), and its keys are the caller's."""
NANOS_MAX: Final = 999_999_999
"""Of a google.protobuf.Timestamp, and of a Duration, which may be negative."""
KEY_CHARACTERS_MAX: Final = 40
"""So much is shown of the key of a map."""

_validator = protovalidate.Validator()


def validate_request(request: Message) -> None:
    """Raise InvalidRequest, with every field that breaks its rule.

    Lists that are too long come first: protovalidate would look at every item of them, and at every pair for `unique`: a megabyte of
    small numbers would take it minutes. So do times that are none: it compares them as if they were.
    """
    first = tuple(islice(_violations(request, _watched_of(request.DESCRIPTOR), ""), VIOLATIONS_MAX))
    if first:
        raise InvalidRequest(*_fitting(first))
    violations = _validator.collect_violations(request)
    if violations:
        raise InvalidRequest(*_fitting([_field_violation(each.proto) for each in violations[:VIOLATIONS_MAX]]))


_MALFORMED: Final = {
    "google.protobuf.Timestamp": ("timestamp.malformed", "must have nanos from 0 to 999999999"),
    "google.protobuf.Duration": ("duration.malformed", "must have nanos up to 999999999, with the sign of its seconds"),
}
"""The types of times, and what is said of those that are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """A field that is looked at before protovalidate does: a list or a map, a time, or a message that has some inside of it."""

    name: str
    repeated: bool
    items_max: int | None
    """Most items that its rule allows; None: not a list, or one without such a rule."""
    items_rule: str
    is_time: bool
    inner: tuple[_Watched, ...]


@cache
def _watched_of(descriptor: Descriptor, above: tuple[str, ...] = ()) -> tuple[_Watched, ...]:
    """The fields of a message type; a type inside itself is not followed: what is left of it is protovalidate's."""
    found = (_watched(field, (*above, descriptor.full_name)) for field in descriptor.fields)
    return tuple(each for each in found if each.items_max is not None or each.is_time or each.inner)


def _watched(field: FieldDescriptor, above: tuple[str, ...]) -> _Watched:
    rules, of = field.GetOptions().Extensions[validate_pb2.field], field.message_type
    is_map = of is not None and of.GetOptions().map_entry
    rule, items_max = (
        ("map.max_pairs", rules.map.max_pairs) if is_map else ("repeated.max_items", rules.repeated.max_items)
    )
    is_time = of is not None and of.full_name in _MALFORMED
    is_followed = of is not None and not is_map and not is_time and of.full_name not in above
    return _Watched(
        name=field.name,
        repeated=field.is_repeated,
        items_max=int(items_max) if field.is_repeated and items_max else None,
        items_rule=rule,
        is_time=is_time,
        inner=_watched_of(of, above) if is_followed else (),
    )


def _violations(message: Any, fields: tuple[_Watched, ...], prefix: str) -> Iterator[FieldViolation]:
    """What is wrong with the lengths of lists and with times; nothing inside a list that is too long is looked at."""
    for each in fields:
        path, value = prefix + each.name, getattr(message, each.name)
        if each.items_max is not None and len(value) > each.items_max:
            description = f"must contain no more than {each.items_max} item(s)"
            yield FieldViolation(field=path, description=description, reason=each.items_rule)
        elif not (each.is_time or each.inner):
            continue
        elif each.repeated:
            for index, item in enumerate(value):
                yield from _inside(item, each, f"{path}[{index}]")
        elif message.HasField(each.name):
            yield from _inside(value, each, path)


def _inside(value: Any, field: _Watched, path: str) -> Iterator[FieldViolation]:
    if not field.is_time:
        yield from _violations(value, field.inner, f"{path}.")
    elif not _is_well_formed(value):
        rule, description = _MALFORMED[value.DESCRIPTOR.full_name]
        yield FieldViolation(field=path, description=description, reason=rule)


def _is_well_formed(value: Timestamp | Duration) -> bool:
    if isinstance(value, Timestamp):
        return 0 <= value.nanos <= NANOS_MAX
    return abs(value.nanos) <= NANOS_MAX and value.seconds * value.nanos >= 0


def compile_rules(request_type: type[Message]) -> None:
    """Compile a message's rules ahead of the first request; raises protovalidate.CompilationError for rules that cannot work."""
    _validator.collect_violations(request_type())


def _fitting(fields: Sequence[FieldViolation]) -> Iterator[FieldViolation]:
    """The first one, and as many as there is room for."""
    left = VIOLATIONS_CHARACTERS_MAX
    for number, each in enumerate(fields):
        left -= len(each.field) + len(each.description) + len(each.reason)
        if number and left < 0:
            return
        yield each


def _field_violation(violation: Any) -> FieldViolation:  # protovalidate's own message type
    """One violation in our words; the rule's id, for example string.min_len, becomes its reason."""
    description = violation.message or f"breaks the rule {violation.rule_id}"
    path = _path(violation.field.elements) if violation.field else ""
    return FieldViolation(field=path, description=description, reason=violation.rule_id)


def _path(elements: Any) -> str:  # the same
    """A path like `events[3].tags[0]`, or "" for a rule of the whole message."""
    return ".".join(f"{element.field_name}{_subscript(element)}" for element in elements)


def _subscript(element: Any) -> str:  # the same
    """`[3]` or `["key"]` of a repeated or map field, else ""."""
    subscript = element.subscript
    if subscript is None:
        return ""
    return f"[{_key(subscript.value)}]" if isinstance(subscript.value, str) else f"[{subscript.value}]"


def _key(text: str) -> str:
    """A key that anybody may have sent: the beginning of it, on one line, and without what does not show."""
    shown = json.dumps(text[:KEY_CHARACTERS_MAX])
    return shown if len(text) <= KEY_CHARACTERS_MAX else f"{shown}…"
