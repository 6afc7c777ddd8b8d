"""Checks of the graph of services, of addresses, deadlines, files and variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.analysis import Analysis, Overrides, check_manifest
from generator.analysis.services import _circles
from generator.manifest import Finding, Severity

ROOT = Path(__file__).resolve().parents[3]
Checker = Callable[..., Analysis]
One = Callable[..., Finding]

STOCK = "    serves: [stock.v1.StockService]\n"


def test_the_mesh_of_this_repository_has_no_error_and_no_warning() -> None:
    analysis = check_manifest(ROOT / "mesh.yaml")
    assert analysis.mesh is not None
    assert {finding.severity for finding in analysis.findings} <= {Severity.NOTE}


def test_a_service_that_nobody_can_call_is_a_warning(one: One) -> None:
    finding = one("    calls:\n      stock: [StockService/Reserve]\n", "")
    assert (finding.code, finding.severity, finding.line) == ("NM310", Severity.WARNING, 7)


def test_a_service_that_calls_itself_is_a_warning(one: One) -> None:
    finding = one(STOCK, STOCK + "    calls: {stock: [StockService/Count]}\n")
    assert (finding.code, finding.severity) == ("NM311", Severity.WARNING)


def test_a_circle_is_a_note_once(one: One) -> None:
    finding = one(STOCK, STOCK + "    calls: {orders: [shop.v1.OrderService/GetOrder]}\n")
    assert (finding.code, finding.severity, finding.line) == ("NM502", Severity.NOTE, 4)
    assert finding.message == "`orders` and `stock` call each other"


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefghx"), max_size=4)))
def test_circles_are_what_reaches_itself_and_each_other(graph: dict[str, set[str]]) -> None:
    calls = {caller: dict.fromkeys(sorted(callees), ()) for caller, callees in graph.items()}

    def reach(name: str) -> set[str]:
        found: set[str] = set()
        waiting = [name]
        while waiting:
            following = graph.get(waiting.pop(), set()) - found
            found |= following
            waiting += following
        return found

    names = {*graph, *(callee for callees in graph.values() for callee in callees)}
    expected = {frozenset({name} | {other for other in reach(name) if name in reach(other)}) for name in names}
    found = list(_circles(calls))
    assert {circle for circle in found if len(circle) > 1} == {circle for circle in expected if len(circle) > 1}
    assert sum(len(circle) for circle in found) == len({name for circle in found for name in circle})


def test_a_callee_that_may_take_longer_than_all_its_caller_has_is_a_warning(check: Checker) -> None:
    small = "mesh: shop\nprotos: [protos]\nservices:\n"
    small += "  admin: {run: x, serves: [AdminService], calls: {stock: [StockService/*]}, traffic: {deadline: 2s}}\n"
    small += "  stock: {run: x, serves: [StockService], traffic: {deadline: 5s}}\n"
    small += "gateway: {expose: {admin: [AdminService/*]}}\n"
    findings = {finding.code: finding for finding in check(text=small).findings}
    assert set(findings) == {"NM406", "NM501"}
    assert findings["NM501"].message == "`stock` may take 5s, `admin` ends after 2s"
    assert (findings["NM501"].line, findings["NM501"].column) == (4, 51)
    equal = check(("deadline: 2s", "deadline: 5s"), text=small)
    assert {finding.code for finding in equal.findings} == {"NM406"}


@pytest.mark.parametrize(
    ("traffic", "code"),
    [
        ("{methods: {OrderService/WatchOrders: {deadline: 5s}}}", "NM503"),
        ("{methods: {OrderService/GetOrder: {idle_timeout: 5s}}}", "NM503"),
        ("{methods: {OrderService/Nope: {deadline: 5s}}}", "NM305"),
        ("{methods: {StockService/Count: {deadline: 5s}}}", "NM306"),
        ("{outlier_detection: {base_ejection_time: 2m, max_ejection_time: 1m}}", "NM509"),
        ("{outlier_detection: {max_ejection_time: 4s}}", "NM509"),
    ],
)
def test_traffic_of_methods_must_fit(check: Checker, traffic: str, code: str) -> None:
    analysis = check(("    run: python -m orders\n", f"    run: python -m orders\n    traffic: {traffic}\n"))
    assert [finding.code for finding in analysis.findings] == [code]


def test_a_stream_is_not_mirrored(check: Checker) -> None:
    """Nobody would end the copy when the caller leaves."""
    mirror = "traffic: {methods: {OrderService/WatchOrders: {routing: {mirror: {to: next}}}}}"
    orders = f"    run: python -m orders\n    {mirror}\n"
    analysis = check(
        ("    run: python -m orders\n", orders), ("services:\n", "services:\n  next: {run: x, version_of: orders}\n")
    )
    assert [finding.code for finding in analysis.findings] == ["NM503"]
    assert "nobody ends the copy" in analysis.findings[0].cause


def test_a_session_needs_a_header_that_is_free(check: Checker) -> None:
    traffic = "    traffic: {session_persistence: {header: x-nipmesh-role}}\n"
    analysis = check(("    run: python -m orders\n", f"    run: python -m orders\n{traffic}"))
    assert [finding.code for finding in analysis.findings] == ["NM513"]


def test_an_application_with_a_port_is_a_warning_that_says_what_it_costs(one: One) -> None:
    finding = one(STOCK, STOCK + "    listen: 127.0.0.1:9000\n")
    assert (finding.code, finding.severity, finding.line) == ("NM313", Severity.WARNING, 12)
    assert "without mTLS" in finding.cause


@pytest.mark.parametrize(
    ("listen", "code"),
    [
        ("0.0.0.0:9000", "NM313"),
        ("10.0.0.1:9000", "NM313"),
        ("127.0.0.2:9000", "NM313"),
        ("'[::1]:9000'", "NM313"),
        ("127.0.0.1:65536", "NM107"),
        ("127.0.0.1:99999", "NM107"),
        ("999.0.0.1:80", "NM107"),
        ("'[127.0.0.1]:80'", "NM107"),
        ("'[:::::]:80'", "NM107"),
        ("127.0.0.1:8080", "NM312"),
    ],
)
def test_addresses_of_applications(check: Checker, listen: str, code: str) -> None:
    analysis = check((STOCK, f"{STOCK}    listen: {listen}\n"))
    errors = [finding for finding in analysis.findings if finding.severity is Severity.ERROR]
    assert [finding.code for finding in errors] == [code]
    assert errors[0].line == 12


def test_ports_of_two_applications_must_differ(check: Checker) -> None:
    analysis = check(
        (STOCK, STOCK + "    listen: 127.0.0.1:9000\n"),
        ("    run: python -m orders\n", "    run: python -m orders\n    listen: 127.0.0.1:9000\n"),
    )
    errors = [finding for finding in analysis.findings if finding.severity is Severity.ERROR]
    assert [(finding.code, finding.line) for finding in errors] == [("NM312", 13)]
    assert "line 6: `orders` listens on port 9000 too" in errors[0].cause


def test_long_lived_certificates_are_a_warning(one: One) -> None:
    assert one("mesh: shop", "mesh: shop\ncertificates: {lifetime: 48h}").code == "NM504"


def test_files_must_exist(check: Checker, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    lines = "    cwd: nowhere\n    env_file: none.env\n    secrets: {A: none.key, B: folder}\n"
    findings = check((STOCK, STOCK + lines)).findings
    assert [(finding.code, finding.line) for finding in findings] == [("NM601", line) for line in (12, 13, 14, 14)]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"A=1\n# comment\n\nexport B='x y'\n", None),
        (b"A=1\nnonsense\n", "line 2"),
        (b"=1\n", "line 1"),
        (b"A B=1\n", "line 1"),
        (b"A=\xff\n", "not UTF-8"),
        (b"A=1\nB=a\x00b\n", "line 2"),
        (b"NIPMESH_MESH=1\n", "line 1"),
        (b"#" * 2_000_000, "larger"),
    ],
)
def test_environment_files_have_names_and_values(
    check: Checker, tmp_path: Path, content: bytes, fault: str | None
) -> None:
    (tmp_path / "x.env").write_bytes(content)
    findings = check((STOCK, STOCK + "    env_file: x.env\n")).findings
    assert [finding.code for finding in findings] == ([] if fault is None else ["NM605"])
    assert fault is None or fault in findings[0].cause
    assert all("nonsense" not in str(finding) for finding in findings), "a line may hold a secret"


def test_secrets_that_others_may_read_are_a_warning(check: Checker, tmp_path: Path) -> None:
    secret = tmp_path / "a.key"
    secret.write_bytes(b"x")
    secret.chmod(0o644)
    replacement = (STOCK, STOCK + "    secrets: {A: a.key}\n")
    (finding,) = check(replacement).findings
    assert (finding.code, finding.severity, finding.fix) == ("NM602", Severity.WARNING, "chmod 600 a.key")
    secret.chmod(0o600)
    assert check(replacement).findings == ()


@pytest.mark.parametrize(
    "line",
    [
        "env: {NIPMESH_MESH: x}",
        "env: {NIPMESH_EXTERNAL_RATES: x}",
        "env: {PORT: 1}",
        "secrets: {OTEL_SERVICE_NAME: {generate: 16}}",
    ],
)
def test_variables_of_nipmesh_are_reserved(one: One, line: str) -> None:
    assert one(STOCK, f"{STOCK}    {line}\n").code == "NM603"


@pytest.mark.parametrize(
    "line", ["env: {NIPMESH_LIGHTNING_NODE: lnd}", "secrets: {NIPMESH_DATABASE_URL_FILE: {generate: 16}}"]
)
def test_what_a_program_is_told_beside_them_is_not(check: Checker, line: str) -> None:
    """A service's own settings begin alike, and could not be given by the manifest."""
    assert check((STOCK, f"{STOCK}    {line}\n")).findings == ()


