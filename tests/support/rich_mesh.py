"""A mesh that uses about every policy, with services that are called like words of Envoy's configuration."""

from __future__ import annotations

from pathlib import Path

from generator.analysis import check_manifest
from generator.model import Mesh

PROTO = """\
syntax = "proto3";
package shop.v1;
message M { string id = 1; string customer = 2; }
service OrderService {
  rpc GetOrder(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc PutOrder(M) returns (M) { option idempotency_level = IDEMPOTENT; }
  rpc BuyOrder(M) returns (M);
  rpc WatchOrders(M) returns (stream M) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Upload(stream M) returns (M);
  rpc Chat(stream M) returns (stream M);
}
service StockService {
  rpc Reserve(M) returns (M) { option idempotency_level = IDEMPOTENT; }
  rpc Count(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service ReportService { rpc Report(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; } }
service RouteService { rpc Route(M) returns (M); }
service RateService { rpc Rate(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; } }
"""
MANIFEST = """\
mesh: shop
protos: [protos]
zones: [a, b, c]
external:
  bank: {address: "bank.example.org:5432", tls: {server_name: bank.example.org}}
  rates: {address: "rates.example.org:443", serves: [RateService], tls: {server_name: rates.example.org}}
services:
  orders:
    run: python -m orders
    serves: [OrderService]
    replicas: %(replicas)d
    external: [bank]
    calls:
      stock: [StockService/*]
      rds: [ReportService/Report]
      rates: [RateService/Rate]
    traffic:
      load_balancing: {policy: maglev, hash_on: {header: x-user}}
      max_request_bytes: 65536
      admission_control: {success_rate_threshold: 90}
      headers: {request: {set: {x-team: "100%% \\"orders\\""}}, response: {remove: [x-debug]}}
      routing:
        match: [{headers: {x-canary: always}, to: orders-next}]
        split: {orders: 90, orders-next: 10}
      methods:
        OrderService/GetOrder: {hedging: {delay: 100ms, attempts: 1}}
        OrderService/BuyOrder:
          rate_limit: {requests: 100, per: 1s, burst: 200, callers: {rds: {requests: 10}}}
          faults: {abort: {code: UNAVAILABLE, percent: 5}, headers: {x-chaos: please}}
  orders-next: {version_of: orders, run: python -m orders, replicas: %(replicas)d}
  stock:
    run: python -m stock
    serves: [StockService]
    replicas: %(replicas)d
    listen: 127.0.0.1:7000
    traffic:
      load_balancing: {policy: ring_hash, hash_on: {field: customer}, weights: [3, 1], failover: [c]}
      session_persistence: {header: x-session}
      adaptive_concurrency: {min_concurrency: 3, max_concurrency: 200}
  rds:
    run: python -m reports
    serves: [ReportService]
    replicas: %(replicas)d
    zones: [c]
    calls: {orders: [OrderService/GetOrder, OrderService/WatchOrders, OrderService/BuyOrder]}
  route:
    run: python -m route
    serves: [RouteService]
    replicas: %(replicas)d
    calls: {orders: [OrderService/Upload, OrderService/Chat], rds: [ReportService/Report]}
gateway:
  expose:
    orders: [OrderService/*]
    stock: [StockService/Count]
"""


def rich_mesh(folder: Path, *, replicas: int, manifest: str = MANIFEST) -> Mesh:
    """Write the mesh into a folder and analyse it."""
    (folder / "protos").mkdir(exist_ok=True)
    (folder / "protos" / "shop.proto").write_text(PROTO)
    path = folder / "mesh.yaml"
    path.write_text(manifest % {"replicas": replicas})
    analysis = check_manifest(path)
    assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
    return analysis.mesh
