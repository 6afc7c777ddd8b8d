"""JSON values to Envoy's dynamic messages, strictly: every problem is found in one pass and named by its exact path.

Stricter than protobuf's own JSON parser: no camelCase, no numbers as strings or floats, no enum numbers, no deprecated
field or enum value, no member of a oneof twice, `Any` only with a known v3 `@type`. Unlike that parser it is
deterministic inside `Any`, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from generator.resources.descriptors import TYPE_PREFIX, find_descriptor, message_class
from generator.resources.errors import Problem, ResourceError
from generator.resources.holes import Hole, KeyHole, Leaf, emptied, item_leaf, key_leaf, value_leaf
from generator.resources.memo import Memo
from generator.resources.plans import (
    FREE_FORM,
    TEXTUAL,
    WRAPPERS,
    Convert,
    Form,
    Plan,
    WrongValueError,
    form_of,
    member_rules,
    plans_of,
    shown,
)
from generator.resources.rules import Check

SOUND_MAX = 20_000
"""Parts of resources that are remembered as sound."""
DEPTH_MAX = 64
"""Messages in messages; protobuf's parsers stop at 100."""
FREE_FORM_DEPTH_MAX = 30
"""Levels of free-form JSON; each is three messages to protobuf, whose parsers stop at 100."""
FINITE_MAX = sys.float_info.max
SURROGATE = re.compile(r"[\ud800-\udfff]")
RETIRED_VERSION = re.compile(r"^envoy\..*\.v[12](alpha[0-9]*)?\.")
"""Versions of Envoy's API before v3: still in the descriptor set, no longer in Envoy."""


Sound = Memo[tuple[Plan, str, int], tuple[Any, tuple[Leaf, ...]]]
"""Objects and lists that had no problem as some part of some field (by their id), and the leaves of their holes."""
_sound: Sound = Memo(SOUND_MAX)


def decode(type_name: str, value: dict[str, Any], where: str) -> Message:
    """Convert `value` to the message `type_name`, e.g. `envoy.config.cluster.v3.Cluster`.

    `where` begins every path, e.g. `Cluster outbound_nip`. Raises ResourceError with all problems.
    """
    message, leaves = _decoded(type_name, value, where)
    assert not leaves, "a hole in what was to be a message"
    return message


def leaves_of(type_name: str, value: dict[str, Any], where: str) -> tuple[Leaf, ...]:
    """Check JSON with holes; what may stand in each hole, in the order of the document.

    Raises ResourceError when it is wrong whatever stands there, and UnliftableError when that is not to be told.
    """
    return tuple(_decoded(type_name, value, where, _sound)[1])


def _decoded(
    type_name: str, value: dict[str, Any], where: str, sound: Sound | None = None
) -> tuple[Message, list[Leaf]]:
    descriptor = find_descriptor(type_name)
    assert descriptor is not None, type_name
    decoder = Decoder(sound)
    message = decoder.message(descriptor, value, f"{where}: ")
    if decoder.problems:
        raise ResourceError(decoder.problems)
    return message, decoder.leaves


