"""How systemd reads its files: quotes, specifiers, variables (systemd.syntax(7), systemd.service(5))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:,@=")
"""Characters that need no quotes."""
CREDENTIALS = "%d"
"""The folder of a unit's credentials (systemd.unit(5), SPECIFIERS)."""
Setting = tuple[str, str]


def literal(text: str) -> str:
    """Keep `%` from beginning a specifier."""
    return text.replace("%", "%%")


def word(text: str) -> str:
    """One word of a command line or one assignment, quoted where it has to be; specifiers in it keep their meaning."""
    if text and all(character in SAFE or character == "%" for character in text):
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def argument(text: str) -> str:
    """One word of a command line, in which `$` begins a variable."""
    return word(text.replace("$", "$$"))


def quoted(text: str) -> str:
    """A value in a file of variables, where only these four characters have a meaning between quotes (systemd.exec(5))."""
    for character in ("\\", '"', "$", "`"):
        text = text.replace(character, f"\\{character}")
    return f'"{text}"'


def command(words: Iterable[str]) -> str:
    """A command line; `%` in the words begins specifiers."""
    return " ".join(argument(each) for each in words)


def section(name: str, settings: Iterable[Setting]) -> str:
    """A section, one setting a line."""
    return "\n".join((f"[{name}]", *(f"{key}={value}" for key, value in settings))) + "\n"


def unit(sections: Mapping[str, Iterable[Setting]]) -> str:
    """A whole file."""
    return HEADER + "\n".join(section(name, settings) for name, settings in sections.items())


def assignments(variables: Mapping[str, str]) -> Iterator[Setting]:
    """The environment, sorted."""
    for name in sorted(variables):
        yield "Environment", word(f"{name}={variables[name]}")


HEADER = "# Rendered from the manifest by `nipmesh render --target systemd`; changes belong into a drop-in (systemctl edit).\n"
ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    return f"\\x{ord(character):02x}" if ord(character) < ord(" ") else character
