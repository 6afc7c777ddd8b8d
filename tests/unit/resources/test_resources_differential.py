"""Our decoding against protobuf's own parser, on values made from Envoy's descriptors: valid ones, and broken in one place."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generator.resources import ResourceError, decode
from generator.resources.descriptors import TYPE_PREFIX, find_descriptor, message_class, pool
from generator.resources.errors import Problem
from support.protojson import field_values, is_deprecated, is_retired, message, places, reachable, values

EXAMPLES = int(os.environ.get("NIPMESH_DIFFERENTIAL_EXAMPLES", "300"))
"""Values of each of the two kinds; the environment variable makes a longer run."""
STRICTER = re.compile(
    r"is deprecated"
    r"|.* is deprecated"
    r"|\w+ has no field '.*'"  # camelCase, which the other parser takes, too
    r"|must be an integer, not .*"  # text and fractions without a remainder
    r"|must be a number, not .*"
    r"|must lie between .* and .*"
    r"|must be (true or false|text|base64 text|finite)\b.*"
    r"|\w+ has no value .*"  # numbers of enums
    r"|needs an object with @type"
    r"|needs `value`, and nothing else, .*"
    r"|Envoy's API has no '.*'"  # without the prefix, and versions before v3
    r"|is nested too deeply"
    r"|must be an object \(\w+\), not (\[\]|'')"  # which the other parser takes for an empty object
    r"|must be \w+ of finite numbers and plain text, .*"
    # rules of Envoy's protobufs, which the other parser does not know
    r"|must be (set|greater than|at least|at most|less than|one of|none of|a valid|True|False)\b.*"
    r"|(needs at least|may have at most) .*"
    r"|must (match|not repeat) .*"
    r"|(prefix|suffix|contains) must be .*"
    r"|one of .* must be set \(\w+\)",
    re.DOTALL,
)
"""Where we are stricter than protobuf's parser, by what we say (see `generator.resources.decode`)."""


NESTING_MAX = 20
"""Levels up to which all paths of a value are listed: their number doubles with each."""


class RefusedError(Exception):
    """The other parser does not take a value."""


def theirs(descriptor: Descriptor, value: Any) -> Message:
    """What protobuf's own parser makes of it; it lets exceptions of all kinds through when a value is odd."""
    made = message_class(descriptor)()
    try:
        json_format.ParseDict(value, made, descriptor_pool=pool())
    except Exception as error:  # whatever it is, it is a refusal
        raise RefusedError from error
    return made


def normal(made: Message) -> bytes:
    """Bytes that are equal when messages are; what is inside an Any is written anew, for its maps have no order."""
    copied = type(made)()
    copied.CopyFrom(made)
    for field, value in copied.ListFields():
        if field.message_type is not None:
            for inner in inner_messages(field, value):
                normalise(inner)
    if copied.DESCRIPTOR.full_name == "google.protobuf.Any":
        normalise(copied)
    return copied.SerializeToString(deterministic=True)


def normalise(made: Any) -> None:
    if made.DESCRIPTOR.full_name == "google.protobuf.Any":
        descriptor = find_descriptor(made.type_url.removeprefix(TYPE_PREFIX))
        assert descriptor is not None
        made.value = normal(message_class(descriptor).FromString(made.value))
        return
    for field, value in made.ListFields():
        if field.message_type is not None:
            for inner in inner_messages(field, value):
                normalise(inner)


def inner_messages(field: Any, value: Any) -> Iterator[Any]:
    """The messages that a field holds: one, a list of them, or the values of a map."""
    if field.message_type.GetOptions().map_entry:
        yield from (item for item in value.values() if isinstance(item, Message))
    elif field.is_repeated:
        yield from value
    else:
        yield value


