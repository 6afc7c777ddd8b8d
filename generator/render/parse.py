"""YAML to JSON values, from libyaml's events: no YAML 1.1 surprises (`on`, `n`, `1_0`), no duplicate keys, no aliases."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from generator.render.blocks import BlockReader, UnusualError
from generator.render.templates import HOLE
from generator.resources import OPEN, UnliftableError, open_key

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$")
LITERALS = {"true": True, "false": False, "null": None, "": None}
BEGIN: list[type] = [yaml.StreamStartEvent, yaml.DocumentStartEvent]
END: list[type] = [yaml.DocumentEndEvent, yaml.StreamEndEvent]


class TemplateError(Exception):
    """A template's output is not the YAML that it should be."""


def parse_yaml(text: str, name: str) -> Any:
    """Parse one document. `name` is the template's, for errors. Raises TemplateError."""
    return _document(text, _Reader(name))


def parse_lifted(text: str, name: str) -> Any:
    """Parse a document of `lift`: its JSON with holes. Equal parts of documents are one object; nobody may change them.

    Raises TemplateError, and UnliftableError where a value would be part of a longer text.
    """
    try:
        return _blocks.read(text)
    except (UnusualError, TemplateError):
        return _document(text, _LiftedReader(name))


def _fragment(text: str) -> Any:
    """Read a scalar or a flow collection that stands alone on a line."""
    return _document(text, _FragmentReader("a line"))


def _document(text: str, reader: _Reader) -> Any:
    loader = yaml.CSafeLoader(text)
    reader.next = loader.get_event
    try:
        if [type(loader.get_event()) for _ in BEGIN] != BEGIN:
            raise TemplateError(f"{reader.name}: no document")
        value = reader.value(loader.get_event())
        if [type(loader.get_event()) for _ in END] != END:
            raise TemplateError(f"{reader.name}: more than one document")
    except yaml.YAMLError as error:
        raise TemplateError(f"{reader.name}: {error}") from error
    finally:
        loader.dispose()
    return value


class _Reader:
    """Reads a document event by event."""

    next: Callable[[], Any]

    def __init__(self, name: str) -> None:
        self.name = name

    def value(self, event: Any) -> Any:
        """The value that begins with this event."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            return self.plain(event.value) if event.implicit[0] else self.quoted(event.value)
        if kind is yaml.MappingStartEvent:
            return self._mapping()
        if kind is yaml.SequenceStartEvent:
            return self._sequence()
        raise TemplateError(f"{self.name}: {kind.__name__} at {getattr(event, 'start_mark', 'the end')}")

    def plain(self, text: str) -> Any:
        """A scalar without quotes."""
        if text in LITERALS:
            return LITERALS[text]
        return json.loads(text) if NUMBER.match(text) else text

    def quoted(self, text: str) -> Any:
        """A scalar in quotes."""
        return text

    def key(self, text: str, place: int) -> str:
        """A key, quoted or not, after so many others."""
        return text

    def _mapping(self) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while type(event := self.next()) is not yaml.MappingEndEvent:
            if type(event) is not yaml.ScalarEvent:
                raise TemplateError(f"{self.name}: a key must be text, at {getattr(event, 'start_mark', 'the end')}")
            key = self.key(event.value, len(mapping))
            if key in mapping:
                raise TemplateError(f"{self.name}: {key!r} stands twice, at {event.start_mark}")
            mapping[key] = self.value(self.next())
        return mapping

    def _sequence(self) -> list[Any]:
        sequence: list[Any] = []
        while type(event := self.next()) is not yaml.SequenceEndEvent:
            sequence.append(self.value(event))
        return sequence


class _LiftedReader(_Reader):
    """Reads holes where `lift` left them."""

    def plain(self, text: str) -> Any:
        self._without_hole(text)
        return super().plain(text)

    def quoted(self, text: str) -> Any:
        return OPEN if text == HOLE else self._without_hole(text)

    def key(self, text: str, place: int) -> str:
        return open_key(place) if text == HOLE else self._without_hole(text)

    def _without_hole(self, text: str) -> str:
        if HOLE in text:
            raise UnliftableError(f"{self.name}: a value is part of a longer text")
        return text


class _FragmentReader(_LiftedReader):
    """Reads no more than a line of its own may hold."""

    def value(self, event: Any) -> Any:
        """The value that begins with this event."""
        if not getattr(event, "flow_style", True):
            raise UnusualError(f"{type(event).__name__} in a line")
        return super().value(event)


_blocks = BlockReader(_fragment)
