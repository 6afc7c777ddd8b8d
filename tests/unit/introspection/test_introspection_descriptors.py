"""The cut keeps what is exposed, what that needs, and nothing else."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from generator.catalog.protoc import Source, compile_sources
from generator.introspection.descriptors import cut_down


def names(files: descriptor_pb2.FileDescriptorSet) -> dict[str, list[str]]:
    return {file.name: sorted(message.name for message in file.message_type) for file in files.file}


def test_only_exposed_methods_and_the_messages_they_reach_are_kept(shop: descriptor_pb2.FileDescriptorSet) -> None:
    cut = cut_down(shop, {"shop.v1.Shop": frozenset({"Buy", "Watch"})})
    assert names(cut) == {
        "google/protobuf/timestamp.proto": ["Timestamp"],
        "shop/v1/shop.proto": ["BuyRequest", "BuyResponse", "Order", "Price"],
    }
    (file,) = (file for file in cut.file if file.name == "shop/v1/shop.proto")
    assert [service.name for service in file.service] == ["Shop"]
    assert [method.name for method in file.service[0].method] == ["Buy", "Watch"]
    assert [enum.name for enum in file.enum_type] == ["Colour"]
    assert list(file.dependency) == ["google/protobuf/timestamp.proto"]


def test_custom_options_go_and_protobufs_own_stay(shop: descriptor_pb2.FileDescriptorSet) -> None:
    cut = cut_down(shop, {"shop.v1.Shop": frozenset({"Buy"})})
    assert b"id must be short" in shop.SerializeToString()
    assert b"id must be short" not in cut.SerializeToString()
    (file,) = (file for file in cut.file if file.service)
    assert file.service[0].method[0].options.idempotency_level == descriptor_pb2.MethodOptions.IDEMPOTENT
    prices = next(message for message in file.message_type if message.name == "BuyResponse").nested_type[0]
    assert prices.options.map_entry


def test_the_result_loads_into_an_empty_pool(shop: descriptor_pb2.FileDescriptorSet) -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in cut_down(shop, {"shop.v1.Shop": frozenset({"Watch"})}).file:
        pool.Add(file)
    assert pool.FindServiceByName("shop.v1.Shop").methods_by_name.keys() == ["Watch"]
    with pytest.raises(KeyError):
        pool.FindMessageTypeByName("shop.v1.Secret")


def test_nothing_exposed_is_nothing_told(shop: descriptor_pb2.FileDescriptorSet) -> None:
    assert not cut_down(shop, {}).file


@pytest.mark.parametrize(
    "exposed", [{"shop.v1.Nothing": frozenset({"Buy"})}, {"shop.v1.Shop": frozenset({"Buy", "Sell"})}]
)
def test_what_does_not_exist_is_an_error(
    shop: descriptor_pb2.FileDescriptorSet, exposed: dict[str, frozenset[str]]
) -> None:
    with pytest.raises(KeyError, match=r"no such service|has no method Sell"):
        cut_down(shop, exposed)


OLD = """
syntax = "proto2";
import "google/protobuf/descriptor.proto";
import "internal.proto";
service Desk { rpc Declare(Declaration) returns (Declaration); }
message Declaration { required string id = 1; repeated group Line = 2 { required string code = 3; } extensions 100 to 199; }
message Around {
  optional string unused = 1;
  extend google.protobuf.FieldOptions { optional string rule = 50002; }
  extend Hidden { optional string seal = 100; }
  extend Declaration { optional Around around = 101; }
}
extend Declaration { optional string vat_number = 102; }
extend google.protobuf.MessageOptions { optional string secret_of_the_house = 50003; }
"""
INTERNAL = """
syntax = "proto2";
message Hidden { extensions 100; }
"""


@pytest.fixture
def desk(tmp_path: Path) -> descriptor_pb2.FileDescriptorSet:
    """Proto2 without a package, with extensions of every kind."""
    (tmp_path / "desk.proto").write_text(OLD)
    (tmp_path / "internal.proto").write_text(INTERNAL)
    sources = tuple(Source(root=tmp_path, name=name) for name in ("desk.proto", "internal.proto"))
    return descriptor_pb2.FileDescriptorSet.FromString(compile_sources((tmp_path,), sources))


def test_regression_proto2_loads_into_a_pool(desk: descriptor_pb2.FileDescriptorSet) -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in cut_down(desk, {"Desk": frozenset({"Declare"})}).file:
        pool.Add(file)
    assert pool.FindMessageTypeByName("Declaration").fields_by_name["id"].is_required
    assert pool.FindMessageTypeByName("Declaration.Line").fields_by_name["code"].is_required


def test_regression_extensions_of_exposed_messages_stay(desk: descriptor_pb2.FileDescriptorSet) -> None:
    cut = cut_down(desk, {"Desk": frozenset({"Declare"})})
    pool = descriptor_pool.DescriptorPool()
    for file in cut.file:
        pool.Add(file)
    declaration = pool.FindMessageTypeByName("Declaration")
    assert {field.full_name for field in pool.FindAllExtensions(declaration)} == {"vat_number", "Around.around"}
    assert names(cut) == {"desk.proto": ["Around", "Declaration"]}
    assert b"secret_of_the_house" not in cut.SerializeToString()
