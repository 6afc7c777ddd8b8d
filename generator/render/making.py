"""The one way from a template to a checked resource, and what is remembered on it.

A template's text with holes instead of values is parsed, decoded and checked once; of resources with the same text only
the values are checked. Where that is not to be had, and where anything is wrong, the values go through the template and
all the checks themselves, which takes longer and tells exactly what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from generator.render.memo import Memo
from generator.render.parse import TemplateError, parse_lifted, parse_yaml
from generator.render.templates import lift, render_text
from generator.resources import (
    Resource,
    ResourceError,
    ResourceType,
    Scalar,
    Shape,
    UnliftableError,
    fill,
    make_resource,
    shape_of,
)

RESOURCES_MAX = 50_000
"""Remembered at once: those that many workloads share, and those of the last change."""
SHAPES_MAX = 5_000
"""A few for each service of a large mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is known of a text with holes: which of its values are keys; None where it must be made the plain way."""

    keys: tuple[int, ...] | None


PLAIN = Text(keys=None)

_texts: Memo[tuple[str, str], Text] = Memo(SHAPES_MAX)
_shapes: Memo[tuple[str, str, tuple[Scalar, ...]], Shape] = Memo(SHAPES_MAX)
_filled: Memo[tuple[Shape, tuple[Scalar, ...]], Resource] = Memo(RESOURCES_MAX)
_plain: Memo[tuple[str, str], Resource] = Memo(SHAPES_MAX)


def resource(kind: ResourceType, template: str, **values: Any) -> Resource:
    """Fill a template and check what comes out. The same content gives the same resource without any work.

    Raises ResourceError, TemplateError, and what Jinja2 raises.
    """
    try:
        made = lifted_resource(kind, template, values)
    except (UnliftableError, ResourceError, TemplateError):
        made = None  # the plain way decides, and finds the words
    return plain_resource(kind, template, values) if made is None else made


def plain_resource(kind: ResourceType, template: str, values: dict[str, Any]) -> Resource:
    """The resource by way of its own text. Raises as `resource` does."""
    text = render_text(template, values)
    key = (kind.value, text)
    return _plain.get(key) or _plain.put(key, make_resource(kind, parse_yaml(text, template)))


def lifted_resource(kind: ResourceType, template: str, values: dict[str, Any]) -> Resource | None:
    """The resource by way of its shape; None when a value is wrong, or the shape is known to depend on the values.

    Raises UnliftableError, and ResourceError and TemplateError of what is wrong whatever the values are.
    """
    text, found = lift(template, values)
    known = _texts.get((kind.value, text))
    if known is PLAIN:
        return None
    if known is None:
        shape, keys = _new_shape(kind, template, text, found)
    else:
        keys = known.keys or ()
        named = tuple(found[index] for index in keys)
        shape = _shapes.get((kind.value, text, named)) or _new_shape(kind, template, text, found)[0]
    if keys:
        found = tuple(value for index, value in enumerate(found) if index not in keys)
    key = (shape, found)
    made = _filled.get(key) or fill(shape, found)
    return None if made is None else _filled.put(key, made)


def _new_shape(
    kind: ResourceType, template: str, text: str, values: tuple[Scalar, ...]
) -> tuple[Shape, tuple[int, ...]]:
    try:
        tree, keys = parse_lifted(text, template, values)
        shape = shape_of(kind, tree, len(values) - len(keys))
    except UnliftableError:
        _texts.put((kind.value, text), PLAIN)
        raise
    _texts.put((kind.value, text), Text(keys=keys))
    _shapes.put((kind.value, text, tuple(values[index] for index in keys)), shape)
    return shape, keys
