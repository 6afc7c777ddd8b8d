"""Values on their way to PostgreSQL and back: integers, text, bytes, None, and lists of them for `unnest` and `= ANY`.

Types are said, not guessed by the server: an amount is a BIGINT wherever it stands. Only a None has none: it takes that of its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

BOOLEAN, BYTES, BIGINT, SMALLINT, INTEGER, TEXT, NAME, OID, VARCHAR, NUMERIC, DOUBLE, VOID = (
    16, 17, 20, 21, 23, 25, 19, 26, 1043, 1700, 701, 2278,
)  # fmt: skip
"""Numbers of PostgreSQL's types (pg_type.dat)."""
BIGINT_ARRAY, TEXT_ARRAY, BYTES_ARRAY = 1016, 1009, 1001
UNKNOWN: Final = 0
"""The server takes the type of the place."""
BIGINT_MAX: Final = 2**63 - 1
"""What an INTEGER holds, on both engines."""

SHAPES_CACHED_MAX: Final = 1_000
"""Lists of types that are kept, as many as statements."""
_PLAIN: Final = frozenset({str, int, bytes})

Dumped = tuple[int, bytes | None, int]
"""Type, value, format: 0 text, 1 binary."""


def dump(value: object) -> Dumped:
    """A parameter as PostgreSQL takes it. Raises ValueError for text with U+0000, OverflowError and TypeError."""
    if isinstance(value, str):
        return TEXT, _text(value), 1
    if isinstance(value, int):
        return BIGINT, _integer(value), 0
    if value is None:
        return UNKNOWN, None, 0
    if isinstance(value, bytes):
        return BYTES, value, 1
    if isinstance(value, list):
        return _dump_list(value)
    raise TypeError(f"a {type(value).__name__} is no value of a database")


def dump_all(values: Sequence[Any]) -> tuple[tuple[int, ...], list[bytes | None], tuple[int, ...]]:
    """The types, values and formats of parameters. Raises as `dump` does.

    Sets of writes have hundreds, nearly all of the same three types: these are written without a call for each.
    """
    kinds = tuple(map(type, values))
    if not _PLAIN.issuperset(kinds):
        dumped = [dump(value) for value in values]
        return tuple(each[0] for each in dumped), [each[1] for each in dumped], tuple(each[2] for each in dumped)
    data: list[bytes | None] = [
        (value.encode() if "\0" not in value else _text(value))
        if kind is str
        else (b"%d" % value if -BIGINT_MAX - 1 <= value <= BIGINT_MAX else _integer(value))
        if kind is int
        else value
        for kind, value in zip(kinds, values, strict=True)
    ]
    types, formats = _shape(kinds)
    return types, data, formats


@lru_cache(maxsize=SHAPES_CACHED_MAX)
def _shape(kinds: tuple[type, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Types and formats of values of _PLAIN kinds, as `dump` gives them."""
    of_kind = {str: (TEXT, 1), int: (BIGINT, 0), bytes: (BYTES, 1)}
    return tuple(of_kind[kind][0] for kind in kinds), tuple(of_kind[kind][1] for kind in kinds)


def _text(value: str) -> bytes:
    if "\0" in value:
        raise ValueError("PostgreSQL keeps no text with U+0000")
    return value.encode()


def _integer(value: int) -> bytes:
    if not -BIGINT_MAX - 1 <= value <= BIGINT_MAX:
        raise OverflowError("the number does not fit into 64 bits")
    return b"%d" % value


def _dump_list(values: Sequence[Any]) -> Dumped:
    """A list of one type, None among them; an empty one and one of None alone are lists of texts.

    The text of an array is written as a whole where that can be: a set of writes has thousands of values (manual, section 8.15.2).
    """
    kinds = set(map(type, values))
    if kinds <= {str, type(None)}:
        return TEXT_ARRAY, _texts(values) if kinds == {str} else _array(values, _quoted), 0
    if kinds <= {bytes, type(None)}:
        return BYTES_ARRAY, _array(values, lambda value: b'"\\\\x%s"' % value.hex().encode()), 0
    if all(issubclass(kind, (int, type(None))) for kind in kinds):
        return BIGINT_ARRAY, _integers(values) if kinds == {int} else _array(values, _integer), 0
    raise TypeError("the values of a list are of one type")


def _texts(values: Sequence[str]) -> bytes:
    joined = '","'.join(values)
    if "\\" in joined or "\0" in joined or joined.count('"') != 2 * len(values) - 2:
        return _array(values, _quoted)
    return b'{"%s"}' % joined.encode()


def _integers(values: Sequence[int]) -> bytes:
    _integer(min(values))
    _integer(max(values))
    return b"{%s}" % ",".join(map(str, values)).encode()


def _array(values: Sequence[Any], element: Callable[[Any], bytes]) -> bytes:
    return b"{%s}" % b",".join(b"NULL" if value is None else element(value) for value in values)


def _quoted(value: str) -> bytes:
    return b'"%s"' % _text(value).replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _bytes(value: bytes) -> bytes:
    assert value.startswith(b"\\x"), "bytea_output is hex"
    return bytes.fromhex(value[2:].decode())


def _nothing(value: bytes) -> None:
    """What a function gives that returns void."""


LOADERS: Final[dict[int, Callable[[bytes], Any]]] = {
    BIGINT: int,
    INTEGER: int,
    SMALLINT: int,
    OID: int,
    NUMERIC: int,  # sums of BIGINT; one with a fraction is nothing that a store should make
    DOUBLE: float,
    BOOLEAN: lambda value: int(value == b"t"),  # as SQLite has it
    TEXT: bytes.decode,
    VARCHAR: bytes.decode,
    NAME: bytes.decode,
    BYTES: _bytes,
    VOID: _nothing,
}
"""From the text of a value, by the number of its type."""


def loader(type_number: int) -> Callable[[bytes], Any]:
    """How to read a column. Raises TypeError for a type that no store uses."""
    try:
        return LOADERS[type_number]
    except KeyError:
        raise TypeError(f"no store reads columns of the type with number {type_number}") from None
