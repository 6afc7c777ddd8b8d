"""How a finding looks, and that nothing in it can disturb a terminal."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from generator.manifest.codes import CODES
from generator.manifest.finding import (
    FINDINGS_MAX,
    Finding,
    Position,
    Reporter,
    Severity,
    closest,
    did_you_mean,
    excerpt,
    printable,
    quoted,
)


def finding(source_line: str, column: int) -> Finding:
    return Finding(
        code="NM101",
        severity=Severity.ERROR,
        path="mesh.yaml",
        line=12,
        column=column,
        message="unknown key `replica`",
        cause="in services.nip there is no key of this name",
        fix="did you mean `replicas`?",
        source_line=source_line,
    )


def test_a_finding_shows_place_line_caret_cause_and_fix() -> None:
    assert str(finding("    replica: 2", 5)) == (
        "mesh.yaml:12:5: error[NM101] unknown key `replica`\n"
        "   12 |     replica: 2\n"
        "      |     ^\n"
        "  cause: in services.nip there is no key of this name\n"
        "  fix:   did you mean `replicas`?"
    )


def test_the_caret_stands_under_the_character_behind_wide_and_hidden_ones() -> None:
    shown, caret = excerpt("日本\u202e: x", 1, 6)
    assert shown.index("x") + 2 == caret.index("^")
    assert "\u202e" not in shown


def test_long_lines_are_cut_around_the_place() -> None:
    shown, caret = excerpt("a" * 5000 + "HERE" + "b" * 5000, 1, 5001)
    assert len(shown) < 200
    assert shown[caret.index("^") :].startswith("HERE")


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert len(quoted(text)) < 1000


def test_the_closest_word_ignores_case_and_gives_up_on_strangers() -> None:
    assert closest("Replica", ["replicas", "run"]) == "replicas"
    assert closest("zzzz", ["replicas", "run"]) is None
    assert closest("x" * 100_000, ["replicas"]) is None
    assert did_you_mean("zzzz", ["b", "a"], what="key") == "use one of these: a, b"
    assert did_you_mean("zzzz", [], what="key") == "there is no key yet"


def test_findings_are_sorted_unique_and_limited() -> None:
    reporter = Reporter(path="mesh.yaml", lines=())
    for line in (3, 1, 3):
        reporter.warn("NM101", Position(line=line, column=1), "m", cause="c", fix="f")
    assert [item.line for item in reporter.sorted()] == [1, 3]
    assert not reporter.has_errors
    for line in range(1, 10 * FINDINGS_MAX):
        reporter.report("NM101", Position(line=line, column=1), "m", cause="c", fix="f")
    assert len(reporter.findings) == FINDINGS_MAX
    assert reporter.has_errors


def test_codes_have_titles() -> None:
    assert all(code.startswith("NM") and len(code) == 5 and title for code, title in CODES.items())


def test_the_table_of_codes_is_the_codes_that_are_used() -> None:
    sources = (Path(__file__).resolve().parents[3] / "generator").rglob("*.py")
    texts = (path.read_text(encoding="utf-8") for path in sources if path.name != "codes.py")
    used = {code for text in texts for code in re.findall(r'"(NM[0-9]{3})"', text)}
    assert used <= set(CODES)
