"""What is read block by block is what libyaml reads in one piece; what is not, is left to libyaml."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.outputs.files import default_placement
from generator.render import making, parse
from generator.render.blocks import UnusualError
from generator.render.parse import TemplateError, _document, _LiftedReader, parse_lifted
from generator.render.render import Renderer
from generator.render.templates import HOLE, HOLE_SCALAR
from generator.resources import UnliftableError
from generator.resources.memo import Memo
from support.meshes import DIRECTORY
from support.rich_mesh import rich_mesh

PIECES = [
    *["a: ", "b:", "- ", "-", "  ", "\n", "\n  ", "\n    ", "\n- ", "\n  - ", "x", "7", "-1", "null", "true", "~"],
    *[
        "{}",
        "[]",
        "{a: 1}",
        "[1, x]",
        "{a: ",
        "[",
        '"q"',
        "'q'",
        '"',
        "# c",
        " # c",
        ": ",
        "&x ",
        "*x",
        "!t ",
        "|",
        ">",
    ],
    *[
        "? ",
        "---",
        "...",
        "%",
        "@",
        "`",
        ",",
        "\t",
        "\r",
        "\x85",
        "é",
        "a: b: c",
        HOLE_SCALAR,
        HOLE,
        f"{HOLE_SCALAR}: ",
    ],
]


def plainly(text: str) -> Any:
    """The document as libyaml reads it, or the kind of error."""
    try:
        return shown(_document(text, _LiftedReader("test")))
    except (TemplateError, UnliftableError) as error:
        return type(error)


def by_blocks(text: str) -> Any:
    try:
        return shown(parse._blocks.read(text))
    except (UnusualError, TemplateError, UnliftableError):
        return None


def shown(tree: Any) -> str:
    """Holes are equal to nothing, not even to each other, so trees are compared as they look."""
    return repr(tree)


def agree(text: str) -> bool:
    """Whether blocks were read, and then as libyaml reads them."""
    found = by_blocks(text)
    assert found is None or found == plainly(text), text
    return found is not None


@settings(max_examples=1_500)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_text_is_read_otherwise(text: str) -> None:
    agree(text)


VALUES = st.recursive(
    st.sampled_from([None, True, 7, -1.5, "a", "n", "", "a b", "x: y", "- x", "#", HOLE]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b.c", "@t", "x y"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def block(value: Any, indent: int) -> str:
    """Write JSON as YAML in blocks."""
    margin = " " * indent
    if isinstance(value, dict) and value:
        return "".join(f"{margin}{key_text(key)}:{below(item, indent)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{margin}-{' ' + block(item, indent + 2).lstrip(' ')}" for item in value)
    return f"{margin}{scalar_text(value)}\n"


def below(value: Any, indent: int) -> str:
    return "\n" + block(value, indent + 2) if value and isinstance(value, dict | list) else f" {scalar_text(value)}\n"


def key_text(key: str) -> str:
    return key if key.isidentifier() else f'"{key}"'


def scalar_text(value: Any) -> str:
    simple = {"": '""', "x: y": '"x: y"', "- x": "'- x'", "#": '"#"', HOLE: HOLE_SCALAR}
    if isinstance(value, str):
        return simple.get(value, value)
    return {None: "null", True: "true"}.get(value, str(value)) if not isinstance(value, dict | list) else str(value)


@given(VALUES)
def test_blocks_are_read(value: Any) -> None:
    assert agree(block(value, 0))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every text with holes that a mesh of many policies makes."""
    found: dict[str, None] = {}

    def spy(text: str, name: str) -> Any:
        found[text] = None
        return parse_lifted(text, name)

    mesh = rich_mesh(tmp_path_factory.mktemp("mesh"), replicas=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "parse_lifted", spy)
        patch.setattr(making, "_shapes", Memo(1_000))
        Renderer().render(mesh, default_placement(mesh, DIRECTORY))
    return list(found)


def test_every_text_of_the_templates_is_read_by_blocks(texts: list[str]) -> None:
    assert len(texts) > 20
    assert [text for text in texts if not agree(text)] == []


def test_damaged_texts_are_read_as_libyaml_reads_them_or_not_at_all(texts: list[str]) -> None:
    chance = random.Random(7)
    read = 0
    for _ in range(600):
        lines = chance.choice(texts).splitlines(keepends=True)
        place = chance.randrange(len(lines))
        begin = max(0, place - chance.randrange(12))
        lines = lines[begin : place + chance.randrange(1, 12)]
        victim = chance.randrange(len(lines))
        at = chance.randrange(len(lines[victim]))
        lines[victim] = lines[victim][:at] + chance.choice(["", *PIECES]) + lines[victim][at + chance.randrange(3) :]
        read += agree("".join(lines))
    assert read > 50


def test_equal_blocks_are_one_object() -> None:
    one, two = (parse_lifted(f"a:\n  b: {{c: 1}}\n  d:\n    - x\ne: {number}\n", "test") for number in (1, 2))
    assert one["a"] is two["a"]
    assert (one["e"], two["e"]) == (1, 2)


def test_what_libyaml_refuses_is_refused() -> None:
    for text in ("a: 1\na: 2", "a: b: c", "a: [", "", "a: *x", "- a\nb: c"):
        with pytest.raises(TemplateError):
            parse_lifted(text, "test")
