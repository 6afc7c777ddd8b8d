"""Strict decoding: what is refused, under which path, and that protobuf's own parser reads the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from google.protobuf import json_format

from generator.render import render
from generator.resources import ResourceError, ResourceType, decode
from generator.resources.descriptors import message_class, pool
from generator.resources.references import every
from support.meshes import repository_mesh, repository_placement

CLUSTER = ResourceType.CLUSTER.value
GOOD: dict[str, Any] = {"name": "a", "connect_timeout": "0.25s", "type": "STATIC"}
HTTP2 = {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 5}},
}


def problems(value: dict[str, Any], type_name: str = CLUSTER) -> list[str]:
    with pytest.raises(ResourceError) as caught:
        decode(type_name, value, "Cluster a")
    return [str(problem).removeprefix("Cluster a: ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"nam": "x"}, "nam: Cluster has no field 'nam'"),
        ({"connectTimeout": "1s"}, "connectTimeout: Cluster has no field 'connectTimeout'"),
        ({"name": ""}, "name: needs at least 1 characters"),
        ({"name": 7}, "name: must be text, not 7"),
        ({"connect_timeout": "250ms"}, 'connect_timeout: must be text like "0.25s", not'),
        ({"connect_timeout": 1}, 'connect_timeout: must be text like "0.25s", not 1'),
        ({"connect_timeout": "0s"}, "connect_timeout: must be greater than 0 ns"),
        ({"type": "static"}, "type: DiscoveryType has no value 'static'"),
        ({"type": 0}, "type: DiscoveryType has no value 0"),
        ({"type": "STATIC", "cluster_type": {"name": "x"}}, "only one of type, cluster_type may be set"),
        ({"max_requests_per_connection": 5}, "max_requests_per_connection: is deprecated"),
        ({"per_connection_buffer_limit_bytes": -1}, "per_connection_buffer_limit_bytes: must lie between 0 and"),
        ({"per_connection_buffer_limit_bytes": 2**32}, "per_connection_buffer_limit_bytes: must lie between 0 and"),
        ({"per_connection_buffer_limit_bytes": "5"}, "per_connection_buffer_limit_bytes: must be an integer"),
        ({"per_connection_buffer_limit_bytes": 5.0}, "per_connection_buffer_limit_bytes: must be an integer"),
        ({"ignore_health_on_host_removal": "yes"}, "ignore_health_on_host_removal: must be true or false"),
        ({"health_checks": {}}, "health_checks: must be a list"),
        ({"health_checks": [{"timeout": "1s"}]}, "health_checks[0].interval: must be set"),
        ({"circuit_breakers": []}, "circuit_breakers: must be an object"),
        (
            {"typed_extension_protocol_options": {"a": {"@type": "type.googleapis.com/envoy.api.v2.Cluster"}}},
            "typed_extension_protocol_options['a'].@type: Envoy's API has no",
        ),
        ({"typed_extension_protocol_options": {"a": {}}}, "typed_extension_protocol_options['a']: needs an object"),
        (
            {"typed_extension_protocol_options": {"a": {**HTTP2, "explicit_http_config": {}}}},
            "typed_extension_protocol_options['a'].explicit_http_config: one of http_protocol_options",
        ),
        (
            {"typed_extension_protocol_options": {"a": {**HTTP2, "typo": 1}}},
            "typed_extension_protocol_options['a'].typo: HttpProtocolOptions has no field",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], problem: str) -> None:
    assert any(found.startswith(problem) for found in problems({**GOOD, **change}))


LONE_SURROGATE = "\ud800"
PREFIX = "type.googleapis.com/"
STRUCT = {"@type": f"{PREFIX}google.protobuf.Struct"}


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"not_rule": value}
    return value


@pytest.mark.parametrize(
    ("type_name", "value", "problem"),
    [
        pytest.param(CLUSTER, {**GOOD, "name": LONE_SURROGATE}, "name: must be text without lone", id="surrogate"),
        pytest.param(CLUSTER, {**GOOD, LONE_SURROGATE: 1}, "\ud800: Cluster has no field", id="surrogate as field"),
        pytest.param(CLUSTER, {**GOOD, "type": LONE_SURROGATE}, "type: DiscoveryType has no", id="surrogate as enum"),
        pytest.param(
            CLUSTER,
            {**GOOD, "typed_extension_protocol_options": {"a": {"@type": PREFIX + LONE_SURROGATE}}},
            "typed_extension_protocol_options['a'].@type: Envoy's API has no",
            id="surrogate as type",
        ),
        pytest.param(
            CLUSTER,
            {**GOOD, "per_connection_buffer_limit_bytes": 10**5000},
            "per_connection_buffer_limit_bytes: must lie between 0 and 4294967295, not something too large",
            id="more digits than Python writes",
        ),
        pytest.param(
            "envoy.type.v3.Percent", {"value": float("nan")}, "value: must be finite, not nan", id="not a number"
        ),
        pytest.param("envoy.type.v3.Percent", {"value": 10**400}, "value: must be finite", id="too large for a float"),
        pytest.param(
            "envoy.config.core.v3.DataSource", {"inline_bytes": "é"}, "inline_bytes: must be base64", id="base64"
        ),
        pytest.param(
            "envoy.config.rbac.v3.Permission", nested(3000), ".".join(["not_rule"] * 64) + ": is nested", id="too deep"
        ),
        pytest.param(
            "envoy.config.rbac.v3.Permission", {"any": False}, "any: must be True", id="a boolean that must be true"
        ),
        pytest.param(
            "envoy.config.metrics.v3.HistogramBucketSettings",
            {"match": {"exact": "a"}, "buckets": [1, 1.0]},
            "buckets: must not repeat an item",
            id="the same number in two spellings",
        ),
        pytest.param(
            "envoy.config.core.v3.QuicKeepAliveSettings",
            {"initial_interval": "0.0005s"},
            "initial_interval: must be at most 0 ns or at least 1000000 ns",
            id="a range that is turned round",
        ),
        pytest.param(
            CLUSTER,
            {**GOOD, "typed_extension_protocol_options": {"a": STRUCT}},
            "typed_extension_protocol_options['a']: needs `value`, and nothing else",
            id="a well-known type without its value",
        ),
        pytest.param(
            CLUSTER,
            {**GOOD, "typed_extension_protocol_options": {"a": {**STRUCT, "value": {"b": float("inf")}}}},
            "typed_extension_protocol_options['a'].value: must be Struct of finite numbers",
            id="infinite inside a struct",
        ),
    ],
)
def test_odd_values_are_problems_and_never_exceptions(type_name: str, value: dict[str, Any], problem: str) -> None:
    assert any(found.removeprefix("x: ").startswith(problem) for found in odd_problems(type_name, value))


def odd_problems(type_name: str, value: dict[str, Any]) -> list[str]:
    with pytest.raises(ResourceError) as caught:
        decode(type_name, value, "x")
    return [f"{problem.path}: {problem.text}" for problem in caught.value.problems]


def test_a_range_that_is_turned_round_allows_both_sides() -> None:
    for interval in ("0s", "0.001s", "30s"):
        decode("envoy.config.core.v3.QuicKeepAliveSettings", {"initial_interval": interval}, "x")


def test_keys_of_a_map_become_numbers() -> None:
    made: Any = decode("google.api.expr.v1alpha1.SourceInfo", {"positions": {"-7": 3}}, "x")
    assert dict(made.positions) == {-7: 3}


def test_null_is_a_value_where_protobuf_says_so() -> None:
    made: Any = decode("google.api.expr.v1alpha1.Constant", {"null_value": None}, "x")
    assert made.WhichOneof("constant_kind") == "null_value"


def test_all_problems_are_told_at_once() -> None:
    assert len(problems({"name": "", "typo": 1, "type": "X", "connect_timeout": "soon"})) == 4


def test_every_resource_of_the_mesh_reads_as_protobufs_own_parser_reads_it() -> None:
    resources = render(repository_mesh(), repository_placement())
    checked = 0
    for workload in resources.workloads:
        for resource in every(workload):
            ours, theirs = resource.message, message_class(resource.message.DESCRIPTOR)()
            json_format.ParseDict(copy.deepcopy(dict(resource.body)), theirs, descriptor_pool=pool())
            assert as_json(ours) == as_json(theirs), resource.name
            checked += 1
    assert checked > 50


def as_json(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool())
