"""Checks of the edge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generator.analysis import Analysis, Overrides
from generator.manifest import Finding, Severity
from support.outside import Notary

Checker = Callable[..., Analysis]
One = Callable[..., Finding]

OPEN = ("gateway:\n", "gateway:\n  listen: 0.0.0.0:8080\n")
EC = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "1"}


def codes(analysis: Analysis) -> list[str]:
    return [finding.code for finding in analysis.findings]


def test_a_gateway_on_the_network_wants_encryption_and_a_url(check: Checker) -> None:
    analysis = check(OPEN)
    assert sorted(codes(analysis)) == ["NM407", "NM408"]
    assert analysis.mesh is not None
    assert all(finding.severity is Severity.WARNING for finding in analysis.findings)


def test_reflection_on_the_network_is_a_warning(check: Checker) -> None:
    assert "NM405" in codes(check(("gateway:\n", "gateway:\n  listen: 10.0.0.1:8080\n  reflection: true\n")))
    assert codes(check(("gateway:\n", "gateway:\n  reflection: true\n"))) == []


def test_what_the_command_line_opens_is_checked_too(check: Checker) -> None:
    analysis = check(overrides=Overrides(gateway_listen="0.0.0.0:8080"))
    assert sorted(codes(analysis)) == ["NM407", "NM408"]


def test_no_authentication_is_a_warning_wherever_the_gateway_listens(check: Checker) -> None:
    text = "mesh: m\nprotos: [protos]\nservices: {stock: {run: x, serves: [StockService]}}\n"
    text += "gateway: {listen: LISTEN, expose: {stock: [StockService/*]}}\n"
    for listen in ("127.0.0.1:80", "10.0.0.1:80"):
        warning = next(item for item in check(("LISTEN", listen), text=text).findings if item.code == "NM406")
        assert warning.severity is Severity.WARNING


EXPOSE = "    orders: [shop.v1.OrderService/*, AdminService/*]\n"
CALL = "      stock: [StockService/Reserve]\n"


def test_an_exposed_service_of_which_other_services_call_every_method_is_a_warning(check: Checker) -> None:
    exposed = (EXPOSE, EXPOSE + "    stock: [StockService/Reserve]\n")
    analysis = check(exposed, (CALL, "      stock: [StockService/*]\n"))
    (finding,) = analysis.findings
    assert analysis.mesh is not None
    assert (finding.code, finding.severity, finding.line) == ("NM410", Severity.WARNING, 19)
    assert finding.message == "stock.v1.StockService is exposed"
    assert "`orders`" in finding.fix


def test_a_method_that_only_users_call_makes_an_exposed_service_theirs(check: Checker) -> None:
    assert codes(check((EXPOSE, EXPOSE + "    stock: [StockService/*]\n"))) == []


def test_what_a_service_calls_of_itself_does_not_make_it_internal(check: Checker) -> None:
    own = (CALL, CALL + "      orders: [AdminService/*]\n")
    assert codes(check(own)) == ["NM311"]


def test_tls_files_must_exist_and_the_key_be_private(check: Checker, tmp_path: Path) -> None:
    replacement = ("gateway:\n", "gateway:\n  tls: {certificate: a.crt, private_key: a.key}\n")
    assert codes(check(replacement)) == ["NM601", "NM601"]
    pair = Notary(tmp_path).issue("a", "example.org")
    assert codes(check(replacement)) == []
    pair.private_key.chmod(0o644)
    assert codes(check(replacement)) == ["NM602"]


def test_tls_files_must_hold_a_certificate_and_its_key(check: Checker, tmp_path: Path) -> None:
    replacement = ("gateway:\n", "gateway:\n  tls: {certificate: a.crt, private_key: b.key}\n")
    notary = Notary(tmp_path)
    notary.issue("a", "example.org")
    notary.issue("b", "example.org")
    (finding,) = check(replacement).findings
    assert (finding.code, finding.line, finding.column) == ("NM606", 13, 42)
    assert "not the key of the certificate" in finding.message
    for name in ("a.crt", "b.key"):
        (tmp_path / name).write_text("garbage", encoding="utf-8")
    found = check(replacement).findings
    assert [(finding.code, finding.column) for finding in found] == [("NM606", 22), ("NM606", 42)]
    assert [finding.message.rpartition(" is not ")[2] for finding in found] == [
        "a certificate",
        "a private key without a password",
    ]


def test_tls_and_a_plain_public_url_contradict(check: Checker, tmp_path: Path) -> None:
    Notary(tmp_path).issue("a", "example.org")
    lines = "gateway:\n  tls: {certificate: a.crt, private_key: a.key}\n  public_url: http://x.org\n"
    assert codes(check(("gateway:\n", lines))) == ["NM408"]


def test_a_stream_for_everybody_is_a_warning(one: One) -> None:
    finding = one("public: [OrderService/GetOrder]", "public: [OrderService/WatchOrders]")
    assert (finding.code, finding.severity) == ("NM409", Severity.WARNING)


def test_a_method_has_one_role(check: Checker) -> None:
    analysis = check(
        ("roles: {admin: [AdminService/*]}", "roles: {admin: [AdminService/*], root: [AdminService/Purge]}")
    )
    assert codes(analysis) == ["NM404"]


def test_an_own_issuer_has_no_key_set(one: One) -> None:
    assert one("issuer: orders", "issuer: orders\n    jwks: x.json").code == "NM402"


def test_a_foreign_issuer_needs_a_key_set(one: One) -> None:
    assert one("issuer: orders", "issuer: https://login.example.org").code == "NM402"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no list `keys`"),
        (b"{}", "no list `keys`"),
        (b'{"keys": []}', "no list `keys`"),
        (b'{"keys": [1]}', "no list `keys`"),
        (json.dumps({"keys": [{**EC, "d": "AA"}]}).encode(), "private"),
        (json.dumps({"keys": [{"kty": "oct", "k": "AA"}]}).encode(), "private or shared"),
        (json.dumps({"keys": [{"kty": "RSA", "n": "AA", "e": "AQAB"}]}).encode(), "no EC key"),
    ],
)
def test_key_sets_that_are_none(check: Checker, tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "keys.json").write_bytes(content)
    (finding,) = check(("issuer: orders", "issuer: https://login.example.org\n    jwks: keys.json")).findings
    assert finding.code == "NM402"
    assert cause in finding.cause
    assert finding.line == 15


def test_a_foreign_issuer_with_a_key_set(check: Checker, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [EC]}), encoding="utf-8")
    analysis = check(
        ("issuer: orders", "issuer: https://login.example.org\n    jwks: keys.json\n    audience: shop-api")
    )
    assert analysis.findings == ()
    authentication = mesh_of(analysis).gateway.authentication
    assert authentication.issuer == "https://login.example.org"
    assert authentication.issuer_service is None
    assert authentication.jwks_file == tmp_path / "keys.json"
    assert authentication.audience == "shop-api"


def mesh_of(analysis: Analysis) -> Any:
    assert analysis.mesh is not None
    return analysis.mesh
