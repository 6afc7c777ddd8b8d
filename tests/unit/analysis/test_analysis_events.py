"""Events in the manifest: where they are kept, who hears what of whom, and what is said about mistakes in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generator.analysis import Analysis, check_manifest
from generator.manifest import Finding, Severity
from generator.model import Hearing
from generator.model.events import covers, filters, inbox, subject_filter

Checker = Callable[..., Analysis]
One = Callable[..., Finding]

STOCK = "    serves: [stock.v1.StockService]\n"
HEARS = STOCK + "    consumes: {orders: [shop.v1.placed, shop.v1.refunds.*]}\n"
NATS = "mesh: shop\nevents: nats\n"


def codes(analysis: Analysis) -> list[tuple[str, int]]:
    """What was found about events, with lines."""
    return [(one.code, one.line) for one in analysis.findings if one.code not in {"NM310", "NM406"}]


def test_who_hears_whom_becomes_part_of_the_mesh(check: Checker) -> None:
    analysis = check(("mesh: shop\n", NATS), (STOCK, HEARS))
    assert analysis.mesh is not None, analysis.findings
    assert analysis.mesh.events is not None
    assert analysis.mesh.events.cluster is None
    assert (analysis.mesh.events.retention_ms, analysis.mesh.events.bytes_max) == (604_800_000, 4_294_967_296)
    heard = Hearing(publisher="orders", types=("shop.v1.placed", "shop.v1.refunds.*"))
    assert analysis.mesh.service("stock").consumes == (heard,)
    assert analysis.mesh.service("orders").consumes == ()
    told = {(one.subject, one.setting): (one.value, one.reason) for one in analysis.decisions}
    assert told["stock <- orders", "consumes"] == ("shop.v1.placed, shop.v1.refunds.*", "line 13 of the manifest")
    assert told["events", "retention_ms"][0] == "168h"


def test_a_version_hears_with_its_service(check: Checker) -> None:
    blue = "  stock-blue: {run: python -m blue, version_of: stock}\n"
    analysis = check(("mesh: shop\n", NATS), (STOCK, HEARS), ("gateway:\n", blue + "gateway:\n"))
    assert analysis.mesh is not None, analysis.findings
    assert analysis.mesh.service("stock-blue").consumes == analysis.mesh.service("stock").consumes


def test_a_service_that_only_hears_is_no_dead_one(check: Checker) -> None:
    calls = ("    calls:\n      stock: [StockService/Reserve]\n", "")
    assert "NM310" in {one.code for one in check(calls).findings}
    heard = check(calls, ("mesh: shop\n", NATS), (STOCK, HEARS))
    assert "NM310" not in {one.code for one in heard.findings}


@pytest.mark.parametrize(
    ("events", "hears", "code", "line", "severity"),
    [
        (NATS, "{order: [shop.v1.placed]}", "NM901", 13, Severity.ERROR),
        ("mesh: shop\n", "{orders: [shop.v1.placed]}", "NM902", 12, Severity.ERROR),
        (NATS, "{stock: [stock.v1.counted]}", "NM903", 13, Severity.WARNING),
        (NATS, "{orders: [shop.v1.placed, shop.v1.placed]}", "NM904", 13, Severity.WARNING),
        (NATS, "{orders: [shop.v1.*, shop.v1.placed]}", "NM904", 13, Severity.WARNING),
        (NATS, "{orders: [shop.v1.placed, '*']}", "NM904", 13, Severity.WARNING),
        (NATS, "{orders: [shop..v1]}", "NM107", 13, Severity.ERROR),
        (NATS, "{orders: ['shop.*.placed']}", "NM107", 13, Severity.ERROR),
        (NATS, "{orders: ['shop.>']}", "NM107", 13, Severity.ERROR),
        (NATS, "{orders: []}", "NM108", 13, Severity.ERROR),
        ("mesh: shop\nevents: kafka\n", "{orders: [shop.v1.placed]}", "NM107", 2, Severity.ERROR),
        ("mesh: shop\nevents: {server: nats, ca: x.pem}\n", "{orders: [a]}", "NM508", 2, Severity.WARNING),
        ("mesh: shop\nevents: {retention: 1h}\n", "{orders: [a]}", "NM102", 2, Severity.ERROR),
        ("mesh: shop\nevents: {server: nats, retention: 1s}\n", "{orders: [a]}", "NM106", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'nats://me:secret@a:4222'}\n", "{orders: [a]}", "NM107", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'tls://a:4222,b'}\n", "{orders: [a]}", "NM107", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'tls://a:99999'}\n", "{orders: [a]}", "NM107", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'tls://a:4222', server: nats}\n", "{orders: [a]}", "NM509", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'tls://a:4222', admin: no.nk}\n", "{orders: [a]}", "NM601", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'nats://a:4222'}\n", "{orders: [a]}", "NM905", 2, Severity.WARNING),
        ("mesh: shop\nevents: {url: 'smtp://127.0.0.1:25'}\n", "{orders: [a]}", "NM107", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'kafka://127.0.0.1'}\n", "{orders: [a]}", "NM107", 2, Severity.ERROR),
        ("mesh: shop\nevents: {url: 'amqp://a:5672/shop'}\n", "{orders: [a]}", "NM905", 2, Severity.WARNING),
        (
            "mesh: shop\nevents: {url: 'kafka+tls://a:9093?mechanism=PLAIN'}\n",
            "{orders: [a]}",
            "NM905",
            2,
            Severity.WARNING,
        ),
        (
            "mesh: shop\nevents: {url: 'amqps://a:5671', retention: 24h}\n",
            "{orders: [a]}",
            "NM508",
            2,
            Severity.WARNING,
        ),
    ],
)
def test_each_mistake_has_its_finding_and_line(
    check: Checker, events: str, hears: str, code: str, line: int, severity: Severity
) -> None:
    analysis = check(("mesh: shop\n", events), (STOCK, f"{STOCK}    consumes: {hears}\n"))
    found = [one for one in analysis.findings if one.code == code]
    assert [(one.line, one.severity) for one in found][:1] == [(line, severity)], analysis.findings
    assert (analysis.mesh is None) == (severity is Severity.ERROR)


def test_the_name_of_the_server_is_reserved_where_there_is_one(check: Checker) -> None:
    extra = ("gateway:\n", "  events: {run: python -m e, serves: [other.v1.OrderService]}\ngateway:\n")
    assert "NM308" not in {code for code, _ in codes(check(extra))}
    assert ("NM308", 13) in codes(check(("mesh: shop\n", NATS), extra))


def test_a_version_does_not_consume_by_itself(check: Checker) -> None:
    blue = "  stock-blue: {run: python -m blue, version_of: stock, consumes: {orders: [a]}}\n"
    analysis = check(("mesh: shop\n", NATS), ("gateway:\n", blue + "gateway:\n"))
    assert ("NM317", 13) in codes(analysis)


def test_a_cluster_has_a_credential_for_each_service(tmp_path: Path, check: Checker) -> None:
    for name in ("orders.nk", "stock.nk", "all.nk"):
        (tmp_path / name).write_text("SU")
        (tmp_path / name).chmod(0o600)
    url = "url: 'tls://a.example.org:4222,b.example.org:4222'"
    one = check(("mesh: shop\n", f"mesh: shop\nevents: {{{url}, credentials: all.nk}}\n"), (STOCK, HEARS))
    assert ("NM905", 2) in codes(one)
    own = "credentials: {orders: orders.nk, stock: stock.nk}"
    several = check(("mesh: shop\n", f"mesh: shop\nevents: {{{url}, {own}}}\n"), (STOCK, HEARS))
    assert codes(several) == []
    assert several.mesh is not None
    assert several.mesh.events is not None
    cluster = several.mesh.events.cluster
    assert cluster is not None
    assert cluster.credentials_of("stock") == tmp_path / "stock.nk"
    assert cluster.credentials_of("other") is None
    (tmp_path / "stock.nk").chmod(0o644)
    loose = check(
        ("mesh: shop\n", f"mesh: shop\nevents: {{{url}, credentials: {{orders: orders.nk, stok: stock.nk}}}}\n")
    )
    assert {code for code, _ in codes(loose)} == {"NM602", "NM901"}


@pytest.mark.parametrize(
    ("wide", "narrow", "is_so"),
    [
        ("m.a.x", "m.a.x", True),
        ("m.a.*", "m.a.x", True),
        ("m.a.x", "m.a.*", False),
        ("m.a.*", "m.a.x.y", False),
        ("m.a.>", "m.a.x.y", True),
        ("m.a.>", "m.a.*", True),
        ("m.a.*", "m.a.>", False),
        ("m.a.>", "m.a", False),
        ("m.a.x.*", "m.a.*.y", False),
    ],
)
def test_a_filter_covers_what_nats_says(wide: str, narrow: str, is_so: bool) -> None:
    assert covers(wide, narrow) is is_so


def test_names_follow_from_the_mesh_and_the_service() -> None:
    assert subject_filter("m", "a", "*") == "m.a.>"
    assert subject_filter("m", "a", "x.v1.*") == "m.a.x.v1.*"
    assert inbox("m", "a-b") == "m_a-b"
    hears = (Hearing(publisher="a", types=("*", "x.v1.y")), Hearing(publisher="b", types=("x.v1.*", "x.v1.y", "z")))
    assert filters("m", hears) == ("m.a.>", "m.b.x.v1.*", "m.b.z")


def test_this_repositorys_mesh_has_events() -> None:
    analysis = check_manifest(Path(__file__).resolve().parents[3] / "mesh.yaml")
    assert analysis.mesh is not None
    assert analysis.mesh.events is not None
