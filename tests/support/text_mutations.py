"""Changes of a manifest's text that know nothing of YAML: lines, pieces of syntax, bytes, encodings, bombs."""

from __future__ import annotations

import random
from collections.abc import Callable

TEXT_PIECES = [
    "\t", "'", '"', "{", "}", "[", "]", ":", ": ", "- ", "&a ", "*a", "!!str ", "!x ", "---\n", "...\n", "%YAML 1.1\n", "<<: *a\n",
    "? ", "| ", "> ", "#", "\0", "\x1b[31m", "\u2028", "\ufeff", "\r", "\r\n", "\n\n", "é", "\U0001f600", "\u202e", "{{ x }}", "  ",
]  # fmt: skip


def lines_of(raw: bytes) -> list[bytes]:
    return raw.split(b"\n")


def double_line(raw: bytes, draw: random.Random) -> bytes:
    lines = lines_of(raw)
    index = draw.randrange(len(lines))
    return b"\n".join([*lines[:index], lines[index], *lines[index:]])


def drop_line(raw: bytes, draw: random.Random) -> bytes:
    lines = lines_of(raw)
    index = draw.randrange(len(lines))
    return b"\n".join(lines[:index] + lines[index + 1 :])


def swap_lines(raw: bytes, draw: random.Random) -> bytes:
    lines = lines_of(raw)
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def indent_line(raw: bytes, draw: random.Random) -> bytes:
    lines = lines_of(raw)
    index = draw.randrange(len(lines))
    lines[index] = draw.choice([b" ", b"  ", b"\t", b"    "]) + lines[index]
    return b"\n".join(lines)


def insert_piece(raw: bytes, draw: random.Random) -> bytes:
    index = draw.randint(0, len(raw))
    return raw[:index] + draw.choice(TEXT_PIECES).encode() + raw[index:]


def insert_bytes(raw: bytes, draw: random.Random) -> bytes:
    index = draw.randint(0, len(raw))
    return raw[:index] + draw.randbytes(draw.choice([1, 1, 4, 64])) + raw[index + draw.choice([0, 1, 4]) :]


def truncate(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randint(0, len(raw))]


def recode(raw: bytes, draw: random.Random) -> bytes:
    """Another encoding, a mark in front, or other ends of lines."""
    text = raw.decode("utf-8", "replace")
    return draw.choice(
        [
            b"\xef\xbb\xbf" + raw,
            text.encode("utf-16"),
            text.encode("utf-32"),
            raw.replace(b"\n", b"\r\n"),
            raw.replace(b"\n", b"\r"),
            raw * 2,
            raw + b"\n---\n" + raw,
            b"base: &base {run: a}\n" + raw,
            raw.replace(b"    run:", b"    <<: *base\n    run:"),
            raw.replace(b": ", b": !!str ", 3),
        ]
    )


def bomb(raw: bytes, draw: random.Random) -> bytes:
    """Aliases of aliases, or nothing but brackets."""
    return draw.choice(
        [
            b"".join(
                b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9) if n else b"x") for n in range(12)
            ),
            b"[" * draw.choice([20, 2_000, 200_000]) + raw,
            raw + b"x: &x [*x]\n",
            b"? " * draw.choice([10, 5_000]) + raw,
            raw + b"k: " + b"a" * 5_000_000,
        ]
    )


ON_TEXTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    function.__name__: function
    for function in (
        double_line, drop_line, swap_lines, indent_line, insert_piece, insert_bytes, truncate, recode, bomb,
    )
}  # fmt: skip
