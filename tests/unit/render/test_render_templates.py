"""No value can change the structure of a resource, and no template can surprise with YAML's older readings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.model import Mesh, RoleRule
from generator.outputs.files import default_placement
from generator.render import render
from generator.render.parse import TemplateError, parse_yaml
from generator.render.templates import duration, environment, scalar, template_directory
from support.meshes import repository_mesh

HOSTILE = [
    'x"}]: evil',
    "a: b",
    "- a",
    "n",
    "on",
    "null",
    "1e5",
    "0x10",
    "2026-01-01",
    "line\nbreak: true",
    "\r\n---\nadmin: {}",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "#comment",
    "&anchor *alias",
    "!!python/object:os.system x",
    "tab\there",
    "nul\x00byte",
    "\x85\u2028\u2029\ufeff",
    "emoji \U0001f600",
    "' or \\\" or \\",
    "%REQ(authorization)%",
    "<<: *x",
    "\ue000",
    "\ue0000\ue000",
    '"\ue0001\ue000"',
    "rds",
    "@type",
    "?",
]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_went_in(text: str) -> None:
    assert parse_yaml(f"- {{key: {scalar(text)}}}\n", "test") == [{"key": text}]


@given(st.one_of(st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_scalar_comes_back_as_it_went_in(value: object) -> None:
    assert parse_yaml(f"key: {scalar(value)}\n", "test") == {"key": value}


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        scalar("\ud800")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_stay_values(text: str) -> None:
    mesh = hostile(repository_mesh(), text)
    before = shape(gateway_body(repository_mesh()))
    body = gateway_body(mesh)
    assert shape(body) == before
    provider = body["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][1]["typed_config"]["providers"]
    assert provider["user"]["issuer"] == text
    assert provider["user"]["audiences"] == [text]


def hostile(mesh: Mesh, text: str) -> Mesh:
    assert mesh.gateway is not None
    assert mesh.gateway.authentication is not None
    authentication = mesh.gateway.authentication
    roles = tuple(RoleRule(role=text, methods=rule.methods) for rule in authentication.roles)
    changed = replace(authentication, issuer=text, audience=text, roles=roles)
    return replace(mesh, gateway=replace(mesh.gateway, authentication=changed))


def gateway_body(mesh: Mesh) -> dict:
    resources = render(mesh, default_placement(mesh, Path("/mesh")))
    return dict(resources.workload("gateway").listeners[0].body)


def shape(value: object) -> object:
    """The structure alone; role names are keys of a map, so keys that begin with `role ` count as one."""
    if isinstance(value, dict):
        return {"role" if key.startswith("role ") else key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


def test_a_forgotten_variable_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ nothing }}").render()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0s"), (1, "0.001s"), (250, "0.25s"), (1000, "1s"), (1500, "1.5s"), (3_600_000, "3600s"), (100, "0.1s")],
)
def test_durations_are_written_as_protobuf_reads_them(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: &x 1\nb: *x", "? [a]\n: b", "a: [", "", "a: {b: 1, b: 2}"])
def test_yaml_that_means_two_things_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse_yaml(text, "test")


def test_words_that_older_yaml_took_for_booleans_are_text() -> None:
    text = "{a: on, b: n, c: 0o7, d: 1_000, e: ~, f: 0123, g: .inf}"
    assert list(parse_yaml(text, "test").values()) == ["on", "n", "0o7", "1_000", "~", "0123", ".inf"]


def test_templates_have_no_logic_beyond_conditions_and_loops() -> None:
    allowed = {"if", "elif", "else", "endif", "for", "endfor", "include", "filter", "endfilter", "with", "endwith"}
    for path in sorted(template_directory().glob("*.j2")):
        words = [
            value
            for (_, before, _), (_, kind, value) in pairwise(
                token for token in environment().lex(path.read_text()) if token[1] != "whitespace"
            )
            if before == "block_begin" and kind == "name"
        ]
        assert set(words) <= allowed, path.name
