"""SQL with `?` or `:name`, as the stores write it, into the `$1` of PostgreSQL: once per text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from services.storage.sql import Parameters

STATEMENTS_CACHED_MAX: Final = 1_000
"""Texts whose translation is kept: a service has about a hundred, lists with IN (…) some more."""
_TOKEN: Final = re.compile(
    r"""
    (?P<quoted> '(?:[^']|'')*' | "(?:[^"]|"")*" )   # text and quoted names stay as they are
    | (?P<comment> --[^\n]* | /\*.*?\*/ )
    | (?P<cast> :: )
    | :(?P<name> [a-z_][a-z0-9_]* )
    | (?P<mark> \? )
    """,
    re.VERBOSE | re.DOTALL,
)
_CHANGING: Final = re.compile(
    r"\s*(INSERT|UPDATE|DELETE|MERGE|WITH\b.*\b(INSERT|UPDATE|DELETE)\b)", re.IGNORECASE | re.DOTALL
)
_TRANSACTION: Final = re.compile(
    r"\s*(BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A translated text. `names` of the parameters in the order of their numbers; None: by position, `count` of them.

    `changing`: its answer says how many rows were touched.
    """

    text: bytes
    names: tuple[str, ...] | None
    count: int
    changing: bool

    def arrange(self, parameters: Parameters) -> Sequence[Any]:
        """The values in the order of their numbers."""
        if self.names is not None:
            assert isinstance(parameters, Mapping), "values by name, for :name"
            return [parameters[name] for name in self.names]
        assert not isinstance(parameters, Mapping), "values in order, for ?"
        if len(parameters) != self.count:
            raise ValueError(f"the statement has {self.count} placeholders, given are {len(parameters)} values")
        return parameters


@lru_cache(maxsize=STATEMENTS_CACHED_MAX)
def translate(sql: str) -> Statement:
    """The statement of a text. Who owns the connection begins and ends its transaction: such statements are refused."""
    if _TRANSACTION.match(sql):
        raise ValueError("a transaction is begun and ended by who owns the connection")
    names: dict[str, int] = {}
    marks = 0

    def numbered(match: re.Match[str]) -> str:
        nonlocal marks
        if match["mark"]:
            marks += 1
            return f"${marks}"
        if match["name"]:
            return f"${names.setdefault(match['name'], len(names) + 1)}"
        return match[0]

    text = _TOKEN.sub(numbered, sql)
    assert not (names and marks), "either ? or :name, not both"
    return Statement(
        text=text.encode(),
        names=tuple(names) if names else None,
        count=marks or len(names),
        changing=_CHANGING.match(sql) is not None,
    )
