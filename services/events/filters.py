"""Filters on CloudEvent types: words between dots, `*` for one word, `>` at the end for one or more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

FILTERS_MAX: Final = 64
"""Filters of one consumer: whoever needs more wants a wildcard."""
_FILTER: Final = re.compile(r"([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?|>")
_TYPE: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
TYPE_CHARACTERS_MAX: Final = 200
"""Longest type: it becomes a part of subjects."""


@lru_cache(maxsize=1_024)
def is_type(text: str) -> bool:
    """Whether events of this type can be published: it becomes part of a subject. There are few types, and many events."""
    return len(text) <= TYPE_CHARACTERS_MAX and _TYPE.fullmatch(text) is not None


def matches(pattern: str, kind: str) -> bool:
    """Whether a type is one that the filter asks for."""
    return _covers(pattern.split("."), kind.split("."))


def checked(filters: Iterable[str]) -> tuple[str, ...]:
    """The filters without those that another one includes. Raises ValueError: no bus takes what is wrong here."""
    given = sorted(set(filters))
    if not 0 < len(given) <= FILTERS_MAX:
        raise ValueError(f"a consumer has 1 to {FILTERS_MAX} filters")
    for each in given:
        if not _FILTER.fullmatch(each):
            raise ValueError(f"{each!r} is no filter: words between dots, * for one word, > at the end")
    kept = tuple(one for one in given if not any(_includes(other, one) for other in given if other != one))
    for one in kept:
        for other in kept:
            if one < other and _meet(one.split("."), other.split(".")):
                raise ValueError(f"{one!r} and {other!r} both ask for some types: an event would come twice")
    return kept


def _includes(wide: str, narrow: str) -> bool:
    return _covers(wide.split("."), narrow.split("."))


def _covers(wide: list[str], narrow: list[str]) -> bool:
    """Whether all that `narrow` asks for `wide` asks for, too."""
    for at, word in enumerate(wide):
        if word == ">":
            return len(narrow) > at
        if at >= len(narrow) or narrow[at] == ">" or word not in ("*", narrow[at]):
            return False
    return len(wide) == len(narrow)


def _meet(one: list[str], other: list[str]) -> bool:
    """Whether some type is asked for by both."""
    for first, second in zip(one, other, strict=False):
        if ">" in (first, second):
            return True
        if first != second and "*" not in (first, second):
            return False
    return len(one) == len(other)
