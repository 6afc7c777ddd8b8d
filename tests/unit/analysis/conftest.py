"""A small foreign mesh on disk: two teams' protobufs and a manifest that a test may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generator.analysis import Analysis, Overrides, check_manifest
from generator.manifest import Finding

SHOP = """\
syntax = "proto3";
package shop.v1;
message M { string id = 1; }
service OrderService {
  rpc GetOrder(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc PutOrder(M) returns (M) { option idempotency_level = IDEMPOTENT; }
  rpc BuyOrder(M) returns (M);
  rpc WatchOrders(M) returns (stream M) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Upload(stream M) returns (M);
  rpc Chat(stream M) returns (stream M);
}
service AdminService { rpc Purge(M) returns (M); }
"""
STOCK = """\
syntax = "proto2";
package stock.v1;
message M { optional string id = 1; }
service StockService {
  rpc Reserve(M) returns (M) { option idempotency_level = IDEMPOTENT; }
  rpc Count(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
}
"""
OTHER = """\
syntax = "proto3";
package other.v1;
message M { string id = 1; }
service OrderService { rpc Another(M) returns (M); }
"""
MANIFEST = """\
mesh: shop
protos: [protos]
services:
  orders:
    run: python -m orders
    serves: [shop.v1.OrderService, shop.v1.AdminService]
    calls:
      stock: [StockService/Reserve]
  stock:
    run: python -m stock
    serves: [stock.v1.StockService]
gateway:
  authentication:
    issuer: orders
    public: [OrderService/GetOrder]
    roles: {admin: [AdminService/*]}
  expose:
    orders: [shop.v1.OrderService/*, AdminService/*]
"""

Checker = Callable[..., Analysis]


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    """Write the manifest with replacements (old, new) and analyse it."""

    def run(*replacements: tuple[str, str], text: str = MANIFEST, overrides: Overrides | None = None) -> Analysis:
        for name, proto in (("shop", SHOP), ("stock", STOCK), ("other", OTHER)):
            path = tmp_path / "protos" / name / f"{name}.proto"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(proto, encoding="utf-8")
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "mesh.yaml").write_text(text, encoding="utf-8")
        return check_manifest(tmp_path / "mesh.yaml", overrides=overrides or Overrides())

    return run


@pytest.fixture
def one(check: Checker) -> Callable[..., Finding]:
    """The only finding of a manifest with one replacement."""

    def run(old: str, new: str, **options: Overrides) -> Finding:
        findings = check((old, new), **options).findings
        assert len(findings) == 1, "\n".join(map(str, findings))
        return findings[0]

    return run
