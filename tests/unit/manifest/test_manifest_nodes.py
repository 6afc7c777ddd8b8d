"""YAML text to nodes: every trap is a finding with a place, every bomb is defused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.manifest.finding import Reporter
from generator.manifest.nodes import (
    DEPTH_MAX,
    FILE_BYTES_MAX,
    MappingNode,
    Node,
    ScalarKind,
    ScalarNode,
    SequenceNode,
    decode,
    read_nodes,
)


def read(text: str) -> tuple[Node | None, Reporter]:
    reporter = Reporter(path="mesh.yaml", lines=tuple(text.splitlines()))
    return read_nodes(text, reporter), reporter


def refused(text: str) -> tuple[str, int, int]:
    node, reporter = read(text)
    assert node is None
    (finding,) = reporter.findings
    return finding.code, finding.line, finding.column


def value(text: str) -> ScalarNode:
    node, reporter = read(f"key: {text}\n")
    assert not reporter.findings
    assert isinstance(node, MappingNode)
    scalar = node.entries[0][1]
    assert isinstance(scalar, ScalarNode)
    return scalar


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("word", ScalarKind.STRING),
        ("'on'", ScalarKind.STRING),
        ('"12"', ScalarKind.STRING),
        ("on", ScalarKind.AMBIGUOUS),
        ("n", ScalarKind.AMBIGUOUS),
        ("Y", ScalarKind.AMBIGUOUS),
        ("OFF", ScalarKind.AMBIGUOUS),
        ("Yes", ScalarKind.AMBIGUOUS),
        ("true", ScalarKind.BOOLEAN),
        ("False", ScalarKind.BOOLEAN),
        ("12", ScalarKind.INTEGER),
        ("-1", ScalarKind.INTEGER),
        ("0x1F", ScalarKind.INTEGER),
        ("0o17", ScalarKind.INTEGER),
        ("1.5", ScalarKind.FLOAT),
        ("1e3", ScalarKind.FLOAT),
        (".inf", ScalarKind.FLOAT),
        ("", ScalarKind.NULL),
        ("~", ScalarKind.NULL),
        ("null", ScalarKind.NULL),
        ("22:30", ScalarKind.STRING),
        ("2026-01-01", ScalarKind.STRING),
        ("!!str 12", ScalarKind.STRING),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text: str, kind: ScalarKind) -> None:
    assert value(text).kind is kind


def test_positions_count_characters_from_one() -> None:
    node, _ = read("# ä\nné: [a, žluť, {b: c}]\n")
    assert isinstance(node, MappingNode)
    key, items = node.entries[0]
    assert isinstance(items, SequenceNode)
    assert (key.position.line, key.position.column) == (2, 1)
    assert [item.position.column for item in items.items] == [6, 9, 15]


def test_an_empty_file_is_an_empty_mapping() -> None:
    node, reporter = read("# nothing\n")
    assert isinstance(node, MappingNode)
    assert node.entries == ()
    assert not reporter.findings


def test_duplicate_keys_are_found_everywhere_and_the_first_one_stays() -> None:
    node, reporter = read("a: 1\nb: {c: 2, c: 3}\na: 4\n")
    assert [(finding.code, finding.line, finding.column) for finding in reporter.sorted()] == [
        ("NM005", 2, 11),
        ("NM005", 3, 1),
    ]
    assert isinstance(node, MappingNode)
    first = node.entries[0][1]
    assert isinstance(first, ScalarNode)
    assert first.text == "1"


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: [1,\nb: 2\n", "NM003", 1, 4),
        ("a: b: c\n", "NM003", 1, 5),
        ("\tx: 1\n", "NM003", 1, 1),
        ("a: 'open\n", "NM003", 1, 4),
        ("a: 1\n---\nb: 2\n", "NM006", 2, 1),
        ("a: !!python/object/apply:os.system [id]\n", "NM006", 1, 4),
        ("a: !thing x\n", "NM006", 1, 4),
        ("? [a, b]\n: c\n", "NM006", 1, 3),
        ("a: *nowhere\n", "NM006", 1, 4),
        ("a: &x [*x]\n", "NM006", 1, 8),
        ("a: \x1b[31m\n", "NM003", 1, 4),
        ("a: b\x00\n", "NM003", 1, 5),
        ('a: "\\ud800"\n', "NM003", 1, 4),
    ],
)
def test_what_is_not_plain_yaml_is_refused_at_its_place(text: str, code: str, line: int, column: int) -> None:
    found = refused(text)
    assert found[0] == code
    assert found[1] == line
    assert abs(found[2] - column) <= 4


def test_deep_nesting_is_refused() -> None:
    assert refused("[" * (DEPTH_MAX + 1))[0] == "NM004"
    assert refused("[" * 200_000)[0] in ("NM003", "NM004")
    assert refused("".join("  " * depth + "a:\n" for depth in range(500)))[0] == "NM004"


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    assert refused("\n".join(lines))[0] == "NM004"


def test_aliases_stand_for_their_anchor() -> None:
    node, reporter = read("a: &x {b: 1}\nc: *x\n")
    assert not reporter.findings
    assert isinstance(node, MappingNode)
    assert node.entries[0][1] is node.entries[1][1]


def decoded(raw: bytes) -> tuple[str | None, Reporter]:
    reporter = Reporter(path="mesh.yaml", lines=())
    return decode(raw, reporter), reporter


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    assert decoded(b"\xef\xbb\xbfa: 1")[0] == "a: 1"


def test_other_encodings_are_refused_at_their_byte() -> None:
    text, reporter = decoded(b"a: 1\nb: \xff\n")
    assert text is None
    (finding,) = reporter.findings
    assert (finding.code, finding.line, finding.column) == ("NM002", 2, 4)


def test_a_file_that_is_too_large_is_refused() -> None:
    text, reporter = decoded(b"#" * (FILE_BYTES_MAX + 1))
    assert text is None
    assert reporter.findings[0].code == "NM004"


@given(st.text(max_size=200))
def test_any_text_gives_nodes_or_one_finding(text: str) -> None:
    node, reporter = read(text)
    if node is None:
        (finding,) = reporter.findings
        assert finding.line >= 1
        assert finding.column >= 1
        assert str(finding)


@given(st.text(alphabet="[]{}:,-?&*!|>'\"#%@`\n \tabon01~<", max_size=120))
def test_any_yaml_like_text_gives_nodes_or_findings(text: str) -> None:
    node, reporter = read(text)
    assert node is not None or reporter.findings
