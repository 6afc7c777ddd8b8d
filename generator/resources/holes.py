"""Holes: places in a resource's JSON whose text or integer is not known yet, and what may stand there.

A resource with holes is decoded and checked once; whatever is then put into a hole is checked by the rules of its field
alone. What cannot be decided without the value is Unliftable: such a resource is made the plain way, value by value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NoReturn, Self

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor

from generator.resources.descriptors import message_class
from generator.resources.plans import (
    FREE_FORM,
    TEXTUAL,
    WRAPPERS,
    Convert,
    Plan,
    WrongValueError,
    exactly,
    plans_of,
    shown,
    text,
)
from generator.resources.rules import Check

PASSED_MAX = 512
"""Values of one field that are remembered as good: numbers and durations repeat, names and paths do not."""

Scalar = str | int
"""What may stand in a hole: text that is not empty, or an integer."""


class UnliftableError(Exception):
    """A resource's form depends on a value that was to be left open."""


@dataclass(frozen=True, slots=True, eq=False)
class Hole:
    """An open place, numbered in the order of the document (or not yet). Whoever looks into it, as at a value, fails."""

    number: int = -1

    def __eq__(self, other: object) -> NoReturn:
        raise UnliftableError("compared")

    def __hash__(self) -> NoReturn:
        raise UnliftableError("hashed")

    def __str__(self) -> NoReturn:
        raise UnliftableError("written")

    def __len__(self) -> NoReturn:
        raise UnliftableError("measured")

    def __bool__(self) -> bool:
        return True  # an integer or text in a hole is set, as far as presence goes


MARK = "\ue000"
"""Around a hole's number while JSON is written; of Unicode's private use, and in no template."""


class KeyHole(str):
    """An open key of an object, which is told from other keys by its number."""

    __slots__ = ("number",)
    number: int

    def __new__(cls, number: int) -> Self:
        """Make the key of this number."""
        made = super().__new__(cls, f"{MARK}{number}{MARK}")
        made.number = number
        return made


OPEN: Final = Hole()
"""A hole without a number: parts of documents that are alike are one object, wherever they stand."""


@cache
def open_key(place: int) -> KeyHole:
    """A key hole without a number, the one of this place among the key holes of its object."""
    return KeyHole(-1 - place)


def numbered(tree: Any, first: int = 0) -> tuple[Any, int]:
    """A copy with its holes numbered in the order of the document, from `first` on; and the number after the last."""
    if type(tree) is Hole:
        return Hole(first), first + 1
    if type(tree) is dict:
        copy = {}
        for key, item in tree.items():
            if type(key) is KeyHole:
                key, first = KeyHole(first), first + 1  # the same key with its number
            copy[key], first = numbered(item, first)
        return copy, first
    if type(tree) is list:
        items = []
        for item in tree:
            made, first = numbered(item, first)
            items.append(made)
        return items, first
    return tree, first


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """What one field takes: a converter and the field's rules, as a decoder would apply them."""

    convert: Convert
    checks: tuple[Check, ...]
    passed: set[Scalar] = field(default_factory=set)
    """Values that were good, a bounded number of them; whoever asks often looks here first."""

    def takes(self, value: Scalar) -> bool:
        """Whether the field accepts the value; its type is exactly str or int."""
        if value in self.passed or (self is TEXT and type(value) is str and value.isascii()):
            return True
        try:
            converted = self.convert(value)
        except WrongValueError:
            return False
        if any(check(converted) is not None for check in self.checks):
            return False
        if len(self.passed) < PASSED_MAX:
            self.passed.add(value)
        return True


TEXT: Final = Leaf(text, ())
"""Inside `google.protobuf.Struct` any text that UTF-8 can write is good; numbers are not put there."""
_key_leaves: dict[Plan, Leaf] = {}
_value_leaves: dict[Plan, Leaf] = {}
_item_leaves: dict[Plan, Leaf] = {}


def value_leaf(plan: Plan) -> Leaf:
    """The leaf of a field that holds one value. Raises UnliftableError."""
    if plan.is_map or plan.is_repeated:
        raise UnliftableError(f"{plan.name} is no single value")
    if plan not in _value_leaves:
        _value_leaves[plan] = _leaf(plan, plan.value_checks)
    return _value_leaves[plan]


def item_leaf(plan: Plan) -> Leaf:
    """The leaf of one item of a repeated field, or of one value of a map. Raises UnliftableError."""
    if plan not in _item_leaves:
        _item_leaves[plan] = _leaf(plan, plan.item_checks)
    return _item_leaves[plan]


def key_leaf(plan: Plan) -> Leaf:
    """The leaf of a key of a map."""
    if plan not in _key_leaves:
        _key_leaves[plan] = Leaf(plan.convert_key or text, plan.key_checks)
    return _key_leaves[plan]


def _leaf(plan: Plan, checks: tuple[Check, ...]) -> Leaf:
    if plan.message is None:
        return TEXT if plan.is_text and not checks else Leaf(plan.convert, checks)
    name = plan.message.full_name
    if name in WRAPPERS:
        return Leaf(plans_of(plan.message)["value"].convert, checks)
    if name in TEXTUAL:
        descriptor = plan.message
        return Leaf(lambda value: textual(descriptor, value), checks)
    if name in FREE_FORM:
        return TEXT
    raise UnliftableError(f"{plan.name} is an object")


def textual(descriptor: Descriptor, value: Any) -> Any:
    """Parse a duration or a timestamp. Raises WrongValueError."""
    message = message_class(descriptor)()
    try:
        json_format.ParseDict(exactly(value, str, 'text like "0.25s"'), message)
    except json_format.ParseError as error:
        raise WrongValueError(f'must be text like "0.25s", not {shown(value)}') from error
    return message


def emptied(value: Any, found: list[Leaf]) -> Any:
    """Copy free-form JSON with a text in place of each hole; `found` grows by a leaf for each."""
    if type(value) is Hole:
        found.append(TEXT)
        return "-"
    if isinstance(value, dict):
        return {_key(key, found): emptied(item, found) for key, item in value.items()}
    return [emptied(item, found) for item in value] if isinstance(value, list) else value


def _key(key: str, found: list[Leaf]) -> str:
    if type(key) is KeyHole:
        found.append(TEXT)
    return str(key)
