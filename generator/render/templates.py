"""Jinja2 as a safe writer of YAML: every `{{ value }}` becomes one JSON scalar, so no value can change the structure."""

from __future__ import annotations

import json
import re
from contextvars import ContextVar
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.nodes import EvalContext

import generator
from generator.resources import Scalar, UnliftableError

SUFFIX = ".yaml.j2"
MILLISECONDS_PER_SECOND = 1_000
DURATIONS_MAX = 1_024
"""Written durations that are remembered; most are defaults."""
SURROGATE_PAIR = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
HOLE = "\ue000"
"""Stands for a value in what `lift` gives; of Unicode's private use, and in no template."""
HOLE_SCALAR = f'"{HOLE}"'
INCLUDE = re.compile(r'\{% include "([a-z0-9_]+\.yaml\.j2)" %\}')
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


class TemplateMissingError(Exception):
    """The templates are neither in the checkout nor in the installed package."""


_lifted: ContextVar[list[Scalar] | None] = ContextVar("_lifted", default=None)
"""The values that were left out of the text so far, while `lift` runs."""


def render_text(template: str, values: dict[str, Any]) -> str:
    """Fill the template of this name (without `.yaml.j2`)."""
    loaded = _template(template)
    return "".join(loaded.root_render_func(loaded.new_context(values, shared=True)))


@cache
def _template(name: str) -> jinja2.Template:
    return environment().get_template(name + SUFFIX)


def lift(template: str, values: dict[str, Any]) -> tuple[str, tuple[Scalar, ...]]:
    """Fill the template, but leave a hole for each text and integer: the text, and what belongs into its holes, in order.

    The template sees the values themselves: only what it writes is left out. Raises UnliftableError.
    """
    found: list[Scalar] = []
    token = _lifted.set(found)
    try:
        text = render_text(template, values)
    finally:
        _lifted.reset(token)
    if text.count(HOLE) != len(found):
        raise UnliftableError(f"{template}: a filter lost or doubled a value")
    return text, tuple(found)


@jinja2.pass_eval_context  # so that Jinja2 asks for each value when it renders, and not once when it compiles
def written(_: EvalContext, value: Any) -> str:
    """What a template writes for a value."""
    found = _lifted.get()
    if found is None:
        return scalar(value)
    if type(value) is int or (type(value) is str and value and value.isascii()):
        found.append(value)
        return HOLE_SCALAR
    return _hole(value, found)


def _hole(value: Any, found: list[Scalar]) -> str:
    kind = type(value)
    if kind is str and value:
        if not value.isascii() and LONE_SURROGATE.search(value):
            return scalar(value)  # which refuses it
        found.append(value)
        return HOLE_SCALAR
    if kind is int:
        found.append(value)
        return HOLE_SCALAR
    if kind is tuple or kind is list:
        return f"[{', '.join([_hole(item, found) for item in value])}]"
    if kind is str or value is None or kind is bool or kind is float or isinstance(value, jinja2.Undefined):
        return scalar(value)
    raise UnliftableError(f"a {kind.__name__} is no scalar")


@cache
def environment() -> jinja2.Environment:
    """The one Jinja2 environment. Raises TemplateMissingError."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        finalize=written,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,  # a look at the file for each resource would be a tenth of the time
        autoescape=False,  # noqa: S701  # the output is YAML; `finalize` escapes every value
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["duration"] = duration
    made.filters["indent"] = indent
    return made


def source(name: str) -> str:
    """The text of a template, with those that it includes in their places: Jinja2 would look for each time and again."""
    text = (template_directory() / name).read_text(encoding="utf-8")
    return INCLUDE.sub(lambda match: source(match[1]), text)


@cache
def template_directory() -> Path:
    """`envoy/templates` of a checkout, else `generator/templates` of an installed wheel."""
    package = Path(generator.__file__).resolve().parent
    for candidate in (package / "templates", package.parent / "envoy" / "templates"):
        if candidate.is_dir():
            return candidate
    raise TemplateMissingError(f"the templates are missing: {package / 'templates'} is not there")


def scalar(value: Any) -> str:
    """Write a value as JSON that is YAML, too: YAML knows no surrogate pairs, but eight digits. Raises ValueError."""
    if isinstance(value, jinja2.Undefined):
        return str(value)
    if isinstance(value, str) and not value.isascii() and LONE_SURROGATE.search(value):
        raise ValueError("a text with half a surrogate pair is no Unicode")
    text = json.dumps(value, allow_nan=False)
    return SURROGATE_PAIR.sub(_eight_digits, text) if "\\ud" in text else text


def indent(text: str, width: int, first: bool = False) -> str:
    """Jinja2's own filter of this name, which looks at each line by itself and takes ten times as long."""
    margin = " " * width
    end = "\n" if text.endswith("\n") else ""
    return (margin if first else "") + text.removesuffix("\n").replace("\n", f"\n{margin}") + end


@lru_cache(DURATIONS_MAX)
def duration(milliseconds: int) -> str:
    """Write milliseconds as protobuf's JSON does: 250 is `0.25s`."""
    seconds, rest = divmod(milliseconds, MILLISECONDS_PER_SECOND)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    return f"{seconds}{fraction}s"


def _eight_digits(match: re.Match[str]) -> str:
    high, low = int(match[1], 16), int(match[2], 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"
