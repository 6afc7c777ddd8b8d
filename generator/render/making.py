"""The one way from a template to a checked resource, and what is remembered on it.

A template's text with holes instead of values is parsed, decoded and checked once; of resources with the same text only
the values are checked. Where that is not to be had, and where anything is wrong, the values go through the template and
all the checks themselves, which takes longer and tells exactly what is wrong.
"""

from __future__ import annotations

from typing import Any

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
from generator.resources.memo import Memo

RESOURCES_MAX = 50_000
"""Remembered at once: those that many workloads share, and those of the last change."""
SHAPES_MAX = 5_000
"""A few for each service of a large mesh."""


_shapes: Memo[tuple[str, str], Shape | UnliftableError] = Memo(SHAPES_MAX)
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
    """The resource by way of its shape; None when a value is wrong.

    Raises UnliftableError, and ResourceError and TemplateError of what is wrong whatever the values are.
    """
    text, found = lift(template, values)
    key = (kind.value, text)
    shape = _shapes.get(key) or _shapes.put(key, _shape(kind, template, text))
    if isinstance(shape, UnliftableError):
        raise UnliftableError(str(shape))
    made = _filled.get((shape, found)) or fill(shape, found)
    return None if made is None else _filled.put((shape, found), made)


def _shape(kind: ResourceType, template: str, text: str) -> Shape | UnliftableError:
    """The shape of a text with holes, or why it has none."""
    try:
        return shape_of(kind, parse_lifted(text, template))
    except UnliftableError as error:
        return error
