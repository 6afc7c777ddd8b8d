"""What is known of a part of a resource: its text, its holes, the names in it. Worked out once for equal parts.

A part is an object or a list of the JSON of a resource with holes. Equal parts are mostly one and the same Python object
(`generator.render.blocks`), in whatever resource they stand, so what is known goes by the object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from generator.resources.holes import MARK, Hole, KeyHole, Scalar, UnliftableError, numbered
from generator.resources.memo import Memo
from generator.resources.texts import Form
from generator.resources.uses import has_own_references, own_references

PARTS_MAX = 20_000
CHARACTERS_MAX = 2_000
"""Longer parts are seldom equal to others."""
LARGE_MAX = 100
"""They are remembered as long as one resource is worked on."""
KEYS_MAX = 4_096

Given = int | str
"""A text that stands in the template, or the number of the hole in which it will."""
Uses = tuple[tuple[str, Given], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One part. Holes are counted from its begin, in the order of the document."""

    tree: Any
    """The part itself, whose id is its own while it lives."""
    holes: int
    wire: str
    """JSON in the template's order, with a mark in the place of each hole."""
    canonical: str | None
    """JSON with sorted keys, with the same marks; None where values decide how keys are sorted."""
    order: tuple[int, ...]
    """Which hole each mark of `canonical` is."""
    uses: Uses
    keyed: tuple[tuple[Given, ...], ...]
    """The keys of each object of which one is a hole."""


Members = list[tuple[int, str, Part]]

_parts: Memo[int, Part] = Memo(PARTS_MAX)
_large: Memo[int, Part] = Memo(LARGE_MAX)
OPEN_PART = Part(tree=None, holes=1, wire=MARK, canonical=MARK, order=(0,), uses=(), keyed=())


def part(tree: Any) -> Part:
    """What is known of a part, a scalar or a hole. Raises UnliftableError when a text of the template looks like a hole."""
    if type(tree) is Hole:
        return OPEN_PART
    if not isinstance(tree, dict | list):
        text = written(tree)
        return Part(tree=None, holes=0, wire=text, canonical=text, order=(), uses=(), keyed=())
    known = _parts.get(id(tree)) or _large.get(id(tree))
    if known is None:
        known = _object(tree) if isinstance(tree, dict) else _list(tree)
        (_parts if len(known.wire) <= CHARACTERS_MAX else _large).put(id(tree), known)
    return known


def written(scalar: Any) -> str:
    """A scalar or a key as JSON."""
    text = json.dumps(scalar, ensure_ascii=True, allow_nan=False)
    if "\\ue000" in text:
        raise UnliftableError("a text of the template looks like a hole")
    return text


@lru_cache(KEYS_MAX)
def _key(key: str) -> str:
    return f"{written(key)}:"


def _list(tree: list[Any]) -> Part:
    members, holes = [], 0
    for item in tree:
        members.append((holes, "", part(item)))
        holes += members[-1][2].holes
    return _whole(tree, members, holes, (), is_open=False)


def _object(tree: dict[str, Any]) -> Part:
    members, holes = [], 0
    keys: list[Given] = []
    for key, item in tree.items():
        is_hole = type(key) is KeyHole
        keys.append(holes if is_hole else key)
        holes += is_hole
        members.append((holes, f"{MARK}:" if is_hole else _key(key), part(item)))
        holes += members[-1][2].holes
    own = own_references(numbered(tree)[0]) if has_own_references(tree) else ()
    uses = tuple((kind, name.number if isinstance(name, Hole) else str(name)) for kind, name in own)
    made = _whole(tree, members, holes, uses, is_open=KeyHole in map(type, tree))
    return replace(made, keyed=(tuple(keys), *made.keyed)) if KeyHole in map(type, tree) else made


def _whole(tree: Any, members: Members, holes: int, uses: Uses, *, is_open: bool) -> Part:
    """Put a list's or an object's members together: (number of the first hole, key or nothing, what is known)."""
    begin, end = ("[", "]") if type(tree) is list else ("{", "}")
    is_open = is_open or any(found.canonical is None for _, _, found in members)
    ordered = members if type(tree) is list or is_open else _by_key(tree, members)
    return Part(
        tree=tree,
        holes=holes,
        wire=f"{begin}{','.join([key + found.wire for _, key, found in members])}{end}",
        canonical=None
        if is_open
        else f"{begin}{','.join([f'{key}{found.canonical}' for _, key, found in ordered])}{end}",
        order=() if is_open else tuple(first + hole for first, _, found in ordered for hole in found.order),
        uses=(*uses, *((kind, _shifted(name, first)) for first, _, found in members for kind, name in found.uses)),
        keyed=tuple(tuple(_shifted(key, first) for key in keys) for first, _, found in members for keys in found.keyed),
    )


def _by_key(tree: dict[str, Any], members: Members) -> Members:
    by_key = dict(zip(tree, members, strict=True))
    return [by_key[key] for key in sorted(tree)]


def _shifted(given: Given, by: int) -> Given:
    return given + by if isinstance(given, int) else given


def canonical_form(tree: Any, values: Sequence[Scalar]) -> Form:
    """JSON with sorted keys; the values of its holes decide the order where they are keys."""
    text, order = _canonical(tree, values, 0)
    return Form(tuple(text.split(MARK)), tuple(order))


def _canonical(tree: Any, values: Sequence[Scalar], first: int) -> tuple[str, list[int]]:
    known = part(tree)
    if known.canonical is not None:
        return known.canonical, [first + hole for hole in known.order]
    if type(tree) is list:
        return _joined("[]", _listed(tree, values, first))
    return _joined("{}", [found for _, found in sorted(_keyed(tree, values, first), key=lambda pair: pair[0])])


def _listed(tree: list[Any], values: Sequence[Scalar], first: int) -> Iterator[tuple[str, list[int]]]:
    for item in tree:
        yield _canonical(item, values, first)
        first += part(item).holes


def _keyed(tree: dict[str, Any], values: Sequence[Scalar], first: int) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """Each member by its actual key: its text with the key, and which holes are in it."""
    for key, item in tree.items():
        if type(key) is KeyHole:
            text, order = _canonical(item, values, first + 1)
            yield str(values[first]), (f"{MARK}:{text}", [first, *order])
            first += 1
        else:
            text, order = _canonical(item, values, first)
            yield key, (f"{_key(key)}{text}", order)
        first += part(item).holes


def _joined(brackets: str, members: Iterable[tuple[str, list[int]]]) -> tuple[str, list[int]]:
    found = list(members)
    text = ",".join([text for text, _ in found])
    return f"{brackets[0]}{text}{brackets[1]}", [hole for _, order in found for hole in order]


def given_at(tree: Any, path: Sequence[str]) -> Given:
    """The text at a path, or its hole; nothing where the path ends before."""
    first = 0
    for wanted in path:
        if type(tree) is not dict or wanted not in tree:
            return ""
        for key, item in tree.items():
            if key == wanted:
                tree = item
                break
            first += part(item).holes + (type(key) is KeyHole)
    return first if type(tree) is Hole else str(tree)
