"""Request validation: the field rules in the .proto files (protovalidate), as google.rpc.BadRequest."""

from __future__ import annotations

from typing import Any

import protovalidate
from google.protobuf.message import Message

from services.chassis.errors import VIOLATIONS_MAX, FieldViolation, InvalidRequest

_validator = protovalidate.Validator()


def validate_request(request: Message) -> None:
    """Raise InvalidRequest, with every field that breaks its rule."""
    violations = _validator.collect_violations(request)
    if violations:
        fields = (_field_violation(violation.proto) for violation in violations[:VIOLATIONS_MAX])
        raise InvalidRequest(*fields)


def compile_rules(request_type: type[Message]) -> None:
    """Compile a message's rules ahead of the first request; raises protovalidate.CompilationError for rules that cannot work."""
    _validator.collect_violations(request_type())


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
    return f'["{subscript.value}"]' if isinstance(subscript.value, str) else f"[{subscript.value}]"