def test_a_variable_is_set_once(one: One) -> None:
    finding = one(STOCK, STOCK + "    env: {A: x}\n    secrets: {A: {generate: 16}}\n")
    assert (finding.code, finding.line, finding.cause) == ("NM604", 13, "`env` sets it on line 12")


def test_overrides_change_replicas_and_gateway(check: Checker) -> None:
    overrides = Overrides(replicas={"stock": 5}, gateway_listen="127.0.0.1:9999")
    mesh = check(overrides=overrides).mesh
    assert mesh is not None
    assert mesh.service("stock").replicas == 5
    assert mesh.gateway is not None
    assert (mesh.gateway.listen_port, mesh.gateway.public_url) == (9999, "http://127.0.0.1:9999")


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (Overrides(replicas={"nobody": 2}), "NM315"),
        (Overrides(replicas={"stock": 0}), "NM106"),
        (Overrides(replicas={"stock": 10**9}), "NM106"),
        (Overrides(gateway_listen="nonsense"), "NM107"),
        (Overrides(gateway_listen="127.0.0.1:0"), "NM107"),
        (Overrides(gateway_listen="localhost:80"), "NM107"),
        (Overrides(gateway_listen="127.0.0.1:²"), "NM107"),
        (Overrides(gateway_listen=""), "NM107"),
    ],
)
def test_wrong_overrides_are_findings(check: Checker, overrides: Overrides, code: str) -> None:
    analysis = check(overrides=overrides)
    assert code in {finding.code for finding in analysis.findings}
    assert analysis.mesh is None


