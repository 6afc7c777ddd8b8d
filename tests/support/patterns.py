"""Words that a regular expression matches, drawn from a seeded generator: what a schema's `pattern` allows."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from re import _parser as parser  # type: ignore[attr-defined]  # Python's own parse of an expression
from typing import Any

REPEAT_MORE = 4
"""How often more than needed something is repeated at most."""
PRINTABLE = [character for character in string.printable if character.isprintable()]
WORD = string.ascii_letters + string.digits + "_"
CATEGORIES = {
    "CATEGORY_DIGIT": string.digits,
    "CATEGORY_NOT_DIGIT": string.ascii_letters,
    "CATEGORY_SPACE": " ",
    "CATEGORY_NOT_SPACE": "".join(PRINTABLE).replace(" ", ""),
    "CATEGORY_WORD": WORD,
    "CATEGORY_NOT_WORD": " .-/",
}


def word(pattern: str, draw: random.Random) -> str:
    """A word that `pattern` matches as a whole; anchors and look-arounds are taken for nothing."""
    return "".join(sequence(parser.parse(pattern), draw))


def sequence(parsed: Any, draw: random.Random) -> list[str]:
    """The parts of one sequence."""
    return [part for code, argument in parsed for part in PARTS[str(code)](argument, draw)]


def repeated(argument: Any, draw: random.Random) -> list[str]:
    low, high, parsed = argument
    count = draw.randint(low, min(int(high), low + REPEAT_MORE))
    return [part for _ in range(count) for part in sequence(parsed, draw)]


def one_of(argument: Any, draw: random.Random) -> list[str]:
    """One character of a set."""
    if str(argument[0][0]) == "NEGATE":
        never = {character for item in argument[1:] for character in characters(item)}
        return [draw.choice([character for character in PRINTABLE if character not in never])]
    return [draw.choice(characters(draw.choice(argument)))]


def characters(item: Any) -> list[str]:
    """What one item of a set stands for."""
    code, argument = str(item[0]), item[1]
    if code == "LITERAL":
        return [chr(argument)]
    if code == "RANGE":
        return [chr(number) for number in range(argument[0], argument[1] + 1)]
    return list(CATEGORIES[str(argument)])


def nothing(argument: Any, draw: random.Random) -> list[str]:
    return []


PARTS: dict[str, Callable[[Any, random.Random], list[str]]] = {
    "LITERAL": lambda argument, _: [chr(argument)],
    "NOT_LITERAL": lambda argument, draw: [draw.choice([item for item in PRINTABLE if item != chr(argument)])],
    "ANY": lambda _, draw: [draw.choice(PRINTABLE)],
    "IN": one_of,
    "BRANCH": lambda argument, draw: sequence(draw.choice(argument[1]), draw),
    "SUBPATTERN": lambda argument, draw: sequence(argument[-1], draw),
    "ATOMIC_GROUP": sequence,
    "MAX_REPEAT": repeated,
    "MIN_REPEAT": repeated,
    "POSSESSIVE_REPEAT": repeated,
    "AT": nothing,
    "ASSERT": nothing,
    "ASSERT_NOT": nothing,
}
