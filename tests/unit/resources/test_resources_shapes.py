"""A shape filled in is the resource that would be made of the whole JSON; where it cannot be, there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.resources import (
    OPEN,
    Resource,
    ResourceError,
    ResourceType,
    Scalar,
    UnliftableError,
    fill,
    make_resource,
    open_key,
    shape_of,
)

CLUSTER, LISTENER = ResourceType.CLUSTER, ResourceType.LISTENER
RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
SOCKET: dict[str, Any] = {"socket_address": {"address": OPEN, "port_value": OPEN}}
TREE: dict[str, Any] = {
    "name": OPEN,
    "type": OPEN,
    "connect_timeout": OPEN,
    "per_connection_buffer_limit_bytes": OPEN,
    "load_assignment": {"cluster_name": OPEN, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": SOCKET}}]}]},
}
"""Text, an enum, a duration, a wrapped integer with a rule, nested text and an integer with a range."""
GOOD: tuple[Scalar, ...] = ("a", "STATIC", "0.25s", 4096, "a", "127.0.0.1", 80)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1)


def put(tree: Any, values: list[Scalar]) -> Any:
    """The JSON with the values in the holes, by the simplest means there is."""
    if tree is OPEN:
        return values.pop(0)
    if isinstance(tree, dict):
        found: dict[str, Any] = {}
        for key, item in tree.items():
            name = str(values.pop(0)) if key.startswith("\ue000") else key
            assert name not in found
            found[name] = put(item, values)
        return found
    return [put(item, values) for item in tree] if isinstance(tree, list) else tree


def both(kind: ResourceType, tree: dict[str, Any], values: tuple[Scalar, ...]) -> tuple[Resource | None, Resource]:
    return fill(shape_of(kind, tree), values), make_resource(kind, put(copy.copy(tree), list(values)))


def assert_same(filled: Resource | None, made: Resource) -> None:
    assert filled is not None
    assert (filled.name, filled.version, filled.uses) == (made.name, made.version, made.uses)
    assert (filled.text, filled.body, filled.type) == (made.text, made.body, made.type)
    assert filled.message == made.message


@given(name=TEXTS, address=TEXTS, port=st.integers(0, 65_535), limit=st.integers(0, 2**32 - 1))
def test_good_values_make_the_same_resource(name: str, address: str, port: int, limit: int) -> None:
    assert_same(*both(CLUSTER, TREE, (name, "STATIC", "0.25s", limit, name, address, port)))


WRONG: tuple[tuple[int, Scalar], ...] = (
    (0, ""),
    (0, 7),
    (1, "static"),
    (1, 0),
    (2, "250ms"),
    (2, "0s"),
    (2, 1),
    (3, -1),
    (3, 2**32),
    (3, "5"),
    (4, 1),
    (5, ""),
    (6, 65_536),
    (6, "80"),
)


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_wrong_value_makes_none(place: int, value: Scalar) -> None:
    values = (*GOOD[:place], value, *GOOD[place + 1 :])
    shape = shape_of(CLUSTER, TREE)
    assert fill(shape, values) is None
    assert fill(shape, GOOD) is not None, "a wrong value leaves no trace"
    assert fill(shape, values) is None
    with pytest.raises(ResourceError):
        make_resource(CLUSTER, put(TREE, list(values)))


@pytest.mark.parametrize("values", [GOOD[:-1], (*GOOD, 1), ()])
def test_too_few_or_too_many_values_make_none(values: tuple[Scalar, ...]) -> None:
    assert fill(shape_of(CLUSTER, TREE), values) is None


def policies(*keys: str) -> dict[str, Any]:
    """A listener whose RBAC policies have these keys, each with a hole in it."""
    policy = {"permissions": [{"any": True}], "principals": [{"authenticated": {"principal_name": {"exact": OPEN}}}]}
    rules = {"action": "ALLOW", "policies": dict.fromkeys(keys, policy)}
    filters = [
        {"name": "envoy.filters.http.rbac", "typed_config": {"@type": RBAC, "rules": rules}},
        {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}},
    ]
    manager = {
        "@type": MANAGER,
        "stat_prefix": OPEN,
        "rds": {"route_config_name": OPEN, "config_source": {"ads": {}}},
        "http_filters": filters,
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": OPEN, "address": SOCKET, "filter_chains": [chain]}


@given(keys=st.lists(TEXTS, min_size=2, max_size=2, unique=True), literal=st.sampled_from(["b", "\x00", "zz", "é"]))
def test_keys_may_be_anything_and_are_sorted_as_they_are(keys: list[str], literal: str) -> None:
    if literal in keys:
        return
    tree = policies(open_key(0), literal, open_key(2))
    assert_same(*both(LISTENER, tree, ("l", "a", 1, "s", "egress", keys[0], "x", "y", keys[1], "z")))


@pytest.mark.parametrize("hostile", ["rds", "route", "sds_config", "@type", "envoy_grpc", "\ue000", "\ue0000\ue000"])
def test_keys_that_look_like_configuration_are_keys(hostile: str) -> None:
    filled, made = both(LISTENER, policies(open_key(0)), ("l", "a", 1, "s", "egress", hostile, "x"))
    assert_same(filled, made)
    assert made.uses == (("route", "egress"),)


def test_a_key_that_stands_twice_makes_none() -> None:
    begin: tuple[Scalar, ...] = ("l", "a", 1, "s", "egress")
    beside_literal = shape_of(LISTENER, policies(open_key(0), "b"))
    assert fill(beside_literal, (*begin, "b", "x", "y")) is None
    assert fill(beside_literal, (*begin, "a", "x", "y")) is not None
    both_open = shape_of(LISTENER, policies(open_key(0), open_key(1)))
    assert fill(both_open, (*begin, "a", "x", "a", "y")) is None
    assert fill(both_open, (*begin, "b", "x", "a", "y")) is not None


def test_a_number_is_no_key() -> None:
    assert fill(shape_of(LISTENER, policies(open_key(0))), ("l", "a", 1, "s", "egress", 7, "x")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"nam": OPEN},
        {"type": "NO_SUCH_TYPE"},
        {"type": "STATIC", "cluster_type": {"name": OPEN}},
        {"health_checks": [{"timeout": OPEN}]},
        {"circuit_breakers": OPEN},
        {"max_requests_per_connection": OPEN},
    ],
)
def test_what_is_wrong_whatever_stands_in_the_holes_has_no_shape(change: dict[str, Any]) -> None:
    with pytest.raises((ResourceError, UnliftableError)):
        shape_of(CLUSTER, {**TREE, **change})


def test_a_literal_that_looks_like_a_hole_has_no_shape() -> None:
    with pytest.raises(UnliftableError):
        shape_of(CLUSTER, {**TREE, "alt_stat_name": "\ue000"})


def test_a_type_cannot_be_left_open() -> None:
    options = {"x": {"@type": OPEN}}
    with pytest.raises(ResourceError):
        shape_of(CLUSTER, {**TREE, "typed_extension_protocol_options": options})


def test_a_list_that_must_not_repeat_an_item_is_not_decided_without_them() -> None:
    tree = {"stats_config": {"histogram_bucket_settings": [{"match": {"exact": "x"}, "buckets": [OPEN, OPEN]}]}}
    with pytest.raises(UnliftableError, match="hashed"):
        shape_of(ResourceType.BOOTSTRAP, tree)
