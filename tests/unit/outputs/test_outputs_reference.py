"""The reference for people: complete, the committed one, and of the same declarations as the loader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from generator.manifest.codes import CODES
from generator.manifest.collections import keys_of
from generator.manifest.terms import TERMS
from generator.manifest.traffic import EdgeMethodTraffic, ExternalTraffic, MethodTraffic, Traffic
from generator.manifest.types import MANIFEST, CallsEntry, ExternalEntry, GatewayEntry, Manifest, ServiceEntry
from generator.model import defaults
from generator.outputs.reference import reference, samples
from generator.outputs.reference.computed import BY_REPLICAS, REPLICAS, by_graph, by_method, by_replicas, reasons
from generator.outputs.reference.levels import levels, policies
from generator.outputs.reference.tables import key_rows

ROOT = Path(__file__).resolve().parents[3]
TEXT = reference()


def section(title: str) -> str:
    """The part of the document below a third-level heading."""
    found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def test_the_committed_reference_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == TEXT, "run: make generated"


def test_the_readme_links_to_it() -> None:
    assert "(docs/reference.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("title", "record", "path"),
    [
        ("The mesh", Manifest, ""),
        ("Services", ServiceEntry, "services.SERVICE."),
        ("Services", CallsEntry, "services.SERVICE.calls.CALLEE."),
        ("The gateway", GatewayEntry, "gateway."),
        ("External hosts", ExternalEntry, "external.NAME."),
    ],
)
def test_every_key_of_a_record_has_a_row(title: str, record: type, path: str) -> None:
    text = section(title)
    for name, spec in keys_of(record).items():
        assert f"| `{path}{name}` | " in text
        assert spec.doc.replace("|", "\\|") in text
        assert spec.doc.endswith("."), name
        assert spec.example or not spec.required, name


def test_rows_are_of_every_key_once() -> None:
    paths = [path for path, _, _, _ in key_rows("", MANIFEST)]
    assert len(set(paths)) == len(paths)
    assert "services.SERVICE.traffic.methods.METHOD.idle_timeout" in paths
    assert "services.SERVICE.calls.CALLEE.traffic.circuit_breaker.max_requests" in paths
    assert "services.SERVICE.traffic.routing.match[].to" in paths
    assert "services.SERVICE.secrets.SECRET.generate" in paths


def test_every_policy_has_a_section_with_its_keys_levels_example_and_names() -> None:
    for name, spec in policies().items():
        text = section(name)
        assert f"Levels: {', '.join(levels(name))}." in text
        for path, _, default, _ in key_rows(name, spec.kind):
            assert f"| `{path}` | " in text
            assert default in text
        assert text.count("```yaml") == len(spec.samples) > 0
        assert f"- Envoy, {TERMS[name].where}: `{TERMS[name].envoy[0]}`" in text


def test_levels_are_those_of_the_records() -> None:
    assert levels("deadline") == ("mesh", "service", "method", "edge", "method of an edge", "external host")
    assert levels("routing") == ("service", "method")
    assert levels("session_persistence") == ("service",)
    assert levels("circuit_breaker") == ("mesh", "service", "edge", "external host")
    for record in (Traffic, MethodTraffic, EdgeMethodTraffic, ExternalTraffic):
        assert set(keys_of(record)) - {"methods"} <= set(policies())


def test_every_link_inside_leads_somewhere() -> None:
    headings = {line.lstrip("# ").lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert target in headings


def test_tables_have_equal_rows() -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE)
    assert len(blocks) > len(policies())
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


def test_every_finding_is_listed() -> None:
    for code, title in CODES.items():
        assert f"| {code} | {title} |" in TEXT


def test_numbers_are_computed_by_the_functions_that_resolve_uses() -> None:
    rows = {line.split("`")[1]: line.split(" | ") for line in by_replicas().splitlines()[2:]}
    assert set(rows) == set(BY_REPLICAS)
    for replicas, shown in zip(REPLICAS, rows["retries.attempts"][1:], strict=False):
        assert shown == str(defaults.retry_attempts_max(replicas).value)
    assert rows["circuit_breaker.max_streams"][1:6] == ["512", "1024", "1536", "2560", "5120"]
    assert "| unary, `idempotency_level` unset | 10s | - | - | not_delivered |" in by_method()
    assert "| bidirectional | - | 5m | 15m | - |" in by_method()
    assert "| 1000 | 50s |" in by_graph()
    assert f"`retries.attempts` is 3: {defaults.retry_attempts_max(2).reason}" in reasons("retries")


def test_examples_stand_at_the_top_of_a_manifest() -> None:
    for sample in samples():
        first = sample.text.partition(":")[0]
        assert first in keys_of(Manifest)
