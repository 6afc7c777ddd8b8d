"""A small complete mesh of another team, into which the reference's examples fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PROTO = """\
syntax = "proto3";
package shop.v1;
message Order { string order_id = 1; string customer_id = 2; }
service OrderService {
  rpc GetOrder(Order) returns (Order) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc PutOrder(Order) returns (Order) { option idempotency_level = IDEMPOTENT; }
  rpc PlaceOrder(Order) returns (Order);
  rpc WatchOrders(Order) returns (stream Order) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Upload(stream Order) returns (Order);
  rpc Chat(stream Order) returns (stream Order);
}
service CheckoutService { rpc Buy(Order) returns (Order); }
service RateService { rpc GetRate(Order) returns (Order) { option idempotency_level = NO_SIDE_EFFECTS; } }
"""
MANIFEST = """\
mesh: shop
protos: [protos]
services:
  checkout:
    run: python -m checkout
    serves: [shop.v1.CheckoutService]
    calls: {orders: [OrderService/*]}
  orders:
    run: python -m orders
    serves: [shop.v1.OrderService]
  orders-next:
    run: python -m orders.next
    version_of: orders
    replicas: 1
gateway:
  expose:
    checkout: [CheckoutService/*]
    orders: [OrderService/GetOrder, OrderService/PlaceOrder]
"""


class Loader(yaml.SafeLoader):
    """YAML 1.2 as the manifest reads it: `on` is a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def write_protos(folder: Path) -> None:
    """The protobufs beside a manifest."""
    (folder / "protos").mkdir(exist_ok=True)
    (folder / "protos" / "shop.proto").write_text(PROTO, encoding="utf-8")


def with_piece(piece: str, manifest: str = MANIFEST) -> str:
    """A manifest with a piece of another one laid over it."""
    return yaml.safe_dump(laid_over(Loader(manifest).get_data(), Loader(piece).get_data()), sort_keys=False)


def laid_over(below: Any, above: Any) -> Any:
    """Mappings are joined, anything else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: laid_over(below.get(key), value) for key, value in above.items()}}
