"""JSON as text: in one canonical form for versions, and with places that are filled in later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii

from generator.resources.holes import Scalar

VERSION_HEX_DIGITS = 16
"""64 bits: two different contents of one resource meet with a chance of 1 in 10^19."""


def version_of(value: object) -> str:
    """Hash a JSON value."""
    return version_of_text(canonical_json(value).decode())


def version_of_text(text: str) -> str:
    """Hash canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_HEX_DIGITS]


def canonical_json(value: object) -> bytes:
    """Write JSON in the one form that has: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def compact(value: object) -> str:
    """JSON without a space, keys in the template's order, which is fixed."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def encoded(values: Sequence[Scalar]) -> list[str]:
    """Each value as JSON."""
    write = encode_basestring_ascii
    return [write(value) if type(value) is str else str(value) for value in values]


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """JSON text in pieces, between which values go in this order; a value may be a hole's number out of turn."""

    pieces: tuple[str, ...]
    order: tuple[int, ...]

    def fill(self, values: Sequence[str]) -> str:
        """Put values, which are JSON themselves, between the pieces."""
        parts = [""] * (2 * len(self.order) + 1)
        parts[::2] = self.pieces
        parts[1::2] = [values[index] for index in self.order]
        return "".join(parts)