class Decoder:
    """One pass over one resource; `problems` grows, and so do `leaves`, one for each hole.

    With `sound` there will be no message: objects and lists that were found without a problem before are passed over.
    """

    def __init__(self, sound: Sound | None = None) -> None:
        self.sound = sound
        self.problems: list[Problem] = []
        self.leaves: list[Leaf] = []
        self.depth = 0

    def message(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        """Convert a JSON object to a message; what is wrong is added to `problems`."""
        if self.depth >= DEPTH_MAX:
            self._report(path, "is nested too deeply")
            return message_class(descriptor)()
        self.depth += 1
        converted = self._message(descriptor, value, path)
        self.depth -= 1
        return converted

    def _message(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        form = form_of(descriptor)
        if form is not Form.FIELDS:
            return self._special(form, descriptor, value, path)
        message = message_class(descriptor)()
        if not isinstance(value, dict):
            self._report(path, f"must be an object ({descriptor.name}), not {shown(value)}")
            return message
        fields = plans_of(descriptor)
        for name, item in value.items():
            plan = fields.get(name)
            if plan is None:
                self._report(join(path, name), f"{descriptor.name} has no field {name!r}")
            elif item is not None or plan.takes_null:
                self._field(message, plan, item, join(path, name))
        self._check_members(descriptor, value, path)
        return message

    def _special(self, form: Form, descriptor: Descriptor, value: Any, path: str) -> Message:
        if form is Form.ANY:
            return self._any(descriptor, value, path)
        if form is Form.WRAPPER:
            return self._wrapper(descriptor, value, path)
        return self._well_known(descriptor, value, path)

    def _field(self, message: Message, plan: Plan, value: Any, path: str) -> None:
        """Convert and set one field."""
        self._unless_sound(plan, value, "field", lambda: self._new_field(message, plan, value, path))

    def _unless_sound(self, plan: Plan, value: Any, part: str, work: Callable[[], None]) -> None:
        """Do the work, unless this very object was there before and had no problem as this part of this field."""
        if self.sound is None or not isinstance(value, dict | list):
            work()
            return
        key = (plan, part, id(value))
        known = self.sound.get(key)
        if known is not None:
            self.leaves += known[1]
            return
        problems, leaves = len(self.problems), len(self.leaves)
        work()
        if len(self.problems) == problems:
            self.sound.put(
                key, (value, tuple(self.leaves[leaves:]))
            )  # with the object, whose id is its own while it lives

    def _new_field(self, message: Message, plan: Plan, value: Any, path: str) -> None:
        if plan.is_deprecated:
            self._report(path, "is deprecated")
        if type(value) is Hole:
            self.leaves.append(value_leaf(plan))
        elif plan.is_map:
            self._map(message, plan, value, path)
        elif plan.is_repeated:
            self._repeated(message, plan, value, path)
        elif plan.message is not None:
            getattr(message, plan.name).CopyFrom(self._checked_message(plan, plan.message, value, path))
        else:
            converted = self._scalar(plan.convert, value, path)
            if converted is not None:
                self._check(plan.value_checks, converted, path)
                setattr(message, plan.name, converted)

    def _checked_message(self, plan: Plan, descriptor: Descriptor, value: Any, path: str) -> Message:
        problems_before = len(self.problems)
        converted = self.message(descriptor, value, path)
        if plan.value_checks and len(self.problems) == problems_before:
            self._check(plan.value_checks, rule_subject(converted), path)
        return converted

    def _repeated(self, message: Message, plan: Plan, value: Any, path: str) -> None:
        if not isinstance(value, list):
            self._report(path, f"must be a list, not {shown(value)}")
            return
        problems_before = len(self.problems)
        items = getattr(message, plan.name)
        for index, item in enumerate(value):
            self._listed(items, plan, item, f"{path}[{index}]")
        if len(self.problems) == problems_before:
            self._check(plan.value_checks, value, path)

    def _listed(self, items: Any, plan: Plan, item: Any, path: str) -> None:
        if type(item) is Hole:
            self.leaves.append(item_leaf(plan))
            return

        def convert() -> None:
            converted = self._item(plan, item, path)
            if converted is not None:
                self._check(plan.item_checks, rule_subject(converted), path)
                items.append(converted)

        self._unless_sound(plan, item, "item", convert)

    def _map(self, message: Message, plan: Plan, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            self._report(path, f"must be an object, not {shown(value)}")
            return
        target = getattr(message, plan.name)
        assert plan.convert_key is not None
        for written, item in value.items():
            where = f"{path}[{written!r}]"
            key = self._key(plan, plan.convert_key, written, where)
            if type(item) is Hole:
                self.leaves.append(item_leaf(plan))
            elif key is not None:
                self._mapped(target, plan, key, item, where)
        self._check(plan.value_checks, value, path)

    def _key(self, plan: Plan, convert: Convert, written: str, path: str) -> Any:
        if type(written) is KeyHole:
            self.leaves.append(key_leaf(plan))
            return written
        key = self._scalar(convert, written, path)
        if key is not None:
            self._check(plan.key_checks, key, path)
        return key

    def _mapped(self, target: Any, plan: Plan, key: Any, item: Any, path: str) -> None:
        def convert() -> None:
            converted = self._item(plan, item, path)
            if converted is None:
                return
            self._check(plan.item_checks, rule_subject(converted), path)
            if isinstance(converted, Message):
                target[key].CopyFrom(converted)
            else:
                target[key] = converted

        self._unless_sound(plan, item, "item", convert)

    def _item(self, plan: Plan, value: Any, path: str) -> Any:
        if plan.message is not None:
            return self.message(plan.message, value, path)
        return self._scalar(plan.convert, value, path)

    def _scalar(self, convert: Convert, value: Any, path: str) -> Any:
        """Convert one scalar; None when it is wrong."""
        try:
            return convert(value)
        except WrongValueError as wrong:
            self._report(path, str(wrong))
            return None

    def _wrapper(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        message = message_class(descriptor)()
        converted = self._scalar(plans_of(descriptor)["value"].convert, value, path)
        if converted is not None:
            message.value = converted  # type: ignore[attr-defined]  # every wrapper has it
        return message

    def _well_known(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        message = message_class(descriptor)()
        if descriptor.full_name in TEXTUAL and not isinstance(value, str):
            self._report(path, f'must be text like "0.25s", not {shown(value)}')
            return message
        wanted = 'text like "0.25s"' if descriptor.full_name in TEXTUAL else descriptor.name
        if descriptor.full_name in FREE_FORM and not is_plain(value):
            self._report(path, f"must be {wanted} of finite numbers and plain text, not too deep, not {shown(value)}")
            return message
        try:
            json_format.ParseDict(emptied(value, self.leaves), message)
        except json_format.ParseError:
            self._report(path, f"must be {wanted}, not {shown(value)}")
        return message

    def _any(self, descriptor: Descriptor, value: Any, path: str) -> Message:
        message = message_class(descriptor)()
        if not isinstance(value, dict) or not isinstance(value.get("@type"), str):
            self._report(path, "needs an object with @type")
            return message
        url = value["@type"]
        inner = find_descriptor(url.removeprefix(TYPE_PREFIX)) if url.startswith(TYPE_PREFIX) else None
        if inner is None or RETIRED_VERSION.search(inner.full_name):
            self._report(join(path, "@type"), f"Envoy's API has no {url!r}")
            return message
        rest = {name: item for name, item in value.items() if name != "@type"}
        if form_of(inner) is not Form.FIELDS:
            if set(rest) != {"value"}:
                self._report(path, f"needs `value`, and nothing else, beside the @type of {inner.name}")
                return message
            rest, path = rest["value"], join(path, "value")
        packed = self.message(inner, rest, path)
        message.type_url = url  # type: ignore[attr-defined]  # `google.protobuf.Any`
        message.value = packed.SerializeToString(deterministic=True)  # type: ignore[attr-defined]  # the same
        return message

    def _check_members(self, descriptor: Descriptor, value: dict[str, Any], path: str) -> None:
        """Check what concerns several fields or absent ones: oneofs, required fields, rules that zero breaks."""
        rules = member_rules(descriptor)
        for name, members in rules.oneofs:
            both = [member for member in members if value.get(member) is not None]
            if len(both) > 1:
                self._report(path, f"only one of {', '.join(both)} may be set ({name})")
        for name, members in rules.required_oneofs:
            if all(value.get(member) is None for member in members):
                self._report(path, f"one of {', '.join(members)} must be set ({name})")
        for plan, needed in rules.absent:
            if value.get(plan.name) is None:
                if needed:
                    self._report(join(path, plan.name), "must be set")
                if not plan.field.has_presence:
                    self._check(plan.value_checks, empty_value(plan.field), join(path, plan.name))

    def _check(self, checks: tuple[Check, ...], value: Any, path: str) -> None:
        for check in checks:
            text = check(value)
            if text is not None:
                self._report(path, text)

    def _report(self, path: str, text: str) -> None:
        self.problems.append(Problem(path=path.removesuffix(": "), text=text))


def is_plain(value: Any) -> bool:
    """Whether free-form JSON holds only what every parser reads the same: finite numbers, text of UTF-8, bounded depth."""
    layer = [value]
    for _ in range(FREE_FORM_DEPTH_MAX):
        if not all(is_plain_scalar(item) for item in layer):
            return False
        layer = [item for held in layer for item in inside(held)]
        if not layer:
            return True
    return False


def is_plain_scalar(value: Any) -> bool:
    """Whether JSON's own kinds hold it exactly; containers are left to the caller, and holes to who fills them."""
    if isinstance(value, str):
        return not SURROGATE.search(value)
    if isinstance(value, (int, float)):
        return -FINITE_MAX <= value <= FINITE_MAX
    return value is None or isinstance(value, (dict, list, Hole))


def inside(value: Any) -> list[Any]:
    """What a container holds, keys included; nothing for others."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def rule_subject(value: Any) -> Any:
    """What a rule on a field looks at: of a wrapper its value, of everything else itself."""
    if isinstance(value, Message) and value.DESCRIPTOR.full_name in WRAPPERS:
        return value.value  # type: ignore[attr-defined]  # every wrapper has it
    return value


def empty_value(field: FieldDescriptor) -> Any:
    """What an absent field holds, for the rules that speak of it."""
    return [] if field.is_repeated else field.default_value


def join(path: str, name: str) -> str:
    """Extend a path by a field."""
    return f"{path}{name}" if path.endswith(": ") else f"{path}.{name}"