def paths(value: Any, path: str) -> Iterator[str]:
    """Every path of a JSON value, as problems name them."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, f"{path}.{key}" if path != "x" else f"x: {key}")
            yield from paths(item, f"{path}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, f"{path}[{index}]")


def names_a_place(problem: Problem, known: set[str]) -> bool:
    """Whether the path is in the value, or is that of a field which is missing from a message that is."""
    holder = problem.path.rpartition(".")[0] or problem.path.rpartition(": ")[0]
    return problem.path in known or holder in known


def problems_of(descriptor: Descriptor, value: Any) -> tuple[Message | None, list[Problem]]:
    """What we make of a value, and what we have against it."""
    try:
        return decode(descriptor.full_name, value, "x"), []
    except ResourceError as error:
        return None, list(error.problems)


def is_taken_by_them(descriptor: Descriptor, value: Any) -> bool:
    try:
        theirs(descriptor, value)
    except RefusedError:
        return False
    return True


def compare(descriptor: Descriptor, value: Any) -> None:
    """The claim of this file."""
    ours, problems = problems_of(descriptor, value)
    if ours is not None:
        assert normal(ours) == normal(theirs(descriptor, value))
        return
    assert problems
    if nesting(value) < NESTING_MAX:
        known = set(paths(value, "x"))
        assert [problem for problem in problems if not names_a_place(problem, known)] == []
    if is_taken_by_them(descriptor, value):
        assert [problem for problem in problems if not STRICTER.fullmatch(problem.text)] == []


def nesting(value: Any) -> int:
    """Levels of a value, counted up to the limit."""
    levels, layer = 0, [value]
    while layer and levels < NESTING_MAX:
        levels += 1
        held = [item for item in layer if isinstance(item, (dict, list))]
        layer = [inner for item in held for inner in (item.values() if isinstance(item, dict) else item)]
    return levels


OWN = {name: found for name, found in reachable().items() if not name.startswith("google.protobuf.")}
TYPES = st.sampled_from([name for name, found in OWN.items() if not is_retired(found)])


@st.composite
def valid(draw: st.DrawFn) -> tuple[Descriptor, Any]:
    descriptor = message(draw(TYPES))
    return descriptor, draw(values(descriptor))


def deep(levels: int, key: str | None) -> Any:
    """Nested lists, or nested objects."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if key is None else {key: value}
    return value


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1.0, 1.5, -0.0, 1e400, -1e400, float("nan"), 1e39, 10**400, 10**5000, -(10**5000),
    2**31, 2**32, 2**63, 2**64, "", "5", "1.0", "NaN", "Infinity", "true", "x", "\ud800", "a\0b", "é" * 300, "é===", "-_-_",
    "1s", "1.1234567891s", "-1s", "1e3s", "99999999999999s", "s", "1h", [], {}, [[]], [None], {"": None}, {"value": 1},
    {"@type": None}, {"@type": "\ud800"}, {"@type": TYPE_PREFIX + "google.protobuf.Duration"}, {"a": 1, "b": "\ud800"},
    {"@type": TYPE_PREFIX + "google.protobuf.Duration", "value": "1s", "more": 1},
    {"@type": TYPE_PREFIX + "google.protobuf.Struct"}, {"@type": TYPE_PREFIX + "google.protobuf.Any", "value": {}},
    {"@type": TYPE_PREFIX + "google.protobuf.FieldMask", "value": "a,b"}, {"@type": "envoy.config.cluster.v3.Cluster"},
    {"@type": TYPE_PREFIX + "envoy.api.v2.Cluster"}, {"\ud800": 1}, {"[a.b]": 1}, deep(70, None), deep(120, "a"),
    deep(500, None), deep(3000, None), deep(3000, "a"), deep(120, "not_rule"), [1, 2, 1], b"bytes", {"1": 1}, {"x": {}},
]  # fmt: skip


@st.composite
def broken(draw: st.DrawFn) -> tuple[Descriptor, Any]:
    """A valid value, and one thing about it changed."""
    descriptor, value = draw(valid())
    value = copy.deepcopy(value)
    holder, inner = draw(st.sampled_from(list(places(descriptor, value)) or [(value, descriptor)]))
    field = draw(st.sampled_from(list(inner.fields))) if inner.fields else None
    change = draw(st.sampled_from(["odd", "unknown", "camel", "drop", "second", "deprecated", "item", "deep"]))
    if change == "unknown" or field is None:
        holder[draw(st.sampled_from(["", "no_such_field", "\ud800", "@type", "[a.b]", "name.x"]))] = draw(
            st.sampled_from(ODD)
        )
    elif change == "camel" and field.name in holder:
        holder[field.json_name] = holder.pop(field.name)
    elif change == "drop" and holder:
        del holder[draw(st.sampled_from(sorted(holder)))]
    elif change == "second" and inner.oneofs:
        oneof = draw(st.sampled_from(list(inner.oneofs)))
        for member in draw(st.lists(st.sampled_from(list(oneof.fields)), min_size=2, max_size=2)):
            holder[member.name] = draw(values_of_field(member))
    elif change == "deprecated" and any(map(is_deprecated, inner.fields)):
        old = draw(st.sampled_from([field for field in inner.fields if is_deprecated(field)]))
        holder[old.name] = draw(values_of_field(old))
    elif change == "item" and any(isinstance(item, (list, dict)) and item for item in holder.values()):
        name = draw(
            st.sampled_from(sorted(name for name, item in holder.items() if isinstance(item, (list, dict)) and item))
        )
        held = holder[name]
        held[draw(st.sampled_from(sorted(held) if isinstance(held, dict) else range(len(held))))] = draw(
            st.sampled_from(ODD)
        )
    else:
        holder[field.name] = draw(st.sampled_from(ODD))
    return descriptor, value


def values_of_field(field: Any) -> st.SearchStrategy[Any]:
    return field_values(field, 4)


SETTINGS = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    print_blob=True,
)


@pytest.mark.timeout(1_200)
@SETTINGS
@given(valid())
def test_what_is_valid_is_taken_and_read_as_protobufs_own_parser_reads_it(made: tuple[Descriptor, Any]) -> None:
    descriptor, value = made
    assert normal(decode(descriptor.full_name, value, "x")) == normal(theirs(descriptor, value))


@pytest.mark.timeout(1_200)
@SETTINGS
@given(broken())
def test_what_protobufs_own_parser_refuses_is_refused_and_what_we_take_it_reads_the_same(
    made: tuple[Descriptor, Any],
) -> None:
    descriptor, value = made
    compare(descriptor, value)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(type(odd).__name__))
def test_every_odd_value_in_every_kind_of_field(odd: Any) -> None:
    kinds = {
        (item.type, field.is_repeated, item.message_type.full_name if item.message_type is not None else ""): (
            name,
            field,
        )
        for name, descriptor in reachable().items()
        if not name.startswith("google.protobuf.")
        for field in descriptor.fields
        for item in [field]
    }
    assert len(kinds) > 300
    for name, field in kinds.values():
        compare(message(name), {field.name: odd})
        if field.is_repeated:
            compare(message(name), {field.name: [odd]})
            compare(message(name), {field.name: {"1": odd}})
