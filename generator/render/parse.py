"""YAML to JSON values, from libyaml's events: no YAML 1.1 surprises (`on`, `n`, `1_0`), no duplicate keys, no aliases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$")
LITERALS = {"true": True, "false": False, "null": None, "": None}


class TemplateError(Exception):
    """A template's output is not the YAML that it should be."""


def parse_yaml(text: str, name: str) -> Any:
    """Parse one document. `name` is the template's, for errors. Raises TemplateError."""
    events = yaml.parse(text, Loader=yaml.CSafeLoader)
    try:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                return _value(next(events), events, name)
    except yaml.YAMLError as error:
        raise TemplateError(f"{name}: {error}") from error
    raise TemplateError(f"{name}: no document")


def _value(event: yaml.Event, events: Iterator[yaml.Event], name: str) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return _plain(event.value) if event.implicit[0] else event.value
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, name)
    if isinstance(event, yaml.SequenceStartEvent):
        return _sequence(events, name)
    raise TemplateError(f"{name}: {type(event).__name__} at {event.start_mark}")


def _mapping(events: Iterator[yaml.Event], name: str) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise TemplateError(f"{name}: a key must be text, at {key.start_mark}")
        if key.value in mapping:
            raise TemplateError(f"{name}: {key.value!r} stands twice, at {key.start_mark}")
        mapping[key.value] = _value(next(events), events, name)
    return mapping


def _sequence(events: Iterator[yaml.Event], name: str) -> list[Any]:
    sequence: list[Any] = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        sequence.append(_value(event, events, name))
    return sequence


def _plain(text: str) -> Any:
    if text in LITERALS:
        return LITERALS[text]
    return json.loads(text) if NUMBER.match(text) else text