def test_an_override_of_a_gateway_that_is_not_there(check: Checker) -> None:
    text = "mesh: m\nprotos: [protos]\nservices: {stock: {run: x, serves: [StockService]}}\n"
    analysis = check(text=text, overrides=Overrides(gateway_listen="127.0.0.1:1"))
    assert "NM315" in {finding.code for finding in analysis.findings}


def test_a_port_that_the_gateway_has_says_where(check: Checker) -> None:
    analysis = check(
        (STOCK, f"{STOCK}    listen: 127.0.0.1:9000\n"), ("gateway:\n", "gateway:\n  listen: 127.0.0.1:9000\n")
    )
    (finding,) = (finding for finding in analysis.findings if finding.severity is Severity.ERROR)
    assert (finding.code, finding.line) == ("NM312", 12)
    assert finding.cause == "line 14: the gateway listens on port 9000 too"
    assert "NIPMESH_LISTEN" in finding.fix


def test_a_secret_that_is_missing_or_empty(check: Checker, tmp_path: Path) -> None:
    (tmp_path / "empty.key").touch(mode=0o600)
    (tmp_path / "good.key").write_text("x")
    (tmp_path / "good.key").chmod(0o600)
    secrets = "    secrets:\n      A: missing.key\n      B: empty.key\n      C: good.key\n"
    missing, empty = check((STOCK, STOCK + secrets)).findings
    assert (missing.code, missing.severity, missing.line) == ("NM601", Severity.ERROR, 13)
    assert (empty.code, empty.severity, empty.line) == ("NM607", Severity.WARNING, 14)
    for finding in (missing, empty):
        assert "`{generate: 32}`" in finding.fix
