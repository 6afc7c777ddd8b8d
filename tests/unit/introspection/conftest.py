"""A small protobuf with something to hide, compiled by the real compiler."""

from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

SHOP = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/descriptor.proto";
import "shop/v1/secret.proto";
extend google.protobuf.FieldOptions { string rule = 50001; }
service Shop {
  rpc Buy(BuyRequest) returns (BuyResponse) { option idempotency_level = IDEMPOTENT; }
  rpc Watch(BuyRequest) returns (stream Order.Line);
  rpc Burn(BurnRequest) returns (BuyResponse);
}
service Internal { rpc Lock(BuyRequest) returns (shop.v1.Secret); }
message BuyRequest { string id = 1 [(rule) = "id must be short"]; Colour colour = 2; }
message BuyResponse { Order order = 1; map<string, Price> prices = 2; }
message Order { message Line { google.protobuf.Timestamp time = 1; Order order = 2; } repeated Line lines = 1; }
message Price { int64 amount = 1; }
message BurnRequest { string reason = 1; }
enum Colour { COLOUR_UNSPECIFIED = 0; COLOUR_RED = 1; }
"""
SECRET = """
syntax = "proto3";
package shop.v1;
message Secret { bytes key = 1; }
"""


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorSet:
    """The descriptor set of two files, imports included."""
    root = tmp_path_factory.mktemp("protos")
    (root / "shop" / "v1").mkdir(parents=True)
    (root / "shop" / "v1" / "shop.proto").write_text(SHOP)
    (root / "shop" / "v1" / "secret.proto").write_text(SECRET)
    out = root / "set.binpb"
    well_known = str(files("grpc_tools") / "_proto")
    words = ["protoc", f"-I{root}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={out}"]
    assert protoc.main([*words, "shop/v1/shop.proto"]) == 0
    return descriptor_pb2.FileDescriptorSet.FromString(Path(out).read_bytes())
