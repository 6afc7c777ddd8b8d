"""The typed manifest: each mistake is a finding at its place with a fix, and no bytes make a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from generator.manifest import Finding, Loaded, load_bytes, load_manifest
from generator.manifest.policies import DEADLINE_MS_MAX
from generator.manifest.types import REPLICAS_MAX, Generate

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = (ROOT / "mesh.yaml").read_text(encoding="utf-8")

SMALL = """\
mesh: shop
protos: [protos]
services:
  orders:
    run: python -m orders
    serves: [shop.v1.OrderService]
"""


def load(text: str) -> Loaded:
    return load_bytes(text.encode("utf-8", "surrogatepass"))


def only(text: str) -> Finding:
    findings = load(text).reporter.sorted()
    assert len(findings) == 1, "\n".join(map(str, findings))
    return findings[0]


def with_service(line: str) -> str:
    return f"{SMALL}    {line}\n"


def test_the_mesh_of_this_repository_loads() -> None:
    loaded = load_manifest(ROOT / "mesh.yaml")
    assert loaded.reporter.sorted() == ()
    manifest = loaded.manifest
    assert manifest is not None
    assert manifest.mesh is not None
    assert manifest.mesh.value == "nip"
    assert [entry.key.value for entry in manifest.services] == ["nip", "invoice", "payment"]


def test_every_value_knows_its_place() -> None:
    manifest = load(with_service("replicas: 3")).manifest
    assert manifest is not None
    replicas = manifest.services[0].value.replicas
    assert replicas is not None
    assert (replicas.value, replicas.position.line, replicas.position.column) == (3, 7, 15)


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    loaded = load_manifest(tmp_path / "none.yaml")
    assert loaded.manifest is None
    assert loaded.reporter.findings[0].code == "NM001"


@pytest.mark.parametrize("name", ["folder", "\0", "a" * 5000])
def test_a_path_that_is_no_file_is_a_finding(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert load_manifest(tmp_path / name).reporter.findings[0].code == "NM001"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}", "null"])
def test_an_empty_manifest_misses_its_required_keys(text: str) -> None:
    findings = load(text).reporter.sorted()
    assert [finding.message for finding in findings] == [
        "missing key `mesh`",
        "missing key `protos`",
        "missing key `services`",
    ]
    assert "mesh: shop" in findings[0].fix


@pytest.mark.parametrize("text", ["[]", "word", "12", "- a\n- b\n"])
def test_a_manifest_that_is_no_mapping_is_one_finding(text: str) -> None:
    assert only(text).code == "NM103"


@pytest.mark.parametrize(
    ("line", "code", "column", "fix"),
    [
        ("replica: 2", "NM101", 5, "did you mean `replicas`?"),
        ("Calls: {}", "NM101", 5, "did you mean `calls`?"),
        ("<<: {}", "NM101", 5, "write the keys out"),
        ("replicas: two", "NM103", 15, "write a whole number"),
        ("replicas: '2'", "NM103", 15, "write a whole number"),
        ("replicas: 2.0", "NM103", 15, "write a whole number"),
        ("replicas: 0", "NM106", 15, "write 1"),
        ("replicas: -1", "NM106", 15, "write 1"),
        (f"replicas: {REPLICAS_MAX + 1}", "NM106", 15, f"write {REPLICAS_MAX}"),
        (f"replicas: {'9' * 5000}", "NM106", 15, "write a number from 1"),
        ("replicas: 010", "NM106", 15, "write a number from 1"),
        ("replicas: 0x10", "NM106", 15, "write a number from 1"),
        ("replicas: [2]", "NM103", 15, "write a whole number"),
        ("traffic: {deadline: 5}", "NM105", 25, "say the unit: 5s or 5ms"),
        ("traffic: {deadline: 5 sec}", "NM105", 25, "write 5s"),
        ("traffic: {deadline: 5 minutes}", "NM105", 25, "write 5m"),
        ("traffic: {deadline: 250 millis}", "NM105", 25, "write 250ms"),
        ("traffic: {deadline: 1.5s}", "NM105", 25, "write 1500ms"),
        ("traffic: {deadline: -2s}", "NM105", 25, "write 250ms, 2s"),
        ("traffic: {deadline: soon}", "NM105", 25, "write 250ms, 2s"),
        ("traffic: {deadline: 0s}", "NM106", 25, "write 10ms"),
        ("traffic: {deadline: 999999999h}", "NM106", 25, "write 1h"),
        ("traffic: {deadline: 99999999999999999999h}", "NM105", 25, "write 250ms, 2s"),
        ("traffic: {deadline: on}", "NM104", 25, '"on"'),
        ("traffic: {deadline: }", "NM103", 25, "write a duration"),
        ("traffic: {deadlines: 2s}", "NM101", 15, "did you mean `deadline`?"),
        ("traffic: {methods: {A/B: {idle: 5m}}}", "NM101", 31, "did you mean `idle_timeout`?"),
        ("traffic: {methods: {A.B: {deadline: 5m}}}", "NM107", 25, "OrderService/GetOrder"),
        ("traffic: 2s", "NM103", 14, "write traffic settings"),
        ("calls: {pay: A/B}", "NM103", 18, "[A/B]"),
        ("calls: {pay: []}", "NM108", 18, "at least one"),
        ("calls: {pay: [A]}", "NM107", 19, "OrderService/GetOrder"),
        ("calls: {n: [A/B]}", "NM104", 13, '"n"'),
        ("calls: [pay]", "NM103", 12, "write a mapping"),
        ("listen: localhost:9000", "NM107", 13, "127.0.0.1:8080"),
        ("listen: 9000", "NM103", 13, "quotes"),
        ("env: {A: true}", "NM103", 14, '"true"'),
        ("env: {A: no}", "NM104", 14, '"no"'),
        ("env: {A: 1.5}", "NM103", 14, '"1.5"'),
        ("env: {A: }", "NM103", 14, "write a string"),
        ("env: {A-B: x}", "NM107", 11, "environment variable"),
        ("env: [A=B]", "NM103", 10, "mapping"),
        ("secrets: {A: {generate: 8}}", "NM106", 29, "write 16"),
        ("secrets: {A: {generated: 32}}", "NM101", 19, "did you mean `generate`?"),
        ("secrets: {A: [x]}", "NM103", 18, "path"),
        ("image: Not An Image", "NM107", 12, "write `not-an-image`"),
        ("cwd: 12", "NM103", 10, '"12"'),
    ],
)
def test_mistakes_in_a_service_point_at_their_value(line: str, code: str, column: int, fix: str) -> None:
    findings = load(with_service(line)).reporter.sorted()
    finding = next(item for item in findings if item.code == code)
    assert (finding.line, finding.column) == (7, column)
    assert fix in finding.fix
    assert finding.source_line == f"    {line}"


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("''", "NM109"),
        ("'   '", "NM109"),
        ("'python \"-m'", "NM109"),
        ("[]", "NM109"),
        ("['']", "NM109"),
        ("[python, -m, 12]", "NM103"),
        ("[python, [x]]", "NM103"),
        ("true", "NM103"),
        ("off", "NM104"),
        ("{}", "NM103"),
        ('"a\\0b"', "NM107"),
        ("x" * 5000, "NM109"),
    ],
)
def test_commands_that_are_none(run: str, code: str) -> None:
    finding = only(SMALL.replace("python -m orders", run))
    assert (finding.code, finding.line) == (code, 5)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("python -m orders", ("python", "-m", "orders")),
        ("python 'a b' \"c\"", ("python", "a b", "c")),
        ("[python, '-m', a b]", ("python", "-m", "a b")),
    ],
)
def test_commands_are_words(run: str, words: tuple[str, ...]) -> None:
    manifest = load(SMALL.replace("python -m orders", run)).manifest
    assert manifest is not None
    command = manifest.services[0].value.run
    assert command is not None
    assert command.value == words


def test_environment_values_keep_their_text() -> None:
    manifest = load(with_service("env: {A: 12, B: '', C: 'true', D: 22:30, E: -1}")).manifest
    assert manifest is not None
    values = {entry.key.value: entry.value.value for entry in manifest.services[0].value.env}
    assert values == {"A": "12", "B": "", "C": "true", "D": "22:30", "E": "-1"}


def test_secrets_are_paths_or_generated() -> None:
    manifest = load(with_service("secrets: {A: keys/a, B: {generate: 32}}")).manifest
    assert manifest is not None
    first, second = manifest.services[0].value.secrets
    assert not isinstance(first.value, Generate)
    assert first.value.value == "keys/a"
    assert isinstance(second.value, Generate)
    assert second.value.generate.value == 32


def test_all_findings_come_at_once_in_the_order_of_the_file() -> None:
    text = "mesh: My Mesh\nprotos: protos\nservices:\n  a:\n    run: x\n    serve: [A]\n    replicas: many\nfoo: 1\n"
    findings = load(text).reporter.sorted()
    assert [(finding.code, finding.line) for finding in findings] == [
        ("NM107", 1),
        ("NM103", 2),
        ("NM102", 5),
        ("NM101", 6),
        ("NM103", 7),
        ("NM101", 8),
    ]
    assert findings[0].fix == "write `my-mesh`"


def test_broken_values_are_named_so_that_later_stages_keep_quiet() -> None:
    loaded = load(with_service("replicas: many"))
    assert loaded.manifest is not None
    assert loaded.manifest.services[0].value.broken == {"replicas"}


def test_durations_are_milliseconds() -> None:
    for text, value in (("250ms", 250), ("2s", 2_000), ("5m", 300_000), ("1h", DEADLINE_MS_MAX)):
        manifest = load(with_service(f"traffic: {{deadline: {text}}}")).manifest
        assert manifest is not None
        traffic = manifest.services[0].value.traffic
        assert traffic is not None
        assert traffic.deadline is not None
        assert traffic.deadline.value == value


HOSTILE = [
    "x\ny",
    "a b",
    "../../etc/passwd\0",
    "{{ 7*7 }}",
    "{% for x in y %}",
    "$(reboot)",
    "; rm -rf /",
    "\x1b[31mred",
    "a\u202eb",
    "é",
    "𝔫",
    "A",
    "-a",
    "a-",
    "x" * 70_000,
    "",
    "%s%n",
    "\ufffe",
    "\u2028",
    "null",
    "*",
    "/",
]
"""Not names; most are not values of any key either."""

HEAD = "mesh: m\nprotos: [p]\nservices: "
SERVICES = HEAD + "{a: {run: x, serves: [A]}}\n"
PLACES = {
    "mesh: HERE\nprotos: [p]\nservices: {a: {run: x, serves: [A]}}\n": {"null"},
    HEAD + "{HERE: {run: x, serves: [A]}}\n": {"null"},
    "trust_domain: HERE\n" + SERVICES: {"null"},
    HEAD + "{a: {run: x, serves: [HERE]}}\n": {"null", "A"},
    HEAD + "{a: {run: x, serves: [A], calls: {HERE: [A/B]}}}\n": {"null"},
    HEAD + "{a: {run: x, serves: [A], calls: {b: [HERE]}}}\n": set(),
    HEAD + "{a: {run: x, serves: [A], env: {HERE: x}}}\n": {"null", "A"},
    HEAD + "{a: {run: x, serves: [A], secrets: {HERE: x}}}\n": {"null", "A"},
    HEAD + "{a: {run: x, serves: [A], listen: HERE}}\n": set(),
    HEAD + "{a: {run: x, serves: [A], replicas: HERE}}\n": set(),
    HEAD + "{a: {run: x, serves: [A], traffic: {deadline: HERE}}}\n": set(),
    HEAD + "{a: {run: x, serves: [A], traffic: {methods: {HERE: {}}}}}\n": set(),
    SERVICES + "gateway: {listen: HERE, expose: {a: [A/B]}}\n": set(),
    SERVICES + "gateway: {public_url: HERE, expose: {a: [A/B]}}\n": set(),
    SERVICES + "gateway: {reflection: HERE, expose: {a: [A/B]}}\n": set(),
    SERVICES + "gateway: {expose: {HERE: [A/B]}}\n": {"null"},
    SERVICES + "gateway: {authentication: {issuer: HERE}, expose: {a: [A/B]}}\n": {"null"},
    SERVICES + "telemetry: {otlp: HERE}\n": set(),
    SERVICES + "certificates: {lifetime: HERE}\n": set(),
    SERVICES + "HERE: x\n": set(),
}
"""Where a hostile string may stand, and which of them are good values there after all (in quotes)."""


def yaml_quoted(text: str) -> str:
    """A double-quoted YAML scalar of any text."""
    return '"' + "".join(f"\\U{ord(character):08x}" for character in text) + '"'


@pytest.mark.parametrize(
    ("place", "hostile"),
    [(place, hostile) for place, good in PLACES.items() for hostile in HOSTILE if hostile not in good],
    ids=lambda text: ascii(text)[-30:],
)
def test_hostile_strings_are_findings_with_a_place(place: str, hostile: str) -> None:
    findings = load(place.replace("HERE", yaml_quoted(hostile))).reporter.sorted()
    assert findings
    for finding in findings:
        assert finding.line >= 1
        assert finding.column >= 1
        assert str(finding).replace("\n", "").isprintable()
        assert len(str(finding)) < 2_000


def keep_going(text: str | bytes) -> None:
    """Whatever the file holds: findings with places, printable, and no exception."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    loaded = load_bytes(raw)
    lines = raw.decode("utf-8", "replace").splitlines() or [""]
    for finding in loaded.reporter.sorted():
        assert 1 <= finding.line <= len(lines) + 2
        assert finding.column >= 1
        assert finding.cause
        assert finding.fix
        assert str(finding).replace("\n", "").isprintable()


@given(st.binary(max_size=300))
@example(b"\xff\xfe")
@example(b"a: \xc2")
@example(b"\xef\xbb\xbf")
@example(b"%YAML 9.9\n---\na: 1\n")
@example(b"a: &a\n  <<: *a\n")
def test_no_bytes_make_a_traceback(raw: bytes) -> None:
    keep_going(raw)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """This repository's manifest with some places cut out, doubled or replaced."""
    text = MANIFEST
    for _ in range(draw(st.integers(min_value=1, max_value=4))):
        start = draw(st.integers(min_value=0, max_value=len(text)))
        end = min(len(text), start + draw(st.integers(min_value=0, max_value=25)))
        middle = draw(
            st.one_of(
                st.text(max_size=8),
                st.sampled_from(["on", "n", ": ", "[", "]", "{", "}", "- ", "\n", "  ", "&a ", "*a", "!!x ", "~", "'"]),
                st.just(text[start:end] * 2),
            )
        )
        text = text[:start] + middle + text[end:]
    return text


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(mutated())
def test_mutated_manifests_make_findings_not_tracebacks(text: str) -> None:
    keep_going(text)
