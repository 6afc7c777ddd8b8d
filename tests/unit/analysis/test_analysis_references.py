"""References to services and methods: unknown, ambiguous, misplaced, doubled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from generator.analysis import Analysis
from generator.manifest import Finding, Severity

Checker = Callable[..., Analysis]
One = Callable[..., Finding]


def test_the_small_mesh_is_sound(check: Checker) -> None:
    analysis = check()
    assert analysis.findings == ()
    assert analysis.mesh is not None


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "column", "fix"),
    [
        ("stock: [StockService/Reserve]", "stok: [StockService/Reserve]", "NM301", 8, 7, "did you mean `stock`?"),
        ("stock: [StockService/Reserve]", "gateway: [StockService/Reserve]", "NM301", 8, 7, "one of these"),
        ("[StockService/Reserve]", "[StockService/Reserv]", "NM305", 8, 15, "did you mean `StockService/Reserve`?"),
        ("[StockService/Reserve]", "[StokService/Reserve]", "NM302", 8, 15, "did you mean `StockService`?"),
        ("[StockService/Reserve]", "[AdminService/Purge]", "NM306", 8, 15, "write it under `orders`"),
        ("[StockService/Reserve]", "[other.v1.OrderService/Another]", "NM306", 8, 15, "add other.v1.OrderService"),
        ("stock.v1.StockService]", "stock.v1.StockServise]", "NM302", 11, 14, "did you mean `stock.v1.StockService`?"),
        ("[stock.v1.StockService]", "[StockServise]", "NM302", 11, 14, "did you mean `stock.v1.StockService`?"),
        ("public: [OrderService/GetOrder]", "public: [OrderService/Get]", "NM305", 15, 14, "OrderService/GetOrder"),
        ("admin: [AdminService/*]", "admin: [AdminService/Purg]", "NM305", 16, 21, "AdminService/Purge"),
        ("admin: [AdminService/*]", "admin: [StockService/*]", "NM403", 16, 21, "expose it"),
        ("public: [OrderService/GetOrder]", "public: [StockService/Count]", "NM403", 15, 14, "expose it"),
        ("public: [OrderService/GetOrder]", "public: [AdminService/Purge]", "NM404", 16, 13, "keep one"),
        ("issuer: orders", "issuer: order", "NM401", 14, 13, "did you mean `orders`?"),
        ("    orders: [shop.v1", "    order: [shop.v1", "NM301", 18, 5, "did you mean `orders`?"),
    ],
)
def test_wrong_references_point_at_their_word(
    check: Checker, old: str, new: str, code: str, line: int, column: int, fix: str
) -> None:
    analysis = check((old, new))
    finding = next(item for item in analysis.findings if item.code == code)
    assert finding.severity is Severity.ERROR
    assert (finding.line, finding.column) == (line, column)
    assert fix in finding.fix
    assert analysis.mesh is None


def test_a_short_name_may_be_ambiguous(one: One) -> None:
    finding = one("serves: [shop.v1.OrderService, shop.v1.AdminService]", "serves: [OrderService, AdminService]")
    assert finding.code == "NM303"
    assert finding.cause == "these end with it: other.v1.OrderService, shop.v1.OrderService"


def test_an_unambiguous_short_name_and_a_partial_package_do(check: Checker) -> None:
    analysis = check(("[stock.v1.StockService]", "[StockService]"), ("[StockService/Reserve]", "[v1.StockService/*]"))
    assert analysis.findings == ()
    assert analysis.mesh is not None
    (edge,) = analysis.mesh.service("orders").calls
    assert [policy.method.name for policy in edge.methods] == ["Count", "Reserve"]


def test_two_services_cannot_serve_the_same(check: Checker) -> None:
    analysis = check(("[stock.v1.StockService]", "[stock.v1.StockService, shop.v1.AdminService]"))
    (finding,) = analysis.findings
    assert (finding.code, finding.line) == ("NM304", 11)
    assert "`orders` serves it already, on line 6" in finding.cause


def test_health_and_reflection_need_no_mention(one: One) -> None:
    assert one("[stock.v1.StockService]", "[stock.v1.StockService, grpc.health.v1.Health]").code == "NM314"


def test_a_method_listed_twice_is_a_warning(one: One) -> None:
    finding = one("[StockService/Reserve]", "[StockService/Reserve, StockService/*]")
    assert (finding.code, finding.severity, finding.column) == ("NM309", Severity.WARNING, 37)


def test_gateway_is_no_name_for_a_service(check: Checker) -> None:
    analysis = check(("  stock:\n    run", "  gateway:\n    run"), ("      stock: [", "      gateway: ["))
    assert "NM308" in {finding.code for finding in analysis.findings}
    assert analysis.mesh is None


def test_broken_parts_make_no_second_finding(check: Checker) -> None:
    analysis = check(("serves: [stock.v1.StockService]", "serves: stock.v1.StockService"))
    assert [finding.code for finding in analysis.findings] == ["NM103"]
    analysis = check(("issuer: orders", "issuer: 12"))
    assert [finding.code for finding in analysis.findings] == ["NM103"]


def test_findings_of_all_stages_come_together(check: Checker) -> None:
    analysis = check(
        ("mesh: shop", "mesh: Shop"),
        ("[StockService/Reserve]", "[StockService/Nope]"),
        ("issuer: orders", "issuer: nobody"),
        ("[stock.v1.StockService]\n", "[stock.v1.StockService]\n    env_file: none.env\n"),
    )
    assert [finding.code for finding in analysis.findings] == ["NM107", "NM305", "NM601", "NM401"]


def test_protobufs_that_do_not_compile_leave_the_other_findings(check: Checker) -> None:
    analysis = check(("protos: [protos]", "protos: [prots]"), ("issuer: orders", "issuer: nobody"))
    assert [finding.code for finding in analysis.findings] == ["NM201", "NM401"]
